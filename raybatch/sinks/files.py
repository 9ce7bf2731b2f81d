"""From the parts of an epoch's units to the files that readers read.

Which files there are, and which units are in each, follows from the plan and the units' records alone. So
after a crash, or beside a second driver, the same files are made again, and one that exists already is
compared with what it should be, and taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raybatch.errors import LedgerError, StoreError
from raybatch.ledger import keys
from raybatch.ledger.failpoints import failpoint
from raybatch.ledger.footers import PREFIX, extras, footer, open_parquet, read_footer
from raybatch.ledger.records import DataFile, Part, Plan, PlanRef, UnitRecord, schema_from_text
from raybatch.rows import ERROR_SCHEMA
from raybatch.sinks.parquet_writer import RowGroupWriter, WriteOptions
from raybatch.sinks.schemas import conform
from raybatch.store.base import Store
from raybatch.store.objects import exists, sha256_of, size_of


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one unit gives to a file."""

    unit: int
    attempt: str
    part: Part


@dataclass(frozen=True, kw_only=True)
class FileJob:
    """One file to make: `linked` from its only piece, or merged. No pieces: a file without rows."""

    key: str
    pieces: tuple[Piece, ...]
    schema: pa.Schema
    linked: bool

    @property
    def rows(self) -> int:
        return sum(piece.part.rows for piece in self.pieces)

    @property
    def units(self) -> list[tuple[int, str]]:
        return [(piece.unit, piece.attempt) for piece in self.pieces]


def lay_out(plan: Plan, records: Sequence[UnitRecord], schema: pa.Schema) -> list[FileJob]:
    """The files of an epoch, given the records of all of its units in order and the schema of its data.

    An epoch with units but without a single ok row has one data file without rows, for its schema.
    """
    fits = {text: schema_from_text(text).equals(schema) for text in {record.schema for record in records}}
    ok = [(_piece(r, "ok"), fits[r.schema]) for r in records if "ok" in r.parts]
    errors = [(_piece(r, "errors"), True) for r in records if "errors" in r.parts]
    groups = _group(ok, plan) or ([([], False)] if records else [])
    return [
        *_jobs(keys.DATA, plan.epoch, groups, schema),
        *_jobs(keys.ERRORS, plan.epoch, _group(errors, plan), ERROR_SCHEMA),
    ]


def refuse_strangers(store: Store, epoch: int, jobs: Sequence[FileJob]) -> None:
    """Raise `LedgerError` for a file of `epoch` that `jobs` do not make: readers would see its rows."""
    named = {job.key for job in jobs}
    for folder in (keys.DATA, keys.ERRORS):
        for entry in store.list(folder):
            if keys.epoch_of(entry.key) == epoch and entry.key not in named:
                raise _contradiction(
                    store, entry.key, epoch, "is no file of this epoch by its plan and units"
                )


def verify_unit(store: Store, record: UnitRecord) -> None:
    """Raise `LedgerError` unless all parts of a unit are there with the recorded bytes."""
    failpoint("before-verify")
    for part in record.parts.values():
        try:
            found = sha256_of(store, part.key)
        except KeyError:
            found = ""
        if found != part.sha256:
            raise LedgerError(
                f"{store.url}/{part.key}, a part of unit {record.unit} of epoch {record.epoch},"
                f" {'was damaged: its SHA-256 is not the recorded one' if found else 'is missing'}."
                f" To have the unit done again, delete {keys.unit_key(record.epoch, record.unit)} there,"
                " and run again"
            )


def make_file(store: Store, plan: PlanRef, options: WriteOptions, job: FileJob) -> DataFile:
    """Make the file of `job`, or take the one that stands. The pieces are verified already."""
    failpoint("before-file")
    made = None if exists(store, job.key) else _make(store, plan, options, job)
    # Of a crashed finalise, or of a driver beside this one
    file = made or _standing(store, plan, job)
    failpoint("after-file")
    return file


def _piece(record: UnitRecord, kind: str) -> Piece:
    return Piece(unit=record.unit, attempt=record.attempt, part=record.parts[kind])


