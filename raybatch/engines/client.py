"""A stage's side of an engine pool: cuts requests into slices, sends them, and survives dying replicas.

Runs inside a Ray Data task. What a replica has answered is kept when another one dies; only slices without an
answer are sent again. A unit whose slices were there at two deaths is suspect: from then on each of its
unanswered slices has a replica to itself, and is halved at each death until the row that kills is alone and
becomes a failure. So one such row costs 3 + log2(slice_rows) deaths, and none is convicted in company.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raybatch.engines.base import Reply

DEATHS_UNTIL_SUSPECT = 2

Requests = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class PoolClient:
    """Implements `EngineClient` over a pool actor. Holds only the actor's handle: picklable."""

    pool: Any
    slice_rows: int

    def call(self, requests: Requests) -> list[Reply]:
        """See `EngineClient.call`. Raises the pool's `EngineError` when no replica can be had."""
        return _Call(self.pool, requests, self.slice_rows).run()


@dataclass
class _Call:
    pool: Any
    requests: Requests
    slice_rows: int
    killed: set[str] = field(default_factory=set)  # replicas that died while they had rows of this call
    waiting: deque[range] = field(default_factory=deque)

    def run(self) -> list[Reply]:
        replies: list[Reply | None] = [None] * len(self.requests)
        rows = range(len(self.requests))
        self.waiting.extend(rows[i : i + self.slice_rows] for i in range(0, len(rows), self.slice_rows))
        while self.waiting:
            suspect = len(self.killed) >= DEATHS_UNTIL_SUSPECT
            answered = self._one_alone() if suspect else self._all_together()
            for part, found in answered:
                for index, reply in zip(part, found, strict=True):
                    replies[index] = reply
        missing = replies.count(None)
        assert not missing, f"{missing} of {len(replies)} requests without a reply"
        return [reply for reply in replies if reply is not None]

    def _all_together(self) -> list[tuple[range, list[Reply]]]:
        """Send every waiting slice; those whose replica dies wait again. Stops sending when suspect."""
        import ray

        answered = []
        asked = {self.pool.acquire.remote(len(part)): part for part in self.waiting}
        self.waiting.clear()
        running: dict[Any, tuple[range, Any]] = {}
        while asked or running:
            done, _ = ray.wait([*asked, *running], num_returns=1)
            ref = done[0]
            if ref in asked:
                part, lease = asked.pop(ref), ray.get(ref)
                if len(self.killed) >= DEATHS_UNTIL_SUSPECT:
                    self.pool.release.remote(lease.id)
                    self.waiting.append(part)
                else:
                    running[self._send(lease, part)] = (part, lease)
                continue
            part, lease = running.pop(ref)
            found = self._receive(ref, lease)
            if found is None:
                self.waiting.append(part)
            else:
                answered.append((part, found))
        return answered

    def _one_alone(self) -> list[tuple[range, list[Reply]]]:
        """Give one slice a replica of its own; a death halves it, and convicts a single row."""
        import ray

        part = self.waiting.popleft()
        lease = ray.get(self.pool.acquire.remote(len(part), exclusive=True))
        found = self._receive(self._send(lease, part), lease)
        if found is not None:
            return [(part, found)]
        if len(part) == 1:
            message = "the engine's process died each time that it was given this row, also alone"
            return [(part, [Reply(failure="EngineKilled", message=message, attempts=len(self.killed))])]
        half = len(part) // 2
        self.waiting.extendleft((part[half:], part[:half]))
        return []

    def _send(self, lease: Any, part: range) -> Any:
        return lease.actor.run.remote(self.requests[part.start : part.stop], lease.id)

    def _receive(self, ref: Any, lease: Any) -> list[Reply] | None:
        """The replies, or None when the replica died with them."""
        import ray

        try:
            replies: list[Reply] = ray.get(ref)
        except ray.exceptions.RayActorError:
            self.killed.add(lease.replica)
            self.pool.release.remote(lease.id, died=True)
            return None
        self.pool.release.remote(lease.id, rows=len(replies))
        return replies
