"""From the parts of an epoch's units to the files that readers read.

Which files there are, and which units are in each, follows from the plan and the units' records alone. So
after a crash, or beside a second driver, the same files are made again, and one that exists already is
compared with what it should be, and taken.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa

from raybatch.errors import LedgerError, StoreError
from raybatch.ledger import keys
from raybatch.ledger.failpoints import failpoint
from raybatch.ledger.footers import PREFIX, extras, footer, open_parquet, read_footer
from raybatch.ledger.records import DataFile, Part, Plan, PlanRef, UnitRecord, schema_from_text
from raybatch.rows import ERROR_SCHEMA
from raybatch.sinks.budget import Budget
from raybatch.sinks.parquet_writer import RowGroupWriter, WriteOptions
from raybatch.sinks.schemas import conform
from raybatch.store.ahead import map_ahead
from raybatch.store.base import Store
from raybatch.store.objects import exists, sha256_of, size_of

# Of the driver's memory, for all merges together: four files of the default size at a time, or many small ones
MERGE_BYTES = 2 << 30
_MERGES = Budget(MERGE_BYTES)
_UNPACKED = 5  # bytes of rows in memory for one in a file; text is 3 to 5, vectors are 1

# Parts that are read whole, and how many at a time; twice as many may wait for their turn: 64 MiB. Where only a
# partition is wanted, the rest is read in vain; an object store's reader asks for 256 KiB at a time anyway.
_WHOLE_BYTES = 4 << 20
_WHOLE_BYTES_OF_PARTITIONS = 256 << 10
_FETCHES = 8


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one unit gives to a file: the rows of `groups`, row groups of its part; None: all of the part."""

    unit: int
    attempt: str
    part: Part
    rows: int
    size: int
    groups: range | None = None


@dataclass(frozen=True, kw_only=True)
class FileJob:
    """One file to make: `linked` from its only piece, or merged. No pieces: a file without rows."""

    key: str
    pieces: tuple[Piece, ...]
    schema: pa.Schema
    linked: bool

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.pieces)

    @property
    def units(self) -> list[tuple[int, str]]:
        return [(piece.unit, piece.attempt) for piece in self.pieces]


