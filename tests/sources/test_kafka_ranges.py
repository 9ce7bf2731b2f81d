"""From a position and what brokers answer to units: nothing twice, nothing left out, nothing said that is not so."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybatch.errors import InputChangedError, SourceError
from raybatch.sources.kafka import ranges
from raybatch.sources.kafka.client import Offsets, Partition, Retention, Topic
from raybatch.sources.kafka.position import Position, TopicPosition
from raybatch.sources.kafka.ranges import Range
from raybatch.sources.kafka.retention import expiring

TOPICS = [Topic(name="orders", id="oooo", partitions=1), Topic(name="tickets", id="tttt", partitions=3)]
ORDERS = Partition("orders", 0)
T0, T1, T2 = (Partition("tickets", number) for number in range(3))
# orders has never lost anything; of tickets/1 the last ten offsets are of an open transaction
OFFSETS = {
    ORDERS: Offsets(first=0, stable=100, end=100),
    T0: Offsets(first=50, stable=60, end=60),
    T1: Offsets(first=0, stable=30, end=40),
    T2: Offsets(first=5, stable=5, end=5),
}
TIME = datetime(2026, 11, 1, tzinfo=UTC)
NOBODY: Mapping[Any, Any] = {}


def _position(**topics: tuple[str, Sequence[int]]) -> Position:
    return Position(topics={name: TopicPosition(id=id_, next=tuple(n)) for name, (id_, n) in topics.items()})


def _starts(
    start: Any, *, committed: Mapping[Partition, int] = NOBODY, at: Mapping[Partition, int | None] = NOBODY
) -> dict[Partition, int]:
    return ranges.first_offsets(start, TOPICS, OFFSETS, committed=committed, at=at)


def _ends(end: Any, *, at: Mapping[Partition, int | None] = NOBODY) -> dict[Partition, int]:
    return ranges.last_offsets(end, TOPICS, OFFSETS, at=at)[0]


def _resolve(
    starts: Mapping[Partition, int],
    ends: Mapping[Partition, int] | None = None,
    *,
    on_lost_range: Literal["fail", "skip"] = "fail",
) -> list[tuple[Partition, int, int, bool]]:
    found = ranges.resolve(
        TOPICS, OFFSETS, starts=starts, ends=ends or _ends("now"), on_lost_range=on_lost_range
    )
    return [(one.partition, one.start, one.end, one.lost) for one in found]


# --- where an epoch starts -----------------------------------------------------------------------------------


def test_the_first_epoch_starts_at_the_first_offset_of_each_partition() -> None:
    assert _starts("earliest") == {ORDERS: 0, T0: 50, T1: 0, T2: 5}


def test_latest_starts_before_what_is_not_decided_yet() -> None:
    assert _starts("latest") == {ORDERS: 100, T0: 60, T1: 30, T2: 5}


def test_committed_starts_at_the_groups_offsets_and_at_the_first_where_it_has_none() -> None:
    assert _starts("committed", committed={ORDERS: 10, T1: 7}) == {ORDERS: 10, T0: 50, T1: 7, T2: 5}


def test_a_time_starts_at_its_offset_and_at_the_end_where_nothing_is_so_late() -> None:
    at = {ORDERS: 12, T0: None, T1: None, T2: None}
    assert _starts(TIME, at=at) == {ORDERS: 12, T0: 60, T1: 30, T2: 5}


def test_offsets_by_partition_start_there_and_others_at_their_first() -> None:
    assert _starts({"tickets": {0: 55, 1: 2}}) == {ORDERS: 0, T0: 55, T1: 2, T2: 5}


def test_a_start_beyond_the_end_is_refused() -> None:
    with pytest.raises(SourceError, match=r"tickets/1: source\.start says offset 41, and its log ends at 40"):
        _starts({"tickets": {1: 41}})


def test_a_groups_offset_beyond_the_end_is_refused() -> None:
    with pytest.raises(SourceError, match=r"orders/0: the group has committed offset 101"):
        _starts("committed", committed={ORDERS: 101})


@pytest.mark.parametrize("start", [{"tickets": {3: 0}}, {"news": {0: 0}}])
def test_a_start_of_what_there_is_not_is_refused(start: Mapping[str, Mapping[int, int]]) -> None:
    with pytest.raises(SourceError, match=r"source\.start: (tickets has no partition 3|'news' is no topic)"):
        _starts(start)


# --- where it ends -------------------------------------------------------------------------------------------


def test_an_open_transaction_holds_the_end() -> None:
    assert _ends("now") == {ORDERS: 100, T0: 60, T1: 30, T2: 5}


def test_a_time_ends_before_the_first_record_that_is_later() -> None:
    at = {ORDERS: 20, T0: None, T1: 35, T2: None}
    assert _ends(TIME, at=at) == {ORDERS: 20, T0: 60, T1: 30, T2: 5}


def test_offsets_by_partition_end_there_and_others_now() -> None:
    assert _ends({"orders": {0: 20}}) == {ORDERS: 20, T0: 60, T1: 30, T2: 5}


def test_an_end_that_is_not_there_yet_is_noted() -> None:
    ends, notes = ranges.last_offsets({"tickets": {1: 35}, "orders": {0: 100}}, TOPICS, OFFSETS, at={})
    assert ends[T1] == 30
    assert len(notes) == 1
    assert notes[0].startswith("tickets/1 at offset 30: source.end is further on")


# --- what lies between ---------------------------------------------------------------------------------------


def test_what_lies_between_is_read_and_nothing_else() -> None:
    assert _resolve({ORDERS: 90, T0: 60, T1: 0, T2: 5}) == [(ORDERS, 90, 100, False), (T1, 0, 30, False)]


def test_a_partition_that_nobody_has_seen_is_read_from_its_first_offset() -> None:
    assert _resolve({ORDERS: 100, T1: 30}) == [(T0, 50, 60, False)]


def test_lost_offsets_are_an_error_that_names_them_and_the_choices() -> None:
    with pytest.raises(InputChangedError) as caught:
        _resolve({ORDERS: 100, T0: 20, T1: 30, T2: 1})
    message = str(caught.value)
    assert "tickets/0, offsets 20 to 49" in message
    assert "tickets/2, offsets 1 to 4" in message
    assert "source.on_lost_range: skip" in message
    assert "sink.path" in message


def test_lost_offsets_that_are_skipped_are_a_range_of_their_own() -> None:
    found = _resolve({ORDERS: 100, T0: 20, T1: 30, T2: 1}, on_lost_range="skip")
    assert found == [(T0, 20, 50, True), (T0, 50, 60, False), (T2, 1, 5, True)]


def test_what_is_lost_behind_the_end_is_not_this_epochs() -> None:
    ends = _ends({"tickets": {0: 30}, "orders": {0: 0}})
    assert _resolve({T0: 20, T1: 30, T2: 5}, ends, on_lost_range="skip") == [(T0, 20, 30, True)]


# --- is it the same topic? -----------------------------------------------------------------------------------


def test_a_topic_of_another_id_is_refused() -> None:
    with pytest.raises(InputChangedError, match=r"'orders' was deleted and made again") as caught:
        ranges.check_same(_position(orders=("old", [3])), TOPICS, OFFSETS)
    assert "its id was old and is oooo" in str(caught.value)
    assert "source.topics" in str(caught.value)
    assert "sink.path" in str(caught.value)


def test_a_topic_with_fewer_partitions_is_refused() -> None:
    with pytest.raises(InputChangedError, match=r"'orders' has 1 partitions, and had 2"):
        ranges.check_same(_position(orders=("oooo", [3, 4])), TOPICS, OFFSETS)


def test_a_log_that_was_cut_is_refused() -> None:
    with pytest.raises(InputChangedError, match=r"tickets/1 ends at offset 40, and was read up to 41"):
        ranges.check_same(_position(tickets=("tttt", [0, 41])), TOPICS, OFFSETS)


def test_topics_that_grew_or_are_gone_or_new_are_the_same() -> None:
    ranges.check_same(_position(tickets=("tttt", [60, 40]), gone=("gggg", [9])), TOPICS, OFFSETS)


# --- how much of it ------------------------------------------------------------------------------------------


def _ranges(*lengths: int, lost: int = 0) -> list[Range]:
    whole = [
        Range(partition=Partition("t", number), topic_id="tttt", start=lost, end=lost + length)
        for number, length in enumerate(lengths)
    ]
    gone = [
        Range(partition=one.partition, topic_id="tttt", start=0, end=lost, lost=True) for one in whole if lost
    ]
    return sorted([*gone, *whole], key=lambda one: (one.partition, one.start))


def _limited(found: Sequence[Range], size: float = 1.0, **limits: int | None) -> list[Range]:
    return ranges.limit(
        found, **{"max_records": None, "max_bytes": None, **limits}, bytes_per_offset={"t": size}
    )


def test_a_limit_is_shared_fairly() -> None:
    assert [len(one) for one in _limited(_ranges(100, 2, 100, 7), max_records=30)] == [10, 2, 11, 7]


def test_what_cannot_be_shared_is_for_the_one_that_is_furthest_behind() -> None:
    found = _limited(_ranges(5, 9, 8), max_records=1)
    assert [(one.partition.number, len(one)) for one in found] == [(1, 1)]


def test_a_limit_in_bytes_counts_the_estimate() -> None:
    assert [len(one) for one in _limited(_ranges(100, 100), size=10, max_bytes=100)] == [5, 5]


def test_something_is_taken_even_if_it_is_larger_than_the_limit() -> None:
    assert [len(one) for one in _limited(_ranges(3, 4), size=1000, max_bytes=10)] == [1]


def test_lost_ranges_count_for_nothing() -> None:
    found = _limited(_ranges(100, lost=1000), max_records=10, max_bytes=50)
    assert [(one.start, one.end, one.lost) for one in found] == [(0, 1000, True), (1000, 1010, False)]


LENGTHS = st.lists(st.integers(1, 1000), min_size=1, max_size=8)
SIZES = st.floats(1, 5000)


@given(lengths=LENGTHS, total=st.integers(1, 3000))
def test_a_limit_takes_as_much_as_it_may_and_no_more(lengths: list[int], total: int) -> None:
    found = _limited(_ranges(*lengths), max_records=total)
    assert sum(map(len, found)) == min(total, sum(lengths))


@given(lengths=LENGTHS, size=SIZES, total=st.integers(1, 1_000_000))
def test_a_limit_in_bytes_is_kept_or_one_offset_is_taken(lengths: list[int], size: float, total: int) -> None:
    offsets = sum(map(len, _limited(_ranges(*lengths), size=size, max_bytes=total)))
    assert offsets * size <= total * (1 + 1e-9) or offsets == 1
    assert offsets == sum(lengths) or (offsets + 1) * size > total * (1 - 1e-9)


@given(lengths=LENGTHS, total=st.integers(1, 3000))
def test_who_gets_less_than_another_wanted_no_more(lengths: list[int], total: int) -> None:
    shares = {one.partition.number: len(one) for one in _limited(_ranges(*lengths), max_records=total)}
    most = max(shares.values())
    # What cannot be divided evenly is at most one for each of the others
    assert all(
        shares.get(n, 0) == wanted or shares.get(n, 0) >= most - len(lengths)
        for n, wanted in enumerate(lengths)
    )


# --- units and the next position -----------------------------------------------------------------------------


def _units(found: Sequence[Range], *, max_rows: int, max_bytes: int, size: float) -> list[Range]:
    units = ranges.split(found, max_rows=max_rows, max_bytes=max_bytes, bytes_per_offset={"t": size})
    return [Range.of(json.loads(json.dumps(unit.range))) for unit in units]


@given(
    lengths=LENGTHS,
    lost=st.sampled_from([0, 7]),
    max_rows=st.integers(1, 400),
    max_bytes=st.integers(1, 100_000),
    size=SIZES,
)
def test_units_hold_each_offset_once_and_no_more_than_they_may(
    lengths: list[int], lost: int, max_rows: int, max_bytes: int, size: float
) -> None:
    found = _ranges(*lengths, lost=lost)
    units = _units(found, max_rows=max_rows, max_bytes=max_bytes, size=size)
    held = Counter((one.partition, offset) for one in units for offset in range(one.start, one.end))
    assert held == Counter((one.partition, offset) for one in found for offset in range(one.start, one.end))
    sizes = [len(one) for one in units if not one.lost]
    assert max(sizes) <= max_rows
    assert max(sizes) * size <= max_bytes * (1 + 1e-9) or max(sizes) == 1
    assert [one for one in units if one.lost] == [one for one in found if one.lost]


def test_the_first_units_are_of_different_partitions() -> None:
    units = _units(_ranges(30, 10, 20), max_rows=10, max_bytes=1000, size=1)
    assert [(one.partition.number, one.start) for one in units] == [
        *[(0, 0), (1, 0), (2, 0)],
        *[(0, 10), (2, 10)],
        *[(0, 20)],
    ]


def test_a_unit_knows_its_rows_only_if_it_is_lost() -> None:
    units = ranges.split(_ranges(10, lost=5), max_rows=100, max_bytes=1000, bytes_per_offset={"t": 7.5})
    assert [(unit.rows, unit.bytes) for unit in units] == [(1, 0), (None, 75)]


@st.composite
def _worlds(draw: st.DrawFn) -> tuple[dict[Partition, Offsets], dict[Partition, int]]:
    """Where the partitions of TOPICS are, and from where some of them are to be read."""
    offsets, starts = {}, {}
    for partition in ranges.partitions_of(TOPICS):
        start, first, stable, end = sorted(draw(st.lists(st.integers(0, 50), min_size=4, max_size=4)))
        offsets[partition] = Offsets(first=first, stable=stable, end=end)
        if draw(st.booleans()):
            starts[partition] = draw(st.integers(start, stable))
    return offsets, starts


@given(world=_worlds(), limits=st.lists(st.integers(1, 60), max_size=30))
def test_epoch_after_epoch_each_offset_is_planned_once_and_none_is_left(
    world: tuple[dict[Partition, Offsets], dict[Partition, int]], limits: list[int]
) -> None:
    offsets, starts = world
    ends, _ = ranges.last_offsets("now", TOPICS, offsets, at={})
    expected = Counter(
        (partition, offset)
        for partition in offsets
        for offset in range(starts.get(partition, offsets[partition].first), ends[partition])
    )
    planned: Counter[tuple[Partition, int]] = Counter()
    position, nexts = Position(), starts
    for at_most in [*limits, None]:
        found = ranges.resolve(TOPICS, offsets, starts=nexts, ends=ends, on_lost_range="skip")
        taken = ranges.limit(
            found, max_records=at_most, max_bytes=None, bytes_per_offset={"orders": 1, "tickets": 1}
        )
        planned.update((one.partition, offset) for one in taken for offset in range(one.start, one.end))
        position = ranges.advance(position, TOPICS, offsets, starts=nexts, ranges=taken)
        nexts = position.offsets()
    assert planned == expected
    assert nexts == {p: max(starts.get(p, offsets[p].first), ends[p]) for p in offsets}


def test_a_position_keeps_topics_that_are_not_there_now() -> None:
    before = _position(gone=("gggg", [9]), orders=("oooo", [90]))
    starts = before.offsets()
    after = ranges.advance(before, TOPICS, OFFSETS, starts=starts, ranges=[])
    assert after == _position(gone=("gggg", [9]), orders=("oooo", [90]), tickets=("tttt", [50, 0, 5]))


# --- will it be there when it is read? -------------------------------------------------------------------------

NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000


@pytest.mark.parametrize(
    ("days_old", "said"),
    [(0, None), (3.4, None), (3.6, "in about 3 days"), (6.9, "in about 2 hours"), (8, "at any moment")],
)
def test_records_past_half_of_their_retention_are_noted(days_old: float, said: str | None) -> None:
    week = {"t": Retention(retention_ms=7 * DAY_MS, retention_bytes=None, cleanup_policy="delete")}
    notes = expiring({"t": NOW_MS - int(days_old * DAY_MS)}, week, now_ms=NOW_MS)
    assert len(notes) == (said is not None)
    assert (said or "") in " ".join(notes)


def test_what_is_kept_for_ever_or_not_known_is_not_noted() -> None:
    ever = {"t": Retention(retention_ms=None, retention_bytes=5, cleanup_policy="delete")}
    assert expiring({"t": 0, "unknown": 0}, ever, now_ms=NOW_MS) == []
