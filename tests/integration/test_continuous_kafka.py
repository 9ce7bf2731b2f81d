"""A run that goes on with what arrives in topics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oracle import Output
from pipelines import Command, wait_until
from raylets import Cluster
from servers.kafka import KafkaCluster
from servers.kafka_project import KafkaProject

pytestmark = [pytest.mark.ray, pytest.mark.kafka]


@pytest.fixture
def project(tmp_path: Path, kafka: KafkaCluster, cluster: Cluster) -> Iterator[KafkaProject]:
    made = KafkaProject(tmp_path / "project", kafka=kafka, env=cluster.env)
    yield made
    made.close()


def continuous(*, idle_exit_s: float = 3, **epoch: Any) -> dict[str, Any]:
    return {"mode": "continuous", "epoch": {"every_s": 0.2, **epoch}, "idle_exit_s": idle_exit_s}


def is_committed(project: KafkaProject, command: Command, epoch: int) -> None:
    file = project.output / "_raybatch" / "commit" / f"{epoch:08d}.json"
    wait_until(
        lambda: file.exists() or command.process.poll() is not None, what=f"epoch {epoch} is committed"
    )
    assert file.exists(), str(command.wait())


def test_records_that_arrive_become_epochs_and_the_group_follows(project: KafkaProject) -> None:
    topic = project.kafka.topic(partitions=2)
    ids = topic.produce([{"n": n} for n in range(25)])
    project.read(topic, run=continuous())
    command = project.start()
    is_committed(project, command, 0)
    ids += topic.produce([{"n": n} for n in range(10)], partition=1)
    is_committed(project, command, 1)
    ids += topic.produce([{"n": n} for n in range(5)])
    done = command.wait()
    assert (done.code, done.document["epochs"], done.document["rows"]["in"]) == (0, 3, 40), str(done)
    project.check(ids)
    assert {at.lag for at in project.kafka.consumer_groups(project.name).values()} == {0}


def test_an_epoch_takes_no_more_records_than_it_may_and_the_next_one_takes_the_rest(
    project: KafkaProject,
) -> None:
    topic = project.kafka.topic(partitions=2)
    ids = topic.produce([{"n": n} for n in range(25)])
    ids += topic.produce([{"n": n} for n in range(10)], partition=1)
    project.read(topic, run=continuous(idle_exit_s=0, max_rows=10))
    project.complete()
    assert [commit["totals"]["in"] for commit in Output(project.output).commits()] == [10, 10, 10, 5]
    project.check(ids)


def test_what_arrives_after_the_first_look_is_later_than_latest(project: KafkaProject) -> None:
    topic = project.kafka.topic()
    topic.produce([{"n": n} for n in range(25)])
    project.read(topic, run=continuous(), start="latest", schema={"n": "int64"})
    command = project.start()
    is_committed(project, command, 0)
    ids = topic.produce([{"n": n} for n in range(5)])
    done = command.wait()
    assert done.code == 0, str(done)
    project.check(ids)


def test_the_report_tells_how_long_records_took_from_their_timestamp_to_the_commit(
    project: KafkaProject,
) -> None:
    topic = project.kafka.topic()
    hour_ago = time.time() - 3600
    topic.produce([{"n": n} for n in range(99)], timestamp_ms=int(hour_ago * 1000))
    topic.produce([{"n": 99}], timestamp_ms=int((hour_ago - 9 * 3600) * 1000))
    topic.produce([{"n": 100}], timestamp_ms=int((hour_ago - 9 * 3600) * 1000))
    project.read(topic, run=continuous(idle_exit_s=0))
    done = project.complete()
    took = time.time() - hour_ago
    late = done.document["latency_s"]
    assert 0.9 * 3600 < late["p50"] < 1.1 * took
    assert 0.9 * 10 * 3600 < late["p99"] < 1.1 * (9 * 3600 + took)
    assert "latency" in done.err
