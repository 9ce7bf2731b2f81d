"""An engine that is lost and finds no place again, while another one works."""

from __future__ import annotations

import contextlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray

from pipelines import wait_until
from raybatch.engines.base import EngineSpec
from raybatch.engines.client import PoolClient
from raybatch.engines.pool import EnginePool

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@ray.remote(num_cpus=0, resources={"place": 1})
class Squatter:
    """Takes the place that a dead replica leaves."""

    def here(self) -> bool:
        return True


def test_the_replicas_that_are_left_go_on_though_a_lost_one_has_no_place_to_return_to() -> None:
    spec = EngineSpec(
        kind="simulated",
        model="m",
        args={"seconds_per_row": 0.5},
        replicas_min=1,
        replicas_max=2,
        resources={"place": 1},
        slice_rows=1,
        max_in_flight=1,
        pending_timeout_s=2,
    )
    pool = ray.remote(EnginePool).options(num_cpus=0, max_concurrency=1000).remote(spec, can_grow=True)
    ray.get(pool.start.remote())

    def ready() -> list[str]:
        return [r.name for r in ray.get(pool.status.remote()).replicas if r.state == "ready"]

    wait_until(lambda: len(ready()) == 2, what="both replicas are ready")
    (_, required), (_, other) = ray.get(pool.processes.remote())
    squatter = Squatter.remote()
    here = squatter.here.remote()
    client = PoolClient(pool=pool, slice_rows=1)
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(client.call, [{"prompt": f"row{i}"} for i in range(20)])
        os.killpg(required, signal.SIGKILL)
        while not ray.wait([here], timeout=0.1)[0]:  # its successor may be faster than the squatter
            for _, group in ray.get(pool.processes.remote()):
                if group not in (required, other):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(group, signal.SIGKILL)
        replies = call.result(timeout=120)
    assert [reply.failure for reply in replies] == [None] * 20
    ray.kill(squatter)
    wait_until(lambda: len(ready()) == 2, what="the lost one has its place again")
    ray.get(pool.stop.remote())
    ray.kill(pool)
