"""The Parquet sink: `type: parquet`. Delivers exactly once, together with the ledger below the same path.

write      one attempt's rows -> up to three parts (ok, errors, dropped) -> the unit's record
finalise   the parts of all published units -> files below data/ and errors/, see `files.py`
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pyarrow as pa
from pydantic import Field, PositiveInt, model_validator

from raybatch.config import Config, PathOrUrl
from raybatch.errors import LedgerError, SinkError, StageError, StoreError
from raybatch.ledger import keys
from raybatch.ledger.failpoints import failpoint
from raybatch.ledger.footers import footer, open_parquet
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import (
    Counts,
    DataFile,
    Layout,
    Part,
    Plan,
    PlanRef,
    UnitRecord,
    now,
    schema_from_text,
    schema_to_text,
)
from raybatch.rows import UnitRows
from raybatch.sinks import files
from raybatch.sinks.base import ParallelMap
from raybatch.sinks.parquet_writer import RowGroupWriter, WriteOptions
from raybatch.sinks.schemas import normalise, stored_as, unify
from raybatch.store.base import Store
from raybatch.store.objects import exists, sha256_of

MIB = 1 << 20


class ParquetConfig(Config):
    """Rows as Parquet files below `path`: results in data/, error rows in errors/, records in _raybatch/."""

    type: Literal["parquet"]
    path: PathOrUrl = Field(min_length=1)
    """The folder of the dataset: a local or shared path, or file:///path. One pipeline each."""
    compression: Literal["zstd", "snappy", "gzip", "lz4", "brotli", "none"] = "zstd"
    """Parquet's codec for every column."""
    compression_level: int | None = None
    """The codec's own scale; its default if not said (zstd: 1)."""
    row_group_rows: PositiveInt = 131_072
    """Rows per row group, at most."""
    row_group_bytes: PositiveInt = 128 * MIB
    """Uncompressed bytes per row group, at most (a single larger row is a row group)."""
    target_file_bytes: int = Field(default=256 * MIB, ge=MIB)
    """Size that small units are merged to. Those of a quarter of it or more become files as they are."""

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
        return ParquetSink(options=options, target_file_bytes=self.target_file_bytes)


@dataclass(frozen=True, kw_only=True)
class ParquetSink:
    """See `raybatch.sinks.base.Sink`."""

    options: WriteOptions
    target_file_bytes: int

    def check(self, schema: pa.Schema) -> None:
        """See `Sink.check`."""
        try:
            stored_as(schema)
        except ValueError as error:
            raise SinkError(str(error)) from None

    def layout(self) -> Layout:
        """See `Sink.layout`."""
        return Layout(target_bytes=self.target_file_bytes, small_bytes=self.target_file_bytes // 4)

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
        """See `Sink.finalise`. A job of `parallel_map` holds a target file and two row groups in memory."""
        ordered = _complete(plan, records)
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

    def store_parts(self, rows: UnitRows) -> UnitRecord:
        try:
            ok = normalise(rows.table)
        except (ValueError, pa.ArrowException) as error:
            raise StageError(f"unit {rows.unit}: {error}") from error
        tables = {"ok": ok, "errors": rows.errors, "dropped": rows.dropped}
        parts = {kind: self._store_part(kind, table) for kind, table in tables.items() if len(table)}
        return UnitRecord(
            plan_id=self.plan.plan_id,
            epoch=self.plan.epoch,
            unit=self.unit,
            attempt=self.attempt,
            parts=parts,
            counts=Counts(
                rows_in=rows.rows_in,
                ok=len(ok),
                error=len(rows.errors),
                dropped=len(rows.dropped),
                made=rows.made,
            ),
            error_types=dict(Counter(rows.errors["type"].to_pylist())),
            # NaN is no JSON, and not worth a unit
            stats={key: value for key, value in rows.stats.items() if math.isfinite(value)},
            schema=schema_to_text(ok.schema),
            created_at=now(),
        )

    def _store_part(self, kind: str, table: pa.Table) -> Part:
        key = keys.part_key(self.plan.epoch, self.unit, attempt=self.attempt, kind=kind)
        data = self._parquet(table)
        digest = hashlib.sha256(data).hexdigest()
        failpoint("before-part")
        try:
            made = self.store.create(key, data)
        except StoreError:
            # The outcome is unknown, and a later copy would be the same bytes: what is there decides
            made = False
            if not exists(self.store, key):
                raise
        if not made and sha256_of(self.store, key) != digest:
            raise LedgerError(
                f"{self.store.url}/{key} exists with other bytes: attempt ids must be new each time"
            )
        failpoint("after-part")
        return Part(key=key, size=len(data), sha256=digest, rows=len(table))

    def _parquet(self, table: pa.Table) -> memoryview:
        metadata = footer(self.plan, [(self.unit, self.attempt)], self.extra)
        try:
            writer = RowGroupWriter(table.schema, options=self.sink.options, metadata=metadata)
            writer.write(table)
            return memoryview(writer.close())
        except pa.ArrowException as error:
            raise StageError(f"unit {self.unit}: its rows cannot be stored as Parquet: {error}") from error


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
    return ordered


def _schemas(records: Sequence[UnitRecord]) -> list[tuple[int, pa.Schema]]:
    """Each different schema once, with the first unit that has it."""
    first: dict[str, int] = {}
    for record in records:
        first.setdefault(record.schema, record.unit)
    return [(unit, schema_from_text(text)) for text, unit in first.items()]


def _schema_before(plan: Plan, ledger: Ledger) -> pa.Schema | None:
    """The schema of the epoch before, which is committed: the same for every driver."""
    previous = ledger.committed(plan.epoch - 1) if plan.epoch else None
    if previous is None or not previous.data:
        return None
    key = previous.data[0].key
    try:
        file = ledger.store.open(key)
    except KeyError:
        raise LedgerError(
            f"{ledger.store.url}/{key} is missing, and the commit of epoch {previous.epoch} names it"
        ) from None
    with open_parquet(file, where=f"{ledger.store.url}/{key}") as parquet:
        return parquet.schema_arrow.remove_metadata()
