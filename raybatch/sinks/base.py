"""The contract of a sink: write a unit on a worker, finalise an epoch on the driver.

A sink is built from its typed config on the driver and travels to workers by pickle: keep it to its config.
It promises nothing alone: a unit's rows count once the ledger has published the unit's record, and an epoch's
once the ledger has committed it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import DataFile, Layout, Plan, PlanRef, UnitRecord
from raybatch.rows import UnitRows
from raybatch.store import Store, open_store

ParallelMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""`map`, or one that calls a picklable function elsewhere; results in order."""


class Sink(Protocol):
    """See the module's docstring. Errors: `StoreError` where the storage fails, `LedgerError` where what is
    stored contradicts itself."""

    def check(self, schema: pa.Schema, *, kept: bool) -> None:
        """Raise `SinkError` for columns that it can never hold. Before any work; no I/O.

        `schema` is that of the input. `kept` says that all of its columns reach the sink as they are; else a
        stage may change them.
        """

    def check_beside(self, layout: Layout) -> None:
        """Raise `SinkError` unless its files can stand beside those of an epoch with `layout`. Before any
        work; no I/O."""

    def check_partitions(self, paths: Collection[str]) -> None:
        """Raise `TooManyPartitionsError` when an epoch cannot have so many partitions. `paths` are those of
        the units published so far; on the driver, as each is published."""

    def layout(self) -> Layout:
        """What a new plan fixes about the files of its epoch."""

    def write(
        self,
        rows: UnitRows,
        *,
        plan: PlanRef,
        attempt: str,
        ledger: Ledger,
        metadata: Mapping[str, str] | None = None,
    ) -> UnitRecord:
        """Store one attempt at a unit and publish it; gives the record that stands, maybe another attempt's.

        On a worker, any number of times for a unit, also at the same time; `attempt` is new for each call.
        `rows.unit` is the plan's `unit_key`. `metadata` (such as the models) is stored with the rows.
        """

    def finalise(
        self,
        plan: Plan,
        records: Sequence[UnitRecord],
        *,
        ledger: Ledger,
        parallel_map: ParallelMap = map,
    ) -> list[DataFile]:
        """Turn the published units of `plan`, all of them, into the files that readers read.

        On the driver, before the commit; again after a crash, also by several drivers at once: each is given
        the same files. Gives those below data/ and below errors/.
        """


class SinkConfig(Protocol):
    """What is expected of each sink's pydantic `Config`.

    One that reaches object stores also has a field `storage: StorageOptions | None`.
    """

    type: str
    path: str

    def reads(self) -> list[str]:
        """Columns that it needs to find its rows a place: known before the run, and checked then."""

    def build(self) -> Sink:
        """The sink. No I/O."""


def open_output(config: SinkConfig) -> Store:
    """The store of the ledger and the files of `config`. No I/O. Raises `SinkError` for what none serves."""
    return open_store(config.path, getattr(config, "storage", None))
