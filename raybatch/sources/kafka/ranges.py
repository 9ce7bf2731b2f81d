"""From a position and what brokers answer to offset ranges, and from these to units. Pure functions.

    check_same        is what there is still what the position is of?
    first_offsets     where the very first epoch starts
    last_offsets      where this epoch ends
    resolve           which offsets lie between, and which of them are lost
    limit             no more of them than an epoch may take
    split             units
    advance           the position after them

All of them are in the order of topics and partitions, and say the same of the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from raybatch.errors import InputChangedError, SourceError
from raybatch.sources.base import JSON, UnitSpec
from raybatch.sources.kafka.client import Offsets, Partition, Topic
from raybatch.sources.kafka.position import Position, TopicPosition

OffsetsByTopic = Mapping[str, Mapping[int, int]]

_NAMED = 5  # partitions in a message


@dataclass(frozen=True, kw_only=True)
class Range:
    """Offsets `start` to `end` - 1 of `partition`, whose topic has the id `topic_id`.

    `lost`: they were deleted before anybody read them.
    """

    partition: Partition
    topic_id: str
    start: int
    end: int
    lost: bool = False

    def __len__(self) -> int:
        return self.end - self.start

    def to_json(self) -> JSON:
        """A unit's `range`."""
        found = {
            "topic": self.partition.topic,
            "id": self.topic_id,
            "partition": self.partition.number,
            "start": self.start,
            "end": self.end,
        }
        return found | {"lost": True} if self.lost else found

    @classmethod
    def of(cls, said: JSON) -> Range:
        """The inverse of `to_json`."""
        return cls(
            partition=Partition(said["topic"], said["partition"]),
            topic_id=said["id"],
            start=said["start"],
            end=said["end"],
            lost=said.get("lost", False),
        )


def partitions_of(topics: Iterable[Topic]) -> list[Partition]:
    """All partitions of `topics`, in order."""
    return [Partition(topic.name, number) for topic in topics for number in range(topic.partitions)]


def check_same(position: Position, topics: Sequence[Topic], offsets: Mapping[Partition, Offsets]) -> None:
    """Raise `InputChangedError` where a topic is another one than the position's, or lost some of its end."""
    for topic in topics:
        before = position.topics.get(topic.name)
        if before is None:
            continue
        if before.id != topic.id:
            raise InputChangedError(
                f"topic '{topic.name}' was deleted and made again: its id was {before.id} and is {topic.id}, so its"
                f" offsets mean other records. {_anew('the new topic', topic.name)}"
            )
        if topic.partitions < len(before.next):
            raise InputChangedError(
                f"topic '{topic.name}' has {topic.partitions} partitions, and had {len(before.next)}: it is not"
                f" the topic that it was. {_anew('it', topic.name)}"
            )
        for number, offset in enumerate(before.next):
            partition = Partition(topic.name, number)
            if offset > offsets[partition].end:
                raise InputChangedError(
                    f"{partition} ends at offset {offsets[partition].end}, and was read up to {offset}: its log was"
                    " cut (as by the election of a leader that was behind), and new records will have offsets of"
                    f" records that are in the output. {_anew('it', topic.name)}"
                )


def _anew(what: str, topic: str) -> str:
    return (
        f"What was read of it stays in the output. Choose: read on without it (leave '{topic}' out of"
        f" source.topics), and {what} under another name, as new; or write to another output (sink.path), which"
        " takes everything anew"
    )


