"""What a pipeline file says of a Kafka source; see docs/kafka.md.

Nothing here asks a broker. `security.py` has the part that tells who we are.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    AwareDatetime,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from raybatch.config import Config, PathOrUrl
from raybatch.rows import ID_COLUMNS
from raybatch.sources.formats.json_types import declared_type
from raybatch.sources.kafka.security import SecurityConfig

if TYPE_CHECKING:
    from raybatch.sources.kafka.source import KafkaSource

Included = Literal["key", "headers", "timestamp", "timestamp_type", "topic", "partition", "offset"]
OffsetsByTopic = dict[str, dict[NonNegativeInt, NonNegativeInt]]

VALUE_COLUMN = "value"  # of text and bytes

_TOPIC = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")
_BROKER = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
_TIME = TypeAdapter(AwareDatetime)
# kafka-python's own defaults, between which the options below have to stay
_WAIT_MS, _REQUEST_MS, _IDLE_MS = 500, 30_000, 540_000


def _when(*names: str) -> BeforeValidator:
    """Reads a name, a time or offsets, with one complaint for all of them."""

    def read(value: object) -> object:
        if isinstance(value, (datetime, dict)) or value in names:
            return value
        try:
            return _TIME.validate_python(value if isinstance(value, str) and "-" in value else None)
        except ValidationError:
            raise ValueError(
                f"should be {', '.join(names)}, a time with its zone (2026-11-01T00:00:00Z), or offsets by topic and"
                f' partition ({{tickets: {{"0": 120, "1": 7}}}}), got {value!r}'
            ) from None

    return BeforeValidator(read)


Start = Annotated[
    Literal["committed", "earliest", "latest"] | AwareDatetime | OffsetsByTopic,
    _when("committed", "earliest", "latest"),
]
End = Annotated[Literal["now"] | AwareDatetime | OffsetsByTopic, _when("now")]


class AvroValue(Config):
    """Values are Avro, each a record of one schema, without a header."""

    avro: PathOrUrl
    """File with the schema that values were written with (.avsc)."""
    confluent_header: bool = False
    """Whether values begin with the five bytes that a schema registry's serializers write: a zero, and the schema's
    number. They are skipped; no registry is asked."""


class ClientOptions(Config):
    """Options of the Kafka client by its own names; those that could break exactly-once are not among them."""

    client_id: str | None = Field(default=None, min_length=1)
    """What brokers call us in their logs and quotas."""
    client_rack: str | None = None
    """The rack we are in: brokers that allow it then let us read from a replica near by."""
    fetch_min_bytes: PositiveInt | None = None
    """Bytes that a broker waits for before it answers."""
    fetch_max_wait_ms: PositiveInt | None = None
    """Milliseconds that it waits for them at most."""
    fetch_max_bytes: PositiveInt | None = None
    """Bytes of one answer, about; a record that is larger is given whole."""
    max_partition_fetch_bytes: PositiveInt | None = None
    """Bytes of one partition in one answer, about."""
    request_timeout_ms: PositiveInt | None = None
    """Milliseconds after which a request without an answer has failed; it is then made again."""
    retry_backoff_ms: PositiveInt | None = None
    """Milliseconds between a failed request and the next."""
    reconnect_backoff_ms: PositiveInt | None = None
    """Milliseconds before a broken connection is made again; they double with each failure."""
    reconnect_backoff_max_ms: PositiveInt | None = None
    """Milliseconds that they grow to at most."""
    connections_max_idle_ms: PositiveInt | None = None
    """Milliseconds after which a connection that nobody uses is closed."""
    metadata_max_age_ms: PositiveInt | None = None
    """Milliseconds after which brokers are asked again who leads which partition."""
    receive_buffer_bytes: PositiveInt | None = None
    """Size of the socket's buffer for what comes in; by default the system's."""
    send_buffer_bytes: PositiveInt | None = None
    """Size of the socket's buffer for what goes out; by default the system's."""

    @model_validator(mode="after")
    def _in_order(self) -> ClientOptions:
        wait, request = self.fetch_max_wait_ms or _WAIT_MS, self.request_timeout_ms or _REQUEST_MS
        idle = self.connections_max_idle_ms or _IDLE_MS
        if not wait < request < idle:
            raise ValueError(
                f"fetch_max_wait_ms ({wait}) has to be less than request_timeout_ms ({request}), and that less than"
                f" connections_max_idle_ms ({idle})"
            )
        return self

    def given(self) -> dict[str, Any]:
        """The options that were set."""
        return self.model_dump(exclude_none=True)


class KafkaConfig(Config):
    """Records of Kafka topics. Row ids: `_source` is topic/partition, `_row` the offset."""

    # An unfinished plan has frozen which records it takes; these may be another's by the time it is resumed
    decides_nothing: ClassVar[tuple[str, ...]] = (
        "brokers",
        "group",
        "start",
        "end",
        "max_records",
        "max_bytes",
        "on_lost_range",
        "read_timeout_s",
        "security",
        "client",
    )

    type: Literal["kafka"]
    brokers: str | list[str]
    """`host:port` of one or more brokers, as a list or with commas between them. They tell of the others."""
    topics: list[str] | None = None
    """The topics to read."""
    topic_pattern: str | None = None
    """Instead of topics: a regular expression that whole names of topics match."""
    group: str | None = Field(default=None, min_length=1, validate_default=True)
    """The consumer group whose offsets are set after each commit; by default the pipeline's name."""
    start: Start = "earliest"
    """Where the very first epoch starts: `earliest`, `latest`, `committed` (the group's offsets, and earliest where it
    has none), a time, or offsets by topic and partition (earliest for those that are not named)."""
    end: End = "now"
    """Where a batch run ends: `now`, a time, or offsets by topic and partition."""
    max_records: PositiveInt | None = None
    """The most records (rather: offsets) that one epoch takes; the next one takes the rest."""
    max_bytes: PositiveInt | None = None
    """The most bytes that one epoch takes, as estimated from what the brokers hold."""

    value: Literal["json", "text", "bytes"] | AvroValue = "json"
    """`json`: an object, whose fields are columns. `text`, `bytes`: the column `value`. {avro: schema.avsc}: a record,
    whose fields are columns."""
    columns: list[str] | None = None
    """json, avro: the fields to read; all by default. Other fields of a value are then ignored."""
    column_types: dict[str, str] = Field(default_factory=dict, alias="schema")
    """json: types of columns by Arrow's names (`int64`, `string`, `timestamp[us]`, `list<string>`, …, or `json`: any
    value, as text). The others are inferred from a sample."""
    include: list[Included] | dict[Included, str] = Field(default_factory=list)
    """What else of a record is a column: `key`, `headers`, `timestamp`, `timestamp_type`, `topic`, `partition`,
    `offset`; as a list, or with names of your own ({key: ticket_id})."""
    key: Literal["bytes", "text"] = "bytes"
    """What a key is, where it is included."""
    max_row_bytes: int = Field(default=16 << 20, ge=1, le=1 << 29)
    """A longer value becomes an error row, of which the first 64 KiB are kept."""
    on_lost_range: Literal["fail", "skip"] = "fail"
    """When records were deleted before they were read: fail, or record that as an error row and read the rest."""
    read_timeout_s: PositiveFloat = 120
    """Seconds without an answer of the brokers after which a request or a read fails."""

    security: SecurityConfig = SecurityConfig()
    """How brokers are reached."""
    client: ClientOptions = ClientOptions()
    """Options of the Kafka client, by its own names."""

    @property
    def continuous(self) -> bool:
        """Whether `run.mode: continuous` is possible: not up to an end that is named."""
        return self.end == "now"

    @field_validator("brokers")
    @classmethod
    def _are_addresses(cls, brokers: str | list[str]) -> str | list[str]:
        found = _addresses(brokers)
        if not found:
            raise ValueError("names no broker")
        for address in found:
            port = _BROKER.fullmatch(address)
            if port is None or not 0 < int(port[1]) < 1 << 16:
                raise ValueError(f"a broker is host:port, as in broker-1:9092; got '{address}'")
        return brokers

    @field_validator("topics")
    @classmethod
    def _are_names(cls, topics: list[str] | None) -> list[str] | None:
        if topics is not None and (not topics or len(set(topics)) < len(topics)):
            raise ValueError("has to name at least one topic, and each only once")
        for name in topics or []:
            _check_topic(name)
        return topics

    @field_validator("topic_pattern")
    @classmethod
    def _is_an_expression(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return pattern

    @field_validator("group")
    @classmethod
    def _has_a_name(cls, group: str | None, info: ValidationInfo) -> str | None:
        context: dict[str, Any] = info.context or {}
        return group or context.get("pipeline") or None

    @field_validator("columns")
    @classmethod
    def _are_distinct(cls, columns: list[str] | None) -> list[str] | None:
        if columns is not None and (not columns or len(set(columns)) < len(columns)):
            raise ValueError("has to name at least one field, and each only once")
        return columns

    @field_validator("column_types")
    @classmethod
    def _are_types(cls, types: dict[str, str]) -> dict[str, str]:
        for name, text in types.items():
            try:
                declared_type(text)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return types

    @model_validator(mode="after")
    def _fit_together(self) -> KafkaConfig:
        if (self.topics is None) == (self.topic_pattern is None):
            raise ValueError("give either topics or topic_pattern")
        for what, when in (("start", self.start), ("end", self.end)):
            for topic in when if isinstance(when, dict) else ():
                _check_topic(topic)
                if self.topics is not None and topic not in self.topics:
                    raise ValueError(f"{what}: '{topic}' is none of the topics: {', '.join(self.topics)}")
        if self.column_types and self.value != "json":
            raise ValueError("schema is an option of json values")
        if self.columns is not None and self.value in ("text", "bytes"):
            raise ValueError(f"columns: a {self.value} value is one column, '{VALUE_COLUMN}'")
        for name in self.column_types:
            if self.columns is not None and name not in self.columns:
                raise ValueError(f"schema declares '{name}', which columns leaves out")
        self._check_columns()
        return self

    def _check_columns(self) -> None:
        included = self.include if isinstance(self.include, list) else list(self.include.values())
        taken = [
            *(self.columns or self.column_types),
            *([VALUE_COLUMN] if self.value in ("text", "bytes") else []),
        ]
        for name in [*taken, *included]:
            if name in ID_COLUMNS:
                raise ValueError(f"'{name}' is the name of a row id, which every row gets anyway")
        for i, name in enumerate(included):
            if not name or name in included[:i] or name in taken:
                raise ValueError(
                    f"include: a second column '{name}'; give it a name of its own, as in {{key: ticket_id}}"
                )

    def addresses(self) -> list[str]:
        """`brokers` as a list."""
        return _addresses(self.brokers)

    def included(self) -> dict[Included, str]:
        """The column of each part of a record that is one."""
        return self.include if isinstance(self.include, dict) else {name: str(name) for name in self.include}

    def build(self, *, max_rows: int, max_bytes: int) -> KafkaSource:
        """The source, with units of about `max_rows` offsets and `max_bytes` bytes at most."""
        from raybatch.sources.kafka.source import KafkaSource

        return KafkaSource(config=self, max_rows=max_rows, max_bytes=max_bytes)


def _addresses(brokers: str | list[str]) -> list[str]:
    said = [brokers] if isinstance(brokers, str) else brokers
    return [address.strip() for text in said for address in text.split(",") if address.strip()]


def _check_topic(name: str) -> None:
    if not _TOPIC.fullmatch(name):
        raise ValueError(
            f"'{name}' is no name of a topic: letters, digits, '.', '_' and '-', at most 249; for more than one topic"
            " there is topic_pattern"
        )
