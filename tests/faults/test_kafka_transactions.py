"""Transactions: aborted records are never rows, markers are no records, open ones wait (T13, T14)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from oracle import Id
from pipelines import wait_until
from servers.kafka import KafkaCluster
from servers.kafka_project import WAIT, KafkaProject

pytestmark = [pytest.mark.ray, pytest.mark.kafka]


@pytest.fixture
def project(tmp_path: Path, kafka: KafkaCluster) -> Iterator[KafkaProject]:
    made = KafkaProject(tmp_path / "project", kafka=kafka)
    yield made
    made.close()


def test_partitions_that_end_in_markers_and_aborted_batches_are_read_to_their_end(
    project: KafkaProject,
) -> None:
    topic = project.kafka.topic(partitions=5)
    producer = project.kafka.producer(f"{topic.name}-writer")

    def transaction(partition: int, *, rows: int, commits: bool) -> list[Id]:
        producer.begin()
        for n in range(rows):
            producer.send(topic.name, {"n": n}, partition=partition)
        return producer.commit() if commits else producer.abort()

    ids = transaction(0, rows=15, commits=True)  # ends in a commit marker
    ids += topic.produce([{"n": n} for n in range(15)], partition=1)
    transaction(1, rows=1, commits=False)  # ends in an abort marker
    ids += transaction(2, rows=5, commits=True)
    transaction(2, rows=40, commits=False)  # ends in units without a single row
    transaction(3, rows=25, commits=False)  # has none at all; and 4 was never written to
    project.read(topic)
    project.complete()
    project.check(ids)
    groups = project.kafka.consumer_groups(project.name)
    assert {partition: at.lag for (_, partition), at in groups.items() if at.end} == dict.fromkeys(
        range(4), 0
    )


def test_an_open_transaction_is_left_to_a_later_epoch(project: KafkaProject) -> None:
    topic = project.kafka.topic(partitions=2)
    ids = topic.produce([{"n": n} for n in range(5)])
    ids += topic.produce([{"n": n} for n in range(5)], partition=1)
    producer = project.kafka.producer(f"{topic.name}-writer")
    producer.begin()
    producer.send(topic.name, {"n": 5})
    held = producer.flush()
    held += topic.produce(
        [{"n": n} for n in range(6, 10)]
    )  # not of the transaction, but behind its first record
    project.read(topic)
    project.complete()
    project.check(ids)
    producer.commit()
    project.complete()
    project.check(ids + held)


def test_a_transaction_that_is_aborted_after_the_plan_leaves_no_row(project: KafkaProject) -> None:
    topic = project.kafka.topic()
    producer = project.kafka.producer(f"{topic.name}-writer")
    ids = topic.produce([{"n": n} for n in range(5)])
    producer.begin()
    producer.send(topic.name, {"n": 5})
    producer.flush()
    project.read(topic)
    project.dies(at="after-plan")
    producer.abort()
    ids += topic.produce([{"n": n} for n in range(6, 10)])
    project.complete()  # what was planned
    project.complete()  # the rest
    project.check(ids)


def test_a_killed_run_of_committed_and_aborted_transactions_is_finished_by_the_next(
    project: KafkaProject,
) -> None:
    topic = project.kafka.topic(partitions=3)
    producer = project.kafka.producer(f"{topic.name}-writer")
    ids: list[Id] = []
    for number in range(15):
        producer.begin()
        for n in range(12):
            producer.send(topic.name, {"n": n}, partition=n % 3)
        ids += [] if number % 5 == 4 else producer.commit()
        if number % 5 == 4:
            producer.abort()
    project.read(topic, stages=[WAIT], include=["partition", "offset"], run={"in_flight_units": 2})
    command = project.start()
    project.wait_until_begun(2)
    project.open_gate()
    wait_until(lambda: len(project.published()) >= 2, what="two units are published")
    command.kill()
    project.complete()
    project.check(ids)