def first_offsets(
    start: Literal["committed", "earliest", "latest"] | datetime | OffsetsByTopic,
    topics: Sequence[Topic],
    offsets: Mapping[Partition, Offsets],
    *,
    committed: Mapping[Partition, int],
    at: Mapping[Partition, int | None],
) -> dict[Partition, int]:
    """The offset of each partition at which the very first epoch starts.

    `committed` are the group's offsets, where `start` asks for them; `at` the offsets of its time, where it is one.
    Raises `SourceError` for an offset beyond a partition's end, and for a partition that there is not.
    """
    partitions = partitions_of(topics)
    named = _named("start", start, topics) if isinstance(start, Mapping) else committed
    for partition in partitions:
        offset, end = named.get(partition, 0), offsets[partition].end
        if offset > end:
            said = "source.start says" if named is not committed else "the group has committed"
            raise SourceError(
                f"{partition}: {said} offset {offset}, and its log ends at {end}. Say another source.start, such as"
                " earliest, latest, or offsets by topic and partition"
            )
    if start == "earliest":
        return {p: offsets[p].first for p in partitions}
    if start == "latest" or isinstance(start, datetime):
        # Before what is not decided yet: it is later than all that is
        return {p: _or(at.get(p), offsets[p].stable) for p in partitions}
    return {p: named.get(p, offsets[p].first) for p in partitions}


def last_offsets(
    end: Literal["now"] | datetime | OffsetsByTopic,
    topics: Sequence[Topic],
    offsets: Mapping[Partition, Offsets],
    *,
    at: Mapping[Partition, int | None],
) -> tuple[dict[Partition, int], list[str]]:
    """The offset of each partition at which this epoch ends, and notes. `at` is as for `first_offsets`.

    None is beyond the last stable offset: what an open transaction holds comes in a later epoch.
    """
    partitions = partitions_of(topics)
    stable = {p: offsets[p].stable for p in partitions}
    asked: Mapping[Partition, int | None] = at
    if isinstance(end, Mapping):
        asked = _named("end", end, topics)
    found = {p: min(stable[p], _or(asked.get(p), stable[p])) for p in partitions}
    if not isinstance(end, Mapping):
        return found, []
    early = [f"{p} at offset {found[p]}" for p in partitions if _or(asked.get(p), 0) > found[p]]
    if not early:
        return found, []
    return found, [
        f"{_some(early)}: source.end is further on, and what is there is not committed yet, or not written; run"
        " again to go on"
    ]


def resolve(
    topics: Sequence[Topic],
    offsets: Mapping[Partition, Offsets],
    *,
    starts: Mapping[Partition, int],
    ends: Mapping[Partition, int],
    on_lost_range: Literal["fail", "skip"],
) -> list[Range]:
    """What is to be read of each partition: at most one range that is lost, and one behind it.

    `starts` has the partitions that something is known of; others start at their first offset. Raises
    `InputChangedError` if offsets are lost, unless they are to be skipped.
    """
    ids = {topic.name: topic.id for topic in topics}
    found = []
    for partition in partitions_of(topics):
        first = offsets[partition].first
        start, end = starts.get(partition, first), ends[partition]
        whole = Range(partition=partition, topic_id=ids[partition.topic], start=start, end=end)
        if start < min(first, end):
            found.append(replace(whole, end=min(first, end), lost=True))
        if max(start, first) < end:
            found.append(replace(whole, start=max(start, first)))
    lost = [one for one in found if one.lost]
    if lost and on_lost_range == "fail":
        raise InputChangedError(lost_message([(one.partition, one.start, one.end) for one in lost]))
    return found


def lost_message(lost: Sequence[tuple[Partition, int, int]]) -> str:
    """What to tell of ranges (partition, start, end) whose loss is not accepted."""
    which = _some([f"{partition}, offsets {start} to {end - 1}" for partition, start, end in lost])
    return (
        f"deleted before they were read, by retention or by somebody: {which}. Choose: accept it (set"
        " source.on_lost_range: skip; each range becomes one error row, RecordsLost, and the rest is read); or write"
        " to another output (sink.path), which starts at source.start"
    )


