"""Values of records, read in one of four ways: JSON objects, text, bytes, Avro records.

A tombstone (a record without a value) is a row whose value columns are null. A value that does not decode is an
error row with its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from raybatch.errors import SourceError
from raybatch.sources.formats.base import Decoded, Ids, Options, choose_columns
from raybatch.sources.formats.decode import Failure, decode, failure_at, too_large
from raybatch.sources.formats.json_objects import check_readable, decode_objects, infer_columns, note_fields
from raybatch.sources.formats.json_types import Seen, declared_type, shown
from raybatch.sources.formats.lines import Spans, strip_blanks
from raybatch.sources.kafka.avro import HEADER_BYTES, AvroSchema
from raybatch.sources.kafka.client import Partition
from raybatch.sources.kafka.config import VALUE_COLUMN, AvroValue, KafkaConfig


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some values of one partition, with their offsets. `values[i]` is None for a tombstone."""

    partition: Partition
    offsets: Ids
    values: Sequence[bytes | None]

    def place(self, i: int) -> str:
        """Where value i is, for a message."""
        return f"{self.partition}, offset {self.offsets[i]}"

    def spans(self) -> Spans:
        """All values, each in a line of its own; of a tombstone, nothing."""
        values = [v or b"" for v in self.values]
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        ends = np.cumsum(lengths + 1) - 1
        starts = ends - lengths
        data = memoryview(b"\n".join(values))
        return Spans(
            path=str(self.partition), counted="offset", data=data, starts=starts, ends=ends, ids=self.offsets
        )


class Value(Protocol):
    """See the module's docstring."""

    def infer(self, sample: Sequence[bytes], *, before: pa.Schema | None) -> tuple[pa.Schema, list[str]]:
        """The columns of values, none where nobody knows any, and notes. `sample` has no tombstones; `before` are
        the columns of earlier epochs, which keep their types. Raises `SourceError`."""

    def decode(self, part: Part, schema: pa.Schema) -> Decoded:
        """Every value of `part` as a row of `schema` (of the columns of values) or as a failure."""


def make_value(config: KafkaConfig, avro: str | None = None) -> Value:
    """The reader of the values that `config` says; `avro` is the text of its schema file."""
    if config.value == "json":
        options = Options(
            max_rows=1,  # of a unit, which nobody makes here
            max_bytes=1,
            max_row_bytes=config.max_row_bytes,
            columns=config.columns,
            types=config.column_types,
        )
        return _Json(options)
    if isinstance(config.value, AvroValue):
        assert avro is not None
        return _Avro(avro, config.value, columns=config.columns, max_row_bytes=config.max_row_bytes)
    return (_Text if config.value == "text" else _Bytes)(config.max_row_bytes)


