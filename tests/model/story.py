"""A whole run on ledger and sink alone, as `raybatch.runtime.run` and `continuous` tell it, over an input that grows.

The input is one source of numbered rows. By its number modulo 6 a row becomes two (0), passes (1, 2, 3), fails
(4), or is dropped (5). Like a model, no two attempts give the same text: each text is the attempt's id.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Commit, Layout, Plan, now, schema_to_text
from raybatch.rows import DROPPED_SCHEMA, ID_FIELDS, UnitRows, source_errors
from raybatch.sinks.parquet import ParquetConfig
from raybatch.sources.base import UnitSpec
from raybatch.store.base import Store

PIPELINE = "model"
SOURCE = "input"
UNIT_ROWS = 3
# So that a run has several epochs
EPOCH_UNITS = 4
# A run that makes more of them makes them for ever
MOST_EPOCHS = 100
# Every third unit is large, and linked; the others are merged, a few to a file. So are all error rows.
LAYOUT = Layout(target_bytes=7_000, small_bytes=5_500)
SCHEMA = schema_to_text(pa.schema([("text", pa.string())]))
SINK = ParquetConfig(type="parquet", path="/unused").build()

# Of the first units of an epoch that is planned ahead, how many are done before the one before is committed
AHEAD = 2

Place = tuple[int, Mapping[str, Any] | None]
"""The number of an epoch, and the position that it begins at."""
Attempts = Callable[[], str]
"""Gives a new attempt id each time."""


def run(store: Store, *, run_id: str, arrived: Callable[[], int], attempts: Attempts) -> list[Commit]:
    """Take what has `arrived` (a number of rows), epoch by epoch, until there is nothing new.

    Gives the commits that this run made.
    """
    ledger = Ledger(store, PIPELINE)
    ledger.open()
    made: list[Commit] = []
    while (plan := _plan(ledger, ledger.position(), run_id=run_id, arrived=arrived)) is not None:
        execute(ledger, plan, attempts=attempts)
        made.append(finish(ledger, plan, run_id=run_id))
    return made


def run_continuously(
    store: Store, *, run_id: str, arrived: Callable[[], int], attempts: Attempts
) -> list[Commit]:
    """As `run`, but each epoch is committed only when the next one is planned, and some of it published."""
    ledger = Ledger(store, PIPELINE)
    ledger.open()
    made: list[Commit] = []
    place, before = ledger.position(), None
    while (plan := _plan(ledger, place, run_id=run_id, arrived=arrived)) is not None:
        execute(ledger, plan, attempts=attempts, most=AHEAD if before else None)
        if before is not None:
            made.append(finish(ledger, before, run_id=run_id))
        execute(ledger, plan, attempts=attempts)
        place, before = next_place(plan), plan
    if before is not None:
        made.append(finish(ledger, before, run_id=run_id))
    return made


def next_place(plan: Plan) -> Place:
    """Where the epoch after `plan` begins."""
    return plan.epoch + 1, plan.end


def _plan(ledger: Ledger, place: Place, *, run_id: str, arrived: Callable[[], int]) -> Plan | None:
    epoch, start = place
    assert epoch < MOST_EPOCHS
    unfinished = ledger.plan(epoch)
    if unfinished is not None:
        return unfinished
    first = first_row(start)
    end = min(arrived(), first + EPOCH_UNITS * UNIT_ROWS)
    if first == end and epoch > 0:
        return None
    return ledger.create_plan(make_plan(epoch, start, end, run_id=run_id))


def make_plan(epoch: int, start: Mapping[str, Any] | None, end: int, *, run_id: str) -> Plan:
    """The plan of the rows from `start` up to `end`."""
    return Plan(
        epoch=epoch,
        pipeline=PIPELINE,
        start=start,
        end={"next": end},
        units=tuple(
            UnitSpec(range={"first": first}, rows=min(UNIT_ROWS, end - first), bytes=100)
            for first in range(first_row(start), end, UNIT_ROWS)
        ),
        schema=SCHEMA,
        fingerprint={},
        layout=LAYOUT,
        created_by=run_id,
        created_at=now(),
    )


def first_row(position: Mapping[str, Any] | None) -> int:
    """The first row at or after a position."""
    return position["next"] if position else 0


def execute(ledger: Ledger, plan: Plan, *, attempts: Attempts, most: int | None = None) -> None:
    """Publish what is not published yet, of the first `most` units."""
    done = ledger.published(plan)
    for unit in range(len(plan.units))[:most]:
        if unit not in done:
            attempt(ledger, plan, unit, attempts())


def attempt(ledger: Ledger, plan: Plan, unit: int, name: str) -> None:
    """What a worker does with one unit."""
    SINK.write(unit_rows(plan, unit, name), plan=plan.reference(), attempt=name, ledger=ledger)


def finish(ledger: Ledger, plan: Plan, *, run_id: str) -> Commit:
    """Lay out the published units for readers, and commit."""
    records = [ledger.record(plan, unit) for unit in range(len(plan.units))]
    files = SINK.finalise(plan, records, ledger=ledger)
    return ledger.commit(plan, Commit.of(plan, records, files, run_id=run_id))


def unit_rows(plan: Plan, unit: int, name: str) -> UnitRows:
    """What the attempt `name` makes of a unit."""
    spec = plan.units[unit]
    first, count = spec.range["first"], spec.rows or 0
    rows = range(first, first + count)
    ok: list[tuple[str, int, str | None]] = []
    for row in rows:
        ok += [(SOURCE, row, "0"), (SOURCE, row, "1")] if row % 6 == 0 else []
        ok += [(SOURCE, row, None)] if row % 6 in (1, 2, 3) else []
    padding = random.Random(name).randbytes(7_000).hex() if first // UNIT_ROWS % 3 == 2 else ""
    ids = [pa.array([row_id[n] for row_id in ok], f.type) for n, f in enumerate(ID_FIELDS)]
    text = pa.array([name + padding] * len(ok), pa.string())
    failed = [{"_source": SOURCE, "_row": r, "type": "TooLong", "message": name} for r in rows if r % 6 == 4]
    dropped = [{"_source": SOURCE, "_row": r, "_child": None, "stage": name} for r in rows if r % 6 == 5]
    return UnitRows(
        unit=plan.unit_key(unit),
        rows_in=count,
        table=pa.table([text, *ids], names=["text", *(f.name for f in ID_FIELDS)]),
        errors=source_errors(failed),
        dropped=pa.Table.from_pylist(dropped, schema=DROPPED_SCHEMA),
        made=sum(row % 6 == 0 for row in rows),
    )
