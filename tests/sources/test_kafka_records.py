"""Decoding batches into columns gives what kafka-python's own classes give."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.legacy_records import LegacyRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords
from kafka.structs import TopicPartition

from raybatch.sources.kafka.client import Records
from raybatch.sources.kafka.kafka_python_records import Columns, RangeRecords

PARTITION = TopicPartition("tickets", 0)
NOW = 1_760_000_000_000

data = st.none() | st.binary(max_size=300)
record = st.tuples(
    st.integers(-(10**6), 10**6), data, data, st.lists(st.tuples(st.text(max_size=200), data), max_size=70)
)
Record = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]


def _batch(records: list[Record], *, first: int = 0, codec: int = 0) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=codec,
        is_transactional=False,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 24,
    )
    for offset, (time, key, value, headers) in enumerate(records):
        builder.append(offset, timestamp=NOW + time, key=key, value=value, headers=headers)
    built = bytearray(builder.build())
    built[:8] = first.to_bytes(8, "big")  # as brokers do; the checksum does not cover it
    return bytes(built)


def _old_batch(values: list[bytes], *, magic: int, codec: int) -> bytes:
    builder = LegacyRecordBatchBuilder(magic=magic, compression_type=codec, batch_size=1 << 24)
    for offset, value in enumerate(values):
        builder.append(offset, timestamp=NOW + offset if magic else None, key=None, value=value)
    return bytes(builder.build())


def _columns(log: bytes, *, start: int = 0, end: int = 1 << 40) -> tuple[Records, list[int]]:
    moved: list[int] = []
    part = RangeRecords(
        start,
        PARTITION,
        MemoryRecords(log),
        isolation_level=IsolationLevel.READ_COMMITTED,
        end=end,
        moved=moved.append,
    )
    found = part.take()
    assert len(found) <= 1
    return (found[0] if found else Columns().between(0, 0)), moved


def _rows(records: Records) -> list[tuple[Any, ...]]:
    columns = (
        records.offsets,
        records.timestamps,
        records.timestamp_types,
        records.keys,
        records.values,
        map(list, records.headers),
    )
    return list(zip(*columns, strict=True))


def _by_the_library(log: bytes, start: int = 0) -> list[tuple[Any, ...]]:
    part = Fetcher.PartitionRecords(start, PARTITION, MemoryRecords(log))
    return [(r.offset, r.timestamp, r.timestamp_type, r.key, r.value, list(r.headers)) for r in part.take()]


@given(records=st.lists(record, min_size=1, max_size=8), first=st.integers(0, 10**12))
def test_records_are_what_the_library_reads(records: list[Record], first: int) -> None:
    log = _batch(records, first=first)
    found, moved = _columns(log, start=first)
    assert _rows(found) == _by_the_library(log, first)
    assert moved == [first + len(records)]


@settings(max_examples=30)
@given(st.integers(0, 30), st.integers(1, 30), st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_a_range_gives_its_offsets_and_no_others(start: int, length: int, sizes: list[int]) -> None:
    bases = [sum(sizes[:i]) * 2 for i in range(len(sizes))]  # gaps between batches
    log = b"".join(_batch([(0, None, b"v", [])] * n, first=at) for n, at in zip(sizes, bases, strict=True))
    wanted = [row for row in _by_the_library(log) if start <= row[0] < start + length]
    found, moved = _columns(log, start=start, end=start + length)
    assert _rows(found) == wanted
    last = bases[-1] + sizes[-1]
    assert moved[0] >= min(start + length, max(last, start))


@pytest.mark.parametrize("codec", [0, 1, 2, 3, 4])
def test_every_codec_of_producers_is_read(codec: int) -> None:
    log = _batch([(n, b"k", b"value %d" % n * 20, []) for n in range(100)], codec=codec)
    found, _ = _columns(log)
    assert _rows(found) == _by_the_library(log)


@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("codec", [0, 1])
def test_batches_of_old_versions_are_read(magic: int, codec: int) -> None:
    values = [b"a", b"b", b"c", b"d"]
    found, moved = _columns(_old_batch(values, magic=magic, codec=codec), start=1, end=3)
    assert (list(found.offsets), list(found.values)) == ([1, 2], [b"b", b"c"])
    assert list(found.timestamps) == ([NOW + 1, NOW + 2] if magic else [-1, -1])
    assert moved[0] >= 3


@given(st.integers(21, 60))
@settings(max_examples=40)
def test_a_flipped_bit_anywhere_behind_the_checksum_is_found(place: int) -> None:
    log = bytearray(_batch([(0, b"key", b"a value", [("h", b"1")])]))
    log[place] ^= 1
    with pytest.raises(CorruptRecordError):
        _columns(bytes(log))


def test_records_that_do_not_fit_their_own_lengths_are_corrupt_even_if_the_checksum_holds() -> None:
    from kafka.record.util import calc_crc32c

    log = bytearray(_batch([(0, b"key", b"a value", [])]))
    log[61] = 4  # the first record's length, which is 2 bytes then
    log[17:21] = calc_crc32c(memoryview(log)[21:]).to_bytes(4, "big")
    with pytest.raises(CorruptRecordError, match="offset 0"):
        _columns(bytes(log))
