"""A store in memory, for tests: honest about conditions and listings, and able to fail on purpose."""

from __future__ import annotations

import enum
import io
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO

from raybatch.errors import StoreError
from raybatch.store.base import Entry


class Outcome(enum.Enum):
    """What becomes of one operation."""

    DONE = "done"
    LOST = "lost"  # fails, and had no effect
    UNSURE = "unsure"  # has its effect, and fails: the answer was lost
    REPEATED = "repeated"  # has its effect, its answer is lost, and sent again it meets its own effect


Hook = Callable[[str, str], Outcome]
"""Called before each operation with its name and key; decides, or raises whatever it likes (a crash)."""


def always_done(operation: str, key: str) -> Outcome:
    """The hook of a store that does not fail."""
    return Outcome.DONE


class MemoryStore:
    """See `raybatch.store.base.Store`. Lives in one process: not picklable.

    `objects` may be shared between stores with different hooks, as one bucket is between clients.
    """

    def __init__(self, objects: dict[str, bytes] | None = None, *, hook: Hook = always_done) -> None:
        self.url = "memory:"
        self.objects = {} if objects is None else objects
        self.hook = hook
        self._lock = threading.Lock()

    def __getstate__(self) -> object:
        raise TypeError("a MemoryStore cannot travel to another process: use a LocalStore")

    def create(self, key: str, data: bytes | memoryview) -> bool:
        """See `Store.create`."""
        held = bytes(data)
        return self._write("create", key, lambda: held)

    def put(self, key: str, data: bytes | memoryview) -> None:
        """See `Store.put`."""
        outcome = self.hook("put", key)
        if outcome is not Outcome.LOST:
            self.objects[key] = bytes(data)
        _raise_unless_done(outcome, "put", key)

    def link(self, existing: str, key: str) -> bool:
        """See `Store.link`."""
        return self._write("link", key, lambda: self.objects[existing])

    def read(self, key: str) -> bytes:
        """See `Store.read`."""
        self._fail_or_pass("read", key)
        return self.objects[key]

    def open(self, key: str) -> BinaryIO:
        """See `Store.open`."""
        self._fail_or_pass("open", key)
        return io.BytesIO(self.objects[key])

    def list(self, prefix: str) -> Iterator[Entry]:
        """See `Store.list`."""
        if prefix and not prefix.endswith("/"):
            raise ValueError(f"a listing is of a folder, which ends in '/': {prefix!r}")
        self._fail_or_pass("list", prefix)
        found = sorted((key, len(data)) for key, data in self.objects.items() if key.startswith(prefix))
        return (Entry(key=key, size=size) for key, size in found)

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        outcome = self.hook("delete", key)
        if outcome is not Outcome.LOST:
            self.objects.pop(key, None)
        _raise_unless_done(outcome, "delete", key)

    def probe(self) -> None:
        """See `Store.probe`. Holds by construction."""
        self._fail_or_pass("probe", "")

    def _write(self, operation: str, key: str, data: Callable[[], bytes]) -> bool:
        outcome = self.hook(operation, key)
        made = False
        if outcome is not Outcome.LOST:
            with self._lock:
                held = data()
                made = key not in self.objects
                self.objects.setdefault(key, held)
        _raise_unless_done(outcome, operation, key)
        return made and outcome is not Outcome.REPEATED

    def _fail_or_pass(self, operation: str, key: str) -> None:
        # Reading has no effect to be unsure of
        _raise_unless_done(self.hook(operation, key), operation, key)


def _raise_unless_done(outcome: Outcome, operation: str, key: str) -> None:
    if outcome in (Outcome.LOST, Outcome.UNSURE):
        raise StoreError(f"memory: {operation} {key}: injected fault ({outcome.value})")
