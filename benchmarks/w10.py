"""W10: what exactly-once costs, and what a killed run pays when it is run again.

On and off are the same pipeline, code and Ray Data; off only writes a Parquet file per unit (see `plain`).
Durable is off with an fsync of each file: what the disk takes is not the price of exactly-once. What counts is
the work: from the run's start to its commit, or to the last file written, without the start
of Ray and the loading of the model.

Killed at a share of its units by SIGKILL, a run is started again. It may take what an uninterrupted run takes
to get to its first unit, for the units that are left, and from its last unit to its end.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil

from benchmarks import inputs, w4, w8
from benchmarks.measure import PAIRS, Ratio, Result, interleave, time_ratio
from benchmarks.processes import Ended, fresh, measure, start

WANTED = "<= 1.03"
MODEL_PAIRS = 3  # each round loads two models
RESUME_PAIRS = 2  # a round is seven runs
RESUME_UNIT_ROWS = 6_250  # 160 units, of one row group each
KILLED_AT = (0.5, 0.9, 0.99)
# Parts below an eighth of it are merged for readers; those of this work are of 36 MB, and by default stay as they are
MERGED = ("sink.target_file_bytes=536870912",)
_TIMEOUT_S = 600


def run(*, rows: int = w8.ROWS, prompts: int = w4.ROWS, pairs: int = PAIRS) -> Result:
    """Measure the overhead without and with a model, then resuming."""
    kilobytes, generate = inputs.kilobytes(rows), inputs.prompts(prompts)
    model_pairs, resume_pairs = min(pairs, MODEL_PAIRS), min(pairs, RESUME_PAIRS)
    print(" no model: on, off, off but durable, on and merged", file=sys.stderr)
    ratios, counters = _without_model(kilobytes, rows=rows, pairs=pairs)
    print(" model: on, off", file=sys.stderr)
    ratios.append(_with_model(generate, rows=prompts, pairs=model_pairs))
    print(" killed and resumed: time over what it may take", file=sys.stderr)
    ratios += _resumed(inputs.kilobytes(rows, group_rows=RESUME_UNIT_ROWS), pairs=resume_pairs)
    return Result(
        name="W10",
        ratios=ratios,
        counters=counters,
        configurations={
            "rounds": {"no model": pairs, "model": model_pairs, "resume": resume_pairs},
            "no model": f"pipelines/rows.yaml, {rows} rows of 1 KB; merged: {MERGED[0]}",
            "model": f"pipelines/generate.yaml, {prompts} prompts",
            "off": "one Parquet file per unit: no plan, records, checksums, finalise, commit; fsync if durable",
            "resume": f"pipelines/rows.yaml, units of {RESUME_UNIT_ROWS} rows",
        },
    )


def _without_model(source: Path, *, rows: int, pairs: int) -> tuple[list[Ratio], dict[str, float]]:
    last: dict[str, Ended] = {}

    def side(name: str, *, module: str = "ours", sets: tuple[str, ...] = (), durable: bool = False) -> float:
        flags = ("--durable",) if durable else ()
        last[name] = w8.run_ours(source, rows=rows, sets=sets, flags=flags, module=module)
        return _work(last[name])

    on, off, durable, merged = interleave(
        lambda: side("on"),
        lambda: side("off", module="plain"),
        lambda: side("durable", module="plain", durable=True),
        lambda: side("merged", sets=MERGED),
        pairs=pairs,
    )
    ratios = [
        time_ratio(on, durable, peer="exactly-once off but durable, no model", wanted=WANTED),
        time_ratio(on, off, peer="exactly-once off, no model", wanted=WANTED),
        time_ratio(merged, durable, peer="off but durable, no model; on also merges files", wanted=WANTED),
    ]
    report, report_merged = (last[name].said["report"] for name in ("on", "merged"))
    counters = {
        "units": report["units"]["planned"],
        "finalise, share of the work": round(report["seconds"]["finalise"] / on[-1], 4),
        "finalise with merging, share of the work": round(
            report_merged["seconds"]["finalise"] / merged[-1], 4
        ),
    }
    return ratios, counters


def _with_model(source: Path, *, rows: int, pairs: int) -> Ratio:
    def side(module: str) -> float:
        return _work(w4.run_ours(source, rows=rows, flags=("--ray-first",), module=module))

    on, off = interleave(lambda: side("ours"), lambda: side("plain"), pairs=pairs)
    return time_ratio(on, off, peer="exactly-once off, with a model", wanted=WANTED)


def _work(ended: Ended) -> float:
    """Seconds from the run's start to its last durable word, less the loading of the model."""
    said = ended.said
    load = said["ready_at"] - said["planned_at"] if said["ready_at"] else 0.0
    return float(said["committed_at"] - said["started_at"] - load)


def _resumed(source: Path, *, pairs: int) -> list[Ratio]:
    whole: list[Ended] = []

    def one(share: float) -> float:
        if share == KILLED_AT[0]:
            whole.append(_run_resumable(source, fresh("rows")))
        output = fresh("rows")
        left = 1 - _killed(source, output, share=share)
        return _run_resumable(source, output).seconds / _allowed(whole[-1], left=left)

    columns = interleave(*(lambda s=share: one(s) for share in KILLED_AT), pairs=pairs)
    ones = [1.0] * pairs
    return [
        time_ratio(column, ones, peer=f"remaining work and start-up, killed at {share:.0%}", wanted="<= 1.0")
        for share, column in zip(KILLED_AT, columns, strict=True)
    ]


def _allowed(whole: Ended, *, left: float) -> float:
    """Seconds: an uninterrupted run's to its first unit, its work on the units left, and its end."""
    first, last = whole.said["first_published_at"], whole.said["last_published_at"]
    start_up = first - whole.started_at
    end = whole.started_at + whole.seconds - last
    return float(start_up + left * (last - first) + end)


def _run_resumable(source: Path, output: Path) -> Ended:
    return measure("benchmarks.ours", w8.PIPELINE, *_resumable(source, output))


def _killed(source: Path, output: Path, *, share: float) -> float:
    """Kill a run once so many of its units are published; gives the share that then are."""
    child = start("benchmarks.ours", w8.PIPELINE, *_resumable(source, output))
    deadline = time.monotonic() + _TIMEOUT_S
    while _published(output) < share:
        if child.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the run to be killed at {share:.0%} ended before that, or hangs")
        time.sleep(0.01)
    # Ray's processes notice that their driver is gone; its two agents take a minute for that, asleep
    processes = psutil.Process(child.pid).children(recursive=True)
    working = [p for p in processes if not " ".join(p.cmdline()).rstrip().endswith("Agent")]
    child.kill()
    child.communicate()
    _, alive = psutil.wait_procs(working, timeout=60)
    if alive:
        raise RuntimeError(f"{len(alive)} processes outlive the killed run")
    return _published(output)


def _published(output: Path) -> float:
    """The share of the plan's units that are published."""
    plan = output / "_raybatch" / "plan" / "00000000.json"
    if not plan.exists():
        return 0.0
    units = json.loads(plan.read_text(encoding="utf-8"))["units"]["count"]
    return len(list((output / "_raybatch" / "units").rglob("*.json"))) / units


def _resumable(source: Path, output: Path) -> list[str]:
    sets = (
        f"source.path={source}/*.parquet",
        f"sink.path={output}",
        f"run.unit.max_rows={RESUME_UNIT_ROWS}",
    )
    return [part for text in sets for part in ("--set", text)]
