"""The engine pools of one run: started before the first unit is read, stopped after the last."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from raybatch.engines.base import EngineSpec
from raybatch.engines.client import PoolClient
from raybatch.engines.guardian import members
from raybatch.engines.pool import EnginePool, PoolStatus, resolve_gpus
from raybatch.errors import EngineError
from raybatch.runtime.cluster import Cluster
from raybatch.stages.base import StageConfig

STOP_TIMEOUT_S = 30.0


class Engines:
    """One pool per distinct `EngineSpec.key`; stages that name the same engine share it."""

    def __init__(self, specs: Sequence[EngineSpec], *, cluster: Cluster) -> None:
        self._specs = {spec.key: resolve_gpus(spec, cluster_gpus=cluster.gpus) for spec in specs}
        self._cluster = cluster
        self._pools: dict[str, Any] = {}

    def start(self) -> None:
        """Ask for every engine; loading goes on while units are read."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # Beside the driver: without the driver there is no use for a pool, and it must not die alone
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": here, "max_concurrency": 10_000}
        for key, spec in self._specs.items():
            pool = ray.remote(EnginePool).options(**options).remote(spec, can_grow=not self._cluster.local)
            self._pools[key] = pool
            pool.start.remote()

    def client(self, config: StageConfig) -> PoolClient | None:
        """What the stage sends its requests with; None for a stage without an engine."""
        specs = config.engines()
        if not specs:
            return None
        return PoolClient(pool=self._pools[specs[0].key], slice_rows=specs[0].slice_rows)

    def replicas(self) -> int:
        """The most replicas that there can be, over all engines."""
        return sum(spec.replicas_max for spec in self._specs.values())

    def status(self) -> list[PoolStatus]:
        """A snapshot of each pool; those that do not answer at once are left out."""
        import ray

        asked = [pool.status.remote() for pool in self._pools.values()]
        done, _ = ray.wait(asked, num_returns=len(asked), timeout=5) if asked else ([], [])
        found = []
        for ref in done:
            with contextlib.suppress(ray.exceptions.RayError):
                found.append(ray.get(ref))
        return found

    def failure(self) -> EngineError | None:
        """The error that ended a pool, if one did."""
        import ray

        for pool in self._pools.values():
            with contextlib.suppress(ray.exceptions.RayError):
                error: EngineError | None = ray.get(pool.failure.remote(), timeout=5)
                if error is not None:
                    return error
        return None

    def stop(self) -> None:
        """Release every engine and wait until the processes on this node are gone. Never raises."""
        import ray

        pools, self._pools = list(self._pools.values()), {}
        groups: list[int] = []
        here = ray.get_runtime_context().get_node_id()
        with contextlib.suppress(ray.exceptions.RayError):
            found = ray.get([pool.processes.remote() for pool in pools], timeout=5)
            groups = [pgid for pool in found for node, pgid in pool if node == here]
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get([pool.stop.remote() for pool in pools], timeout=STOP_TIMEOUT_S)
        for pool in pools:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(pool)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while any(members(group) for group in groups) and time.monotonic() < deadline:
            time.sleep(0.05)


@contextmanager
def started(specs: Sequence[EngineSpec], *, cluster: Cluster) -> Iterator[Engines]:
    """Engines that are stopped whatever happens."""
    engines = Engines(specs, cluster=cluster)
    try:
        engines.start()
        yield engines
    finally:
        engines.stop()
