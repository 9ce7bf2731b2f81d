"""Topics of a real Kafka cluster, and producers whose every record has an id that tests can count on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kafka import KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError
from kafka.protocol.consumer import IsolationLevel, OffsetSpec

if TYPE_CHECKING:
    from servers.kafka import KafkaCluster

CONSUMER = "org.apache.kafka.tools.consumer.ConsoleConsumer"

# As a run names a row: `topic/partition`, offset, and no child
Id = tuple[str, int, str | None]

_DEADLINE_S = 60


class Producer:
    """kafka-python's producer. Offsets are the broker's answers: they say nothing of who reads them."""

    def __init__(
        self, addresses: Sequence[str], *, transactional_id: str | None = None, **options: Any
    ) -> None:
        self._client = KafkaProducer(
            bootstrap_servers=list(addresses), transactional_id=transactional_id, acks="all", **options
        )
        self._pending: list[Any] = []
        if transactional_id:
            self._client.init_transactions()

    def send(
        self,
        topic: str,
        value: Any,
        *,
        partition: int = 0,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
    ) -> None:
        """Send a record soon. `value` is bytes, None (a tombstone, which needs a key), or becomes JSON."""
        data = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
        self._pending.append(
            self._client.send(
                topic,
                data,
                partition=partition,
                key=key,
                headers=list(headers),
                timestamp_ms=timestamp_ms,
            )
        )

    def flush(self) -> list[Id]:
        """Wait until the broker has what was sent since the last call; the ids, in the order of sending."""
        self._client.flush(_DEADLINE_S)
        sent = [future.get(timeout=_DEADLINE_S) for future in self._pending]
        self._pending = []
        return [(f"{one.topic}/{one.partition}", one.offset, None) for one in sent]

    def begin(self) -> None:
        """Begin a transaction; without an end it stays open, until `transaction_timeout_ms` aborts it."""
        self._client.begin_transaction()

    def commit(self) -> list[Id]:
        """End the transaction; the ids of its records that no `flush` has given."""
        ids = self.flush()
        self._client.commit_transaction()
        return ids

    def abort(self) -> list[Id]:
        """As `commit`; the records are in the log, and are none."""
        ids = self.flush()
        self._client.abort_transaction()
        return ids

    def close(self) -> None:
        """Wait for what was sent, and end. A transaction that is open stays open."""
        self._client.close(timeout=_DEADLINE_S)

    def abandon(self) -> None:
        """End without waiting for anything."""
        if not self._client._closed:
            self._client._sender.force_close()
            self._client.close(timeout=0)


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A topic by its name; nothing is kept here, so it may be deleted and made again."""

    cluster: KafkaCluster
    name: str

    def create(
        self,
        *,
        partitions: int = 1,
        replicas: int = -1,
        assigned: Mapping[int, Sequence[int]] | None = None,
        config: Mapping[str, object] | None = None,
    ) -> None:
        """Make it, and wait until it has leaders. `assigned` gives the nodes of each partition, leader first."""
        options: dict[str, Any] = {"configs": {name: str(value) for name, value in (config or {}).items()}}
        if assigned:
            options["assignments"] = assigned
        else:
            options |= {"num_partitions": partitions, "replication_factor": replicas}
        self.cluster.admin.create_topics({self.name: options})
        self.cluster.admin.wait_for_topics([self.name], timeout_ms=_DEADLINE_S * 1000)

    def delete(self) -> None:
        """Delete it, and wait until the brokers know nothing of it."""
        self.cluster.admin.delete_topics([self.name])
        _until(lambda: self.name not in self.cluster.admin.list_topics(), what=f"{self.name} is gone")

    def add_partitions(self, total: int) -> None:
        """So many, then; wait until each has a leader."""
        self.cluster.admin.create_partitions({self.name: total})
        _until(
            lambda: len(self.leaders()) == total and min(self.leaders().values()) >= 0,
            what="they have leaders",
        )

    def configure(self, config: Mapping[str, object]) -> None:
        """Set options of the topic."""
        values = {name: str(value) for name, value in config.items()}
        self.cluster.admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, self.name, values)])

    def delete_records(self, *, before: int, partition: int = 0) -> None:
        """What retention does, at once: afterwards `before` is the partition's first offset."""
        self.cluster.admin.delete_records({TopicPartition(self.name, partition): before})

    def produce(self, values: Iterable[Any], *, partition: int = 0, **options: Any) -> list[Id]:
        """Produce records in one call, outside of any transaction; options as of `Producer.send`."""
        producer = self.cluster.producer()
        for value in values:
            producer.send(self.name, value, partition=partition, **options)
        ids = producer.flush()
        producer.close()
        return ids

    def firsts(self) -> dict[int, int]:
        """The first offset of each partition."""
        return self._offsets(OffsetSpec.EARLIEST)

    def ends(self, *, committed: bool = False) -> dict[int, int]:
        """The next offset of each partition, or, `committed`, the last stable one."""
        return self._offsets(OffsetSpec.LATEST, committed=committed)

    def leaders(self) -> dict[int, int]:
        """The node that leads each partition, -1 for nobody."""
        return {one["partition_index"]: one["leader_id"] for one in self._described()["partitions"]}

    def in_sync(self) -> dict[int, list[int]]:
        """The nodes that have all of a partition."""
        return {one["partition_index"]: one["isr_nodes"] for one in self._described()["partitions"]}

    def id(self) -> str:
        """What tells it from another topic of its name."""
        return str(self._described()["topic_id"])

    def cleaned(self, partition: int = 0) -> int:
        """The offset up to which the log was compacted, as the first broker's own checkpoint says; 0 if never."""
        checkpoint = self.cluster.brokers[0].data / "cleaner-offset-checkpoint"
        lines = checkpoint.read_text().splitlines()[2:] if checkpoint.exists() else []
        found = [line.split() for line in lines]
        return max(
            (int(end) for name, number, end in found if (name, number) == (self.name, str(partition))),
            default=0,
        )

    def read_by_java(self) -> list[Id]:
        """The ids that Kafka's own console consumer reads, of committed records, from the first to the end."""
        shown = ["print.partition=true", "print.offset=true", "print.value=false"]
        args = ["--from-beginning", "--isolation-level", "read_committed", "--timeout-ms", "2000"]
        args += [arg for name in shown for arg in ("--formatter-property", name)]
        text = self.cluster.tool(CONSUMER, "--topic", self.name, *args)
        found = []
        for line in text.splitlines():
            fields = dict(part.split(":") for part in line.split("\t") if part.count(":") == 1)
            if {"Partition", "Offset"} <= fields.keys():
                found.append((f"{self.name}/{fields['Partition']}", int(fields["Offset"]), None))
        return found

    def _described(self) -> dict[str, Any]:
        found: dict[str, Any] = _patiently(lambda: self.cluster.admin.describe_topics([self.name]))[0]
        return found

    def _offsets(self, spec: OffsetSpec, *, committed: bool = False) -> dict[int, int]:
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        wanted = {TopicPartition(self.name, partition): spec for partition in self.leaders()}
        found = _patiently(lambda: self.cluster.admin.list_partition_offsets(wanted, isolation_level=level))
        return {partition.partition: at.offset for partition, at in found.items()}


def _until(condition: Callable[[], bool], *, what: str) -> None:
    end = time.monotonic() + _DEADLINE_S
    while not _patiently(condition):
        assert time.monotonic() < end, f"waited {_DEADLINE_S} s in vain until {what}"
        time.sleep(0.05)


def _patiently(ask: Callable[[], Any]) -> Any:
    """What `ask` gives, once there is somebody to answer: the broker that was asked last may just have died."""
    end = time.monotonic() + _DEADLINE_S
    while True:
        try:
            return ask()
        except KafkaError:
            if time.monotonic() > end:
                raise
        time.sleep(0.05)
