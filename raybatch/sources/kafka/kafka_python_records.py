"""How kafka-python's consumer gives columns instead of an object for each record.

The library makes three objects for a record and calls seven functions; here a batch of records is decoded in one loop
into lists, some ten times faster. Everything else stays the library's: requests, leaders, positions, and which
transactions were aborted. The format is that of batches of version 2, as in Kafka's documentation ("Record Batch");
older ones are left to the library.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any

from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.record.util import decode_varint

from raybatch.sources.kafka.client import Header, Records

_NO_HEADERS: tuple[Header, ...] = ()


class Columns:
    """The records of one answer of a broker, as they come."""

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.timestamps: list[int] = []
        self.timestamp_types: list[int] = []
        self.keys: list[bytes | None] = []
        self.values: list[bytes | None] = []
        self.headers: list[tuple[Header, ...]] = []

    def between(self, start: int, end: int) -> Records:
        """Those with `start <= offset < end`."""
        first, stop = bisect_left(self.offsets, start), bisect_left(self.offsets, end)
        columns = (
            self.offsets,
            self.timestamps,
            self.timestamp_types,
            self.keys,
            self.values,
            self.headers,
        )
        if stop - first < len(self.offsets):
            columns = tuple(column[first:stop] for column in columns)  # type: ignore[assignment]
        names = ("offsets", "timestamps", "timestamp_types", "keys", "values", "headers")
        return Records(**dict(zip(names, columns, strict=True)))  # type: ignore[arg-type]

    def add(self, batch: Any) -> None:
        """A batch of version 2 that is no control batch. Raises `CorruptRecordError`."""
        iter(batch)  # decompresses it
        before = len(self.offsets)
        try:
            self._decode(bytes(batch._buffer), batch._pos, batch)
        except (IndexError, ValueError) as error:
            raise CorruptRecordError(f"the batch at offset {batch.base_offset}: {error!r}") from None
        count = len(self.offsets) - before
        self.timestamp_types += [batch.timestamp_type] * count
        if batch.timestamp_type == batch.LOG_APPEND_TIME:
            self.timestamps[before:] = [batch.max_timestamp] * count

    def add_old(self, batch: Any) -> int:
        """A batch of an older version; gives the offset behind it."""
        for record in batch:
            if not record.validate_crc():
                raise CorruptRecordError(f"the record at offset {record.offset}")
            self.offsets.append(record.offset)
            self.timestamps.append(-1 if record.timestamp is None else record.timestamp)
            self.timestamp_types.append(record.timestamp_type or 0)
            self.keys.append(record.key)
            self.values.append(record.value)
            self.headers.append(_NO_HEADERS)
        return self.offsets[-1] + 1 if self.offsets else 0

    def _decode(self, data: bytes, start: int, batch: Any) -> None:  # noqa: C901
        """Long and repetitive: nearly all numbers have a byte or two, and a call would cost more than to read them."""
        offsets, timestamps, base = self.offsets.append, self.timestamps.append, batch.base_offset
        keys, values, headers = self.keys.append, self.values.append, self.headers.append
        first_time, position = batch.first_timestamp, start
        for _ in range(batch.records_count):
            size = data[position]
            if size < 0x80:
                size, position = size >> 1, position + 1
            elif (more := data[position + 1]) < 0x80:
                size, position = size & 0x7F | more << 7, position + 2
                size = size >> 1
            else:
                size, position = decode_varint(data, position)
            stop = position + size
            position += 1  # attributes, of which there are none yet

            number = data[position]
            if number < 0x80:
                number, position = (number >> 1) ^ -(number & 1), position + 1
            elif (more := data[position + 1]) < 0x80:
                number, position = number & 0x7F | more << 7, position + 2
                number = (number >> 1) ^ -(number & 1)
            else:
                number, position = decode_varint(data, position)
            timestamps(first_time + number)

            number = data[position]
            if number < 0x80:
                number, position = number >> 1, position + 1
            elif (more := data[position + 1]) < 0x80:
                number, position = number & 0x7F | more << 7, position + 2
                number = number >> 1
            else:
                number, position = decode_varint(data, position)
            offsets(base + number)

            size = data[position]
            if size < 0x80:
                size, position = (size >> 1) ^ -(size & 1), position + 1
            elif (more := data[position + 1]) < 0x80:
                size, position = size & 0x7F | more << 7, position + 2
                size = (size >> 1) ^ -(size & 1)
            else:
                size, position = decode_varint(data, position)
            if size < 0:
                keys(None)
            else:
                keys(data[position : position + size])
                position += size

            size = data[position]
            if size < 0x80:
                size, position = (size >> 1) ^ -(size & 1), position + 1
            elif (more := data[position + 1]) < 0x80:
                size, position = size & 0x7F | more << 7, position + 2
                size = (size >> 1) ^ -(size & 1)
            else:
                size, position = decode_varint(data, position)
            if size < 0:
                values(None)
            else:
                values(data[position : position + size])
                position += size

            if data[position]:
                found, position = _headers(data, position)
                headers(found)
            else:
                headers(_NO_HEADERS)
                position += 1
            if position != stop:
                raise ValueError(f"a record that should end at byte {stop} ends at {position}")
        if position != len(data):
            raise ValueError(f"{len(data) - position} bytes behind the last record")


def _headers(data: bytes, start: int) -> tuple[tuple[Header, ...], int]:
    """The headers that start there, and where they end."""
    count, position = decode_varint(data, start)
    found = []
    for _ in range(count):
        size, position = decode_varint(data, position)
        name = data[position : position + size].decode("utf-8", errors="replace")
        size, position = decode_varint(data, position + size)
        found.append((name, data[position : position + size] if size >= 0 else None))
        position += max(size, 0)
    return tuple(found), position


class RangeRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """Stands in for the library's class of the same place: what one answer of a broker has of a partition.

    It gives one `Records` of all that is before `end`, which may be none, and calls `moved` with the position after
    it, before the consumer would send the next request.
    """

    next_fetch_offset: int

    def __init__(self, *args: Any, end: int, moved: Callable[[int], None], **options: Any) -> None:
        super().__init__(*args, **options)
        self._end = end
        self._moved = moved

    def _maybe_skip_record(self, record: Records) -> bool:
        return False

    def _unpack_records(self, tp: Any, records: Any, *_deserializers: Any) -> Iterator[Records]:
        found = Columns()
        batch = records.next_batch()
        while batch is not None and self.next_fetch_offset < self._end:
            if not batch.validate_crc():
                raise CorruptRecordError(f"the batch at offset {batch.base_offset} does not fit its checksum")
            if batch.magic < 2:
                self.next_fetch_offset = max(self.next_fetch_offset, found.add_old(batch))
            elif batch.base_offset >= self._end:
                self.next_fetch_offset = batch.base_offset
            else:
                if not self._is_left_out(batch):
                    found.add(batch)
                self.leader_epoch = batch.leader_epoch
                self.next_fetch_offset = max(self.next_fetch_offset, batch.next_offset)
            batch = records.next_batch()
        self._moved(self.next_fetch_offset)
        wanted = found.between(self.fetch_offset, self._end)
        self.records_read = len(wanted)
        if wanted or self.next_fetch_offset > self.fetch_offset:
            yield wanted  # of none, so that the consumer does not wait for some: there may be none before the end
        self.drain()

    def _is_left_out(self, batch: Any) -> bool:
        """Whether it is a marker, or was aborted. To be asked of each batch, in order."""
        if batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)
