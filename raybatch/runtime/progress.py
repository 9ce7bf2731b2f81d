"""What a run tells while it works, and what it says at its end. Data only: the command line draws it."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from raybatch.engines.pool import PoolStatus
from raybatch.ledger.records import UnitRecord

PHASES = ("planning", "starting", "running", "waiting", "finalising", "done")  # waiting: for input to arrive
TOKENS = {"prompt": "prompt_tokens", "cached": "cached_tokens", "generated": "generated_tokens"}


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One look at a run. Rows and units include those resumed from earlier runs of the same epoch.

    `rows_expected` is an estimate by bytes where the source does not know; None when there is nothing to go
    by. `tokens` are those of published units; an engine's own counter (`engines`) is ahead of it.
    """

    run_id: str
    pipeline: str
    epoch: int
    phase: str
    elapsed_s: float
    units: Mapping[str, int]  # planned, published, resumed
    rows: Mapping[str, int]  # in, ok, error, dropped
    rows_resumed: int  # of rows["in"]
    rows_expected: int | None
    errors: Mapping[str, int]  # by type
    tokens: Mapping[str, int]  # prompt, cached, generated; of this run only
    engines: Sequence[PoolStatus]
    epochs: int = 0  # that this run has committed


class Reporter(Protocol):
    """Whoever watches a run. Called from any of the run's threads; must neither raise nor block for long."""

    def update(self, snapshot: Snapshot) -> None:
        """About once a second, and at each change of phase."""

    def note(self, text: str) -> None:
        """One sentence that a person should read, such as how many units are resumed."""


class Silent:
    """A reporter that tells nobody."""

    def update(self, snapshot: Snapshot) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """The end of a run; `to_json` is what `raybatch run --json` prints.

    `epoch` is the last one, and `epochs` how many the run has committed; what it counts are sums over these.
    """

    run_id: str
    pipeline: str
    epoch: int
    epochs: int
    committed: bool
    units: Mapping[str, int]
    rows: Mapping[str, int]
    errors: Mapping[str, int]
    tokens: Mapping[str, int]
    seconds: Mapping[str, float]
    engines: Sequence[Mapping[str, Any]]
    output: str
    notes: Sequence[str] = ()
    retry: Mapping[str, Any] | None = None
    """Only of a retry: how many rows it took (`taken`), what became of them (`ok`, `error`: failed again,
    `dropped`), and the live error rows of the whole output (`left`, `left_by_type`)."""
    latency_s: Mapping[str, float] | None = None
    """Only where rows have times of their own (Kafka): seconds from produced to visible, `p50` and `p99`."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, in the order of the fields; `retry` and `latency_s` only where there is one."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("retry", "latency_s"):
            if plain[name] is None:
                del plain[name]
        plain["seconds"] = {name: round(value, 3) for name, value in self.seconds.items()}
        return {n: dict(v) if isinstance(v, Mapping) else v for n, v in plain.items()}


@dataclass
class Tally:
    """Adds up unit records as they come in. Bytes of input only serve to estimate what is left."""

    planned: int
    expected_rows: int | None
    expected_bytes: int
    published: int = 0
    resumed: int = 0
    rows_resumed: int = 0
    bytes_done: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    partitions: set[str] = field(default_factory=set)
    stats: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    started: float = field(default_factory=time.monotonic)
    first_published_s: float | None = None

    def add(self, record: UnitRecord, *, unit_bytes: int, resumed: bool) -> None:
        """Count one published unit."""
        self.published += 1
        self.bytes_done += unit_bytes
        counts = record.counts
        self.rows.update({"in": counts.rows_in, "ok": counts.ok, "error": counts.error})
        self.rows["dropped"] += counts.dropped
        self.errors.update(record.error_types)
        self.partitions.update(one.path for one in record.partitions)
        if resumed:
            self.resumed += 1
            self.rows_resumed += counts.rows_in
            return
        for name, value in record.stats.items():
            self.stats[name] += value
        if self.first_published_s is None:
            self.first_published_s = time.monotonic() - self.started

    def take_in(self, other: Tally) -> None:
        """Add what `other`, the tally of an epoch that is done, has counted; not what only estimates need."""
        self.planned += other.planned
        self.published += other.published
        self.resumed += other.resumed
        self.rows.update(other.rows)
        self.errors.update(other.errors)
        for name, value in other.stats.items():
            self.stats[name] += value
        if self.first_published_s is None:
            self.first_published_s = other.first_published_s

    @property
    def rows_expected(self) -> int | None:
        """Rows of the whole epoch: known, or estimated from the bytes of the units done so far."""
        if self.expected_rows is not None:
            return self.expected_rows
        if not self.bytes_done or not self.expected_bytes:
            return None
        return max(self.rows["in"], round(self.rows["in"] * self.expected_bytes / self.bytes_done))

    def tokens(self) -> dict[str, int]:
        """Tokens of the units published by this run."""
        return {name: int(self.stats[key]) for name, key in TOKENS.items()}
