"""Records and plans as a run meets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from raybatch.ledger.records import Counts, Layout, Plan, UnitRecord, now, schema_to_text
from raybatch.runtime.progress import Snapshot
from raybatch.sources.base import UnitSpec
from raybatch.spec.load import load_pipeline
from raybatch.spec.pipeline import Pipeline

SCHEMA = schema_to_text(pa.schema([("text", pa.string())]))


def record(
    unit: int = 0,
    *,
    ok: int = 0,
    error: int = 0,
    dropped: int = 0,
    errors: Mapping[str, int] | None = None,
    stats: Mapping[str, float] | None = None,
) -> UnitRecord:
    """A published unit of `ok` + `error` + `dropped` rows."""
    return UnitRecord(
        plan_id="plan",
        epoch=0,
        unit=unit,
        attempt="a",
        parts={},
        counts=Counts(rows_in=ok + error + dropped, ok=ok, error=error, dropped=dropped),
        error_types=errors or {},
        stats=stats or {},
        schema=SCHEMA,
        created_at=now(),
    )


def plan(units: Sequence[UnitSpec]) -> Plan:
    return Plan(
        epoch=0,
        pipeline="small",
        start=None,
        end={},
        units=tuple(units),
        schema=SCHEMA,
        fingerprint={},
        layout=Layout(target_bytes=1, small_bytes=1),
        created_by="run-1",
        created_at=now(),
    )


def pipeline(folder: Path, *stages: Mapping[str, Any], **sections: Any) -> Pipeline:
    """A pipeline that reads in.jsonl of `folder`; `sections` as in its file."""
    document = {
        "name": "small",
        "source": {"type": "files", "path": "in.jsonl"},
        "stages": list(stages),
        "sink": {"type": "parquet", "path": "out"},
    }
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump(document | sections))
    return load_pipeline(str(file))


class Listener:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []
        self.notes: list[str] = []

    def update(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)

    def note(self, text: str) -> None:
        self.notes.append(text)
