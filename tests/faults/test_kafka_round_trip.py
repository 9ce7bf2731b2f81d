"""What a record is made of comes through as it is, also what is rare (T17)."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oracle import Output
from servers.kafka import KafkaCluster
from servers.kafka_project import KafkaProject

pytestmark = [pytest.mark.ray, pytest.mark.kafka]

PARTS = ["key", "headers", "timestamp", "timestamp_type", "topic", "partition", "offset"]
NOW_MS = int(time.time() * 1000)

# What kafka-python sends as it is given: any bytes, repeated and empty headers, keys that are null or empty
RECORDS: list[dict[str, Any]] = [
    {"value": b"plain"},
    {"value": b"\xff\x00\n", "key": b"\x00\xfe"},
    {"value": b"", "key": b""},
    {"value": None, "key": b"tombstone"},
    {"value": b"repeated", "headers": [("h", b"1"), ("g", b""), ("h", b"2"), ("h", b"1")]},
    {"value": b"named \xc3\xa9", "headers": [("", b"\xff"), ("\N{SNOWMAN}", b"snow")]},
    {"value": b"without a time", "timestamp_ms": -1},
    {"value": b"of the beginning", "timestamp_ms": 0},
]


@pytest.fixture
def project(tmp_path: Path, kafka: KafkaCluster) -> Iterator[KafkaProject]:
    made = KafkaProject(tmp_path / "project", kafka=kafka)
    yield made
    made.close()


def row(record: dict[str, Any], *, topic: str, offset: int) -> dict[str, Any]:
    """What RECORDS[offset] has to become, but for its time."""
    headers = [{"key": key, "value": value} for key, value in record.get("headers", [])]
    return {
        "value": record["value"],
        "key": record.get("key"),
        "headers": headers,
        "topic": topic,
        "partition": 0,
        "offset": offset,
        "_source": f"{topic}/0",
        "_row": offset,
        "_child": None,
    }


def test_every_part_of_a_record_comes_through(project: KafkaProject) -> None:
    created = project.kafka.topic()
    appended = project.kafka.topic(config={"message.timestamp.type": "LogAppendTime"})
    producer = project.kafka.producer()
    before = int(time.time() * 1000)
    for topic in (created, appended):
        for record in RECORDS:
            producer.send(topic.name, **{"timestamp_ms": NOW_MS, **record})
    ids = producer.flush()
    after = int(time.time() * 1000)
    project.read(created, appended, value="bytes", include=PARTS)
    project.complete()
    project.check(ids)

    found = sorted(Output(project.output).data(), key=lambda one: (one["_source"], one["_row"]))
    times = {(one["topic"], one["offset"]): one.pop("timestamp") for one in found}
    kinds = {(one["topic"], one.pop("timestamp_type")) for one in found}
    topics = sorted([created.name, appended.name])
    assert found == [
        row(record, topic=topic, offset=n) for topic in topics for n, record in enumerate(RECORDS)
    ]
    assert kinds == {(created.name, "CreateTime"), (appended.name, "LogAppendTime")}
    given = [record.get("timestamp_ms", NOW_MS) for record in RECORDS]
    assert [times[created.name, n] for n in range(len(RECORDS))] == [_time(ms) for ms in given]
    assert all(_time(before) <= times[appended.name, n] <= _time(after) for n in range(len(RECORDS)))


def _time(ms: int) -> datetime.datetime | None:
    """None for a record that has no time, which Kafka writes as -1."""
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return None if ms == -1 else epoch + datetime.timedelta(milliseconds=ms)
