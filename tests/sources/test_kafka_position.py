"""What a plan or commit remembers of topics."""

from __future__ import annotations

import json

import pyarrow as pa

from raybatch.sources.kafka.client import Partition
from raybatch.sources.kafka.position import Position, TopicPosition

SCHEMA = pa.schema([("body", pa.string()), ("at", pa.timestamp("us"))])
TOPICS = {
    "tickets": TopicPosition(id="aaaa", next=(120, 7)),
    "orders": TopicPosition(id="bbbb", next=(0,)),
}


def test_a_position_survives_the_ledger() -> None:
    position = Position(topics=TOPICS, schema=SCHEMA)
    assert Position.of(json.loads(json.dumps(position.to_json()))) == position


def test_a_position_without_a_schema_survives_the_ledger() -> None:
    position = Position(topics=TOPICS)
    assert Position.of(json.loads(json.dumps(position.to_json()))) == position


def test_equal_positions_are_spelled_alike() -> None:
    backwards = dict(reversed(TOPICS.items()))
    first, second = Position(topics=TOPICS, schema=SCHEMA), Position(topics=backwards, schema=SCHEMA)
    assert json.dumps(first.to_json()) == json.dumps(second.to_json())


def test_the_very_beginning_knows_of_no_topic() -> None:
    assert Position.of(None) == Position()


def test_a_position_tells_the_next_offset_of_each_partition() -> None:
    expected = {Partition("tickets", 0): 120, Partition("tickets", 1): 7, Partition("orders", 0): 0}
    assert Position(topics=TOPICS).offsets() == expected
