"""T29: a plan of a million units, resumed when 99% are published; then ten thousand epochs.

    python tests/scale/million_units.py FOLDER [--units 1000000] [--files 10000] [--published 0.99]

Needs some 5 GB and a million inodes in FOLDER. Records are written there without fsync, as only reading is
measured; plan, commit and everything measured go through the ledger.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from phases import run_phases

from raybatch.ledger import keys
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import (
    Commit,
    Counts,
    DataFile,
    Layout,
    Part,
    Plan,
    UnitRecord,
    now,
    schema_to_text,
)
from raybatch.ledger.units import Units
from raybatch.sources.base import UnitSpec
from raybatch.store import LocalStore

PIPELINE = "million"
ROWS = 1000
SCHEMA = schema_to_text(pa.schema([("text", pa.string())]))
STORED_SCHEMA = schema_to_text(
    pa.schema(
        [("text", pa.string()), ("_source", pa.string()), ("_row", pa.int64()), ("_child", pa.string())]
    )
)
EPOCHS = 10_000


def _ledger(folder: Path) -> Ledger:
    return Ledger(LocalStore(str(folder)), PIPELINE)


def _specs(*, units: int, files: int) -> list[UnitSpec]:
    """What a source of line-based files plans: byte ranges of objects, each with its version."""
    specs = []
    for unit in range(units):
        file, part = unit * files // units, unit % max(1, units // files)
        if not part:
            path = f"s3://a-bucket/some/prefix/of/a/dataset/2026-11/part-{file:08d}.jsonl"
            version = {"etag": f"{file:032x}", "size": 8192 * 1024}
        at = {"start": part * 8192, "stop": (part + 1) * 8192}
        specs.append(UnitSpec(range={"path": path, "version": version, "at": at}, rows=None, bytes=8192))
    return specs


def _plan(specs: Sequence[UnitSpec], *, epoch: int = 0, start: Any = None) -> Plan:
    return Plan(
        epoch=epoch,
        pipeline=PIPELINE,
        start=start,
        end={"next": epoch + 1},
        units=Units.of(specs),
        schema=SCHEMA,
        fingerprint={"stages": [{"name": "generate", "prompt": "Say {{ text }}"}]},
        layout=Layout(target_bytes=256 << 20, small_bytes=64 << 20),
        created_by="run-1",
        created_at=now(),
    )


def _record(plan_id: str, unit: int, *, epoch: int = 0) -> UnitRecord:
    attempt = f"{unit * 7919:012x}"
    parts = {
        kind: Part(
            key=keys.part_key(epoch, unit, attempt=attempt, kind=kind),
            size=100_000 + unit,
            sha256=f"{unit:064x}",
            rows=rows,
        )
        for kind, rows in (("ok", ROWS - 1), ("errors", 1))
    }
    return UnitRecord(
        plan_id=plan_id,
        epoch=epoch,
        unit=unit,
        attempt=attempt,
        parts=parts,
        counts=Counts(rows_in=ROWS, ok=ROWS - 1, error=1),
        error_types={"PromptTooLong": 1},
        stats={
            "prompt_tokens": 100_000,
            "cached_tokens": 5_000,
            "generated_tokens": 60_000,
            "seconds.say": 9.25,
        },
        schema=STORED_SCHEMA,
        created_at=now(),
    )


def plan(said: argparse.Namespace) -> Mapping[str, Any]:
    """Plan, as a new epoch does: the source's units, by column, as JSON, stored."""
    started = time.monotonic()
    specs = _specs(units=said.units, files=said.files)
    by_source = time.monotonic() - started
    _ledger(said.folder).create_plan(_plan(specs))
    size = (said.folder / keys.plan_key(0)).stat().st_size
    return {
        "units": said.units,
        "files": said.files,
        "in_source_s": round(by_source, 2),
        "plan_mb": size >> 20,
    }


def publish(said: argparse.Namespace) -> Mapping[str, Any]:
    """Set-up: unit records, straight into the folder."""
    return {"records": _write_records(said.folder, range(round(said.units * said.published)))}


def _write_records(folder: Path, units: range) -> int:
    held = _ledger(folder).plan(0)
    assert held is not None
    for unit in units:
        path = folder / keys.unit_key(0, unit)
        if unit % keys.UNITS_PER_FOLDER == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_record(held.plan_id, unit).to_json())
    return len(units)