class _Json:
    """An object each."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def infer(self, sample: Sequence[bytes], *, before: pa.Schema | None) -> tuple[pa.Schema, list[str]]:
        seen: dict[str, Seen] = {}
        bad = note_fields(sample, seen)
        if bad and len(bad) == len(sample) and before is None:
            raise SourceError(
                f"none of {len(bad)} sampled values is a JSON object; the first is"
                f" {shown(bad[0][:80].decode(errors='replace'))}. If they are no JSON, say so: source.value can be"
                " text, bytes, or {avro: schema.avsc}"
            )
        if not sample and before is None:
            names = self._options.columns or self._options.types
            return pa.schema([(n, declared_type(self._options.types.get(n, "string"))) for n in names]), []
        if not (seen or before or self._options.types):
            return pa.schema([]), []
        found, notes = infer_columns(seen, self._options)
        rare = ". If only values that were not sampled have it, declare its type under source.schema"
        schema = choose_columns(found, self._options, before=before, available=list(seen), hint=rare)
        check_readable(schema)
        return schema, notes

    def decode(self, part: Part, schema: pa.Schema) -> Decoded:
        values = [b"{}" if v is None else v for v in part.values]  # the object whose fields are all null
        spans = replace(part, values=values).spans()
        starts, ends, _ = strip_blanks(spans.data, spans.starts, spans.ends)
        trimmed = replace(spans, starts=starts, ends=ends)
        return decode_objects(trimmed, options=self._options, schema=schema)


class _Text:
    """A string each."""

    def __init__(self, max_row_bytes: int) -> None:
        self._max_row_bytes = max_row_bytes

    def infer(self, sample: Sequence[bytes], *, before: pa.Schema | None) -> tuple[pa.Schema, list[str]]:
        return pa.schema([(VALUE_COLUMN, pa.string())]), []

    def decode(self, part: Part, schema: pa.Schema) -> Decoded:
        strings = _Strings(part, schema)
        return decode(part.spans(), strings, schema=schema, max_row_bytes=self._max_row_bytes)


class _Strings:
    """Every value that is UTF-8 decodes."""

    def __init__(self, part: Part, schema: pa.Schema) -> None:
        self._part = part
        self._schema = schema

    def batch(self, low: int, high: int) -> pa.Table:
        return pa.table([pa.array(self._part.values[low:high], pa.binary()).cast(pa.string())], self._schema)

    def one(self, i: int) -> pa.Table | Failure:
        return self.batch(i, i + 1)


class _Bytes:
    """As they are."""

    def __init__(self, max_row_bytes: int) -> None:
        self._max_row_bytes = max_row_bytes

    def infer(self, sample: Sequence[bytes], *, before: pa.Schema | None) -> tuple[pa.Schema, list[str]]:
        return pa.schema([(VALUE_COLUMN, pa.binary())]), []

    def decode(self, part: Part, schema: pa.Schema) -> Decoded:
        def table(values: Sequence[bytes | None]) -> pa.Table:
            return pa.table([pa.array(values, pa.binary())], schema)

        if max((len(value) for value in part.values if value), default=0) <= self._max_row_bytes:
            return Decoded(table=table(part.values), ids=part.offsets)
        return _one_by_one(part, lambda value: value, table, max_row_bytes=self._max_row_bytes)


class _Avro:
    """A record of one schema each."""

    def __init__(
        self, text: str, config: AvroValue, *, columns: Sequence[str] | None, max_row_bytes: int
    ) -> None:
        schema = AvroSchema(text, where=config.avro)
        self._arrow, self._read = schema.arrow, schema.reader()
        self._skipped = HEADER_BYTES if config.confluent_header else 0
        self._options = Options(max_rows=1, max_bytes=1, max_row_bytes=max_row_bytes, columns=columns)

    def infer(self, sample: Sequence[bytes], *, before: pa.Schema | None) -> tuple[pa.Schema, list[str]]:
        return choose_columns(self._arrow, self._options, before=None, available=self._arrow.names), []

    def decode(self, part: Part, schema: pa.Schema) -> Decoded:
        def record(value: bytes) -> Mapping[str, Any]:
            if self._skipped and (len(value) < self._skipped or value[0]):
                raise ValueError("without the header that source.value.confluent_header speaks of")
            return self._read(value[self._skipped :])

        def table(rows: Sequence[Mapping[str, Any] | None]) -> pa.Table:
            return pa.Table.from_pylist([row or {} for row in rows], schema=schema)

        limit = self._options.max_row_bytes
        return _one_by_one(part, record, table, max_row_bytes=limit, bad="InvalidAvro")


def _one_by_one(
    part: Part,
    read: Callable[[bytes], Any],
    table: Callable[[Sequence[Any]], pa.Table],
    *,
    max_row_bytes: int,
    bad: str = "",
) -> Decoded:
    """`table` of what `read` makes of each value; None of a tombstone.

    What is too large is a failure, and what `read` raises `ValueError` for, or `table` an error of Arrow's, of the
    type `bad`.
    """
    good: dict[int, Any] = {}
    failures = []

    def fails(i: int, why: object) -> None:
        failures.append(failure_at(part.place(i), int(part.offsets[i]), bad, str(why), raw=part.values[i]))

    for i, value in enumerate(part.values):
        if value is not None and len(value) > max_row_bytes:
            place, offset = part.place(i), int(part.offsets[i])
            failures.append(too_large(place, offset, value, max_row_bytes=max_row_bytes))
            continue
        try:
            good[i] = None if value is None else read(value)
        except ValueError as error:
            fails(i, error)
    try:
        whole = table(list(good.values()))
    except pa.ArrowException:  # such as a decimal of more digits than its type has
        for i, row in list(good.items()):
            try:
                table([row])
            except pa.ArrowException as error:
                fails(i, error)
                del good[i]
        whole = table(list(good.values()))
    return Decoded(table=whole, ids=part.offsets[list(good)], failures=failures)
