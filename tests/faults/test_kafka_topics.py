"""Compacted topics, topics that grow, and topics that are another one by now (T15, T16)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from oracle import Output
from pipelines import wait_until
from servers.kafka import KafkaCluster
from servers.kafka_project import KafkaProject
from servers.topics import Topic

pytestmark = [pytest.mark.ray, pytest.mark.kafka]

HOUR_MS = 3_600_000
COMPACT = {
    "cleanup.policy": "compact",
    "segment.ms": 60_000,
    "min.cleanable.dirty.ratio": 0.01,
    "delete.retention.ms": 24 * HOUR_MS,  # how long tombstones stay
}


@pytest.fixture
def project(tmp_path: Path, kafka: KafkaCluster) -> Iterator[KafkaProject]:
    made = KafkaProject(tmp_path / "project", kafka=kafka)
    yield made
    made.close()


def write_keys(topic: Topic) -> None:
    """80 records of 8 keys, the last of which has a tombstone; then one that closes their segment."""
    producer = topic.cluster.producer()
    old = int(time.time() * 1000) - HOUR_MS
    for n in range(80):
        value = None if n == 79 else {"n": n}
        producer.send(topic.name, value, key=b"key %d" % (n % 8), timestamp_ms=old + n)
    producer.flush()  # a segment ends between batches
    producer.send(topic.name, {"n": 80}, key=b"another")
    producer.flush()
    producer.close()


def compacted(topic: Topic) -> None:
    wait_until(lambda: topic.cleaned() >= 80, what="the topic is compacted")


def test_compaction_leaves_gaps_that_are_no_loss_and_tombstones_that_are_rows(project: KafkaProject) -> None:
    topic = project.kafka.topic(config=COMPACT)
    write_keys(topic)
    compacted(topic)
    left = [(f"{topic.name}/0", offset, None) for offset in range(72, 81)]
    assert topic.read_by_java() == left
    project.read(topic, include=["key"])
    project.complete()
    project.check(left)
    rows = {row["_row"]: (row["key"], row["n"]) for row in Output(project.output).data()}
    assert rows == {
        **{offset: (b"key %d" % (offset % 8), offset) for offset in range(72, 79)},
        79: (b"key 7", None),
        80: (b"another", 80),
    }


def test_compaction_between_plan_and_read_is_no_loss(project: KafkaProject) -> None:
    topic = project.kafka.topic(
        config={name: value for name, value in COMPACT.items() if "policy" not in name}
    )
    write_keys(topic)
    project.read(topic)
    project.dies(at="after-plan")
    topic.configure(COMPACT)
    compacted(topic)
    project.complete()
    project.check(topic.read_by_java())
    assert len(Output(project.output).data()) == 9


def test_partitions_that_are_added_are_read_from_their_first_offset(project: KafkaProject) -> None:
    topic = project.kafka.topic(partitions=3)
    ids = [one for n in range(3) for one in topic.produce([{"n": n}] * 5, partition=n)]
    project.read(topic)
    project.complete()
    topic.add_partitions(6)
    ids += [one for n in range(6) for one in topic.produce([{"n": n}] * 5, partition=n)]
    topic.delete_records(before=2, partition=5)
    project.complete()
    gone = {(f"{topic.name}/5", 0, None), (f"{topic.name}/5", 1, None)}
    project.check([one for one in ids if one not in gone])


def test_a_topic_made_again_between_epochs_stops_the_run(project: KafkaProject) -> None:
    topic = project.kafka.topic()
    ids = topic.produce([{"n": n} for n in range(5)])
    project.read(topic)
    project.complete()
    topic.delete()
    topic.create()
    topic.produce([{"n": n} for n in range(9)])
    failed = project.run()
    assert (failed.code, failed.error["type"]) == (1, "InputChangedError"), str(failed)
    assert f"topic '{topic.name}' was deleted and made again" in failed.error["message"]
    assert len(Output(project.output).plans()) == 1
    project.check(ids)


def test_a_topic_made_again_between_plan_and_read_stops_the_run(project: KafkaProject) -> None:
    topic = project.kafka.topic()
    topic.produce([{"n": n} for n in range(25)])
    project.read(topic)
    project.dies(at="after-plan")
    topic.delete()
    topic.create()
    topic.produce([{"n": -n} for n in range(25)])
    failed = project.run()
    assert (failed.code, failed.error["type"]) == (1, "InputChangedError"), str(failed)
    assert topic.name in failed.error["message"]
    assert project.published() == []
