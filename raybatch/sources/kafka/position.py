"""How far topics have been planned: the kafka source's position.

    {"topics": {"tickets": {"id": "fT0…", "next": [120, 7]}}, "schema": "…"}

`next` has the next offset of each partition, by number. `schema` is that of the values (Arrow's IPC message in
base64), which later epochs keep; null before the first value was seen. A topic that is no longer read stays in it:
should it be read again, it goes on where it was left.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from raybatch.sources.base import JSON
from raybatch.sources.kafka.client import Partition


@dataclass(frozen=True, kw_only=True)
class TopicPosition:
    """A topic by its id, and the next offset of each of its partitions."""

    id: str
    next: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Position:
    """See the module's docstring."""

    topics: Mapping[str, TopicPosition] = field(default_factory=dict)
    schema: pa.Schema | None = None

    @classmethod
    def of(cls, after: JSON | None) -> Position:
        """What a plan or commit says; None is the very beginning."""
        if after is None:
            return cls()
        topics = {
            name: TopicPosition(id=topic["id"], next=tuple(topic["next"]))
            for name, topic in after["topics"].items()
        }
        return cls(topics=topics, schema=_load(after["schema"]) if after["schema"] else None)

    def to_json(self) -> JSON:
        """As plans and commits have it."""
        topics = {
            name: {"id": topic.id, "next": list(topic.next)} for name, topic in sorted(self.topics.items())
        }
        return {"topics": topics, "schema": _dump(self.schema) if self.schema is not None else None}

    def offsets(self) -> dict[Partition, int]:
        """The next offset of each partition."""
        return {
            Partition(name, number): offset
            for name, topic in self.topics.items()
            for number, offset in enumerate(topic.next)
        }


def _dump(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize()).decode("ascii")


def _load(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
