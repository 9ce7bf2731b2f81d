"""Small things that the tests of the Kafka client share."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterable
from typing import Any

from raybatch.sources.kafka.client import Client, Offsets, Partition, Records, open_client
from raybatch.sources.kafka.config import KafkaConfig
from servers.topics import Topic


def connected(brokers: Iterable[str], **said: Any) -> Client:
    """A client that gives up soon."""
    given = {"type": "kafka", "brokers": list(brokers), "topic_pattern": ".*", "read_timeout_s": 30, **said}
    return open_client(KafkaConfig.model_validate(given))


def id_of(topic: Topic) -> str:
    """A topic's id, as raybatch spells it."""
    return base64.urlsafe_b64encode(uuid.UUID(topic.id()).bytes).rstrip(b"=").decode()


def read(
    client: Client, topic: Topic, *, start: int = 0, end: int | None = None, number: int = 0
) -> list[Records]:
    """All of a partition up to its stable end, or from `start` to `end`."""
    partition = Partition(topic.name, number)
    stop = end if end is not None else offsets_of(client, topic, number).stable
    return list(client.read(partition, topic_id=id_of(topic), start=start, end=stop))


def offsets_of(client: Client, topic: Topic, number: int = 0) -> Offsets:
    """Where a partition starts and ends."""
    partition = Partition(topic.name, number)
    return client.offsets([partition])[partition]


def offsets_in(batches: Iterable[Records]) -> list[int]:
    """The offsets of all records, in the order in which they came."""
    return [offset for records in batches for offset in records.offsets]


def values_in(batches: Iterable[Records]) -> list[bytes | None]:
    """The values of all records, in the order in which they came."""
    return [value for records in batches for value in records.values]
