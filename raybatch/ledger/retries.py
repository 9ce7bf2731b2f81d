"""Which error rows are live, and what an epoch that retries them consists of.

An error row is live unless a later, committed retry epoch took it: one whose plan names the row's unit and is of
the row's type and stage. How many are live is told by the commits alone; which ones, by the plans of retries.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from raybatch.errors import LedgerError
from raybatch.ledger import keys
from raybatch.ledger.dataset import iterate_commits
from raybatch.ledger.records import JSON, Counts, Plan, Retry
from raybatch.rows import ERROR_SCHEMA
from raybatch.sources.base import UnitSpec
from raybatch.sources.retry import entry_of, errors_of, pieces_of
from raybatch.store.ahead import map_ahead
from raybatch.store.base import Store

# A unit of a retry reads so many ranges of the source, one after the other, mostly for a row or two of each
MAX_PIECES = 64
ROW_BYTES = 4096  # of an error row with its input, where nothing better is known


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which error rows to take: of these types, stages and epochs; empty means any."""

    types: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    epochs: tuple[int, ...] = ()

    @classmethod
    def of(cls, retry: Retry) -> Choice:
        """What a retry epoch was asked for."""
        return cls(types=retry.types, stages=retry.stages, epochs=retry.epochs)

    def to_json(self) -> JSON:
        """As units of a retry say it, whose epochs are named one by one."""
        return {"types": list(self.types), "stages": list(self.stages)}

    def wants(self, epoch: int) -> bool:
        return not self.epochs or epoch in self.epochs


@dataclass(frozen=True, kw_only=True)
class EpochErrors:
    """What a commit says of errors. `attempts`: the standing attempt of each unit with error rows. `live`: its
    error rows that no later retry took, by type."""

    epoch: int
    totals: Counts
    attempts: Mapping[int, str]
    retry: Retry | None
    live: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Every row that an output ever took in, once. `error`: live ones, `errors` by type."""

    rows_in: int
    ok: int
    error: int
    dropped: int
    made: int
    errors: Mapping[str, int]


def committed_errors(store: Store) -> list[EpochErrors]:
    """Of each committed epoch, in order."""
    found: list[EpochErrors] = []
    for commit in iterate_commits(store):
        units = sorted({unit for file in commit.errors for unit in file.units})
        attempts = {unit: commit.units[unit].attempt for unit in units}
        found.append(
            EpochErrors(
                epoch=commit.epoch,
                totals=commit.totals,
                attempts=attempts,
                retry=commit.retry,
                live=Counter(commit.error_types),
            )
        )
        for epoch, types in (commit.retry.rows if commit.retry else {}).items():
            live = found[int(epoch)].live
            live.subtract(types)
            for kind in [kind for kind, rows in live.items() if not rows]:
                del live[kind]
    return found


def totals(epochs: Sequence[EpochErrors]) -> Totals:
    """Add up epochs so that a row that was retried counts once, as what became of it last."""
    counts = sum((one.totals for one in epochs), Counts())
    again = sum(one.retry.taken for one in epochs if one.retry)
    errors = sum((one.live for one in epochs), Counter[str]())
    return Totals(
        rows_in=counts.rows_in - again,
        ok=counts.ok,
        error=counts.error - again,
        dropped=counts.dropped,
        made=counts.made,
        errors=dict(errors),
    )


def related(epochs: Sequence[EpochErrors], epoch: int) -> list[EpochErrors]:
    """The epochs whose rows retries have moved to or from `epoch`, also by way of others; itself included."""
    found, before = {epoch}, set[int]()
    while found != before:
        before = set(found)
        for one in epochs:
            group = {one.epoch, *(map(int, one.retry.rows) if one.retry else ())}
            found |= group if group & found else set()
    return [one for one in epochs if one.epoch in found]


def taken_before(store: Store, epochs: Sequence[EpochErrors]) -> dict[tuple[int, int], list[JSON]]:
    """For each (epoch, unit) that retries named: the choices with which they did."""
    found: defaultdict[tuple[int, int], list[JSON]] = defaultdict(list)
    for one in epochs:
        if one.retry is not None:
            for entry in _entries(_plan(store, one.epoch)):
                found[entry["epoch"], entry["unit"]].append(Choice.of(one.retry).to_json())
    return found


def live_rows(store: Store) -> Iterator[tuple[int, pa.Table]]:
    """The live error rows of each unit that has any, with the unit's epoch; in order of epochs and units.

    Tables of ERROR_SCHEMA. Reads the error rows of units that have live ones, some at a time.
    """
    epochs = committed_errors(store)
    taken = taken_before(store, epochs)
    for one in epochs:
        if not one.live:
            continue
        entries = [_entry(one, unit, but=taken.get((one.epoch, unit), ())) for unit in one.attempts]
        for table in map_ahead(lambda entry: errors_of(store, entry, choice=Choice().to_json()), entries):
            if len(table):
                yield one.epoch, table.cast(ERROR_SCHEMA)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The matching live error rows of one unit: the entry of a retry's range, and how many by type."""

    entry: JSON
    types: Mapping[str, int]
    bytes: int

    @property
    def rows(self) -> int:
        return sum(self.types.values())


