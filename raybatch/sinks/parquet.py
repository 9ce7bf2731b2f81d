"""The Parquet sink: `type: parquet`. Delivers exactly once, together with the ledger below the same path.

write      one attempt's rows -> up to three parts (ok, errors, dropped) -> the unit's record
finalise   the parts of all published units -> files below data/ and errors/, see `files.py`
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import pyarrow as pa
from pydantic import Field, PositiveInt, field_validator, model_validator

from raybatch.config import Config, PathOrUrl
from raybatch.errors import LedgerError, SinkError, StageError, StoreError, TooManyPartitionsError
from raybatch.ledger import keys
from raybatch.ledger.failpoints import failpoint
from raybatch.ledger.footers import footer, open_parquet
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import (
    Counts,
    DataFile,
    Layout,
    Part,
    Partition,
    Plan,
    PlanRef,
    UnitRecord,
    now,
    schema_from_text,
    schema_to_text,
)
from raybatch.rows import UnitRows
from raybatch.sinks import files, partitions
from raybatch.sinks.base import ParallelMap
from raybatch.sinks.parquet_writer import RowGroupWriter, WriteOptions
from raybatch.sinks.partitions import Slice
from raybatch.sinks.schemas import normalise, stored_as, unify
from raybatch.store.base import Store
from raybatch.store.objects import sha256_of
from raybatch.store.remote import StorageOptions

MIB = 1 << 20


class ParquetConfig(Config):
    """Rows as Parquet files below `path`: results in data/, error rows in errors/, records in _raybatch/."""

    type: Literal["parquet"]
    path: PathOrUrl = Field(min_length=1)
    """The folder of the dataset: a local or shared path, or a URL: s3://bucket/path, gs://bucket/path,
    az://container/path, abfss://container@account.dfs.core.windows.net/path. One pipeline each."""
    storage: StorageOptions | None = None
    """How to reach an object store; by default by the environment and the identity of machine or pod."""
    compression: Literal["zstd", "snappy", "gzip", "lz4", "brotli", "none"] = "zstd"
    """Parquet's codec for every column."""
    compression_level: int | None = None
    """The codec's own scale; its default if not said (zstd: 1)."""
    row_group_rows: PositiveInt = 131_072
    """Rows per row group, at most."""
    row_group_bytes: PositiveInt = 128 * MIB
    """Uncompressed bytes per row group, at most (a single larger row is a row group)."""
    target_file_bytes: int = Field(default=256 * MIB, ge=MIB)
    """Size that small units are merged to. Those of an eighth of it or more become files as they are."""
    partition_by: tuple[str, ...] = ()
    """Columns that make folders below data/, such as lang=en: readers take them from there, not from files."""
    max_partitions: PositiveInt = 1000
    """Partitions of an epoch, at most: each has a file of its own, however small."""

    @field_validator("partition_by")
    @classmethod
    def _can_be_folders(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        partitions.check_columns(names)
        return names

    @model_validator(mode="after")
    def _level_exists(self) -> ParquetConfig:
        if self.compression_level is None:
            return self
        try:
            low = pa.Codec.minimum_compression_level(self.compression)
            high = pa.Codec.maximum_compression_level(self.compression)
        except (ValueError, TypeError):
            raise ValueError(f"compression '{self.compression}' has no compression_level") from None
        if not low <= self.compression_level <= high:
            raise ValueError(f"compression_level of {self.compression} is from {low} to {high}")
        return self

    def build(self) -> ParquetSink:
        """See `raybatch.sinks.base.SinkConfig`."""
        options = WriteOptions(
            compression=self.compression,
            compression_level=self.compression_level,
            row_group_rows=self.row_group_rows,
            row_group_bytes=self.row_group_bytes,
        )
        return ParquetSink(
            options=options,
            target_file_bytes=self.target_file_bytes,
            partition_by=self.partition_by,
            max_partitions=self.max_partitions,
        )

    def reads(self) -> list[str]:
        """See `raybatch.sinks.base.SinkConfig`."""
        return list(self.partition_by)


@dataclass(frozen=True, kw_only=True)
class ParquetSink:
    """See `raybatch.sinks.base.Sink`."""

    options: WriteOptions
    target_file_bytes: int
    partition_by: tuple[str, ...]
    max_partitions: int

    def check(self, schema: pa.Schema, *, kept: bool) -> None:
        """See `Sink.check`."""
        try:
            stored_as(schema)
            for name in self.partition_by if kept else ():
                if name in schema.names:
                    partitions.check_type(schema.field(name))
        except ValueError as error:
            raise SinkError(str(error)) from None

    def check_beside(self, layout: Layout) -> None:
        """See `Sink.check_beside`. Sizes may change from epoch to epoch, partitions not."""
        if layout.partition_by != self.partition_by:
            raise SinkError(
                f"sink.partition_by is {list(self.partition_by)}, and what is at sink.path has"
                f" {list(layout.partition_by)}: readers need one layout for all files. Choose another"
                " sink.path, or undo the change"
            )

    def check_partitions(self, paths: Collection[str]) -> None:
        """See `Sink.check_partitions`."""
        if len(paths) > self.max_partitions:
            raise TooManyPartitionsError(
                f"the rows of this epoch make {len(paths)} partitions by {', '.join(self.partition_by)}, such"
                f" as {min(tuple(paths))}, and sink.max_partitions is {self.max_partitions}: each is a file of its"
                " own, at least. Accept so many files: run again with a higher --set sink.max_partitions=...,"
                " and nothing is done twice; or partition by columns of fewer values, at another sink.path"
            )

    def layout(self) -> Layout:
        """See `Sink.layout`."""
        return Layout(
            target_bytes=self.target_file_bytes,
            small_bytes=self.target_file_bytes // 8,
            partition_by=self.partition_by,
        )

    def write(
        self,
        rows: UnitRows,
        *,
        plan: PlanRef,
        attempt: str,
        ledger: Ledger,
        metadata: Mapping[str, str] | None = None,
    ) -> UnitRecord:
        """See `Sink.write`. Raises `StageError` for rows that Parquet cannot hold."""
        number = int(rows.unit.rpartition("/")[2])
        writing = _Attempt(
            sink=self, plan=plan, unit=number, attempt=attempt, store=ledger.store, extra=metadata or {}
        )
        record = writing.store_parts(rows)
        standing = ledger.publish(record)
        if standing.attempt != attempt:
            failpoint("before-discard")
            for part in record.parts.values():
                ledger.store.delete(part.key)
        return standing

    def finalise(
        self,
        plan: Plan,
        records: Sequence[UnitRecord],
        *,
        ledger: Ledger,
        parallel_map: ParallelMap = map,
    ) -> list[DataFile]:
        """See `Sink.finalise`. However many jobs `parallel_map` works on at a time, the merges of one process
        hold about `files.MERGE_BYTES` of memory together, or what the largest file needs: itself, two row
        groups, and up to 64 MiB of small parts that wait to be merged."""
        ordered = _complete(plan, records)
        self.check_partitions({p.path for record in ordered for p in record.partitions})
        schema = unify(_schemas(ordered), before=_schema_before(plan, ledger))
        jobs = files.lay_out(plan, ordered, schema)
        files.refuse_strangers(ledger.store, plan.epoch, jobs)
        # All parts first: a damaged one is found before readers see the first file
        for _ in parallel_map(partial(files.verify_unit, ledger.store), ordered):
            pass
        make = partial(files.make_file, ledger.store, plan.reference(), self.options)
        return list(parallel_map(make, jobs))


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """One attempt at one unit on its way into the store."""

    sink: ParquetSink
    plan: PlanRef
    unit: int
    attempt: str
    store: Store
    extra: Mapping[str, str]

    def store_parts(self, arrived: UnitRows) -> UnitRecord:
        rows, slices, schema = self._in_slices(arrived)
        tables = {
            "ok": [one.table for one in slices],
            "errors": [rows.errors],
            "dropped": [rows.dropped],
        }
        stored = {
            kind: self._store_part(kind, found) for kind, found in tables.items() if sum(map(len, found))
        }
        groups = stored["ok"][1] if self.sink.partition_by and "ok" in stored else []
        return UnitRecord(
            plan_id=self.plan.plan_id,
            epoch=self.plan.epoch,
            unit=self.unit,
            attempt=self.attempt,
            parts={kind: part for kind, (part, _) in stored.items()},
            partitions=tuple(
                Partition(path=one.path, rows=len(one.table), size=size, row_groups=count)
                for one, (size, count) in zip(slices, groups, strict=bool(groups))
            ),
            counts=Counts(
                rows_in=rows.rows_in,
                ok=len(rows.table),
                error=len(rows.errors),
                dropped=len(rows.dropped),
                made=rows.made,
            ),
            error_types=dict(Counter(rows.errors["type"].to_pylist())),
            # NaN is no JSON, and not worth a unit
            stats={key: value for key, value in rows.stats.items() if math.isfinite(value)},
            schema=schema_to_text(schema),
            created_at=now(),
        )

    def _in_slices(self, rows: UnitRows) -> tuple[UnitRows, list[Slice], pa.Schema]:
        """The rows as they are stored, their ok rows by partition, and the schema of these."""
        try:
            ok = replace(rows, table=normalise(rows.table))
            if not self.sink.partition_by:
                return ok, [Slice(path="", table=ok.table)], ok.table.schema
            ok, slices = partitions.split(ok, self.sink.partition_by)
        except (ValueError, pa.ArrowException) as error:
            raise StageError(f"unit {rows.unit}: {error}") from error
        self.sink.check_partitions([one.path for one in slices])
        stay = [field for field in ok.table.schema if field.name not in self.sink.partition_by]
        return ok, slices, pa.schema(stay)

    def _store_part(self, kind: str, tables: Sequence[pa.Table]) -> tuple[Part, list[tuple[int, int]]]:
        """The part, and for each of `tables` the compressed bytes and the number of its row groups."""
        key = keys.part_key(self.plan.epoch, self.unit, attempt=self.attempt, kind=kind)
        data, groups = self._parquet(tables)
        digest = hashlib.sha256(data).hexdigest()
        failpoint("before-part")
        try:
            self.store.put(key, data)
        except StoreError:
            # It may be there all the same, and the work of engines is in it: what is there decides
            if not _stands(self.store, key, digest):
                raise
        failpoint("after-part")
        part = Part(key=key, size=len(data), sha256=digest, rows=sum(map(len, tables)))
        return part, groups

    def _parquet(self, tables: Sequence[pa.Table]) -> tuple[memoryview, list[tuple[int, int]]]:
        metadata = footer(self.plan, [(self.unit, self.attempt)], self.extra)
        try:
            writer = RowGroupWriter(tables[0].schema, options=self.sink.options, metadata=metadata)
            for table in tables:
                writer.write(table)
                writer.end_partition()
            return memoryview(writer.close()), writer.partition_sizes()
        except pa.ArrowException as error:
            raise StageError(f"unit {self.unit}: its rows cannot be stored as Parquet: {error}") from error


def _stands(store: Store, key: str, digest: str) -> bool:
    """Whether `key` holds those bytes. What another attempt has made garbage may go at any moment."""
    try:
        return sha256_of(store, key) == digest
    except KeyError:
        return False


def _complete(plan: Plan, records: Sequence[UnitRecord]) -> list[UnitRecord]:
    """The records in the order of units; all of them, and each with the rows that the plan says."""
    ordered = sorted(records, key=lambda record: record.unit)
    if [record.unit for record in ordered] != list(range(len(plan.units))):
        raise LedgerError(
            f"epoch {plan.epoch} has {len(plan.units)} units, and finalise was given {len(ordered)} records"
        )
    for record, spec in zip(ordered, plan.units, strict=True):
        if record.plan_id != plan.plan_id:
            raise LedgerError(
                f"the record of unit {record.unit} is of plan {record.plan_id}, not {plan.plan_id}"
            )
        if spec.rows is not None and spec.rows != record.counts.rows_in:
            raise LedgerError(
                f"unit {record.unit} of epoch {plan.epoch} was planned with {spec.rows} rows, and its record"
                f" accounts for {record.counts.rows_in}"
            )
        _check_partitions(plan, record)
    return ordered


def _check_partitions(plan: Plan, record: UnitRecord) -> None:
    wanted = record.counts.ok if plan.layout.partition_by else 0
    columns = list(plan.layout.partition_by)
    held = sum(one.rows for one in record.partitions)
    if held != wanted or any(partitions.columns_of(one.path) != columns for one in record.partitions):
        raise LedgerError(
            f"unit {record.unit} of epoch {plan.epoch} has {record.counts.ok} ok rows, of which its record"
            f" gives {held} a partition, and the plan partitions by {columns or 'nothing'}: delete"
            f" {keys.unit_key(plan.epoch, record.unit)} to have the unit done again, and run again"
        )


def _schemas(records: Sequence[UnitRecord]) -> list[tuple[int, pa.Schema]]:
    """Each different schema once, with the first unit that has it."""
    first: dict[str, int] = {}
    for record in records:
        first.setdefault(record.schema, record.unit)
    return [(unit, schema_from_text(text)) for text, unit in first.items()]


def _schema_before(plan: Plan, ledger: Ledger) -> pa.Schema | None:
    """The schema of the last epoch that had results, or of the last that has a file where none had. All before
    `plan` are committed: the same for every driver."""
    empty: DataFile | None = None
    for epoch in reversed(range(plan.epoch)):
        previous = ledger.committed(epoch)
        for file in previous.data if previous is not None else ():
            if file.rows:
                return _schema_of(file, ledger)
            # Where every row failed, as in many a retry, its columns are those that stages make of nothing
            empty = empty or file
    return None if empty is None else _schema_of(empty, ledger)


def _schema_of(file: DataFile, ledger: Ledger) -> pa.Schema:
    try:
        stored = ledger.store.open(file.key)
    except KeyError:
        raise LedgerError(f"{ledger.store.url}/{file.key} is missing, and a commit names it") from None
    with open_parquet(stored, where=f"{ledger.store.url}/{file.key}") as parquet:
        return parquet.schema_arrow.remove_metadata()
