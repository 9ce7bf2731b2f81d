"""What the tests with Kafka build on: that the broker is a real one, and that its helpers say the truth."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest
from kafka import KafkaAdminClient, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError
from kafka.net.sasl.oauth import AbstractTokenProvider

from pipelines import wait_until
from servers import build, kafka_jars
from servers.kafka import GroupOffset, KafkaCluster
from servers.kafka_security import token

pytestmark = pytest.mark.kafka

HOUR_MS = 3_600_000
REFUSED_MS = 3000  # for so long kafka-python asks again, whatever the answer


def now_ms() -> int:
    return int(time.time() * 1000)


def test_records_are_where_the_producer_says(kafka: KafkaCluster) -> None:
    topic = kafka.topic(partitions=2)
    ids = topic.produce([b"a", b"b"]) + topic.produce([{"n": 1}], partition=1)
    assert ids == [(f"{topic.name}/0", 0, None), (f"{topic.name}/0", 1, None), (f"{topic.name}/1", 0, None)]
    assert sorted(topic.read_by_java()) == ids
    assert topic.ends() == {0: 2, 1: 1}


def test_an_aborted_transaction_leaves_offsets_and_no_records(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    producer = kafka.producer(f"{topic.name}-writer")
    producer.begin()
    producer.send(topic.name, b"aborted")
    aborted = producer.abort()
    producer.begin()
    producer.send(topic.name, b"committed")
    committed = producer.commit()
    assert aborted == [(f"{topic.name}/0", 0, None)]
    assert committed == [(f"{topic.name}/0", 2, None)]  # behind the marker at 1
    assert topic.read_by_java() == committed
    assert topic.ends(committed=True) == {0: 4}  # behind the marker at 3


def test_a_transaction_that_is_left_open_holds_the_stable_end(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    topic.produce([b"before"])
    producer = kafka.producer(f"{topic.name}-writer")
    producer.begin()
    producer.send(topic.name, b"open")
    producer.flush()
    topic.produce([b"after"])
    assert (topic.ends(committed=True), topic.ends()) == ({0: 1}, {0: 3})
    producer.commit()
    assert topic.ends(committed=True) == {0: 4}


def test_a_transaction_that_is_never_ended_is_aborted_in_time(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    producer = kafka.producer(f"{topic.name}-writer", transaction_timeout_ms=1000)
    producer.begin()
    producer.send(topic.name, b"open")
    producer.flush()
    wait_until(lambda: topic.ends(committed=True) == {0: 2}, what="the broker has aborted it")
    assert topic.read_by_java() == []


def test_deleted_records_are_gone_and_offsets_stay(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    ids = topic.produce([b"a", b"b", b"c"])
    topic.delete_records(before=2)
    assert topic.firsts() == {0: 2}
    assert topic.read_by_java() == ids[2:]


def test_retention_deletes_old_segments(kafka: KafkaCluster) -> None:
    topic = kafka.topic(config={"segment.ms": 60_000, "retention.ms": 600_000})
    topic.produce([b"old"] * 3, timestamp_ms=now_ms() - HOUR_MS)
    topic.produce([b"new"] * 2)
    wait_until(lambda: topic.firsts() == {0: 3}, what="the old records are gone")
    assert topic.ends() == {0: 5}


def test_compaction_leaves_gaps(kafka: KafkaCluster) -> None:
    config = {"cleanup.policy": "compact", "segment.ms": 60_000, "min.cleanable.dirty.ratio": 0.01}
    topic = kafka.topic(config=config)
    for n in range(3):
        topic.produce([b"old"], key=b"same", timestamp_ms=now_ms() - HOUR_MS + n)
    kept = topic.produce([b"other"], key=b"other", timestamp_ms=now_ms() - HOUR_MS + 3)
    newest = topic.produce([b"new"], key=b"same")  # in a segment of its own, which is not compacted yet
    wait_until(lambda: topic.cleaned() >= 4, what="the old segment is compacted")
    assert topic.read_by_java() == [(f"{topic.name}/0", 2, None), *kept, *newest]


def test_a_topic_gets_partitions_and_another_id_when_it_is_made_again(kafka: KafkaCluster) -> None:
    topic = kafka.topic(partitions=3)
    first = topic.id()
    topic.add_partitions(6)
    assert sorted(topic.leaders()) == list(range(6))
    topic.delete()
    topic.create(partitions=1)
    assert topic.id() != first
    assert topic.ends() == {0: 0}


def test_consumer_groups_tell_how_far_a_group_is(kafka: KafkaCluster) -> None:
    topic = kafka.topic(partitions=2)
    topic.produce([b"a", b"b", b"c"])
    assert kafka.consumer_groups(topic.name) == {}
    offsets = {TopicPartition(topic.name, 0): OffsetAndMetadata(2, "", -1)}
    kafka.admin.alter_group_offsets(topic.name, offsets)
    assert kafka.consumer_groups(topic.name) == {(topic.name, 0): GroupOffset(current=2, end=3, lag=1)}


def test_a_killed_broker_comes_back_with_its_records_at_its_address(kafka_alone: KafkaCluster) -> None:
    topic = kafka_alone.topic()
    ids, address = topic.produce([b"a", b"b"]), kafka_alone.addresses
    kafka_alone.brokers[0].kill()
    kafka_alone.restart()
    assert kafka_alone.addresses == address
    assert topic.read_by_java() == ids
    assert topic.produce([b"c"]) == [(f"{topic.name}/0", 2, None)]


def test_a_killed_leader_is_replaced(kafka_trio: KafkaCluster) -> None:
    topic = kafka_trio.topic(assigned={0: [1, 2, 3]})
    ids = topic.produce([b"a", b"b"])
    kafka_trio.brokers[0].kill()
    wait_until(lambda: topic.leaders() == {0: 2}, what="another broker leads")
    assert topic.read_by_java() == ids
    kafka_trio.restart(0)
    wait_until(lambda: sorted(topic.in_sync()[0]) == [1, 2, 3], what="it is in sync again")


class Token(AbstractTokenProvider):
    def token(self) -> str:
        return token()


def login(kafka: KafkaCluster, mechanism: str) -> dict[str, Any]:
    if mechanism == "OAUTHBEARER":
        return {"sasl_mechanism": mechanism, "sasl_oauth_token_provider": Token()}
    secured = kafka.secured
    user = {"sasl_plain_username": secured.user, "sasl_plain_password": secured.password}
    return {"sasl_mechanism": mechanism, **user}


def topics_seen(address: str, options: Mapping[str, Any], *, within_ms: int = 30_000) -> set[str]:
    with KafkaAdminClient(bootstrap_servers=address, bootstrap_timeout_ms=within_ms, **options) as client:
        return set(client.list_topics())


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"])
@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SASL_SSL"])
def test_who_logs_in_is_let_in(kafka: KafkaCluster, protocol: str, mechanism: str) -> None:
    topic, secured = kafka.topic(), kafka.secured
    address = secured.sasl if protocol == "SASL_PLAINTEXT" else secured.sasl_tls
    options = {"security_protocol": protocol, "ssl_cafile": str(secured.certificates.ca)}
    assert topic.name in topics_seen(address, options | login(kafka, mechanism))


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_wrong_password_is_refused(kafka: KafkaCluster, mechanism: str) -> None:
    options = login(kafka, mechanism) | {"sasl_plain_password": "wrong"}
    with pytest.raises(KafkaError):
        topics_seen(
            kafka.secured.sasl, {"security_protocol": "SASL_PLAINTEXT", **options}, within_ms=REFUSED_MS
        )


def test_tls_is_checked_on_both_sides(kafka: KafkaCluster) -> None:
    topic, secured = kafka.topic(), kafka.secured
    files = secured.certificates
    known = {"security_protocol": "SSL", "ssl_cafile": str(files.ca)}
    mine = {"ssl_certfile": str(files.client_cert), "ssl_keyfile": str(files.client_key)}
    assert topic.name in topics_seen(secured.tls, known)
    assert topic.name in topics_seen(secured.mutual, known | mine)
    with pytest.raises(KafkaError):
        topics_seen(secured.mutual, known, within_ms=REFUSED_MS)
    with pytest.raises(KafkaError):
        topics_seen(secured.tls, known | {"ssl_cafile": str(files.other_ca)}, within_ms=REFUSED_MS)


@pytest.mark.parametrize(("missing", "wanted"), [("java", "Java 17"), ("mvn", "Maven")])
def test_a_missing_program_is_named(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, missing: str, wanted: str
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    if missing == "mvn":
        (programs / "java").write_text("#!/bin/sh\necho 'openjdk version \"17.0.1\"' >&2\n")
        (programs / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("RAYBATCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(build.BuildError, match=wanted) as error:
        kafka_jars.installed()
    assert "\n" not in str(error.value)
