"""What a new epoch costs after many: reading from the plans of ten thousand epochs which million files were taken.

    python tests/scale/taken_files.py FOLDER [--epochs 10000] [--files 100]

Plans are written without fsync, as only reading is measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from phases import run_phases

from raybatch.ledger import keys
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Layout, Plan, now, schema_to_text
from raybatch.runtime.history import earlier_units
from raybatch.sources.base import JSON, UnitSpec
from raybatch.sources.position import Taken
from raybatch.store import LocalStore

SCHEMA = pa.schema([("text", pa.string())])


def _units(epoch: int, files: int) -> list[UnitSpec]:
    """One unit for each file of an epoch, as jsonl files in an object store give them."""
    return [
        UnitSpec(
            range={
                "path": f"s3://bucket/in/{epoch:05}/{file:04}.jsonl",
                "version": {"size": 1_000_000, "etag": f"{epoch * files + file:032x}"},
                "at": {"bytes": [0, 1_000_000]},
            },
            bytes=1_000_000,
        )
        for file in range(files)
    ]


def write(said: argparse.Namespace) -> Mapping[str, Any]:
    folder: Path = said.folder / keys.PLANS
    folder.mkdir(parents=True)
    start: JSON | None = None
    for epoch in range(said.epochs):
        # Made up: here nobody compares positions with what the plans name
        end = {"files": epoch + 1}
        plan = Plan(
            epoch=epoch,
            pipeline="taken",
            start=start,
            end=end,
            units=_units(epoch, said.files),  # type: ignore[arg-type]  # it takes any sequence
            schema=schema_to_text(SCHEMA),
            fingerprint={},
            layout=Layout(target_bytes=1 << 28, small_bytes=1 << 25),
            created_by="run",
            created_at=now(),
        )
        (said.folder / keys.plan_key(epoch)).write_text(plan.to_json())
        start = end
    return {"plan_bytes": len(plan.to_json())}


def read(said: argparse.Namespace) -> Mapping[str, Any]:
    ledger = Ledger(LocalStore(str(said.folder)), "taken")
    taken = Taken().plus(earlier_units(ledger, epochs=said.epochs))
    return {"files": len(taken.versions), "position_bytes": len(str(taken.position(SCHEMA)))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=100, help="new files of each epoch")
    run_phases(__file__, {"write": write, "read": read}, parser, sys.argv[1:])
