"""Replicas that die, hang, cannot be placed or do not load. Real actors and processes, a simulated model."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import ray

from raybatch.engines.base import EngineSpec
from raybatch.engines.client import PoolClient
from raybatch.engines.guardian import members
from raybatch.engines.pool import EnginePool
from raybatch.errors import EngineLoadError, EnginePendingError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

Start = Callable[..., tuple[Any, PoolClient]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a pool of simulated engines; stops them all at the end."""
    pools = []

    def start(*, model: str = "m", can_grow: bool = False, **options: Any) -> tuple[Any, PoolClient]:
        spec = EngineSpec(kind="simulated", model=model, **options)
        pool = (
            ray.remote(EnginePool).options(num_cpus=0, max_concurrency=1000).remote(spec, can_grow=can_grow)
        )
        ray.get(pool.start.remote())
        pools.append(pool)
        return pool, PoolClient(pool=pool, slice_rows=spec.slice_rows)

    yield start
    for pool in pools:
        ray.get(pool.stop.remote())
        ray.kill(pool)


def requests(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"row{i}"} for i in range(count)]


def texts(replies: list[Any]) -> list[str | None]:
    return [r.value["outputs"][0]["text"] if r.value else None for r in replies]


def wait_until(condition: Callable[[], Any], *, deadline_s: float = 60) -> Any:
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def in_background(client: PoolClient, what: list[dict[str, str]]) -> Future[list[Any]]:
    return ThreadPoolExecutor(1).submit(client.call, what)


def process_groups(pool: Any) -> list[int]:
    return [group for _, group in ray.get(pool.processes.remote())]


def test_replies_come_in_the_order_of_requests(start: Start) -> None:
    _, client = start(slice_rows=7)
    assert texts(client.call(requests(100))) == [f"row{i}"[::-1] for i in range(100)]


def test_no_request_needs_no_engine(start: Start) -> None:
    _, client = start()
    assert client.call([]) == []


def test_several_replicas_share_the_work(start: Start) -> None:
    pool, client = start(
        replicas_min=2, replicas_max=2, max_in_flight=8, slice_rows=8, args={"seconds_per_row": 0.2}
    )
    wait_until(lambda: all(r.state == "ready" for r in ray.get(pool.status.remote()).replicas))
    client.call(requests(64))
    wait_until(lambda: all(r.generated_tokens > 0 for r in ray.get(pool.status.remote()).replicas))


def test_a_row_that_kills_the_engine_is_the_only_one_to_fail(start: Start) -> None:
    pool, client = start(args={"dies_on": "row21"}, slice_rows=16)
    replies = client.call(requests(48))
    assert [(i, r.failure) for i, r in enumerate(replies) if r.failure] == [(21, "EngineKilled")]
    # 3 deaths until the unit's slices go one at a time, and log2(16) halvings until the row is alone
    assert ray.get(pool.status.remote()).deaths <= 3 + 4


def test_a_row_that_hangs_the_engine_is_the_only_one_to_fail(start: Start) -> None:
    _, client = start(args={"hangs_on": "row2"}, slice_rows=4, watchdog_s=1.5)
    replies = client.call(requests(8))
    assert [(i, r.failure) for i, r in enumerate(replies) if r.failure] == [(2, "EngineKilled")]


def test_a_killed_replica_is_replaced_and_its_rows_are_answered(start: Start) -> None:
    pool, client = start(args={"seconds_per_row": 1.0}, slice_rows=8)
    group = wait_until(lambda: process_groups(pool))[0]
    wait_until(lambda: ray.get(pool.status.remote()).replicas[0].state == "ready")
    call = in_background(client, requests(8))
    wait_until(lambda: ray.get(pool.status.remote()).replicas[0].in_flight)
    os.killpg(group, signal.SIGKILL)
    assert texts(call.result(timeout=60)) == [f"row{i}"[::-1] for i in range(8)]


def test_a_stopped_replica_is_killed_by_the_watchdog_and_replaced(start: Start) -> None:
    pool, client = start(args={"seconds_per_row": 0.5}, slice_rows=8, watchdog_s=2)
    group = wait_until(lambda: process_groups(pool))[0]
    wait_until(lambda: ray.get(pool.status.remote()).replicas[0].state == "ready")
    call = in_background(client, requests(8))
    wait_until(lambda: ray.get(pool.status.remote()).replicas[0].in_flight)
    os.killpg(group, signal.SIGSTOP)
    assert texts(call.result(timeout=60)) == [f"row{i}"[::-1] for i in range(8)]
    wait_until(lambda: not members(group))


def test_a_dead_holder_does_not_keep_its_place_on_the_replica(start: Start) -> None:
    pool, client = start(max_in_flight=8, slice_rows=8)
    lease = ray.get(pool.acquire.remote(8))  # and never sent: as a task that is killed between the two
    assert texts(client.call(requests(8))) == [f"row{i}"[::-1] for i in range(8)]
    ray.get(pool.release.remote(lease.id))


def test_an_engine_that_no_node_can_take_says_what_it_asks_for_and_what_there_is(start: Start) -> None:
    _, client = start(num_gpus=2)
    with pytest.raises(EnginePendingError, match=r"asks for 2 GPU \(more than any node has\)[\s\S]*: 0 GPU"):
        client.call(requests(1))


def test_on_a_cluster_that_can_grow_a_pending_engine_waits_until_its_deadline(start: Start) -> None:
    _, client = start(num_gpus=2, can_grow=True, pending_timeout_s=6)
    with pytest.raises(EnginePendingError, match=r"waited [6-9] s; add nodes"):
        client.call(requests(1))


def test_an_engine_that_does_not_load_fails_at_once_with_its_own_words(start: Start) -> None:
    _, client = start(model="missing")
    with pytest.raises(EngineLoadError, match="the model 'missing' does not exist"):
        client.call(requests(1))


def test_an_engine_that_loads_for_too_long_fails_with_the_limit(start: Start) -> None:
    _, client = start(args={"load_s": 60}, load_timeout_s=0.5)
    with pytest.raises(EngineLoadError, match=r"load_timeout_s = 0.5 s, 3 times"):
        client.call(requests(1))


def test_stopping_leaves_no_process_of_a_replica(start: Start) -> None:
    pool, client = start(replicas_min=2, replicas_max=2)
    client.call(requests(4))
    groups = wait_until(lambda: (g := process_groups(pool)) and len(g) == 2 and g)
    ray.get(pool.stop.remote())
    wait_until(lambda: not [m for group in groups for m in members(group)])