def resume(said: argparse.Namespace) -> Mapping[str, Any]:
    """What a run does before it starts to work: open, find the unfinished plan, find what is not published."""
    ledger = _ledger(said.folder)
    ledger.open()
    steps, started = {}, time.monotonic()
    held = ledger.plan(ledger.position()[0])
    assert held is not None
    steps["plan_s"] = round(time.monotonic() - started, 2)
    published = ledger.published(held)
    todo = [unit for unit in range(len(held.units)) if unit not in published]
    steps["published_s"] = round(time.monotonic() - started - steps["plan_s"], 2)
    first = held.units[todo[0]] if todo else None
    return {
        "published": len(published),
        "todo": len(todo),
        "first": first and first.range["path"][-13:],
        **steps,
    }


def count(said: argparse.Namespace) -> Mapping[str, Any]:
    """What the thread beside the work does: read the record of each published unit."""
    ledger = _ledger(said.folder)
    held = ledger.plan(0)
    assert held is not None
    rows = sum(record.counts.rows_in for record in ledger.records(held, sorted(ledger.published(held))))
    return {"rows": rows}


def commit(said: argparse.Namespace) -> Mapping[str, Any]:
    """After the rest is published: all records held, and the commit made of them. Without the files."""
    _write_records(said.folder, range(round(said.units * said.published), said.units))
    ledger = _ledger(said.folder)
    held = ledger.plan(0)
    assert held is not None
    started = time.monotonic()
    records = list(ledger.records(held, range(len(held.units))))
    read = time.monotonic() - started
    files = list(_files(records))
    ledger.commit(held, Commit.of(held, records, files, run_id="run-1"))
    size = (said.folder / keys.commit_key(0)).stat().st_size
    made = time.monotonic() - started - read
    return {"read_s": round(read, 2), "commit_s": round(made, 2), "commit_mb": size >> 20}


def _files(records: Sequence[UnitRecord]) -> Iterator[DataFile]:
    """Of 2,500 units each, as their sizes and the target of 256 MiB would have it."""
    for folder, kind in ((keys.DATA, "ok"), (keys.ERRORS, "errors")):
        for number, first in enumerate(range(0, len(records), 2500)):
            some = records[first : first + 2500]
            yield DataFile(
                key=keys.file_key(folder, 0, number),
                rows=sum(record.parts[kind].rows for record in some),
                size=1,
                sha256="0" * 64,
                units=tuple(record.unit for record in some),
            )


def next_run(said: argparse.Namespace) -> Mapping[str, Any]:
    """What a run after the commit reads of it."""
    return {"position": _ledger(said.folder).position()[1]}


def many_epochs(said: argparse.Namespace) -> Mapping[str, Any]:
    """Plan what to resume in the last of ten thousand epochs."""
    folder = said.folder / "epochs"
    made, template = None, _plan(_specs(units=1, files=1))
    for epoch in range(EPOCHS):
        start = {"next": epoch} if epoch else None
        made = replace(template, epoch=epoch, start=start, end={"next": epoch + 1}, plan_id="")
        record = _record(made.plan_id, 0, epoch=epoch)
        files = list(_files([record]))
        done = Commit.of(made, [record], files, run_id="run-1")
        stored = {keys.plan_key(epoch): made, keys.unit_key(epoch, 0): record, keys.commit_key(epoch): done}
        for key, what in stored.items():
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            if epoch < EPOCHS - 1 or what is made:
                path.write_text(what.to_json())
    ledger, started = _ledger(folder), time.monotonic()
    ledger.open()
    held = ledger.plan(ledger.position()[0])
    assert held is not None
    todo = len(held.units) - len(ledger.published(held))
    return {"epochs": EPOCHS, "resumed_in_s": round(time.monotonic() - started, 2), "todo": todo}


PHASES = {
    "plan": plan,
    "publish": publish,
    "resume": resume,
    "count": count,
    "commit": commit,
    "next-run": next_run,
    "many-epochs": many_epochs,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--published", type=float, default=0.99)
    run_phases(__file__, PHASES, parser, sys.argv[1:])
