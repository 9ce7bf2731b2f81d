"""Phases of a measurement: each runs in a process of its own, which tells its time and its peak of memory."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Phase = Callable[[argparse.Namespace], Mapping[str, Any]]


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def run_phases(
    script: str, phases: Mapping[str, Phase], parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> None:
    """Run all phases in their order, or the one that `--phase` names; print a line of JSON for each."""
    parser.add_argument("folder", type=Path, help="an empty folder for the output; it stays")
    parser.add_argument("--phase", choices=list(phases), help="only this one, in this process")
    said = parser.parse_args(arguments)
    if said.phase is None:
        for name in phases:
            subprocess.run([sys.executable, script, *arguments, "--phase", name], check=True)
        return
    before, started = _peak_mb(), time.monotonic()
    found = phases[said.phase](said)
    seconds = round(time.monotonic() - started, 2)
    line = {"phase": said.phase, "seconds": seconds, "peak_mb": _peak_mb(), "imports_mb": before, **found}
    print(json.dumps(line), flush=True)  # noqa: T201
