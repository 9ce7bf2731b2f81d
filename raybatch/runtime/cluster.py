"""The Ray cluster of a run: the one in RAY_ADDRESS, or one that lives and dies with the run."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from raybatch.errors import RaybatchError

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the run needs to know of it. `local`: started by this run, so it cannot grow."""

    local: bool
    cpus: float
    gpus: float


@contextmanager
def connect() -> Iterator[Cluster]:
    """Connect this process to Ray, or use the connection that it has; undo what was done here at the end.

    Raises `RaybatchError` when the cluster cannot be reached, or a local one not be started.
    """
    import ray

    if ray.is_initialized():
        yield _look(local=False)
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _refuse_silent(address)
    try:
        _init(address)
        yield _look(local=not address)
    finally:
        ray.shutdown()


def _init(address: str | None) -> None:
    import ray

    main = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        # "local": without it, Ray joins whatever cluster happens to run on this machine
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            logging_level=logging.WARNING,
            log_to_driver=True,
        )
    except Exception as error:  # of any type, a plain Exception among them
        raise RaybatchError(f"{_cannot(address)}: {error}") from error
    finally:
        if main and on_sigterm is not None:
            signal.signal(signal.SIGTERM, on_sigterm)  # ray.init takes it over, and answers with SystemExit


def _refuse_silent(address: str) -> None:
    """Raise `RaybatchError` when nobody answers at host:port; Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return  # "auto", "local" and what else Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise RaybatchError(f"{_cannot(address)}: {error}") from error


def _cannot(address: str | None) -> str:
    if not address:
        return "no local Ray could be started (on a very busy machine, try again)"
    return (
        f"the Ray cluster at RAY_ADDRESS={address} cannot be used (is it up, and is this its address and, in"
        " RAY_AUTH_TOKEN or ~/.ray/auth_token, its token? Without RAY_ADDRESS the run has a Ray of its own)"
    )


def _look(*, local: bool) -> Cluster:
    import ray

    have = ray.cluster_resources()
    return Cluster(local=local, cpus=have.get("CPU", 0.0), gpus=have.get("GPU", 0.0))
