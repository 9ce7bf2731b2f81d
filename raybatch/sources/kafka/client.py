"""The contract of a Kafka client: what planning and reading ask of brokers, in plain data.

`kafka_python.py` implements it; no type of a client library crosses it. A client is for one thread at a time, and
does not travel by pickle: whoever needs one opens it (`open_client`) and closes it.

    ClientError                    what every method may raise; `str(error)` says where, what, why
    ├── BrokersUnreachableError    nobody answered for `read_timeout_s`, or never at all
    ├── AccessDeniedError          credentials, or the rights of whoever they name, do not suffice
    ├── TopicGoneError             the topic is not there, or one of that name with another id is
    ├── RangeLostError             records before `first` are no more: retention, or somebody, has deleted them
    ├── RangeMissingError          the log ends at `end`, before what was asked for
    └── CorruptRecordsError        a checksum does not hold

The source makes errors of `raybatch.errors` of these: it knows the choices that a user has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from raybatch.errors import SourceError

if TYPE_CHECKING:
    from raybatch.sources.kafka.config import KafkaConfig

INSTALL = "pip install 'raybatch[kafka]'"

NO_TIME = -1  # the timestamp of a record that has none
TIMESTAMP_TYPES = ("CreateTime", "LogAppendTime")  # by the number that a record carries

Header = tuple[str, bytes | None]


class Partition(NamedTuple):
    """A partition of a topic; sorts by topic, then number."""

    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.number}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Topic:
    """`id` as `kafka-topics --describe` prints it (22 characters); partitions are 0 to `partitions` - 1."""

    name: str
    id: str
    partitions: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Offsets:
    """Of one partition at one moment: `first <= stable <= end`.

    `first` is the offset of the first record that is left (or would be), `stable` the one after the last record
    whose transaction is decided, `end` the one after the last record.
    """

    first: int
    stable: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """What deletes records of a topic. None: nothing does, or the brokers say no limit.

    `cleanup_policy` as Kafka spells it: "delete", "compact", or "compact,delete".
    """

    retention_ms: int | None
    retention_bytes: int | None  # of one partition
    cleanup_policy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Records:
    """Some records of one partition in the order of their offsets, as columns of one length, at least 1.

    `timestamps` are milliseconds since 1970, or `NO_TIME`; `timestamp_types` index `TIMESTAMP_TYPES`. A tombstone's
    value is None. Headers keep their order and their repeated names; most records have none (an empty sequence).
    """

    offsets: Sequence[int]
    timestamps: Sequence[int]
    timestamp_types: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Sequence[Header]]

    def __len__(self) -> int:
        return len(self.offsets)


class ClientError(Exception):
    """Base of what a client raises on purpose."""


class BrokersUnreachableError(ClientError):
    """`where` are the brokers that were asked, `why` what came of it."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}")
        self.where = where
        self.why = why


class AccessDeniedError(ClientError):
    """`what` was asked for, and the brokers' answer `why`."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")
        self.what = what
        self.why = why


class TopicGoneError(ClientError):
    """`topic` is not there (`found` is None), or another one of that name, whose id is `found`."""

    def __init__(self, topic: str, *, found: str | None = None) -> None:
        what = "there is no such topic" if found is None else f"it is another topic now, with id {found}"
        super().__init__(f"{topic}: {what}")
        self.topic = topic
        self.found = found


class RangeLostError(ClientError):
    """Records of `partition` from `start` on are gone; `first` is the first offset that is left."""

    def __init__(self, partition: Partition, *, start: int, first: int) -> None:
        super().__init__(f"{partition}: offset {start} is gone, the first one that is left is {first}")
        self.partition = partition
        self.start = start
        self.first = first


class RangeMissingError(ClientError):
    """`partition` was asked for up to `wanted`, and has no offsets from `end` on: its log was cut."""

    def __init__(self, partition: Partition, *, wanted: int, end: int) -> None:
        super().__init__(f"{partition}: the log ends at offset {end}, and had reached {wanted}")
        self.partition = partition
        self.wanted = wanted
        self.end = end


class CorruptRecordsError(ClientError):
    """What `partition` holds at about `offset` does not fit its checksum."""

    def __init__(self, partition: Partition, *, offset: int, why: str) -> None:
        super().__init__(f"{partition}, at about offset {offset}: {why}")
        self.partition = partition
        self.offset = offset
        self.why = why


class Client(Protocol):
    """See the module's docstring. Every method waits for brokers for `read_timeout_s` at most."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close connections and threads."""

    def topics(self, *, names: Sequence[str] = (), pattern: str | None = None) -> list[Topic]:
        """The topics called `names`, and those whose whole name matches `pattern`; sorted by name, each once.

        Internal topics (`__consumer_offsets`) match no pattern. Raises `TopicGoneError` for a name that is not there;
        creates none.
        """

    def offsets(self, partitions: Iterable[Partition]) -> dict[Partition, Offsets]:
        """Where each partition starts and ends now. Raises `TopicGoneError`."""

    def offsets_at(self, times: Mapping[Partition, int]) -> dict[Partition, int | None]:
        """For each partition the first offset whose record is of that time (ms since 1970) or later; None where
        there is no such record."""

    def retention(self, topics: Iterable[str]) -> dict[str, Retention]:
        """What deletes records of each topic; topics that we may not ask about are left out."""

    def read(self, partition: Partition, *, topic_id: str, start: int, end: int) -> Iterator[Records]:
        """Every record with `start <= offset < end` that is committed (or of no transaction), once, in order.

        Ends when the position has passed `end`, not when a last record was seen: offsets have gaps, and a range may
        hold no record at all. One read of a client at a time; it may be left early. Survives brokers that
        restart and leaders that change. A record is given whole, however large.

        Raises `RangeLostError` if records at `start`, or later on, are gone, after everything before them was given;
        reading on from its `first` goes on. Raises `TopicGoneError` also at the end, if the topic is another one by
        then: what was given is then of no use. Raises `RangeMissingError`, `CorruptRecordsError`,
        `BrokersUnreachableError`.
        """

    def group_offsets(self, group: str) -> dict[Partition, int]:
        """What `group` has committed; empty for one that nobody has heard of."""

    def set_group_offsets(self, group: str, offsets: Mapping[Partition, int]) -> None:
        """Commit `offsets` for `group`, whose other partitions stay as they are. Makes the group if need be.

        Fails with a `ClientError` while consumers are members of the group: it is theirs then.
        """


def open_client(config: KafkaConfig) -> Client:
    """A client as `config` says. Connects when it is first asked something, or now, as the library does it.

    Raises `SourceError` with the install command where the library is not installed.
    """
    try:
        import crc32c  # noqa: F401 # kafka-python does without, and checks records a hundred times slower then

        from raybatch.sources.kafka.kafka_python import KafkaPythonClient
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        raise SourceError(f"a kafka source needs the package '{missing}': {INSTALL}") from None
    return KafkaPythonClient(config)
