"""The Ray cluster of a run: the one in RAY_ADDRESS, or one that lives and dies with the run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the run needs to know of it. `local`: started by this run, so it cannot grow."""

    local: bool
    cpus: float
    gpus: float


@contextmanager
def connect() -> Iterator[Cluster]:
    """Connect this process to Ray, or use the connection that it has; undo what was done here at the end."""
    import ray

    if ray.is_initialized():
        yield _look(local=False)
        return
    address = os.environ.get("RAY_ADDRESS")
    # "local": without it, Ray joins whatever cluster happens to run on this machine
    ray.init(
        address=address or "local",
        include_dashboard=None if address else False,
        logging_level=logging.WARNING,
        log_to_driver=True,
    )
    try:
        yield _look(local=not address)
    finally:
        ray.shutdown()


def _look(*, local: bool) -> Cluster:
    import ray

    have = ray.cluster_resources()
    return Cluster(local=local, cpus=have.get("CPU", 0.0), gpus=have.get("GPU", 0.0))
