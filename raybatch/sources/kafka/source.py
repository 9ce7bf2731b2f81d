"""The kafka source: planned on the driver, read by offset.

`plan` asks the brokers once, and freezes offsets and topic ids; `read` reads one range of one partition;
`acknowledge` sets the group's offsets, which nobody reads back but as the declared start of the very first epoch.

Row ids: `_source` is topic/partition, `_row` the offset, `_child` null. A range that was deleted before it was read
is one error row, `RecordsLost`, at its first offset.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa

from raybatch.errors import SourceError
from raybatch.latency import produced
from raybatch.rows import ID_FIELDS, UnitRows, source_errors
from raybatch.sources.base import (
    JSON,
    NO_LIMIT,
    Acknowledged,
    Limit,
    Progress,
    SourcePlan,
    UnitSpec,
    no_progress,
)
from raybatch.sources.formats.base import Decoded
from raybatch.sources.formats.decode import Failure, failure_at
from raybatch.sources.kafka import groups, ranges
from raybatch.sources.kafka.client import (
    Client,
    Offsets,
    Partition,
    RangeLostError,
    Records,
    Topic,
    open_client,
)
from raybatch.sources.kafka.columns import Columns, chunks
from raybatch.sources.kafka.config import VALUE_COLUMN, AvroValue, KafkaConfig
from raybatch.sources.kafka.failures import planning, reading
from raybatch.sources.kafka.position import Position
from raybatch.sources.kafka.ranges import Range
from raybatch.sources.kafka.retention import expiring
from raybatch.sources.kafka.sample import Sample, take_sample
from raybatch.sources.kafka.values import Value, make_value

# An offset of Arrow's string type is 32 bits: a unit has to stay below 2 GiB, and its size is an estimate.
_MAX_UNIT_BYTES = 256 << 20
_SAMPLE_ROWS = 10_000
_LATER_SAMPLE_ROWS = 1_000  # once the columns are known: an epoch of seconds should not take seconds to plan


@dataclass(frozen=True, kw_only=True)
class KafkaSource:
    """See this module's docstring and `raybatch.sources.base.Source`. `avro` is the text of the schema file."""

    config: KafkaConfig
    max_rows: int
    max_bytes: int
    avro: str | None = None

    def columns(self) -> list[str] | None:
        config, included = self.config, list(self.config.included().values())
        if config.value in ("text", "bytes"):
            return [VALUE_COLUMN, *included]
        return None if config.columns is None else [*config.columns, *included]

    def plan(
        self,
        *,
        after: JSON | None,
        history: Iterable[UnitSpec] = (),
        progress: Progress = no_progress,
        limit: Limit = NO_LIMIT,
    ) -> SourcePlan:
        before, value = Position.of(after), self._value()
        with planning(), open_client(self.config) as client:
            there = self._ask(client, before, first=after is None)
        known, notes = value.infer(there.sample.values, before=before.schema)
        if not len(known) and there.sample.records:
            raise SourceError(
                f"none of {there.sample.records} sampled records has a value with a field (they may be tombstones), so"
                " nobody knows the columns: declare them, as in source.schema: {body: string}"
            )
        schema = Columns(self.config, value).schema(known)
        # Without columns there is no record, and an epoch of none is of no use to a stage that reads some
        found = there.ranges if len(known) else []
        taken = self._within(found, limit, there.sample)
        units = self._units(taken, there.sample)
        end = ranges.advance(before, there.topics, there.offsets, starts=there.starts, ranges=taken)
        end = replace(end, schema=known) if there.sample.records else end
        return SourcePlan(
            units=units,
            end=end.to_json() if units or after is None else after,
            schema=schema,
            full=sum(map(len, taken)) < sum(map(len, found)),
            notes=[*there.notes, *notes, *self._notes(before, there), *_new_columns(known, before.schema)],
        )

    def read(self, unit: UnitSpec, *, key: str, schema: pa.Schema) -> UnitRows:
        one = Range.of(unit.range)
        lost = [(one.start, one.end)] if one.lost else []
        if one.lost:
            return _unit_rows(one, [], lost=lost, key=key, schema=schema, times=[])
        columns = Columns(self.config, self._value())
        decoded, times = [], []
        with reading(one, key=key), open_client(self.config) as client:
            for records in chunks(self._records(client, one, lost)):
                decoded.append(columns.read(one.partition, records, schema=schema))
                times.append(np.array(records.timestamps, np.int64))
        return _unit_rows(one, decoded, lost=lost, key=key, schema=schema, times=times)

    def acknowledge(self, end: JSON) -> None:
        groups.acknowledge(self.config, end)

    def acknowledged(self, end: JSON) -> Acknowledged | None:
        return groups.acknowledged(self.config, end)

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker may not have the schema's file: its text travels along
        whole = partial(
            KafkaSource,
            config=self.config,
            max_rows=self.max_rows,
            max_bytes=self.max_bytes,
            avro=self._avro_text(),
        )
        return whole, ()

    def _value(self) -> Value:
        return make_value(self.config, self._avro_text())

    def _avro_text(self) -> str | None:
        if self.avro is not None or not isinstance(self.config.value, AvroValue):
            return self.avro
        return _text_of(self.config.value.avro)

    def _ask(self, client: Client, before: Position, *, first: bool) -> _There:
        """What there is to be read after `before`. Raises as `plan` does."""
        config = self.config
        topics = client.topics(names=config.topics or (), pattern=config.topic_pattern)
        offsets = client.offsets(ranges.partitions_of(topics))
        ranges.check_same(before, topics, offsets)
        starts = self._starts(client, topics, offsets) if first else before.offsets()
        at = _at(client, config.end, topics)
        ends, notes = ranges.last_offsets(config.end, topics, offsets, at=at)
        found = ranges.resolve(topics, offsets, starts=starts, ends=ends, on_lost_range=config.on_lost_range)
        unknown = before.schema is None
        rows = _SAMPLE_ROWS if unknown else _LATER_SAMPLE_ROWS
        sample = take_sample(client, found, rows=rows, until_found=unknown)
        kept = client.retention(sample.oldest_ms)
        notes += expiring(sample.oldest_ms, kept, now_ms=time.time_ns() // 1_000_000)
        return _There(topics=topics, offsets=offsets, starts=starts, ranges=found, sample=sample, notes=notes)

    def _starts(
        self, client: Client, topics: Sequence[Topic], offsets: Mapping[Partition, Offsets]
    ) -> Mapping[Partition, int]:
        start, group = self.config.start, self.config.group
        committed = client.group_offsets(group) if start == "committed" and group else {}
        at = _at(client, start, topics)
        return ranges.first_offsets(start, topics, offsets, committed=committed, at=at)

    def _within(self, found: Sequence[Range], limit: Limit, sample: Sample) -> list[Range]:
        """The first of `found`, as many as the limits allow."""
        return ranges.limit(
            found,
            max_records=_least(self.config.max_records, limit.max_rows),
            max_bytes=_least(self.config.max_bytes, limit.max_bytes),
            bytes_per_offset=sample.bytes_per_offset(_topics(found)),
        )

    def _units(self, taken: Sequence[Range], sample: Sample) -> list[UnitSpec]:
        return ranges.split(
            taken,
            max_rows=self.max_rows,
            max_bytes=min(self.max_bytes, _MAX_UNIT_BYTES),
            bytes_per_offset=sample.bytes_per_offset(_topics(taken)),
        )

    def _records(self, client: Client, one: Range, lost: list[tuple[int, int]]) -> Iterator[Records]:
        """The records of a range; adds to `lost` what was deleted meanwhile, where that is to be skipped."""
        start = one.start
        while start < one.end:
            try:
                yield from client.read(one.partition, topic_id=one.topic_id, start=start, end=one.end)
                return
            except RangeLostError as error:
                if self.config.on_lost_range == "fail":
                    raise
                lost.append((error.start, min(error.first, one.end)))
                start = error.first

    def _notes(self, before: Position, there: _There) -> list[str]:
        notes = [
            f"{one.partition}: offsets {one.start} to {one.end - 1} were deleted before they were read; an error row"
            " says so (source.on_lost_range: skip)"
            for one in there.ranges
            if one.lost
        ]
        names = {topic.name for topic in there.topics}
        if self.config.topic_pattern is not None:
            gone = sorted(before.topics.keys() - names)
            notes += [f"topic '{name}' is not there any more; its rows stay" for name in gone]
            if not names:
                notes.append(f"no topic matches {self.config.topic_pattern}")
        if not there.ranges and not before.topics:
            notes.append("there is nothing to read yet: no partition has a committed record where it starts")
        return notes


@dataclass(frozen=True, kw_only=True)
class _There:
    """What brokers said when a plan was made. `starts` has the partitions that something is known of."""

    topics: Sequence[Topic]
    offsets: Mapping[Partition, Offsets]
    starts: Mapping[Partition, int]
    ranges: Sequence[Range]
    sample: Sample
    notes: Sequence[str]


@lru_cache(maxsize=16)  # each unit of a plan travels to a worker by itself
def _text_of(schema_file: str) -> str:
    import fsspec

    try:
        with fsspec.open(schema_file, "r", encoding="utf-8") as file:
            text: str = file.read()
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(f"source.value.avro: {schema_file} cannot be read: {error}") from error
    return text


def _unit_rows(
    one: Range,
    decoded: Sequence[Decoded],
    *,
    lost: Sequence[tuple[int, int]],
    key: str,
    schema: pa.Schema,
    times: Sequence[np.ndarray[Any, Any]],
) -> UnitRows:
    source = str(one.partition)
    table = pa.concat_tables([schema.empty_table(), *(part.table for part in decoded)])
    offsets = np.concatenate([np.zeros(0, np.int64), *(part.ids for part in decoded)])
    ids = [pa.repeat(source, len(table)), pa.array(offsets), pa.nulls(len(table), pa.string())]
    for column, values in zip(ID_FIELDS, ids, strict=True):
        table = table.append_column(column, values)
    failures = [_lost_row(one.partition, start, end) for start, end in lost]
    failures += [failure for part in decoded for failure in part.failures]
    return UnitRows(
        unit=key,
        rows_in=len(table) + len(failures),
        table=table,
        errors=source_errors([{"_source": source, **failure} for failure in failures]),
        stats=produced(np.concatenate([np.zeros(0, np.int64), *times])),
    )


def _lost_row(partition: Partition, start: int, end: int) -> Failure:
    why = f"the records at offsets {start} to {end - 1} were deleted before they were read"
    return failure_at(f"{partition}, offset {start}", start, "RecordsLost", why)


def _at(client: Client, when: object, topics: Sequence[Topic]) -> Mapping[Partition, int | None]:
    """The first offset of each partition from the time `when` on, where it is a time."""
    if not isinstance(when, datetime):
        return {}
    ms = int(when.timestamp() * 1000)
    return client.offsets_at(dict.fromkeys(ranges.partitions_of(topics), ms))


def _topics(some: Iterable[Range]) -> list[str]:
    return sorted({one.partition.topic for one in some})


def _least(*limits: int | None) -> int | None:
    return min((one for one in limits if one is not None), default=None)


def _new_columns(known: pa.Schema, before: pa.Schema | None) -> list[str]:
    new = [name for name in known.names if before is not None and name not in before.names]
    if not new:
        return []
    return [
        f"new since the last epoch: columns {', '.join(new)}; source.columns would keep to those you name"
    ]