def _group(pieces: Sequence[tuple[Piece, bool]], plan: Plan) -> list[tuple[list[Piece], bool]]:
    """Pieces by file, in the order of each file's first unit, and whether it can be linked.

    A piece that fits the schema and is not small is a file; the others are gathered until the next would
    exceed the target, across the large ones in between. One that stays alone is linked if it fits.
    """
    layout = plan.layout
    groups: list[tuple[list[Piece], bool]] = []
    gathered: list[Piece] = []
    size, linkable = 0, False
    for piece, fits in pieces:
        if fits and piece.part.size >= layout.small_bytes:
            groups.append(([piece], True))
            continue
        if gathered and size + piece.part.size > layout.target_bytes:
            groups.append((gathered, linkable))
            gathered, size = [], 0
        linkable = fits and not gathered
        gathered.append(piece)
        size += piece.part.size
    if gathered:
        groups.append((gathered, linkable))
    return sorted(groups, key=lambda group: group[0][0].unit)


def _jobs(
    folder: str, epoch: int, groups: Sequence[tuple[list[Piece], bool]], schema: pa.Schema
) -> list[FileJob]:
    return [
        FileJob(key=keys.file_key(folder, epoch, n), pieces=tuple(pieces), schema=schema, linked=linked)
        for n, (pieces, linked) in enumerate(groups)
    ]


def _make(store: Store, plan: PlanRef, options: WriteOptions, job: FileJob) -> DataFile | None:
    """The file, freshly made; None when one stands already."""
    try:
        if job.linked:
            part = job.pieces[0].part
            made = store.link(part.key, job.key)
            return _file(job, size=part.size, sha256=part.sha256) if made else None
        data = _merge(store, plan, options, job)
        made = store.create(job.key, data)
        return _file(job, size=len(data), sha256=hashlib.sha256(data).hexdigest()) if made else None
    except StoreError:
        if not exists(store, job.key):
            raise
        return None  # it was made, and only the answer was lost


def _merge(store: Store, plan: PlanRef, options: WriteOptions, job: FileJob) -> memoryview:
    footers = []
    for piece in job.pieces:
        with _open(store, piece.part.key) as part:
            footers.append(read_footer(part.metadata))
    writer = RowGroupWriter(job.schema, options=options, metadata=footer(plan, job.units, extras(footers)))
    for piece in job.pieces:
        with _open(store, piece.part.key) as part:
            for group in range(part.num_row_groups):
                where = f"unit {piece.unit} of epoch {plan.epoch}"
                writer.write(conform(part.read_row_group(group), job.schema, where=where))
    return memoryview(writer.close())


def _standing(store: Store, plan: PlanRef, job: FileJob) -> DataFile:
    """The stored file of `job`. Raises `LedgerError` unless it is the one that the job makes."""
    with _open(store, job.key) as parquet:
        said = read_footer(parquet.metadata)
        rows = parquet.metadata.num_rows
        same_schema = parquet.schema_arrow.equals(job.schema)
    of_plan = said.get(f"{PREFIX}plan") == plan.plan_id
    if not of_plan or said.get(f"{PREFIX}units") != json.dumps([list(unit) for unit in job.units]):
        raise _contradiction(
            store, job.key, plan.epoch, "holds other units than the plan and the units' records say"
        )
    if rows != job.rows or not same_schema:
        raise _contradiction(
            store, job.key, plan.epoch, f"holds {rows} rows, or other columns, instead of {job.rows}"
        )
    digest = sha256_of(store, job.key)
    if job.linked and digest != job.pieces[0].part.sha256:
        raise _contradiction(store, job.key, plan.epoch, "differs from the part that it is a link to")
    return _file(job, size=size_of(store, job.key), sha256=digest)


def _file(job: FileJob, *, size: int, sha256: str) -> DataFile:
    units = tuple(piece.unit for piece in job.pieces)
    return DataFile(key=job.key, rows=job.rows, size=size, sha256=sha256, units=units)


def _contradiction(store: Store, key: str, epoch: int, what: str) -> LedgerError:
    if exists(store, keys.commit_key(epoch)):
        advice = f"The commit of epoch {epoch} exists: restore what was changed below {store.url}"
    else:
        advice = "No commit names it: delete it, and run again"
    return LedgerError(f"{store.url}/{key} {what}. {advice}")


def _open(store: Store, key: str) -> Any:
    return open_parquet(store.open(key), where=f"{store.url}/{key}")
