"""All columns of records: those of their values, and what else of them is included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import pyarrow as pa

from raybatch.errors import SourceError
from raybatch.sources.formats.base import Decoded
from raybatch.sources.formats.decode import Failure, failure_at
from raybatch.sources.kafka.client import NO_TIME, TIMESTAMP_TYPES, Partition, Records
from raybatch.sources.kafka.config import Included, KafkaConfig
from raybatch.sources.kafka.values import Part, Value

# Records are decoded as they come, about so many bytes of values at a time: as Python objects they are several
# times as large, and pyarrow's JSON reader takes newlines within a value where it sees all at once (1 MiB).
_CHUNK_BYTES = 1 << 20

_COLUMNS = ("offsets", "timestamps", "timestamp_types", "keys", "values", "headers")
_TYPES: Mapping[Included, pa.DataType] = {
    "key": pa.binary(),
    "headers": pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())])),
    "timestamp": pa.timestamp("ms", tz="UTC"),
    "timestamp_type": pa.string(),
    "topic": pa.string(),
    "partition": pa.int32(),
    "offset": pa.int64(),
}


class Columns:
    """The columns that `config` asks for; `value` reads those of values."""

    def __init__(self, config: KafkaConfig, value: Value) -> None:
        self._value = value
        self._text_keys = config.key == "text" and "key" in config.included()
        self._included = config.included()
        types = {**_TYPES, "key": pa.string()} if self._text_keys else _TYPES
        self._fields = [pa.field(name, types[what]) for what, name in self._included.items()]

    def schema(self, of_values: pa.Schema) -> pa.Schema:
        """That of whole rows, where values have the columns `of_values`. Raises `SourceError` for a name that
        there is twice."""
        for field in self._fields:
            if field.name in of_values.names:
                raise SourceError(
                    f"include: values have a field '{field.name}' too; give the column a name of its own, as in"
                    f" include: {{{self._what(field.name)}: kafka_{field.name}}}"
                )
        return pa.schema([*of_values, *self._fields])

    def read(self, partition: Partition, records: Records, *, schema: pa.Schema) -> Decoded:
        """All records, as rows of `schema` or as failures."""
        failures: list[Failure] = []
        if self._text_keys:
            records, failures = _without_bad_keys(partition, records)
        part = Part(partition=partition, offsets=np.array(records.offsets, np.int64), values=records.values)
        own = {field.name for field in self._fields}
        decoded = self._value.decode(part, pa.schema([field for field in schema if field.name not in own]))
        good = records
        if decoded.failures:
            good = _take(records, np.searchsorted(part.offsets, decoded.ids).tolist())
        table = decoded.table
        for field in self._fields:
            table = table.append_column(field, _column(self._what(field.name), field.type, partition, good))
        return replace(decoded, table=table.select(schema.names), failures=[*failures, *decoded.failures])

    def _what(self, name: str) -> Included:
        return next(what for what, column in self._included.items() if column == name)


def _column(what: Included, kind: pa.DataType, partition: Partition, records: Records) -> pa.Array:
    if what in ("topic", "partition"):
        value = partition.topic if what == "topic" else partition.number
        return pa.repeat(pa.scalar(value, kind), len(records.offsets))
    if what == "timestamp":
        times = np.array(records.timestamps, np.int64)
        return pa.array(times, mask=times == NO_TIME).cast(kind)
    if what == "timestamp_type":
        names = pa.array(TIMESTAMP_TYPES, kind)
        return names.take(pa.array(records.timestamp_types, pa.int64()))
    if what == "headers":
        return pa.array([[{"key": k, "value": v} for k, v in held] for held in records.headers], kind)
    if what == "key":
        return pa.array(records.keys, pa.binary()).cast(kind)
    return pa.array(records.offsets, kind)


def _without_bad_keys(partition: Partition, records: Records) -> tuple[Records, list[Failure]]:
    """The records whose keys are text (or none), and failures of the others."""
    try:
        pa.array(records.keys, pa.binary()).cast(pa.string())
        return records, []
    except pa.ArrowInvalid:
        why = [_not_text(key) for key in records.keys]
    failures = [
        failure_at(f"{partition}, offset {offset}", offset, "InvalidUTF8", said, raw=key)
        for offset, key, said in zip(records.offsets, records.keys, why, strict=True)
        if said
    ]
    return _take(records, [i for i, said in enumerate(why) if not said]), failures


def _not_text(key: bytes | None) -> str | None:
    try:
        (key or b"").decode()
    except UnicodeDecodeError as error:
        return (
            f"byte {error.start} of the key, {error.object[error.start]:#04x}, is not UTF-8 (raw is the key)"
        )
    return None


def _take(records: Records, indices: Sequence[int]) -> Records:
    """Those at `indices`."""
    picked = {name: [getattr(records, name)[i] for i in indices] for name in _COLUMNS}
    return Records(**picked)


def chunks(batches: Iterable[Records]) -> Iterator[Records]:
    """The same records in parts of about _CHUNK_BYTES of values, or of one record."""
    held: list[Records] = []
    size = 0
    for records in batches:
        held.append(records)
        size += sum(len(value) for value in records.values if value)
        if size >= _CHUNK_BYTES:
            yield _joined(held)
            held, size = [], 0
    if held:
        yield _joined(held)


def _joined(parts: Sequence[Records]) -> Records:
    if len(parts) == 1:
        return parts[0]
    return Records(
        **{name: list(chain.from_iterable(getattr(part, name) for part in parts)) for name in _COLUMNS}
    )
