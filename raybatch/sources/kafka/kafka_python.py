"""The contract of `client.py` on kafka-python; the modules `kafka_python*` alone know that library.

One connection pool (and one thread of the library's, which does all network I/O) serves an admin client and a consumer.
The consumer is assigned one partition at a time, is in no group, and resets no offset.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import kafka.errors as errors
from kafka import KafkaAdminClient, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.protocol.consumer import IsolationLevel, OffsetSpec

from raybatch.sources.kafka.client import (
    AccessDeniedError,
    BrokersUnreachableError,
    ClientError,
    CorruptRecordsError,
    Offsets,
    Partition,
    RangeLostError,
    RangeMissingError,
    Records,
    Retention,
    Topic,
    TopicGoneError,
)
from raybatch.sources.kafka.config import KafkaConfig
from raybatch.sources.kafka.kafka_python_connection import (
    PAUSE_S,
    Connection,
    GroupUnknownError,
    Waiting,
    may_pass,
    translated,
)
from raybatch.sources.kafka.kafka_python_records import RangeRecords

_POLL_MS = 500
# The first answer is small, and each one larger than the one before: a range may have a few records only
_SIZE = "max_partition_fetch_bytes"
_FIRST_BYTES, _GROWTH = 128 << 10, 4
_RETENTION = ("retention.ms", "retention.bytes", "cleanup.policy")


class KafkaPythonClient:
    """See `raybatch.sources.kafka.client.Client`. Connects at the first question."""

    def __init__(self, config: KafkaConfig) -> None:
        """Raises `SourceError` for certificates that cannot be loaded."""
        self._connection = Connection(config)
        self._timeout_s = config.read_timeout_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def topics(self, *, names: Sequence[str] = (), pattern: str | None = None) -> list[Topic]:
        found = {}
        if pattern is not None:
            whole = re.compile(pattern)
            for told in self._connection.ask("topics", lambda admin: admin.describe_topics(None)):
                if not told["is_internal"] and whole.fullmatch(told["name"]):
                    found[told["name"]] = told
        if names:
            found |= {told["name"]: told for told in self._describe(names)}
        return [
            Topic(name=name, id=_topic_id(told["topic_id"]), partitions=len(told["partitions"]))
            for name, told in sorted(found.items())
        ]

    def offsets(self, partitions: Iterable[Partition]) -> dict[Partition, Offsets]:
        wanted = [TopicPartition(*partition) for partition in partitions]
        if not wanted:
            return {}
        # In this order each is at most the next one, though time passes between the questions
        first = self._listed(dict.fromkeys(wanted, OffsetSpec.EARLIEST))
        stable = self._listed(dict.fromkeys(wanted, OffsetSpec.LATEST), IsolationLevel.READ_COMMITTED)
        end = self._listed(dict.fromkeys(wanted, OffsetSpec.LATEST))
        return {
            Partition(*of): Offsets(first=first[of].offset, stable=stable[of].offset, end=end[of].offset)
            for of in wanted
        }

    def offsets_at(self, times: Mapping[Partition, int]) -> dict[Partition, int | None]:
        if not times:
            return {}
        found = self._listed({TopicPartition(*partition): when for partition, when in times.items()})
        return {Partition(*of): at.offset if at.offset >= 0 else None for of, at in found.items()}

    def retention(self, topics: Iterable[str]) -> dict[str, Retention]:
        wanted = [
            ConfigResource(ConfigResourceType.TOPIC, name, dict.fromkeys(_RETENTION)) for name in topics
        ]
        if not wanted:
            return {}
        try:
            told = self._connection.ask(
                "retention", lambda admin: admin.describe_configs(wanted, config_filter="all")
            )
        except AccessDeniedError:
            return {}
        return {
            name: _retention({key: values[key]["value"] for key in _RETENTION})
            for name, values in told.get("topic", {}).items()
            if all(key in values for key in _RETENTION)
        }

    def read(self, partition: Partition, *, topic_id: str, start: int, end: int) -> Iterator[Records]:
        self._check_topic(partition.topic, topic_id)
        connection, waiting, done = self._connection, Waiting(), False
        connection.reading = waiting
        try:
            consumer = connection.consumer()
            yield from self._records(
                _Reading(consumer, partition, start, end, topic_id=topic_id, waiting=waiting)
            )
            self._check_topic(partition.topic, topic_id)
            done = True
        finally:
            connection.reading = None
            if not done:  # the consumer may hold answers that the next read must not see
                connection.forget_consumer()

    def group_offsets(self, group: str) -> dict[Partition, int]:
        try:
            found = self._connection.ask(
                f"group {group}", lambda admin: admin.list_group_offsets({group: None})
            )
        except GroupUnknownError:
            return {}
        return {Partition(*of): at.offset for of, at in found.get(group, {}).items() if at.offset >= 0}

    def set_group_offsets(self, group: str, offsets: Mapping[Partition, int]) -> None:
        if not offsets:
            return
        wanted = {TopicPartition(*of): OffsetAndMetadata(offset, "", -1) for of, offset in offsets.items()}

        def commit(admin: KafkaAdminClient) -> None:
            for of, error in admin.alter_group_offsets(group, wanted).items():
                if error is errors.UnknownMemberIdError:
                    raise ClientError(f"group {group} has members, and its offsets are theirs")
                if error is errors.UnknownTopicOrPartitionError:
                    raise TopicGoneError(of.topic)
                if error is not errors.NoError:
                    raise error(f"group {group}, {of.topic}/{of.partition}")

        self._connection.ask(f"group {group}", commit)

    def _records(self, reading: _Reading) -> Iterator[Records]:
        reading.begin()
        while reading.position < reading.end:
            before = reading.position
            try:
                found = reading.poll()
            except errors.KafkaError as error:
                self._judge(error, reading)
                time.sleep(PAUSE_S)
                continue
            yield from found
            if found:
                reading.waiting.ended()  # whoever took them has had time to spare
            elif reading.position == before:
                self._check_range(reading)

    def _judge(self, error: errors.KafkaError, reading: _Reading) -> None:
        """Raise what `error` means for a read; nothing if it may pass."""
        partition, position = reading.partition, reading.position
        if isinstance(error, (errors.OffsetOutOfRangeError, errors.LogTruncationError)):
            self._check_range(reading)
        elif isinstance(error, (errors.CorruptRecordError, errors.UnsupportedCodecError)):
            raise CorruptRecordsError(partition, offset=position, why=str(error)) from None
        elif not may_pass(error):
            raise translated(error, f"reading {partition}") from error
        if reading.waiting.seconds() > self._timeout_s:
            raise BrokersUnreachableError(self._connection.where, f"reading {partition}: {error}") from error

    def _check_range(self, reading: _Reading) -> None:
        """Raise if what is to be read next is not there, or has not come for too long."""
        partition, position, end = reading.partition, reading.position, reading.end
        self._check_topic(partition.topic, reading.topic_id)
        found = self.offsets([partition])[partition]
        if position < found.first:
            raise RangeLostError(partition, start=position, first=found.first)
        if found.end < end:
            raise RangeMissingError(partition, wanted=end, end=found.end)
        waited_s = reading.waiting.seconds()
        if waited_s > self._timeout_s:
            why = f"{partition}, which ends at {found.end}, gives nothing at offset {position} for {waited_s:.0f} s"
            raise BrokersUnreachableError(self._connection.where, why)

    def _check_topic(self, name: str, topic_id: str) -> None:
        (told,) = self._describe([name])
        found = _topic_id(told["topic_id"])
        if found != topic_id:
            raise TopicGoneError(name, found=found)

    def _describe(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """What brokers say of topics that are there. Raises `TopicGoneError`."""
        unknown = (errors.UnknownTopicOrPartitionError, errors.InvalidTopicError)

        def describe(admin: KafkaAdminClient) -> list[dict[str, Any]]:
            told: list[dict[str, Any]] = admin.describe_topics(list(names))
            for topic in told:
                error = errors.for_code(topic["error_code"])
                if error is not errors.NoError and error not in unknown:
                    raise error(f"topic {topic['name']}")
            return told

        def missing(told: Sequence[Mapping[str, Any]]) -> list[str]:
            return [topic["name"] for topic in told if errors.for_code(topic["error_code"]) in unknown]

        what = f"topics {', '.join(names)}"
        told = self._connection.ask(what, describe)
        if missing(told):  # a broker that has just started, or a topic that was just made: ask once more
            time.sleep(PAUSE_S)
            told = self._connection.ask(what, describe)
        for name in missing(told):
            raise TopicGoneError(name)
        return told

    def _listed(
        self,
        wanted: Mapping[TopicPartition, OffsetSpec | int],
        isolation: IsolationLevel = IsolationLevel.READ_UNCOMMITTED,
    ) -> dict[TopicPartition, Any]:
        def listed(admin: KafkaAdminClient) -> dict[TopicPartition, Any]:
            try:
                found: dict[TopicPartition, Any] = admin.list_partition_offsets(
                    wanted, isolation_level=isolation
                )
                return found
            except errors.UnknownTopicOrPartitionError:
                self._raise_for_missing(wanted)
                raise

        return self._connection.ask("offsets", listed)

    def _raise_for_missing(self, partitions: Iterable[TopicPartition]) -> None:
        wanted = list(partitions)
        for told in self._describe(sorted({of.topic for of in wanted})):
            known = {one["partition_index"] for one in told["partitions"]}
            if any(of.topic == told["name"] and of.partition not in known for of in wanted):
                raise TopicGoneError(told["name"], found=_topic_id(told["topic_id"]))


@dataclass
class _Reading:
    """A range, and how far it was read."""

    consumer: KafkaConsumer
    partition: Partition
    position: int
    end: int
    topic_id: str = field(kw_only=True)
    waiting: Waiting = field(kw_only=True)

    def begin(self) -> None:
        """Point the consumer to it."""
        consumer, of = self.consumer, TopicPartition(*self.partition)
        consumer._fetcher.PartitionRecords = partial(RangeRecords, end=self.end, moved=self._moved)
        consumer._fetcher.config[_SIZE] = min(_FIRST_BYTES, consumer.config[_SIZE])
        consumer.assign([of])
        consumer.resume(of)
        consumer.seek(of, self.position)

    def poll(self) -> list[Records]:
        """What has come, or comes within half a second."""
        found: dict[TopicPartition, list[Records]] = self.consumer.poll(timeout_ms=_POLL_MS)
        return [records for records in found.get(TopicPartition(*self.partition), []) if records]

    def _moved(self, position: int) -> None:
        """The consumer has taken an answer, and is about to ask for the next one."""
        if position > self.position:
            self.position = position
            self.waiting.ended()
        sizes = self.consumer._fetcher.config
        sizes[_SIZE] = min(_GROWTH * sizes[_SIZE], self.consumer.config[_SIZE])
        if position >= self.end:
            self.consumer.pause(TopicPartition(*self.partition))


def _topic_id(found: str | None) -> str:
    """Brokers before 2.8 have no ids: then they are all the same."""
    raw = UUID(found).bytes if found else bytes(16)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _retention(values: Mapping[str, str]) -> Retention:
    policy = values["cleanup.policy"]
    limits = [int(values[name]) if "delete" in policy else -1 for name in _RETENTION[:2]]
    milliseconds, size = (None if limit < 0 else limit for limit in limits)
    return Retention(retention_ms=milliseconds, retention_bytes=size, cleanup_policy=policy)
