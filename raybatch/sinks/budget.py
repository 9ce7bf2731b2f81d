"""Memory that threads of a process share by asking for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """`limit` bytes, to be used by any number of threads. Counts what it is told, and measures nothing."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def using(self, size: int) -> Iterator[None]:
        """Wait until `size` more bytes are free; one that wants more than all has them alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= self._limit)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()
