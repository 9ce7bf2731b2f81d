"""Records deleted before they are read: an error that says which, or, by choice, a recorded loss (T12)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from oracle import Id, Output
from pipelines import Done, wait_until
from servers.kafka import KafkaCluster
from servers.kafka_project import WAIT, KafkaProject

pytestmark = [pytest.mark.ray, pytest.mark.kafka]

SKIP = ("--set", "source.on_lost_range=skip")
HOUR_MS = 3_600_000
ANY_ERRORS = {"max_error_rate": 1}
GATED = {"include": ["partition", "offset"], "stages": [WAIT]}
LOST = re.compile(r"the records at offsets (\d+) to (\d+) were deleted")


@pytest.fixture
def project(tmp_path: Path, kafka: KafkaCluster) -> Iterator[KafkaProject]:
    made = KafkaProject(tmp_path / "project", kafka=kafka)
    yield made
    made.close()


def says_what_is_lost(done: Done, lost: str) -> bool:
    """It failed, naming the offsets and both choices."""
    message = done.error["message"]
    choices = ("source.on_lost_range: skip", "sink.path")
    return done.error["type"] == "InputChangedError" and all(text in message for text in (lost, *choices))


def test_records_deleted_before_the_plan(project: KafkaProject) -> None:
    """By retention itself."""
    topic = project.kafka.topic(config={"segment.ms": 60_000})
    now = int(time.time() * 1000)
    taken = topic.produce([{"n": i} for i in range(20)], timestamp_ms=now - 2 * HOUR_MS)
    project.read(topic, run=ANY_ERRORS)
    project.complete()
    topic.produce([{"n": i} for i in range(20, 35)], timestamp_ms=now - HOUR_MS)
    left = topic.produce([{"n": i} for i in range(35, 50)], timestamp_ms=now)
    topic.configure({"segment.ms": 60_000, "retention.ms": HOUR_MS // 2})
    wait_until(lambda: topic.firsts() == {0: 35}, what="retention has deleted what is old")
    failed = project.run()
    assert says_what_is_lost(failed, f"{topic.name}/0, offsets 20 to 34"), str(failed)
    assert len(Output(project.output).plans()) == 1
    project.complete(*SKIP)
    lost: Id = (f"{topic.name}/0", 20, None)
    assert project.errors() == {"RecordsLost": [lost]}
    project.check([*taken, lost, *left])


def test_records_deleted_between_plan_and_read(project: KafkaProject) -> None:
    topic = project.kafka.topic()
    ids = topic.produce([{"n": i} for i in range(40)])
    project.read(topic, run=ANY_ERRORS)
    project.dies(at="after-plan")
    topic.delete_records(before=25)
    failed = project.run()
    assert says_what_is_lost(failed, f"{topic.name}/0, offsets "), str(failed)
    assert Output(project.output).commits() == []
    project.complete(*SKIP)
    lost = [ids[0], ids[10], ids[20]]  # the first offset of what is lost of each unit
    assert project.errors() == {"RecordsLost": lost}
    project.check([*lost, *ids[25:]])
    assert len(Output(project.output).plans()) == 1


def test_records_deleted_while_the_epoch_is_read(project: KafkaProject) -> None:
    topic = project.kafka.topic()
    ids = topic.produce([{"n": i} for i in range(60)])
    project.read(topic, run=ANY_ERRORS | {"in_flight_units": 1}, **GATED)
    command = project.start()
    assert project.wait_until_begun(1) == {"0-0"}
    topic.delete_records(before=35)
    project.open_gate()
    failed = command.wait()
    assert failed.code == 1, str(failed)
    assert says_what_is_lost(failed, f"{topic.name}/0, offsets 10 to 19"), str(failed)
    project.complete(*SKIP)
    lost = [ids[10], ids[20], ids[30]]
    assert project.errors() == {"RecordsLost": lost}
    project.check([*ids[:10], *lost, *ids[35:]])


def test_records_deleted_while_a_unit_is_read(project: KafkaProject) -> None:
    """Whatever is deleted first, each offset is a row, or in one of the ranges that are said to be lost."""
    topic = project.kafka.topic()
    producer = project.kafka.producer()
    for n in range(4000):
        producer.send(topic.name, {"n": n})
        if n % 50 == 49:
            producer.flush()  # a batch
    small = {"max_partition_fetch_bytes": 2000, "fetch_max_bytes": 2000}  # a batch at a time
    run = ANY_ERRORS | {"in_flight_units": 1, "unit": {"max_rows": 1000}}
    project.read(topic, run=run, on_lost_range="skip", client=small, **GATED)
    command = project.start()
    project.wait_until_begun(1)
    project.open_gate()
    before = 1100
    while command.process.poll() is None and before < 3990:
        topic.delete_records(before=before)
        before += 7
    assert command.wait().code == 0
    lost = set()
    for row in Output(project.output).errors():
        first, last = map(int, LOST.search(row["message"]).groups())
        assert (row["type"], row["_row"]) == ("RecordsLost", first)
        lost |= set(range(first, last + 1))
    kept = {row["_row"] for row in Output(project.output).data()}
    assert kept | lost == set(range(4000))
    assert not kept & lost
    assert lost
