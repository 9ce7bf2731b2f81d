"""Group offsets that were not set, deleted, or moved: the output is untouched, the next run repairs them (T27)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition

from oracle import Output
from pipelines import wait_until
from servers.kafka import KafkaCluster
from servers.kafka_project import KafkaProject
from servers.topics import Id, Topic

pytestmark = [pytest.mark.ray, pytest.mark.kafka]


@pytest.fixture
def project(tmp_path: Path, kafka: KafkaCluster) -> Iterator[KafkaProject]:
    made = KafkaProject(tmp_path / "project", kafka=kafka)
    yield made
    made.close()


@pytest.fixture
def topic(project: KafkaProject) -> Topic:
    """Two partitions of 15 records, which the project's pipeline reads."""
    made = project.kafka.topic(partitions=2)
    for partition in range(2):
        made.produce([{"n": n} for n in range(15)], partition=partition)
    project.read(made)
    return made


def ids_of(topic: Topic) -> list[Id]:
    return [(f"{topic.name}/{partition}", n, None) for partition in range(2) for n in range(15)]


def committed(project: KafkaProject) -> dict[int, int | None]:
    """What Kafka's own command says of the group, by partition."""
    return {number: at.current for (_, number), at in project.kafka.consumer_groups(project.name).items()}


def set_to(project: KafkaProject, topic: Topic, offsets: dict[int, int]) -> None:
    wanted = {TopicPartition(topic.name, n): OffsetAndMetadata(at, "", -1) for n, at in offsets.items()}
    project.kafka.admin.alter_group_offsets(project.name, wanted)


def i7(project: KafkaProject, *, code: int) -> tuple[dict[str, Any], list[str]]:
    """What an audit that ends with `code` says of I7, and its notes."""
    done = project.run(command="audit")
    assert done.code == code, str(done)
    (check,) = [check for check in done.document["checks"] if check["invariant"] == "I7"]
    return check, done.document["notes"]


def test_offsets_are_where_the_last_commit_ends(project: KafkaProject, topic: Topic) -> None:
    project.complete()
    assert committed(project) == {0: 15, 1: 15}
    check, notes = i7(project, code=0)
    assert (check["status"], check["checked"], notes) == ("ok", "2 group offsets", [])


def test_a_run_killed_before_it_acknowledged_is_repaired_by_the_next(
    project: KafkaProject, topic: Topic
) -> None:
    project.dies(at="before-acknowledge")
    assert committed(project) == {}
    check, notes = i7(project, code=0)
    assert check["status"] == "ok"
    assert notes[0] == (
        f"group {project.name}, {topic.name}/0: no offset, and the last commit ends at 15; the next run sets it"
    )
    again = project.complete()
    assert committed(project) == {0: 15, 1: 15}
    assert any("acknowledged the last commit again" in note for note in again.document["notes"])
    project.check(ids_of(topic))
    assert len(Output(project.output).plans()) == 1


def test_a_deleted_group_is_made_again_and_nothing_is_read_twice(project: KafkaProject, topic: Topic) -> None:
    project.complete()
    assert project.kafka.admin.delete_groups([project.name]) == {project.name: "OK"}
    assert committed(project) == {}
    project.complete()
    assert committed(project) == {0: 15, 1: 15}
    project.check(ids_of(topic))
    assert len(Output(project.output).plans()) == 1


def test_offsets_that_somebody_has_moved_are_a_violation_and_are_moved_back(
    project: KafkaProject, topic: Topic
) -> None:
    project.complete()
    topic.produce([{"n": 15}] * 5)
    set_to(project, topic, {0: 19, 1: 3})
    check, notes = i7(project, code=1)
    assert (check["status"], check["violations"]) == ("failed", 1)
    assert (
        check["first"] == f"group {project.name}, {topic.name}/0: offset 19, and the last commit ends at 15"
    )
    assert [f"{topic.name}/1: offset 3" in note for note in notes] == [True]
    project.complete()
    assert committed(project) == {0: 20, 1: 15}
    project.check(ids_of(topic) + [(f"{topic.name}/0", n, None) for n in range(15, 20)])


def test_a_group_that_others_use_costs_a_warning(project: KafkaProject, topic: Topic) -> None:
    with KafkaConsumer(
        topic.name, bootstrap_servers=project.kafka.addresses, group_id=project.name, enable_auto_commit=False
    ) as member:
        wait_until(lambda: member.poll(timeout_ms=5_000) or member.assignment(), what="it has joined")
        done = project.complete()
    assert any(
        f"could not be acknowledged: group {project.name} has members" in note
        for note in done.document["notes"]
    )
    project.complete()
    assert committed(project) == {0: 15, 1: 15}
    project.check(ids_of(topic))


def test_an_audit_says_that_nobody_answers(project: KafkaProject, topic: Topic) -> None:
    project.complete()
    project.read(topic, brokers=["127.0.0.1:1"], read_timeout_s=0.1)
    check, _ = i7(project, code=0)
    assert check["status"] == "not checked"
    assert "127.0.0.1:1: Connection refused" in check["checked"]