def limit(
    ranges: Sequence[Range],
    *,
    max_records: int | None,
    max_bytes: int | None,
    bytes_per_offset: Mapping[str, float],
) -> list[Range]:
    """The first offsets of each range, together at most so many, and of so many bytes; but one at least.

    All partitions get as much, and who wants less leaves the rest to the others. Lost ranges count for nothing.
    `bytes_per_offset` is by topic.
    """
    counts = [0 if one.lost else len(one) for one in ranges]
    for total, weights in (
        (max_records, [1.0] * len(ranges)),
        (max_bytes, [bytes_per_offset[one.partition.topic] for one in ranges]),
    ):
        if total is not None and any(counts):
            counts = _shared(counts, weights, total)
    taken = zip(ranges, counts, strict=True)
    return [one if one.lost else replace(one, end=one.start + n) for one, n in taken if one.lost or n]


def _shared(counts: Sequence[int], weights: Sequence[float], total: float) -> list[int]:
    """How many of each to take, so that the sum of the weights is at most `total`, but one at least."""
    taken = [0] * len(counts)
    # Those who want least come first, and what they leave is for the others. The one that is furthest behind
    # comes last, and gets what cannot be divided: so none is forgotten for ever.
    order = sorted(range(len(counts)), key=lambda i: counts[i] * weights[i])
    left = float(total)
    for place, i in enumerate(order):
        taken[i] = min(counts[i], int(left / (len(order) - place) / weights[i]))
        left -= taken[i] * weights[i]
    if not any(taken):
        taken[order[-1]] = 1
    return taken


def split(
    ranges: Sequence[Range], *, max_rows: int, max_bytes: int, bytes_per_offset: Mapping[str, float]
) -> list[UnitSpec]:
    """Units: each range in parts of about the same size, and a lost one as it is.

    The first parts of all partitions come first: so those that are worked on at the same time are of different
    partitions, and of about the same age.
    """
    found: list[tuple[int, Range]] = []
    for one in ranges:
        per_offset = bytes_per_offset[one.partition.topic]
        at_most = len(one) if one.lost else max(1, min(max_rows, int(max_bytes / per_offset)))
        parts = -(-len(one) // at_most)
        bounds = [one.start + len(one) * i // parts for i in range(parts + 1)]
        found += [(i, replace(one, start=bounds[i], end=bounds[i + 1])) for i in range(parts)]
    ordered = sorted(found, key=lambda part: (part[0], part[1].partition, part[1].start))
    return [
        UnitSpec(
            range=one.to_json(),
            rows=1 if one.lost else None,
            bytes=0 if one.lost else round(len(one) * bytes_per_offset[one.partition.topic]),
        )
        for _, one in ordered
    ]


def advance(
    position: Position,
    topics: Sequence[Topic],
    offsets: Mapping[Partition, Offsets],
    *,
    starts: Mapping[Partition, int],
    ranges: Iterable[Range],
) -> Position:
    """The position after `ranges`, which start at `starts`, or at the first offset of a partition."""
    nexts = {p: starts.get(p, offsets[p].first) for p in partitions_of(topics)}
    for one in ranges:
        nexts[one.partition] = max(nexts[one.partition], one.end)
    known = dict(position.topics)
    for topic in topics:
        numbers = range(topic.partitions)
        known[topic.name] = TopicPosition(
            id=topic.id, next=tuple(nexts[Partition(topic.name, number)] for number in numbers)
        )
    return replace(position, topics=known)


def _named(what: str, said: OffsetsByTopic, topics: Sequence[Topic]) -> dict[Partition, int]:
    """The offsets that the config names. Raises `SourceError` for what there is not."""
    there = {topic.name: topic.partitions for topic in topics}
    found = {}
    for topic, by_number in said.items():
        if topic not in there:
            raise SourceError(
                f"source.{what}: '{topic}' is no topic that is read; there are {_some(list(there)) or 'none'}"
            )
        for number, offset in by_number.items():
            if number >= there[topic]:
                raise SourceError(
                    f"source.{what}: {topic} has no partition {number}: it has {there[topic]}, from 0"
                )
            found[Partition(topic, number)] = offset
    return found


def _or(offset: int | None, otherwise: int) -> int:
    return otherwise if offset is None else offset


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return f"{'; '.join(texts[:_NAMED])}{more}"
