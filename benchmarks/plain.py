"""raybatch's pipeline without exactly-once, in a process of its own; prints the same JSON line as `ours`.

    python -m benchmarks.plain PIPELINE [--set key=value ...] [--ray-first] [--durable]

Reading, stages, engines and Ray Data are raybatch's. The publishing step only writes a Parquet file per unit
into the output folder: no plan, no records, no checksums, no finalise, no commit, and no fsync unless --durable.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import raybatch
from benchmarks.sessions import EngineTimes, ray_started
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Counts, Plan, PlanRef, UnitRecord, now, schema_to_text
from raybatch.rows import UnitRows
from raybatch.runtime import planning
from raybatch.runtime.execute import Execution
from raybatch.runtime.watch import Watch
from raybatch.sinks.parquet import ParquetConfig, ParquetSink
from raybatch.sinks.parquet_writer import RowGroupWriter
from raybatch.sources.base import Source
from raybatch.spec.pipeline import Pipeline
from raybatch.store import open_store

RUN_ID = "plain"


@dataclass(frozen=True, kw_only=True)
class PlainSink(ParquetSink):
    """Writes each unit's living rows as the Parquet sink does, into a file, and that is all."""

    folder: str
    durable: bool

    def write(
        self,
        rows: UnitRows,
        *,
        plan: PlanRef,
        attempt: str,
        ledger: Ledger,
        metadata: Mapping[str, str] | None = None,
    ) -> UnitRecord:
        """See `raybatch.sinks.base.Sink`; the record is made up, and stored nowhere."""
        unit = int(rows.unit.rpartition("/")[2])
        writer = RowGroupWriter(rows.table.schema, options=self.options, metadata={})
        writer.write(rows.table)
        with open(Path(self.folder, f"{unit:08d}.parquet"), "wb") as file:
            file.write(memoryview(writer.close()))
            if self.durable:
                file.flush()
                os.fsync(file.fileno())
        return UnitRecord(
            plan_id=plan.plan_id,
            epoch=plan.epoch,
            unit=unit,
            attempt=attempt,
            parts={},
            counts=Counts(rows_in=rows.rows_in, ok=len(rows.table)),
            error_types={},
            stats=rows.stats,
            schema="",
            created_at=now(),
        )


class PlainConfig(ParquetConfig):
    """Stands where the sink's config does."""

    durable: bool

    def build(self) -> PlainSink:
        sink = super().build()
        return PlainSink(**vars(sink), folder=self.path, durable=self.durable)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pipeline")
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--ray-first", action="store_true", help="start Ray before the clock of the run")
    parser.add_argument("--durable", action="store_true", help="wait until each file is on the disk")
    arguments = parser.parse_args()
    pipeline = raybatch.load_pipeline(arguments.pipeline, sets=arguments.sets)
    engine = EngineTimes()
    with ray_started(arguments.ray_first):
        said = run(pipeline, engine, durable=arguments.durable)
    print(json.dumps(said | engine.times()))


def run(given: Pipeline, engine: EngineTimes, *, durable: bool) -> dict[str, Any]:
    """Read, process and write everything; gives what `ours` says, as far as it exists here."""
    started_at = time.time()
    folder = Path(given.sink.path)
    folder.mkdir(parents=True)
    assert isinstance(given.sink, ParquetConfig)
    pipeline = dataclasses.replace(given, sink=PlainConfig(**given.sink.model_dump(), durable=durable))
    source = planning.build_source(pipeline)
    plan = _plan(pipeline, source)
    planned_at = time.time()
    watch = Watch(pipeline, run_id=RUN_ID, reporter=engine)
    watch.begin(plan)
    unused = Ledger(open_store(str(folder)), pipeline.name)
    with Execution(pipeline, watch=watch) as execution:
        rate = pipeline.run.max_error_rate
        execution.execute(plan, range(len(plan.units)), source=source, ledger=unused, max_error_rate=rate)
    ended_at = time.time()
    written = [file.stat().st_mtime for file in folder.glob("*.parquet")]
    return {
        "rows": watch.tally.rows["ok"],
        "started_at": started_at,
        "planned_at": planned_at,
        "first_published_at": min(written),
        "last_published_at": max(written),
        "committed_at": max(written),
        "ended_at": ended_at,
    }


def _plan(pipeline: Pipeline, source: Source) -> Plan:
    found = source.plan(after=None)
    return Plan(
        epoch=0,
        pipeline=pipeline.name,
        start=None,
        end=found.end,
        units=tuple(found.units),
        schema=schema_to_text(found.schema),
        fingerprint={},
        layout=pipeline.sink.build().layout(),
        created_by=RUN_ID,
        created_at=now(),
    )


if __name__ == "__main__":
    main()
