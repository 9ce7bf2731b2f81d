"""The replicas of one engine, in an actor that the run owns.

Engines outlive datasets: the driver starts a pool per engine before the first unit is read, and stops it
after the last. Tasks `acquire` a replica for a slice and `release` it. The pool replaces replicas that die,
kills those that hang, and says why one that waits for a place is waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raybatch.engines import placement
from raybatch.engines.base import EngineSpec, Progress
from raybatch.engines.guardian import end_group
from raybatch.engines.replica import Replica
from raybatch.errors import EngineError, EngineLoadError, EnginePendingError

logger = logging.getLogger(__name__)

POLL_S = 1.0
# A holder sends its slice at once and releases at once: one that did neither for so long is dead.
LEASE_GRACE_S = 20.0
LOAD_ATTEMPTS = 3
# A row that kills engines costs 3 + log2(slice_rows) = 13 deaths at 1,024 rows (embeddings); more, without one
# reply in between, is an engine that dies of everything.
DEATHS_WITHOUT_REPLY = 18


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to send `rows` rows to one replica."""

    id: int
    replica: str
    actor: Any
    rows: int
    exclusive: bool = False
    granted: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, kw_only=True)
class ReplicaStatus:
    """One replica, for people. `state` is pending (`why` explains), loading or ready, since `seconds`."""

    name: str
    state: str
    why: str = ""
    seconds: float = 0.0
    in_flight: int = 0
    generated_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class PoolStatus:
    """One engine's replicas, and its sums since the pool started.

    `load_s` is how long the first replica took to load; `ready_at` and `last_reply_at` are seconds since the
    epoch, of the pool's node: rows / (last_reply_at - ready_at) is the rate of a run that kept it busy.
    """

    key: str
    kind: str
    model: str
    replicas: Sequence[ReplicaStatus]
    deaths: int
    rows: int
    generated_tokens: int
    load_s: float | None
    ready_at: float | None
    last_reply_at: float | None
    error: str | None
    describe: Mapping[str, Any]


@dataclass
class _Member:
    name: str
    actor: Any
    required: bool  # without it there is no run; the others are welcome when the cluster has room
    replaces: bool = False  # it follows one that died: needed only while no other is ready
    state: str = "pending"
    why: str = ""
    since: float = field(default_factory=time.monotonic)
    info: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    moved: float = field(default_factory=time.monotonic)  # when its counters last changed
    leases: dict[int, Lease] = field(default_factory=dict)

    def enter(self, state: str, why: str = "") -> None:
        self.state, self.why, self.since = state, why, time.monotonic()
        self.moved = self.since

    @property
    def rows(self) -> int:
        return sum(lease.rows for lease in self.leases.values())


@dataclass
class _Waiter:
    rows: int
    exclusive: bool
    future: asyncio.Future[Lease]


def choose(ready: Sequence[_Member], rows: int, capacity: int) -> _Member | None:
    """The replica for a slice of `rows`: the one with the fewest rows in flight, if it has room.

    The one place that dispatches: replace it to send by prefix, by length or by speed.
    """
    free = [m for m in ready if m.rows == 0 or m.rows + rows <= capacity]
    free = [m for m in free if not any(lease.exclusive for lease in m.leases.values())]
    return min(free, key=lambda m: m.rows, default=None)


