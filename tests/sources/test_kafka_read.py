"""Reading ranges of a real broker's partitions: every committed record, once, whatever happens meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
from kafka_records import connected, id_of, offsets_in, offsets_of, read, values_in

from pipelines import wait_until
from raybatch.sources.kafka.client import (
    BrokersUnreachableError,
    Client,
    Partition,
    RangeLostError,
    RangeMissingError,
    TopicGoneError,
)
from servers.kafka import KafkaCluster
from servers.topics import Topic

pytestmark = pytest.mark.kafka

HOUR_MS = 3_600_000
# Small enough that each answer holds one batch, so that a read asks often
SMALL = {"max_partition_fetch_bytes": 1, "fetch_max_bytes": 1}


@pytest.fixture
def client(kafka: KafkaCluster) -> Iterator[Client]:
    with connected(kafka.addresses) as made:
        yield made


@pytest.fixture
def small(kafka: KafkaCluster) -> Iterator[Client]:
    with connected(kafka.addresses, client=SMALL) as made:
        yield made


def _mixed(kafka: KafkaCluster) -> tuple[Topic, list[int]]:
    """A partition with all there is, ending in markers; and the offsets of the records that count."""
    topic = kafka.topic()
    producer, other = (kafka.producer(f"{topic.name}-{n}") for n in range(2))
    topic.produce([b"plain"] * 3)
    for aborted in (True, False, True):
        producer.begin()
        other.begin()
        for _ in range(3):
            producer.send(topic.name, b"one")
            producer.flush()
            other.send(topic.name, b"two")
            other.flush()
        topic.produce([b"between"])
        (producer.abort if aborted else producer.commit)()
        other.commit()
    return topic, [offset for _, offset, _ in topic.read_by_java()]


def test_a_record_is_given_as_it_was_produced(kafka: KafkaCluster, client: Client) -> None:
    topic = kafka.topic(config={"retention.ms": -1})
    headers = [("a", b"1"), ("b", b""), ("a", b"2")]
    topic.produce([b"value"], key=b"key", headers=headers, timestamp_ms=1_760_000_000_123)
    topic.produce([None], key=b"key", timestamp_ms=5)
    topic.produce([b""])
    found = read(client, topic)  # two answers: times that are so far apart are in different segments
    assert offsets_in(found) == [0, 1, 2]
    assert values_in(found) == [b"value", None, b""]
    assert [key for records in found for key in records.keys] == [b"key", b"key", None]
    assert [list(one) for records in found for one in records.headers] == [headers, [], []]
    assert [when for records in found for when in records.timestamps][:2] == [1_760_000_000_123, 5]
    assert [kind for records in found for kind in records.timestamp_types] == [0, 0, 0]


def test_times_of_the_log_are_told_from_those_of_producers(kafka: KafkaCluster, client: Client) -> None:
    topic = kafka.topic(config={"message.timestamp.type": "LogAppendTime"})
    before = int(time.time() * 1000)
    topic.produce([b"a", b"b"], timestamp_ms=5)
    (records,) = read(client, topic)
    assert list(records.timestamp_types) == [1, 1]
    assert all(before <= when <= time.time() * 1000 for when in records.timestamps)


def test_only_committed_records_are_given_and_a_partition_that_ends_in_markers_ends(
    kafka: KafkaCluster, client: Client
) -> None:
    topic, kept = _mixed(kafka)
    assert offsets_of(client, topic).stable > kept[-1] + 1
    assert offsets_in(read(client, topic)) == kept


def test_ranges_that_meet_anywhere_give_every_record_once(kafka: KafkaCluster, small: Client) -> None:
    topic, kept = _mixed(kafka)
    stable = offsets_of(small, topic).stable
    for step in (1, 2, 5):
        cuts = [*range(0, stable, step), stable]
        found = [read(small, topic, start=start, end=end) for start, end in pairwise(cuts)]
        assert [offset for batches in found for offset in offsets_in(batches)] == kept


def test_a_range_without_any_record_ends(kafka: KafkaCluster, client: Client) -> None:
    topic = kafka.topic()
    producer = kafka.producer(f"{topic.name}-writer")
    producer.begin()
    producer.send(topic.name, b"aborted")
    producer.abort()
    assert offsets_of(client, topic).stable == 2
    assert read(client, topic) == []
    assert read(client, topic, start=1) == []
    assert read(client, topic, start=2, end=2) == []


def test_an_open_transaction_is_left_for_later(kafka: KafkaCluster, client: Client) -> None:
    topic = kafka.topic()
    topic.produce([b"before"])
    producer = kafka.producer(f"{topic.name}-writer")
    producer.begin()
    producer.send(topic.name, b"open")
    producer.flush()
    topic.produce([b"after"])
    at = offsets_of(client, topic)
    assert (at.first, at.stable, at.end) == (0, 1, 3)
    assert values_in(read(client, topic)) == [b"before"]
    producer.commit()
    assert values_in(read(client, topic, start=1)) == [b"open", b"after"]


def test_what_compaction_has_left_is_given(kafka: KafkaCluster, client: Client) -> None:
    config = {"cleanup.policy": "compact", "segment.ms": 60_000, "min.cleanable.dirty.ratio": 0.01}
    topic = kafka.topic(config=config)
    for n in range(20):
        topic.produce([b"old %d" % n], key=b"%d" % (n % 3), timestamp_ms=int(time.time() * 1000) - HOUR_MS)
    topic.produce([b"new"], key=b"other")
    wait_until(lambda: topic.cleaned() >= 20, what="the old segment is compacted")
    assert offsets_in(read(client, topic)) == [17, 18, 19, 20]
    assert read(client, topic, start=3, end=15) == []


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed_records_are_read(kafka: KafkaCluster, client: Client, codec: str) -> None:
    topic = kafka.topic()
    producer = kafka.producer(compression_type=codec, linger_ms=1000)
    for n in range(1000):
        producer.send(topic.name, b"a value of no surprise %d" % n)
    producer.flush()
    assert values_in(read(client, topic)) == [b"a value of no surprise %d" % n for n in range(1000)]


def test_a_record_that_is_larger_than_an_answer_is_given_whole(kafka: KafkaCluster, small: Client) -> None:
    topic = kafka.topic(config={"max.message.bytes": 8 << 20})
    producer = kafka.producer(max_request_size=8 << 20)
    values = [bytes([n]) * (5 << 20) for n in range(3)]
    for value in values:
        producer.send(topic.name, value)
    producer.flush()
    assert values_in(read(small, topic)) == values


def test_deleted_records_are_said_with_the_first_that_is_left(kafka: KafkaCluster, client: Client) -> None:
    topic = kafka.topic()
    topic.produce([b"%d" % n for n in range(10)])
    topic.delete_records(before=4)
    with pytest.raises(RangeLostError) as caught:
        read(client, topic, start=2, end=8)
    assert (caught.value.start, caught.value.first) == (2, 4)
    assert offsets_in(read(client, topic, start=4, end=8)) == [4, 5, 6, 7]


def test_records_that_are_deleted_amid_a_read_are_said_after_what_was_before(
    kafka: KafkaCluster, small: Client
) -> None:
    topic, found = kafka.topic(), []
    for n in range(20):
        topic.produce([b"%d" % n])
    reading = small.read(Partition(topic.name, 0), topic_id=id_of(topic), start=0, end=20)
    found += next(reading).offsets
    topic.delete_records(before=15)
    with pytest.raises(RangeLostError) as caught:
        found.extend(offset for records in reading for offset in records.offsets)
    assert found == list(range(caught.value.start))
    assert caught.value.first == 15


def test_a_topic_that_was_made_again_is_another(kafka: KafkaCluster, client: Client) -> None:
    topic = kafka.topic()
    topic.produce([b"a", b"b"])
    old = id_of(topic)
    topic.delete()
    topic.create()
    topic.produce([b"c", b"d"])
    with pytest.raises(TopicGoneError) as caught:
        list(client.read(Partition(topic.name, 0), topic_id=old, start=0, end=2))
    assert caught.value.found == id_of(topic)


@pytest.mark.parametrize("records", [0, 5, 20])
def test_a_topic_that_is_made_again_amid_a_read_is_noticed_before_the_end(
    kafka: KafkaCluster, small: Client, records: int
) -> None:
    topic = kafka.topic()
    for n in range(10):
        topic.produce([b"%d" % n])
    reading = small.read(Partition(topic.name, 0), topic_id=id_of(topic), start=0, end=10)
    next(reading)
    topic.delete()
    topic.create()
    for _ in range(records):
        topic.produce([b"another"])
    with pytest.raises(TopicGoneError) as caught:
        list(reading)
    assert caught.value.found == id_of(topic)


def test_a_topic_that_is_deleted_is_gone(kafka: KafkaCluster, client: Client) -> None:
    topic = kafka.topic()
    old = id_of(topic)
    topic.delete()
    with pytest.raises(TopicGoneError) as caught:
        list(client.read(Partition(topic.name, 0), topic_id=old, start=0, end=1))
    assert caught.value.found is None


def test_a_log_that_ends_too_early_is_said(kafka: KafkaCluster, client: Client) -> None:
    topic = kafka.topic()
    topic.produce([b"a", b"b"])
    with pytest.raises(RangeMissingError) as caught:
        read(client, topic, end=7)
    assert (caught.value.wanted, caught.value.end) == (7, 2)


def test_a_read_that_is_left_early_does_not_disturb_the_next(kafka: KafkaCluster, small: Client) -> None:
    topic = kafka.topic(partitions=2)
    for n in range(5):
        topic.produce([b"%d" % n])
        topic.produce([b"other"], partition=1)
    reading = small.read(Partition(topic.name, 0), topic_id=id_of(topic), start=0, end=5)
    assert next(reading).offsets == [0]
    reading.close()  # type: ignore[attr-defined]
    assert offsets_in(read(small, topic, start=1)) == [1, 2, 3, 4]
    assert values_in(read(small, topic, number=1)) == [b"other"] * 5


def test_a_read_survives_a_broker_that_is_killed_and_comes_back(kafka_alone: KafkaCluster) -> None:
    topic = kafka_alone.topic()
    for n in range(30):
        topic.produce([b"%d" % n])
    with connected(kafka_alone.addresses, client=SMALL, read_timeout_s=60) as client:
        reading = client.read(Partition(topic.name, 0), topic_id=id_of(topic), start=0, end=30)
        found = [next(reading)]
        kafka_alone.brokers[0].kill()
        rest = threading.Thread(target=lambda: found.extend(reading))
        rest.start()
        kafka_alone.restart()
        rest.join(60)
    assert offsets_in(found) == list(range(30))


def test_a_read_survives_a_leader_that_is_killed(kafka_trio: KafkaCluster) -> None:
    topic = kafka_trio.topic(assigned={0: [1, 2, 3]})
    for n in range(30):
        topic.produce([b"%d" % n])
    with connected(kafka_trio.addresses, client=SMALL, read_timeout_s=60) as client:
        reading = client.read(Partition(topic.name, 0), topic_id=id_of(topic), start=0, end=30)
        found = [next(reading)]
        kafka_trio.brokers[0].kill()
        found += reading
    assert offsets_in(found) == list(range(30))
    assert topic.leaders()[0] in (2, 3)
    kafka_trio.restart(0)


def test_brokers_that_stay_away_are_given_up_in_time(kafka_alone: KafkaCluster) -> None:
    topic = kafka_alone.topic()
    for n in range(30):
        topic.produce([b"%d" % n])
    with connected(kafka_alone.addresses, client=SMALL, read_timeout_s=2) as client:
        reading = client.read(Partition(topic.name, 0), topic_id=id_of(topic), start=0, end=30)
        next(reading)
        kafka_alone.brokers[0].kill()
        with pytest.raises(BrokersUnreachableError) as caught:
            list(reading)
    assert caught.value.where == kafka_alone.addresses[0]
