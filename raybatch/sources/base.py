"""The contract of a source: plan a bounded, replayable set of input; read one unit of it.

A source is built on the driver from its typed config, plans there, and travels to workers by pickle to read:
keep it to its config, never an open file or client. One plan is made per epoch and never changed, so `read`
may be called any number of times, anywhere, for the same unit, also at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from raybatch.rows import UnitRows

JSON = Mapping[str, Any]
Progress = Callable[[str], None]


def no_progress(text: str) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitSpec:
    """A bounded, replayable range of input. `range` is the source's own JSON; nobody else reads it.

    `rows` is the exact number of input rows where the source knows it without reading all, else None.
    `bytes` estimates the input's size, for ordering and progress.
    """

    range: JSON
    rows: int | None = None
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The most that one plan takes: input rows, and bytes of input as `UnitSpec.bytes` counts them. None: no limit.

    A source that has limits of its own takes the smaller ones. Where it does not know before it has read, an
    estimate will do: a limit is there to bound an epoch, and nobody counts on it.
    """

    max_rows: int | None = None
    max_bytes: int | None = None


NO_LIMIT = Limit()


@dataclass(frozen=True, kw_only=True)
class SourcePlan:
    """One epoch's input, frozen. `end` is the position after it, to be given to the next `plan(after=...)`.

    `end` is in every plan and commit, so its size must not grow with the number of epochs. It differs from
    `after` when there are units, and equals it when there are none, unless `after` is None.
    `schema` is that of every table that `read` returns, without the id columns. `units` is empty when there
    is nothing new. `full`: a limit left some of the input to the next plan, so that it need not wait.
    """

    units: Sequence[UnitSpec]
    end: JSON
    schema: pa.Schema
    full: bool = False
    notes: Sequence[str] = field(default_factory=tuple)  # what a person should know, one line each


@dataclass(frozen=True, kw_only=True)
class Acknowledged:
    """What the outside world takes for committed, compared with an end, place by place (Kafka: partition).

    `behind` and `ahead` have a line for each place that differs, such as "group x, tickets/0: 7, and not 120".
    """

    compared: int
    behind: Sequence[str] = ()
    ahead: Sequence[str] = ()


class Source(Protocol):
    """See the module's docstring. Errors: `SourceError` from `columns` and `plan`; `InputChangedError` from `plan`,
    where what earlier epochs took is not what it was, and from `read`; `CorruptInputError` from `read`; `StoreError`
    where the input cannot be reached. What is wrong with one row is an error row, not an exception."""

    def columns(self) -> list[str] | None:
        """The column names, as far as the config alone tells; None when only the input knows. No I/O."""

    def plan(
        self,
        *,
        after: JSON | None,
        history: Iterable[UnitSpec] = (),
        progress: Progress = no_progress,
        limit: Limit = NO_LIMIT,
    ) -> SourcePlan:
        """Resolve the input once, on the driver. `after` is where the epoch before ends, None before the first.
        In a continuous run that epoch may be planned and not committed yet, and `plan` is called again and
        again, from one thread at a time, while units of earlier plans are read.

        `history` gives the units of all earlier epochs, in no particular order, once; they are read from the
        ledger as it is iterated, so a source that can do without does not touch it. `progress` shows a line
        while planning takes long; what should last goes into the plan's notes.

        Beyond `limit` input is left to the next plan. Where there is anything new, something is taken, whatever
        its size: what one unit has to hold (a record, a file) may be more than the limit.

        Same input, `after` and `limit` give the same plan. Rows at or before `after` are never planned again.
        """

    def read(self, unit: UnitSpec, *, key: str, schema: pa.Schema) -> UnitRows:
        """Read all rows of `unit`; called on a worker. `key` names the unit in the result.

        Each deliverable input row appears once, in `table` (the plan's schema and the id columns) or in
        `errors`. Row ids are the same at each call. A source whose rows have times of their own (Kafka's
        timestamps) adds them as `UnitRows.stats`, by `raybatch.latency.produced`.
        """

    def acknowledge(self, end: JSON) -> None:
        """Tell the outside world (Kafka group offsets) how far is committed.

        Called after the commit, best effort; never read back as truth. In a continuous run from another thread
        than `plan`, also at the same time.
        """

    def acknowledged(self, end: JSON) -> Acknowledged | None:
        """What `acknowledge` has told, beside `end`; None for a source that tells nobody.

        Asked at the start of a run, which acknowledges anew what differs, and by audits. Raises what asking fails with.
        """