class EnginePool:
    """See the module's docstring. An async actor: every method runs on one event loop, so no locks."""

    def __init__(self, spec: EngineSpec, *, can_grow: bool) -> None:
        self._spec = spec
        self._can_grow = can_grow  # whether waiting for a place can help: not on a cluster that we started
        self._names = itertools.count()
        self._lease_ids = itertools.count()
        self._members: list[_Member] = []
        self._waiters: deque[_Waiter] = deque()
        self._jobs: set[asyncio.Task[None]] = set()
        self._error: EngineError | None = None
        self._stopping = False
        self._deaths = self._deaths_without_reply = self._rows = self._tokens_of_dead = 0
        self._load_s: float | None = None
        self._ready_at: float | None = None
        self._last_reply_at: float | None = None
        self._describe: Mapping[str, Any] = {}

    async def start(self) -> None:
        """Ask for every replica; returns at once. The first ones are required, the rest are welcome."""
        for index in range(self._spec.replicas_max):
            self._add(required=index < self._spec.replicas_min)
        self._spawn(self._watch())

    async def acquire(self, rows: int, *, exclusive: bool = False) -> Lease:
        """Wait for a replica with room for `rows`; `exclusive` waits for an idle one and keeps it so.

        Raises the `EngineError` that ended the pool.
        """
        if self._error is not None:
            raise self._error
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiters.append(_Waiter(rows=rows, exclusive=exclusive, future=future))
        self._dispatch()
        return await future

    async def release(self, lease_id: int, *, rows: int = 0, died: bool = False) -> None:
        """Give a lease back: `rows` were answered, or the replica died. An unknown lease is no error."""
        member = next((m for m in self._members if lease_id in m.leases), None)
        if rows:
            self._rows += rows
            self._last_reply_at = time.time()
            self._deaths_without_reply = 0
        if member is None:
            return
        del member.leases[lease_id]
        if died:
            await self._bury(member, "its process died")
        self._dispatch()

    async def status(self) -> PoolStatus:
        """A snapshot; cheap."""
        now = time.monotonic()
        replicas = [
            ReplicaStatus(
                name=m.name,
                state=m.state,
                why=m.why,
                seconds=now - m.since,
                in_flight=m.rows,
                generated_tokens=m.progress.generated_tokens,
            )
            for m in self._members
        ]
        tokens = self._tokens_of_dead + sum(m.progress.generated_tokens for m in self._members)
        return PoolStatus(
            key=self._spec.key,
            kind=self._spec.kind,
            model=self._spec.model,
            replicas=replicas,
            deaths=self._deaths,
            rows=self._rows,
            generated_tokens=tokens,
            load_s=self._load_s,
            ready_at=self._ready_at,
            last_reply_at=self._last_reply_at,
            error=str(self._error) if self._error else None,
            describe=self._describe,
        )

    async def failure(self) -> EngineError | None:
        """The error that ended the pool, if one did."""
        return self._error

    async def processes(self) -> list[tuple[str, int]]:
        """(node id, process group) of every replica that runs: what must be gone after `stop`."""
        return [(m.info["node_id"], m.info["pgid"]) for m in self._members if m.info]

    async def stop(self) -> None:
        """Release everything; returns when no replica is left. Waiting and later calls fail."""
        self._stopping = True
        self._fail(EngineError(f"engine {self._spec.kind} {self._spec.model}: the pool was stopped"))
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*(self._kill(m) for m in self._members))
        self._members.clear()

    # -- bringing replicas up ---------------------------------------------------------------------------

    def _add(self, *, required: bool, replaces: bool = False, attempt: int = 1) -> None:
        name = f"{self._spec.key}-{next(self._names)}"
        actor = placement.create(Replica, self._spec)
        member = _Member(name=name, actor=actor, required=required, replaces=replaces)
        self._members.append(member)
        self._spawn(self._bring_up(member, attempt))

    async def _bring_up(self, member: _Member, attempt: int) -> None:
        import ray

        try:
            await self._place(member)
            member.enter("loading")
            self._describe = await asyncio.wait_for(member.actor.load.remote(), self._spec.load_timeout_s)
            self._load_s = self._load_s or time.monotonic() - member.since
            self._ready_at = self._ready_at or time.time()
        except EnginePendingError as error:
            await self._give_up(member, error)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, EngineError) else EngineLoadError(str(error))
            await self._give_up(member, cause)
        except (ray.exceptions.RayActorError, TimeoutError) as error:
            why = f"did not load within load_timeout_s = {self._spec.load_timeout_s:g} s"
            if not isinstance(error, TimeoutError):
                why = f"died while it loaded ({str(error).strip().splitlines()[0]})"
            await self._retry_load(member, attempt, why)
        else:
            member.enter("ready")
            self._dispatch()

    async def _place(self, member: _Member) -> None:
        deadline = time.monotonic() + self._spec.pending_timeout_s
        hello = asyncio.wrap_future(member.actor.hello.remote().future())
        while True:
            done, _ = await asyncio.wait([hello], timeout=2.0)
            if done:
                member.info = done.pop().result()
                return
            member.why = placement.explain(self._spec)
            hopeless = not self._can_grow and not placement.could_fit(self._spec)
            if not self._needed(member):
                deadline = time.monotonic() + self._spec.pending_timeout_s
            elif hopeless or time.monotonic() > deadline:
                waited = time.monotonic() - member.since
                raise EnginePendingError(f"{member.why}\n  waited {waited:.0f} s{_pending_choices(hopeless)}")

    async def _retry_load(self, member: _Member, attempt: int, why: str) -> None:
        self._remove(member)
        await self._kill(member)
        if attempt < LOAD_ATTEMPTS:
            self._add(required=member.required, replaces=member.replaces, attempt=attempt + 1)
        elif self._needed(member):
            what = f"engine {self._spec.kind} {self._spec.model} {why}, {attempt} times in a row"
            self._fail(EngineLoadError(what))

    async def _give_up(self, member: _Member, error: EngineError) -> None:
        self._remove(member)
        await self._kill(member)
        if self._needed(member):
            self._fail(error)
        else:
            logger.warning("replica %s of %s is given up: %s", member.name, self._spec.model, error)

    def _needed(self, member: _Member) -> bool:
        """Whether the run cannot go on without it."""
        if not member.replaces:
            return member.required
        return not any(other.state == "ready" for other in self._members if other is not member)

    # -- dispatch ---------------------------------------------------------------------------------------

    @property
    def _capacity(self) -> int:
        return self._spec.max_in_flight or int(self._describe.get("max_in_flight", 512))

    def _dispatch(self) -> None:
        while self._waiters and self._error is None:
            waiter = self._waiters[0]
            ready = [m for m in self._members if m.state == "ready"]
            if waiter.exclusive:
                ready = [m for m in ready if not m.leases]
            member = choose(ready, waiter.rows, self._capacity)
            if member is None:
                return  # first come, first served: an exclusive waiter is not overtaken for ever
            self._waiters.popleft()
            if waiter.future.done():
                continue
            lease = Lease(
                id=next(self._lease_ids),
                replica=member.name,
                actor=member.actor,
                rows=waiter.rows,
                exclusive=waiter.exclusive,
            )
            if not member.leases:
                member.moved = time.monotonic()
            member.leases[lease.id] = lease
            waiter.future.set_result(lease)

    # -- deaths -----------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            ready = [m for m in self._members if m.state == "ready"]
            await asyncio.gather(*(self._look_at(m) for m in ready))

    async def _look_at(self, member: _Member) -> None:
        import ray

        try:
            progress, active = await asyncio.wait_for(member.actor.progress.remote(), POLL_S * 5)
        except ray.exceptions.RayActorError:
            await self._bury(member, "its process died")
            return
        except TimeoutError:
            pass  # stopped, or busy: the watchdog decides
        else:
            if progress != member.progress or not member.leases:
                member.moved = time.monotonic()
            member.progress = progress
            self._expire(member, active)
        if member.state == "ready" and time.monotonic() - member.moved > self._spec.watchdog_s:
            await self._bury(member, f"it made no progress for watchdog_s = {self._spec.watchdog_s:g} s")

    def _expire(self, member: _Member, active: frozenset[int]) -> None:
        """Forget leases whose holder died: granted long ago, and the replica is not working on them."""
        now = time.monotonic()
        gone = [i for i, le in member.leases.items() if i not in active and now - le.granted > LEASE_GRACE_S]
        for lease_id in gone:
            del member.leases[lease_id]
        if gone:
            self._dispatch()

    async def _bury(self, member: _Member, why: str) -> None:
        """Make sure that it is dead and ask for another; once per replica."""
        if member not in self._members:
            return
        self._remove(member)
        self._deaths += 1
        self._deaths_without_reply += 1
        logger.warning("replica %s of %s is replaced: %s", member.name, self._spec.model, why)
        await self._kill(member)
        if self._deaths_without_reply > DEATHS_WITHOUT_REPLY:
            self._fail(
                EngineError(
                    f"engine {self._spec.kind} {self._spec.model}: its process died"
                    f" {self._deaths_without_reply} times without answering one request; last: {why}"
                )
            )
        elif not self._stopping and self._error is None:
            self._add(required=member.required, replaces=True)

    def _remove(self, member: _Member) -> None:
        member.enter("dead")
        self._tokens_of_dead += member.progress.generated_tokens
        if member in self._members:
            self._members.remove(member)

    async def _kill(self, member: _Member) -> None:
        import ray

        if member.info:
            # A stopped process takes no message from Ray; SIGKILL of its group, on its node, it takes.
            killing = ray.remote(end_group).options(**placement.on_node(member.info["node_id"]))
            with contextlib.suppress(Exception):  # the node may be gone, and then so is the process
                await asyncio.wait_for(killing.remote(member.info["pgid"]), 30)
        with contextlib.suppress(Exception):
            ray.kill(member.actor)

    # -- the end ----------------------------------------------------------------------------------------

    def _fail(self, error: EngineError) -> None:
        if self._error is None:
            self._error = error
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.future.done():
                waiter.future.set_exception(self._error)

    def _spawn(self, coroutine: Any) -> None:
        job = asyncio.get_running_loop().create_task(coroutine)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)


def _pending_choices(hopeless: bool) -> str:
    if hopeless:
        return (
            ", and this cluster cannot grow; ask for less (tensor_parallel_size, resources), set device: cpu,"
            " or run on a cluster that has it (RAY_ADDRESS)"
        )
    return "; add nodes, ask for less (tensor_parallel_size, replicas, resources), or raise pending_timeout_s"


def resolve_gpus(spec: EngineSpec, *, cluster_gpus: float) -> EngineSpec:
    """`spec` with a negative `num_gpus` replaced: that many where the cluster has GPUs, else none."""
    if spec.num_gpus >= 0:
        return spec
    return replace(spec, num_gpus=-spec.num_gpus if cluster_gpus > 0 else 0)