def lay_out(plan: Plan, records: Sequence[UnitRecord], schema: pa.Schema) -> list[FileJob]:
    """The files of an epoch, given the records of all of its units in order and the schema of its data.

    Partitions are laid out one after the other, in order of path, each by the same rules; numbers go on from
    one to the next. An epoch with units but without a single ok row has one data file without rows, for its
    schema; by partition it has none, since no partition would be right for it.
    """
    fits = {text: schema_from_text(text).equals(schema) for text in {record.schema for record in records}}
    ok: dict[str, list[tuple[Piece, bool]]] = {}
    for record in records:
        for path, piece in _ok_pieces(record):
            ok.setdefault(path, []).append((piece, fits[record.schema] and piece.groups is None))
    errors = [(_whole(r, "errors"), True) for r in records if "errors" in r.parts]
    data = [(path, *group) for path in sorted(ok) for group in _group(ok[path], plan)]
    if records and not data and not plan.layout.partition_by:
        data = [("", [], False)]
    rejected = [("", *group) for group in _group(errors, plan)]
    return [
        *_jobs(keys.DATA, plan.epoch, data, schema),
        *_jobs(keys.ERRORS, plan.epoch, rejected, ERROR_SCHEMA),
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


def _whole(record: UnitRecord, kind: str) -> Piece:
    part = record.parts[kind]
    return Piece(unit=record.unit, attempt=record.attempt, part=part, rows=part.rows, size=part.size)


def _ok_pieces(record: UnitRecord) -> Iterator[tuple[str, Piece]]:
    """By path of the partition, which is empty where there are none."""
    if "ok" not in record.parts:
        return
    whole = _whole(record, "ok")
    if len(record.partitions) < 2:
        yield record.partitions[0].path if record.partitions else "", whole
        return
    groups = record.row_groups
    for one in record.partitions:
        yield one.path, replace(whole, rows=one.rows, size=one.size, groups=groups[one.path])


def _group(pieces: Sequence[tuple[Piece, bool]], plan: Plan) -> list[tuple[list[Piece], bool]]:
    """Pieces by file, in the order of each file's first unit, and whether it can be linked.

    Each comes with whether it fits: is a whole part of the file's schema. One that does and is not small is a
    file; the others are gathered until the next would exceed the target, across the large ones in between.
    One that stays alone is linked if it fits.
    """
    layout = plan.layout
    groups: list[tuple[list[Piece], bool]] = []
    gathered: list[Piece] = []
    size, linkable = 0, False
    for piece, fits in pieces:
        if fits and piece.size >= layout.small_bytes:
            groups.append(([piece], True))
            continue
        if gathered and size + piece.size > layout.target_bytes:
            groups.append((gathered, linkable))
            gathered, size = [], 0
        linkable = fits and not gathered
        gathered.append(piece)
        size += piece.size
    if gathered:
        groups.append((gathered, linkable))
    return sorted(groups, key=lambda group: group[0][0].unit)


def _jobs(
    folder: str, epoch: int, groups: Sequence[tuple[str, list[Piece], bool]], schema: pa.Schema
) -> list[FileJob]:
    return [
        FileJob(
            key=keys.file_key(folder, epoch, n, partition=path),
            pieces=tuple(pieces),
            schema=schema,
            linked=linked,
        )
        for n, (path, pieces, linked) in enumerate(groups)
    ]


def _make(store: Store, plan: PlanRef, options: WriteOptions, job: FileJob) -> DataFile | None:
    """The file, freshly made; None when one stands already."""
    try:
        if job.linked:
            part = job.pieces[0].part
            made = store.link(part.key, job.key)
            return _file(job, size=part.size, sha256=part.sha256) if made else None
        with _MERGES.using(_memory(options, job)):
            data = _merge(store, plan, options, job)
            made = store.create(job.key, data)
            return _file(job, size=len(data), sha256=hashlib.sha256(data).hexdigest()) if made else None
    except StoreError:
        if not exists(store, job.key):
            raise
        return None  # it was made, and only the answer was lost


def _merge(store: Store, plan: PlanRef, options: WriteOptions, job: FileJob) -> memoryview:
    writer = RowGroupWriter(job.schema, options=options)
    footers = []
    with closing(map_ahead(partial(_fetch, store), job.pieces, threads=_FETCHES)) as fetched:
        for piece, file in zip(job.pieces, fetched, strict=True):
            with open_parquet(file, where=f"{store.url}/{piece.part.key}") as part:
                footers.append(read_footer(part.metadata))
                for group in range(part.num_row_groups) if piece.groups is None else piece.groups:
                    where = f"unit {piece.unit} of epoch {plan.epoch}"
                    writer.write(conform(part.read_row_group(group), job.schema, where=where))
    said = footer(plan, job.units, extras(footers), partition=keys.partition_of(job.key))
    return memoryview(writer.close(metadata=said))


def _fetch(store: Store, piece: Piece) -> BinaryIO:
    """The part of a piece: a small one at once, since an object store takes longer to answer than to send it."""
    limit = _WHOLE_BYTES if piece.groups is None else _WHOLE_BYTES_OF_PARTITIONS
    key = piece.part.key
    return io.BytesIO(store.read(key)) if piece.part.size <= limit else store.open(key)


def _memory(options: WriteOptions, job: FileJob) -> int:
    """Bytes that a merge needs, about: the file, and of its rows a row group read and one to be written."""
    size = sum(piece.size for piece in job.pieces)
    return size + min(2 * options.row_group_bytes, _UNPACKED * size)


def _standing(store: Store, plan: PlanRef, job: FileJob) -> DataFile:
    """The stored file of `job`. Raises `LedgerError` unless it is the one that the job makes."""
    with _open(store, job.key) as parquet:
        said = read_footer(parquet.metadata)
        rows = parquet.metadata.num_rows
        same_schema = parquet.schema_arrow.equals(job.schema)
    of_plan = said.get(f"{PREFIX}plan") == plan.plan_id
    # A link has the part's footer, which names no partition
    elsewhere = not job.linked and said.get(f"{PREFIX}partition", "") != keys.partition_of(job.key)
    if (
        not of_plan
        or elsewhere
        or said.get(f"{PREFIX}units") != json.dumps([list(unit) for unit in job.units])
    ):
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
