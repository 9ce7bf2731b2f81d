"""The actor that holds one engine, and what makes sure that nothing of it outlives it.

vLLM's engine core is a child process that does not notice when its parent is killed, and holds the GPU's
memory. So the actor moves into a process group of its own, and a guardian outside the group ends the whole
group as soon as the actor is gone, however it went. A graceful shutdown would gain nothing and cost seconds.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from raybatch.engines.base import Engine, EngineSpec, Progress, Reply
from raybatch.errors import EngineLoadError

logger = logging.getLogger(__name__)

# Where an engine may put sockets and the like; removed when its processes are gone
SCRATCH = "RAYBATCH_ENGINE_SCRATCH"


class Replica:
    """One engine in one actor (async, many calls at a time). Created by the pool, one per replica."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._engine: Engine | None = None
        self._guardian: subprocess.Popen[bytes] | None = None
        self._leases: set[int] = set()

    async def hello(self) -> Mapping[str, Any]:
        """Answers as soon as the actor runs: its node, and the process group to kill when it hangs."""
        import ray

        if self._guardian is None:
            self._guardian = _own_process_group()
        return {"node_id": ray.get_runtime_context().get_node_id(), "pgid": os.getpgrp(), "pid": os.getpid()}

    async def load(self) -> Mapping[str, Any]:
        """Load the model; returns `Engine.describe()`. Raises `EngineLoadError` with the root cause."""
        # Ray sets it to the actor's CPUs (1 for none), which would leave a CPU engine with one thread
        if "OMP_NUM_THREADS" not in self._spec.env:
            os.environ.pop("OMP_NUM_THREADS", None)
        module = importlib.import_module(f"raybatch.engines.{self._spec.kind}")
        try:
            self._engine = await module.load(self._spec)
        except EngineLoadError as error:
            raise EngineLoadError(f"{error}{_root_cause()}") from None
        assert self._engine is not None
        return self._engine.describe()

    async def run(self, requests: Sequence[Mapping[str, Any]], lease: int) -> list[Reply]:
        """Answer a slice, sent under `lease`.

        A broken engine takes the process down with it: a half-dead actor would be sent the same slices for
        ever (ray#60145).
        """
        assert self._engine is not None, "run before load"
        self._leases.add(lease)
        try:
            return await self._engine.run(requests)
        except Exception:
            logger.exception("engine %s %s broke", self._spec.kind, self._spec.model)
            logging.shutdown()
            os._exit(1)
        finally:
            self._leases.discard(lease)

    async def progress(self) -> tuple[Progress, frozenset[int]]:
        """The engine's counters (all zero before `load` is done), and the leases it is working on."""
        counters = self._engine.progress() if self._engine else Progress()
        return counters, frozenset(self._leases)


def _own_process_group() -> subprocess.Popen[bytes]:
    """Leave Ray's process group, and have a guardian end the new one when this process is gone."""
    os.setpgid(0, 0)
    scratch = os.environ[SCRATCH] = tempfile.mkdtemp(prefix="raybatch-engine-")
    return subprocess.Popen(
        [sys.executable, "-m", "raybatch.engines.guardian", str(os.getpgrp()), scratch],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


_ERROR_LINE = re.compile(r"(?:^|\s)((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt)): (.+)")
_SAYS_NOTHING = (
    "See root cause above",
    "Engine core initialization failed",
    "EngineCore encountered an issue",
)


def _root_cause() -> str:
    """The first error that the engine's own processes printed, which libraries bury under later ones.

    Ray points this process's stderr, which its children share, to a file: read the end of it back.
    """
    try:
        with open(os.readlink(f"/proc/{os.getpid()}/fd/2"), "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 262_144))
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        found = _ERROR_LINE.search(line)
        if found and not any(phrase in line for phrase in _SAYS_NOTHING):
            return f"\n  root cause: {found.group(1)}: {found.group(2).strip()}"
    return ""
