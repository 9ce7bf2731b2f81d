"""What `ours` and `plain` share: Ray started outside the clock, and the engine's own times."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from raybatch import Snapshot
from raybatch.engines.pool import PoolStatus
from raybatch.runtime import cluster


@contextlib.contextmanager
def ray_started(first: bool) -> Iterator[None]:
    """With `first`, a local Ray is there before the block; else the block starts its own."""
    with cluster.connect() if first else contextlib.nullcontext():
        yield


class EngineTimes:
    """A reporter that remembers when the first engine was ready, and when it gave its last answer."""

    def __init__(self) -> None:
        self._engines: Sequence[PoolStatus] = ()

    def update(self, snapshot: Snapshot) -> None:
        self._engines = snapshot.engines or self._engines

    def note(self, text: str) -> None:
        pass

    def times(self) -> dict[str, float | None]:
        """Seconds since the epoch; None without an engine."""
        if not self._engines:
            return {"ready_at": None, "last_reply_at": None}
        first = self._engines[0]
        return {"ready_at": first.ready_at, "last_reply_at": first.last_reply_at}