def find(store: Store, choice: Choice) -> Iterator[Found]:
    """The live error rows of `choice`, by unit, in order of epochs and units. Reads their ids."""
    epochs = committed_errors(store)
    taken = taken_before(store, epochs)
    for one in epochs:
        matching = one.live if not choice.types else [kind for kind in choice.types if one.live[kind]]
        if not choice.wants(one.epoch) or not matching:
            continue
        plan = _plan(store, one.epoch)

        def look(unit: int, *, one: EpochErrors = one, plan: Plan = plan) -> Found | None:
            but = taken.get((one.epoch, unit), ())
            return _found(store, plan, _entry(one, unit, but=but), choice=choice)

        yield from (found for found in map_ahead(look, one.attempts) if found is not None)


def _found(store: Store, plan: Plan, entry: JSON, *, choice: Choice) -> Found | None:
    columns = ["_source", "_row", "type"]
    table = errors_of(store, entry, choice=choice.to_json(), columns=columns)
    if not len(table):
        return None
    unit = plan.units[entry["unit"]]
    held = [piece for before in unit.range["retry"] for piece in before["of"]] if plan.retry else []
    pieces = pieces_of(held or [{"range": unit.range}], table)
    size = unit.bytes * len(table) // unit.rows if unit.rows else ROW_BYTES * len(table)
    return Found(entry={**entry, "of": pieces}, types=Counter(table["type"].to_pylist()), bytes=size)


def units_of(found: Sequence[Found], *, choice: Choice, max_rows: int, max_bytes: int) -> list[UnitSpec]:
    """The units of a retry: as many earlier units together as fit, never less than one."""
    units: list[UnitSpec] = []
    held: list[Found] = []

    def close() -> None:
        if held:
            at = {"retry": [one.entry for one in held], "choice": choice.to_json()}
            rows, size = sum(one.rows for one in held), sum(one.bytes for one in held)
            units.append(UnitSpec(range=at, rows=rows, bytes=size))
            held.clear()

    for one in found:
        together = [*held, one]
        if (
            sum(each.rows for each in together) > max_rows
            or sum(each.bytes for each in together) > max_bytes
            or sum(len(each.entry["of"]) for each in together) > MAX_PIECES
        ):
            close()
        held.append(one)
    close()
    return units


def rows_of(found: Sequence[Found]) -> dict[str, dict[str, int]]:
    """The rows found, by epoch (as text) and type: see `records.Retry`."""
    counted: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for one in found:
        counted[one.entry["epoch"]].update(one.types)
    return {str(epoch): dict(types) for epoch, types in counted.items()}


def _entry(one: EpochErrors, unit: int, *, but: Sequence[JSON]) -> JSON:
    part = keys.part_key(one.epoch, unit, attempt=one.attempts[unit], kind="errors")
    return entry_of(epoch=one.epoch, unit=unit, part=part, but=but, of=())


def _entries(plan: Plan) -> Iterator[JSON]:
    for unit in plan.units:
        yield from unit.range["retry"]


def _plan(store: Store, epoch: int) -> Plan:
    key = keys.plan_key(epoch)
    try:
        return Plan.from_json(store.read(key), where=f"{store.url}/{key}")
    except KeyError:
        raise LedgerError(f"{store.url}/{key} is missing: restore it; the epoch is committed") from None
