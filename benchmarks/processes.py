"""Sides of benchmarks as processes: started fresh, timed from outside, heard through one line of JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.inputs import CACHE, ROOT

# The same for all sides. 1 GiB of KV cache holds several times the sequences that are in flight at once.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "RAY_TQDM": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "true",
}
_LOGS = CACHE / "logs"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A process that ended well: wall seconds from start to end, when it started, and what it said."""

    seconds: float
    started_at: float
    said: dict[str, Any]


def measure(module: str, *arguments: str) -> Ended:
    """Run `python -m module arguments` to its end. If it fails, RuntimeError shows the end of its log."""
    started_at, started = time.time(), time.monotonic()
    child = start(module, *arguments)
    output, _ = child.communicate()
    seconds = time.monotonic() - started
    if child.returncode != 0:
        raise RuntimeError(f"{module} failed ({child.returncode}); the end of its log:\n{_tail(module)}")
    # Libraries write to stdout too, also after it
    said = [line for line in output.splitlines() if line.startswith(b"{")][-1]
    return Ended(seconds=seconds, started_at=started_at, said=json.loads(said))


def start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `python -m module arguments`; stderr goes to a log that the next start of it replaces."""
    _LOGS.mkdir(parents=True, exist_ok=True)
    with open(_log(module), "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=log,
        )


def fresh(name: str) -> Path:
    """A folder for output that does not exist."""
    folder = CACHE / "out" / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def rows_in(files: Sequence[Path]) -> int:
    """The rows of all these Parquet files."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(file).num_rows for file in files)


def _log(module: str) -> Path:
    return _LOGS / f"{module}.log"


def _tail(module: str) -> str:
    return _log(module).read_text(encoding="utf-8", errors="replace")[-3_000:]
