"""A few records of what an epoch takes: what columns there are, and how large records are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from raybatch.sources.kafka.client import Client, RangeLostError, Records
from raybatch.sources.kafka.ranges import Range

_PLACES, _BYTES = 16, 8 << 20
_LEAST_BYTES = 1.0  # of an offset: gaps and tombstones have none, and there is no unit of a billion of them


@dataclass(kw_only=True)
class Sample:
    """`values` of sampled records, without tombstones; `records` counts these too.

    `bytes_per_offset` is known by topic once all is read: an average over places in its partitions, or, of a topic
    that none was in, over all. `oldest_ms` is the time of the oldest record with a time, by topic.
    """

    records: int = 0
    values: list[bytes] = field(default_factory=list)
    oldest_ms: dict[str, int] = field(default_factory=dict)
    _bytes: dict[str, int] = field(default_factory=dict)
    _offsets: dict[str, int] = field(default_factory=dict)

    def bytes_per_offset(self, topics: Sequence[str]) -> Mapping[str, float]:
        """For each of `topics`."""
        average = sum(self._bytes.values()) / max(1, sum(self._offsets.values()))
        found = {topic: self._bytes[topic] / max(1, self._offsets[topic]) for topic in self._bytes}
        return {topic: max(_LEAST_BYTES, found.get(topic, average)) for topic in topics}

    def read(self, client: Client, place: Range) -> None:
        """Add the records of `place`, or the first ones if they are large."""
        topic, size, end = place.partition.topic, 0, place.end
        for offset, when, key, value in _records(client, place):
            self.records += 1
            if when >= 0:
                self.oldest_ms[topic] = min(when, self.oldest_ms.get(topic, when))
            size += len(value or b"") + len(key or b"")
            if value is not None:
                self.values.append(value)
            if size >= _BYTES // _PLACES:
                end = offset + 1
                break
        self._bytes[topic] = self._bytes.get(topic, 0) + size
        self._offsets[topic] = self._offsets.get(topic, 0) + end - place.start


def take_sample(client: Client, ranges: Sequence[Range], *, rows: int, until_found: bool) -> Sample:
    """Read the records of about `rows` offsets, at places spread evenly over `ranges`.

    The same ranges give the same sample. With `until_found` one that has no record says that the ranges have none.
    """
    sample = Sample()
    there = [one for one in ranges if not one.lost]
    for place in _places(there, rows=rows):
        sample.read(client, place)
    for one in there if until_found else ():
        if sample.records:
            break
        sample.read(client, one)
    return sample


def _places(ranges: Sequence[Range], *, rows: int) -> Iterator[Range]:
    """At most _PLACES parts of some ranges, together of at most `rows` offsets."""
    count, least = min(len(ranges), _PLACES), rows // _PLACES
    for i in range(count):
        one = ranges[i * len(ranges) // count]
        parts = max(1, min(_PLACES // count, len(one) // least))
        bounds = [one.start + len(one) * k // parts for k in range(parts + 1)]
        for start, end in pairwise(bounds):
            # Not left early: a client that has asked for more would have to connect anew
            yield replace(one, start=start, end=min(end, start + max(least, rows // (count * parts))))


def _records(client: Client, place: Range) -> Iterator[tuple[int, int, bytes | None, bytes | None]]:
    """Offset, time, key and value of each record; what is lost meanwhile is for whoever reads in earnest to tell."""
    batches: Iterator[Records] = client.read(
        place.partition, topic_id=place.topic_id, start=place.start, end=place.end
    )
    try:
        for records in batches:
            yield from zip(records.offsets, records.timestamps, records.keys, records.values, strict=True)
    except RangeLostError:
        return
