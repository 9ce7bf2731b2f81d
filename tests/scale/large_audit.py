"""How long an audit takes, and how much memory: of an output of many rows, written by the Parquet sink.

    python tests/scale/large_audit.py FOLDER [--rows 10000000] [--unit-rows 10000]

Needs some 250 bytes per row in FOLDER.
"""

from __future__ import annotations

import argparse
import os
import sys
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from phases import run_phases

from raybatch.ledger.audit import audit
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Commit, Plan, UnitRecord, now, schema_to_text
from raybatch.ledger.units import Units
from raybatch.rows import ID_FIELDS, UnitRows
from raybatch.sinks.parquet import ParquetConfig
from raybatch.sources.base import UnitSpec
from raybatch.store import LocalStore

TEXT_BYTES = 100
SINK = ParquetConfig(type="parquet", path="/unused").build()


def _rows(plan: Plan, unit: int) -> UnitRows:
    """A unit of a line-based file: random text, and row numbers that are byte offsets."""
    count = plan.units.rows[unit]
    text = np.frombuffer(os.urandom(count * TEXT_BYTES // 2).hex().encode(), dtype=f"S{TEXT_BYTES}")
    first = plan.units[unit].range["first"]
    columns = [
        pa.array(text).cast(pa.string()),
        pa.repeat(f"s3://a-bucket/some/prefix/part-{first // 1_000_000:05d}.jsonl", count),
        pa.array(np.arange(first, first + count, dtype=np.int64) * 137),
        pa.nulls(count, pa.string()),
    ]
    table = pa.table(columns, schema=pa.schema([("text", pa.string()), *ID_FIELDS]))
    return UnitRows(unit=plan.unit_key(unit), rows_in=count, table=table)


def write(said: argparse.Namespace) -> Mapping[str, Any]:
    """Set-up: publish, finalise, commit."""
    ledger = Ledger(LocalStore(str(said.folder)), "large")
    starts = range(0, said.rows, said.unit_rows)
    specs = [UnitSpec(range={"first": s}, rows=min(said.unit_rows, said.rows - s), bytes=1) for s in starts]
    plan = ledger.create_plan(
        Plan(
            epoch=0,
            pipeline="large",
            start=None,
            end={"next": 1},
            units=Units.of(specs),
            schema=schema_to_text(pa.schema([("text", pa.string())])),
            fingerprint={},
            layout=SINK.layout(),
            created_by="run-1",
            created_at=now(),
        )
    )

    def publish(unit: int) -> UnitRecord:
        attempt = uuid.uuid4().hex[:12]
        return SINK.write(_rows(plan, unit), plan=plan.reference(), attempt=attempt, ledger=ledger)

    with ThreadPoolExecutor(4) as threads:
        records = list(threads.map(publish, range(len(specs))))
        files = SINK.finalise(plan, records, ledger=ledger, parallel_map=threads.map)
    ledger.commit(plan, Commit.of(plan, records, files, run_id="run-1"))
    return {
        "rows": said.rows,
        "units": len(specs),
        "files": len(files),
        "mb": sum(f.size for f in files) >> 20,
    }


def check(said: argparse.Namespace) -> Mapping[str, Any]:
    """`raybatch audit`."""
    report = audit(LocalStore(str(said.folder)))
    assert report.ok, report.to_json()
    return {"checked": {check.invariant: check.checked for check in report.checks}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--unit-rows", type=int, default=10_000)
    run_phases(__file__, {"write": write, "check": check}, parser, sys.argv[1:])
