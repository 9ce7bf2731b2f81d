"""A bound on what is in flight at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Lets requests in, up to `limit` at a time. Thread-safe; for one process."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._free = limit
        self._changed = threading.Condition()

    @contextmanager
    def enter(self, requests: int = 1) -> Iterator[None]:
        """Wait for room for so many requests (at most `limit`), and hold it."""
        wanted = min(requests, self.limit)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= wanted)
            self._free -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()
