"""The three durable records of the ledger, and what they are made of. Plain data; each is written once.

Plan          the input of one epoch, frozen before work starts
UnitRecord    one unit, published: which attempt's parts are its rows
Commit        one epoch, complete: its files, and the record of every unit
"""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import pyarrow as pa

from raybatch.errors import LedgerError
from raybatch.ledger import codec
from raybatch.ledger.drift import Difference
from raybatch.ledger.keys import DATA, ERRORS
from raybatch.ledger.units import Units

JSON = Mapping[str, Any]

V = TypeVar("V")

PART_KINDS = ("ok", "errors", "dropped")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How parts become files, fixed by the plan so that every driver makes the same ones.

    A unit's part of at least `small_bytes` becomes a file as it is; smaller ones are merged, in the order of
    units, to about `target_bytes`. With `partition_by`, columns, a file holds rows of one partition only.
    `algorithm` names the rules, in case they ever change.
    """

    target_bytes: int
    small_bytes: int
    partition_by: tuple[str, ...] = ()
    algorithm: int = 1


@dataclass(frozen=True, kw_only=True)
class PlanRef:
    """What a worker needs to know of a plan: it travels with every unit, a plan of many units should not."""

    plan_id: str
    epoch: int
    pipeline: str


@dataclass(frozen=True, kw_only=True)
class Retry:
    """What a retry epoch takes: of the units that its own units name, the error rows that were still live, of
    these types and stages; an empty list means any. `epochs` are those that were asked for, empty: all.

    `rows` counts them by epoch (as text, for JSON) and type.
    """

    types: tuple[str, ...]
    stages: tuple[str, ...]
    epochs: tuple[int, ...]
    rows: Mapping[str, Mapping[str, int]]

    @property
    def taken(self) -> int:
        """How many error rows."""
        return sum(sum(types.values()) for types in self.rows.values())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`start` is the position before the epoch (None: the very beginning), `end` the one after it.

    `units` may be given as any sequence of `UnitSpec`, and are held by column. `schema` is the input's Arrow
    schema, as text; `fingerprint` what decides the output. `plan_id` is the
    digest of all the rest: leave it empty to have it computed; a wrong one is a `LedgerError`. With `retry` the
    units are error rows of earlier epochs, and `end` equals `start`; see `raybatch.ledger.retries`.
    """

    epoch: int
    pipeline: str
    start: JSON | None
    end: JSON
    units: Units
    schema: str
    fingerprint: JSON
    layout: Layout
    created_by: str
    created_at: str
    retry: Retry | None = None
    plan_id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", Units.of(self.units))
        content = codec.encode(self)
        del content["plan_id"]
        digest = hashlib.sha256(codec.canonical(content).encode()).hexdigest()
        if self.plan_id not in ("", digest):
            raise LedgerError(f"the plan of epoch {self.epoch} is not the one that its id was made for")
        object.__setattr__(self, "plan_id", digest)

    @functools.cached_property
    def input_schema(self) -> pa.Schema:
        """The Arrow schema of the tables that the source delivers."""
        return schema_from_text(self.schema)

    def reference(self) -> PlanRef:
        """The part of the plan that travels to workers."""
        return PlanRef(plan_id=self.plan_id, epoch=self.epoch, pipeline=self.pipeline)

    def unit_key(self, unit: int) -> str:
        """The name of a unit for `UnitRows.unit` and for messages: "<epoch>/<unit>"."""
        return f"{self.epoch:08d}/{unit:08d}"

    def to_json(self) -> str:
        return codec.dumps(self)

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = "a plan") -> Plan:
        """Raises `LedgerError` that names `where`."""
        try:
            return codec.loads(cls, text, where=where)
        except LedgerError as error:
            raise error if where in str(error) else LedgerError(f"{where}: {error}") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Rows of a unit or an epoch. `rows_in` came from the source, `made` are those that stages added."""

    rows_in: int = field(default=0, metadata={"json": "in"})
    ok: int = 0
    error: int = 0
    dropped: int = 0
    made: int = 0

    @property
    def balanced(self) -> bool:
        """Invariant I5: every row is accounted for."""
        return self.rows_in + self.made == self.ok + self.error + self.dropped

    def __add__(self, other: Counts) -> Counts:
        names = self.__dataclass_fields__
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def __str__(self) -> str:
        came = f"{self.rows_in} in and {self.made} made"
        return f"{came}, {self.ok} ok, {self.error} errors, {self.dropped} dropped"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A Parquet object with the rows of one kind of one attempt. `size` in bytes."""

    key: str
    size: int
    sha256: str
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """What a unit's ok part holds of one partition, such as `path` "lang=en/day=2026-11-01": the next
    `row_groups` row groups after those of the partitions before it. `size` in bytes, compressed."""

    path: str
    rows: int
    size: int
    row_groups: int

    def __post_init__(self) -> None:
        # The same in many units, and a driver holds the records of all
        object.__setattr__(self, "path", sys.intern(self.path))


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitRecord:
    """A published unit. `parts` by kind ("ok", "errors", "dropped"); a kind without rows has none.

    `partitions` are those of the ok part, in order of path; none where the layout has no `partition_by`.
    `schema` is that of the ok part, as text, also when there is none. `stats` are sums such as tokens.
    """

    plan_id: str
    epoch: int
    unit: int
    attempt: str
    parts: Mapping[str, Part]
    counts: Counts
    error_types: Mapping[str, int]
    stats: Mapping[str, float]
    schema: str
    created_at: str
    partitions: tuple[Partition, ...] = ()
    _digest: bytes = field(
        default=b"", init=False, repr=False, compare=False
    )  # of the bytes it was read from

    @property
    def checksum(self) -> str:
        """SHA-256 of the stored bytes."""
        return (self._digest or hashlib.sha256(self.to_json().encode()).digest()).hex()

    @property
    def row_groups(self) -> dict[str, range]:
        """Which row groups of the ok part each partition has, by path."""
        ends = accumulate((one.row_groups for one in self.partitions), initial=0)
        return {one.path: range(a, b) for one, (a, b) in zip(self.partitions, pairwise(ends), strict=True)}

    def to_json(self) -> str:
        return codec.dumps(self)

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = "a unit record") -> UnitRecord:
        """Raises `LedgerError` that names `where`."""
        record = codec.loads(cls, text, where=where)
        stored = text.encode() if isinstance(text, str) else text
        own = {
            # There is one spelling of a record, so these bytes are those that it would be stored as
            "_digest": hashlib.sha256(stored).digest(),
            # A million units have a handful of schemas and names; a driver holds all records at once
            "plan_id": sys.intern(record.plan_id),
            "schema": sys.intern(record.schema),
            "parts": _interned(record.parts),
            "error_types": _interned(record.error_types),
            "stats": _interned(record.stats),
        }
        for name, value in own.items():
            object.__setattr__(record, name, value)
        return record


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """A file below data/ or errors/, and the units whose rows it holds, in their order in the file."""

    key: str
    rows: int
    size: int
    sha256: str
    units: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CommittedUnit:
    """Which attempt a unit's record named, and the record's SHA-256."""

    attempt: str
    checksum: str


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A complete epoch. `units[i]` is unit i of the plan.

    `drift` lists how the pipeline that finished the epoch differed from the planned one, if that was allowed.
    `retry` is the plan's: its rows are taken back from the errors of earlier epochs, and `totals` counts them in
    again.
    """

    epoch: int
    pipeline: str
    plan_id: str
    run_id: str
    start: JSON | None
    end: JSON
    data: tuple[DataFile, ...]
    errors: tuple[DataFile, ...]
    units: tuple[CommittedUnit, ...]
    totals: Counts
    error_types: Mapping[str, int]
    stats: Mapping[str, float]
    drift: tuple[Difference, ...]
    created_at: str
    retry: Retry | None = None

    @classmethod
    def of(
        cls,
        plan: Plan,
        records: Sequence[UnitRecord],
        files: Sequence[DataFile],
        *,
        run_id: str,
        drift: Sequence[Difference] = (),
    ) -> Commit:
        """The commit of `plan`, given each unit's standing record (in any order) and the sink's files."""
        ordered = sorted(records, key=lambda r: r.unit)
        errors: Counter[str] = Counter()
        stats: Counter[str] = Counter()
        for record in ordered:
            errors.update(record.error_types)
            stats.update(dict(record.stats))
        return cls(
            epoch=plan.epoch,
            pipeline=plan.pipeline,
            plan_id=plan.plan_id,
            run_id=run_id,
            start=plan.start,
            end=plan.end,
            data=tuple(f for f in files if f.key.startswith(DATA)),
            errors=tuple(f for f in files if f.key.startswith(ERRORS)),
            units=tuple(CommittedUnit(attempt=r.attempt, checksum=r.checksum) for r in ordered),
            totals=sum((r.counts for r in ordered), Counts()),
            error_types=dict(errors),
            stats=dict(stats),
            drift=tuple(drift),
            created_at=now(),
            retry=plan.retry,
        )

    def to_json(self) -> str:
        return codec.dumps(self)

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = "a commit") -> Commit:
        """Raises `LedgerError` that names `where`."""
        return codec.loads(cls, text, where=where)


def _interned(entries: Mapping[str, V]) -> Mapping[str, V]:
    return {sys.intern(name): value for name, value in entries.items()}


def now() -> str:
    """This moment in UTC, as records say it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def schema_to_text(schema: pa.Schema) -> str:
    """An Arrow schema as base64 of its IPC message."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def schema_from_text(text: str) -> pa.Schema:
    """The inverse of `schema_to_text`. Raises `LedgerError`."""
    try:
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text, validate=True)))
    except (ValueError, OSError) as error:  # pa.ArrowInvalid is a ValueError
        raise LedgerError(f"a recorded Arrow schema cannot be read: {error}") from None
