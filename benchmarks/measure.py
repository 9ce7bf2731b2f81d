"""How benchmarks are measured: sides interleaved A B A B in one session, medians with bootstrap intervals.

A side is a function that does its work once and returns the seconds that count. A benchmark is a module
`benchmarks/w<number>.py` with `run() -> Result`; `save` writes `benchmarks/results/W<number>.json`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Side = Callable[[], float]

RESULTS = Path(__file__).parent / "results"
PAIRS = 5
RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A median of ratios with its 95 % bootstrap interval; `wanted` is ">= 0.95" or "<= 0.6"."""

    peer: str
    ratio: float
    low: float
    high: float
    wanted: str

    @property
    def met(self) -> bool:
        """Whether the median is on the wanted side."""
        sign, _, bound = self.wanted.partition(" ")
        return self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a benchmark found. `counters` carry over to other machines; `configurations` say what was run."""

    name: str
    ratios: Sequence[Ratio]
    counters: Mapping[str, float] = field(default_factory=dict)
    configurations: Mapping[str, Any] = field(default_factory=dict)


def interleave(*sides: Side, pairs: int = PAIRS) -> list[list[float]]:
    """Seconds of each side in each of `pairs` rounds; one round more comes first and is discarded."""
    rounds = []
    for number in range(pairs + 1):
        rounds.append([side() for side in sides])
        seconds = ", ".join(f"{s:.2f}" for s in rounds[-1])
        print(f"  round {number}: {seconds} s{' (discarded)' if number == 0 else ''}", file=sys.stderr)
    return [list(column) for column in zip(*rounds[1:], strict=True)]


def speed_ratio(ours: Sequence[float], theirs: Sequence[float], *, peer: str, wanted: str) -> Ratio:
    """Our speed over theirs, from the seconds of both: 1.1 is a tenth faster."""
    return _ratio(theirs, ours, peer=peer, wanted=wanted)


def time_ratio(ours: Sequence[float], theirs: Sequence[float], *, peer: str, wanted: str) -> Ratio:
    """Our seconds over theirs: 0.6 is two fifths less."""
    return _ratio(ours, theirs, peer=peer, wanted=wanted)


def _ratio(above: Sequence[float], below: Sequence[float], *, peer: str, wanted: str) -> Ratio:
    # Within a round both sides saw the same machine: noise that comes and goes falls out of the ratio
    ratios = np.array(above) / np.array(below)
    picks = np.random.default_rng(0).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[picks], axis=1), [2.5, 97.5])
    middle = statistics.median(ratios.tolist())
    return Ratio(
        peer=peer, ratio=round(middle, 3), low=round(float(low), 3), high=round(float(high), 3), wanted=wanted
    )


def machine() -> dict[str, Any]:
    """What ran it, without names of hosts or users."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    info = _cpu_info()
    special = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
    return {
        "cpu": info.get("model name", platform.processor()),
        "cpus": len(os.sched_getaffinity(0)),
        "features": [name for name in special if name in info.get("flags", "").split()],
        "memory_gib": round(memory / 2**30),
        "gpus": _gpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu_info() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    return dict(re.findall(r"^(model name|flags)\s*: (.*)$", text, re.MULTILINE))


def _gpus() -> list[str]:
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return [m.group(1) for f in files if (m := re.search(r"Model:\s*(.+)", f.read_text()))]


def save(result: Result, folder: Path = RESULTS) -> Path:
    """Write the result as JSON, named after it; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.name}.json"
    found = {
        "name": result.name,
        "machine": machine(),
        "ratios": [asdict(ratio) for ratio in result.ratios],
        "counters": dict(result.counters),
        "configurations": dict(result.configurations),
    }
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return path


def table(results: Sequence[Result]) -> str:
    """One Markdown table of all ratios."""
    lines = ["| W | peer | ratio | 95 % interval | wanted | |", "|---|---|---|---|---|---|"]
    for result in results:
        for r in result.ratios:
            met = "met" if r.met else "missed"
            interval = f"{r.low:.2f} to {r.high:.2f}"
            lines.append(f"| {result.name} | {r.peer} | {r.ratio:.2f} | {interval} | {r.wanted} | {met} |")
    return "\n".join(lines)
