"""Brokers killed amid an epoch: the same ranges are read, and every record is there once (T11)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from oracle import Output
from pipelines import wait_until
from servers.kafka import KafkaCluster
from servers.kafka_project import WAIT, KafkaProject

pytestmark = [pytest.mark.ray, pytest.mark.kafka]

INCLUDE = ["partition", "offset"]


@pytest.fixture
def alone(tmp_path: Path, kafka_alone: KafkaCluster) -> Iterator[KafkaProject]:
    made = KafkaProject(tmp_path / "project", kafka=kafka_alone)
    yield made
    made.close()


@pytest.fixture
def trio(tmp_path: Path, kafka_trio: KafkaCluster) -> Iterator[KafkaProject]:
    made = KafkaProject(tmp_path / "project", kafka=kafka_trio)
    yield made
    made.close()


def test_a_broker_that_is_gone_for_a_while_costs_only_time(alone: KafkaProject) -> None:
    topic = alone.kafka.topic(partitions=2)
    ids = [one for n in range(2) for one in topic.produce([{"n": i} for i in range(40)], partition=n)]
    alone.read(topic, stages=[WAIT], include=INCLUDE, run={"in_flight_units": 2})
    command = alone.start()
    alone.wait_until_begun(2)
    alone.kafka.brokers[0].kill()
    alone.open_gate()
    wait_until(lambda: len(alone.published()) >= 2, what="the units that were read are published")
    alone.kafka.restart()
    done = command.wait()
    assert done.code == 0, str(done)
    alone.check(ids)


def test_a_leader_that_dies_for_good_is_replaced_amid_an_epoch(trio: KafkaProject) -> None:
    kafka = trio.kafka
    topic = kafka.topic(assigned={0: [1, 2, 3], 1: [2, 3, 1]})
    ids = [one for n in range(2) for one in topic.produce([{"n": i} for i in range(40)], partition=n)]
    trio.read(topic, stages=[WAIT], include=INCLUDE, run={"in_flight_units": 2})
    command = trio.start()
    trio.wait_until_begun(2)
    kafka.brokers[0].kill()
    trio.open_gate()
    done = command.wait()
    assert done.code == 0, str(done)
    assert topic.leaders() == {0: 2, 1: 2}
    trio.check(ids)
    kafka.restart(0)
    assert len(Output(trio.output).plans()) == 1


def test_a_run_killed_in_an_outage_resumes_on_the_same_ranges(alone: KafkaProject) -> None:
    topic = alone.kafka.topic()
    ids = topic.produce([{"n": i} for i in range(60)])
    alone.read(topic, stages=[WAIT], include=INCLUDE, run={"in_flight_units": 1})
    command = alone.start()
    alone.wait_until_begun(1)
    plans = Output(alone.output).plans()
    alone.kafka.brokers[0].kill()
    alone.open_gate()
    wait_until(lambda: alone.published(), what="the unit that was read is published")
    command.kill()
    alone.kafka.restart()
    topic.produce([{"n": i} for i in range(60, 70)])  # is for a later epoch
    alone.complete()
    assert Output(alone.output).plans() == plans
    alone.check(ids)
