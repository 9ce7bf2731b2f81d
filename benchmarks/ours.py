"""One raybatch run in a process of its own; prints one JSON line with its report and when things happened.

    python -m benchmarks.ours PIPELINE [--set key=value ...] [--ray-first]

It does what `raybatch run` does, through the Python API, because that also tells when the engine was ready.
Times are seconds since the epoch; `planned_at` to `committed_at` are taken from the ledger's files.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import raybatch
from benchmarks.sessions import EngineTimes, ray_started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pipeline")
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--ray-first", action="store_true", help="start Ray before the clock of the run")
    arguments = parser.parse_args()
    pipeline = raybatch.load_pipeline(arguments.pipeline, sets=arguments.sets)
    engine = EngineTimes()
    with ray_started(arguments.ray_first):
        started_at = time.time()
        report = raybatch.run(pipeline, reporter=engine)
        ended_at = time.time()
    said = {"report": report.to_json(), "started_at": started_at, "ended_at": ended_at}
    print(json.dumps(said | engine.times() | ledger_times(Path(pipeline.sink.path))))


def ledger_times(sink: Path) -> dict[str, Any]:
    """When the plan, the first and the last unit, and the commit of epoch 0 were written."""
    records = sink / "_raybatch"
    units = [file.stat().st_mtime for file in (records / "units").rglob("*.json")]
    [plan] = (records / "plan").glob("*.json")
    [commit] = (records / "commit").glob("*.json")
    return {
        "planned_at": plan.stat().st_mtime,
        "first_published_at": min(units),
        "last_published_at": max(units),
        "committed_at": commit.stat().st_mtime,
    }


if __name__ == "__main__":
    main()
