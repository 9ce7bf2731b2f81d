"""What a client tells of a real broker's topics and groups."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from kafka import KafkaConsumer
from kafka_records import connected, id_of, read

from pipelines import wait_until
from raybatch.errors import SourceError
from raybatch.sources.kafka.client import (
    BrokersUnreachableError,
    Client,
    ClientError,
    Offsets,
    Partition,
    Retention,
    Topic,
    TopicGoneError,
)
from servers.kafka import GroupOffset, KafkaCluster

pytestmark = pytest.mark.kafka


@pytest.fixture
def client(kafka: KafkaCluster) -> Iterator[Client]:
    with connected(kafka.addresses) as made:
        yield made


def test_topics_are_found_by_name_and_by_pattern(kafka: KafkaCluster, client: Client) -> None:
    one, other = kafka.topic(partitions=3), kafka.topic()
    wanted = [
        Topic(name=topic.name, id=id_of(topic), partitions=count) for topic, count in ((one, 3), (other, 1))
    ]
    assert client.topics(names=[one.name]) == wanted[:1]
    assert client.topics(pattern=f"{one.name}|{other.name}") == sorted(wanted, key=lambda topic: topic.name)
    assert client.topics(pattern=one.name[:-1]) == []  # part of a name
    assert client.topics(pattern="__consumer_offsets") == []


def test_a_topic_that_is_not_there_is_not_made(kafka: KafkaCluster, client: Client) -> None:
    with pytest.raises(TopicGoneError) as caught:
        client.topics(names=["nowhere"])
    assert (caught.value.topic, caught.value.found) == ("nowhere", None)
    assert "nowhere" not in kafka.admin.list_topics()


def test_offsets_tell_the_first_the_stable_and_the_last(kafka: KafkaCluster, client: Client) -> None:
    topic = kafka.topic(partitions=2)
    topic.produce([b"a", b"b", b"c"])
    topic.delete_records(before=1)
    producer = kafka.producer(f"{topic.name}-writer")
    producer.begin()
    producer.send(topic.name, b"open")
    producer.flush()
    found = client.offsets([Partition(topic.name, 0), Partition(topic.name, 1)])
    assert found == {
        Partition(topic.name, 0): Offsets(first=1, stable=3, end=4),
        Partition(topic.name, 1): Offsets(first=0, stable=0, end=0),
    }


def test_a_partition_that_is_not_there_is_said_with_its_topic(kafka: KafkaCluster, client: Client) -> None:
    topic = kafka.topic()
    with pytest.raises(TopicGoneError) as caught:
        client.offsets([Partition(topic.name, 0), Partition(topic.name, 1)])
    assert (caught.value.topic, caught.value.found) == (topic.name, id_of(topic))


def test_a_time_has_the_offset_of_the_first_record_from_then_on(kafka: KafkaCluster, client: Client) -> None:
    topic = kafka.topic(partitions=2, config={"retention.ms": -1})
    for when in (1000, 2000, 3000):
        topic.produce([b"x"], timestamp_ms=when)
    first, empty = Partition(topic.name, 0), Partition(topic.name, 1)
    assert client.offsets_at({first: 1500, empty: 1500}) == {first: 1, empty: None}
    assert client.offsets_at({first: 3001}) == {first: None}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {"retention.ms": 60_000, "retention.bytes": 1000},
            Retention(retention_ms=60_000, retention_bytes=1000, cleanup_policy="delete"),
        ),
        (
            {"retention.ms": -1},
            Retention(retention_ms=None, retention_bytes=None, cleanup_policy="delete"),
        ),
        (
            {"retention.ms": 60_000, "cleanup.policy": "compact"},
            Retention(retention_ms=None, retention_bytes=None, cleanup_policy="compact"),
        ),
    ],
)
def test_retention_is_what_deletes_records(
    kafka: KafkaCluster, client: Client, config: dict[str, object], told: Retention
) -> None:
    topic = kafka.topic(config=config)
    assert client.retention([topic.name]) == {topic.name: told}


def test_a_groups_offsets_are_set_without_joining_it(kafka: KafkaCluster, client: Client) -> None:
    topic = kafka.topic(partitions=2)
    topic.produce([b"a", b"b", b"c"])
    group, first, second = f"{topic.name}-group", Partition(topic.name, 0), Partition(topic.name, 1)
    assert client.group_offsets(group) == {}
    client.set_group_offsets(group, {first: 1})
    client.set_group_offsets(group, {second: 0})
    client.set_group_offsets(group, {first: 2})
    assert client.group_offsets(group) == {first: 2, second: 0}
    assert kafka.consumer_groups(group)[first] == GroupOffset(current=2, end=3, lag=1)


def test_a_group_with_members_keeps_its_offsets(kafka: KafkaCluster, client: Client) -> None:
    topic = kafka.topic()
    group = f"{topic.name}-group"
    with KafkaConsumer(topic.name, bootstrap_servers=kafka.addresses, group_id=group) as member:
        wait_until(lambda: member.poll(timeout_ms=5_000) or member.assignment(), what="it has joined")
        with pytest.raises(ClientError, match=f"group {group} has members"):
            client.set_group_offsets(group, {Partition(topic.name, 0): 0})


def test_offsets_of_a_topic_that_is_gone_cannot_be_set(client: Client) -> None:
    with pytest.raises(TopicGoneError, match="nowhere"):
        client.set_group_offsets("some-group", {Partition("nowhere", 0): 1})


def test_groups_are_found_again_after_their_broker_was_killed(kafka_alone: KafkaCluster) -> None:
    topic = kafka_alone.topic()
    topic.produce([b"a"])
    with connected(kafka_alone.addresses, read_timeout_s=60) as client:
        client.set_group_offsets("some-group", {Partition(topic.name, 0): 1})
        kafka_alone.restart()
        assert client.group_offsets("some-group") == {Partition(topic.name, 0): 1}


def test_who_is_not_there_is_said_with_the_reason(kafka: KafkaCluster) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(BrokersUnreachableError) as caught,
            connected([address], read_timeout_s=0.1) as client,
        ):
            client.topics(pattern=".*")
    assert str(caught.value) == f"{address}: Connection refused"


def test_one_of_several_addresses_is_enough(kafka: KafkaCluster) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        brokers = [f"127.0.0.1:{taken.getsockname()[1]}", *kafka.addresses]
        with connected(brokers) as client:
            assert client.topics(pattern="no-such-topic") == []


def test_a_closed_client_leaves_no_thread(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    topic.produce([b"a"])
    before = set(threading.enumerate())
    with connected(kafka.addresses) as client:
        read(client, topic)
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) <= before


def test_without_the_library_the_install_command_is_said() -> None:
    code = (
        "import sys; sys.modules['kafka'] = None\n"
        "from raybatch.sources.kafka.client import open_client\n"
        "from raybatch.sources.kafka.config import KafkaConfig\n"
        "open_client(KafkaConfig(type='kafka', brokers='a:1', topics=['t']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        f"{SourceError.__name__}: a kafka source needs the package 'kafka': pip install 'raybatch[kafka]'"
        in done.stderr
    )
