"""The part of an audit that looks at retries: an epoch of error rows takes live ones, and accounts for each.

Each error row is in one unit, once, so a row that a retry took is there once if the retry's unit holds it, or
what was made from it, once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import pyarrow as pa

from raybatch.errors import LedgerError
from raybatch.ledger import keys
from raybatch.ledger.findings import Findings
from raybatch.ledger.records import JSON, Commit, Plan
from raybatch.ledger.retries import Choice
from raybatch.ledger.row_ids import first_twice, spell
from raybatch.rows import ID_COLUMNS, ID_SCHEMA
from raybatch.sources.retry import errors_of
from raybatch.store.ahead import map_ahead
from raybatch.store.base import Store


class RetryAudit:
    """Follows all epochs in order. Keeps, for each unit with error rows, its attempt, and who took from it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._attempts: dict[tuple[int, int], str] = {}
        self._taken: defaultdict[tuple[int, int], list[JSON]] = defaultdict(list)

    def follow(self, plan: Plan, commit: Commit | None, findings: Findings) -> None:
        """The next epoch. Checks what its plan says if it is a retry's; its units are checked elsewhere."""
        if plan.retry is not None:
            self._check_plan(plan, commit, findings)
        if commit is None:
            return
        for unit in (unit for file in commit.errors for unit in file.units):
            if unit < len(commit.units):
                self._attempts[commit.epoch, unit] = commit.units[unit].attempt
        if plan.retry is not None:
            for entry in _entries(plan):
                self._taken[entry["epoch"], entry["unit"]].append(Choice.of(plan.retry).to_json())

    def _check_plan(self, plan: Plan, commit: Commit | None, findings: Findings) -> None:
        assert plan.retry is not None
        where = f"the plan of epoch {plan.epoch}"
        if plan.start != plan.end:
            findings.fail("I2", f"{where} takes error rows, and ends elsewhere than where it starts")
        if commit is not None and commit.retry != plan.retry:
            findings.fail("I5", f"the commit of epoch {plan.epoch} counts other retried rows than its plan")
        named: set[tuple[int, int]] = set()
        for entry in _entries(plan):
            what = f"{where} takes error rows of unit {entry['unit']} of epoch {entry['epoch']}"
            place = (entry["epoch"], entry["unit"])
            attempt = self._attempts.get(place)
            if place in named:
                findings.fail("I6", f"{what} twice")
            elif attempt is None:
                findings.fail("I6", f"{what}, and no such unit with errors is committed before it")
            elif entry["part"] != keys.part_key(*place, attempt=attempt, kind="errors"):
                findings.fail("I6", f"{what} from {entry['part']}, which is not the unit's")
            elif entry["but"] != self._taken.get(place, []):
                findings.fail("I6", f"{what}, and not just those that earlier retries have left")
            named.add(place)
        self._check_rows(plan, where, findings)

    def _check_rows(self, plan: Plan, where: str, findings: Findings) -> None:
        assert plan.retry is not None
        choice = Choice.of(plan.retry).to_json()
        found: defaultdict[str, Counter[str]] = defaultdict(Counter)
        try:
            for entry, types in map_ahead(
                lambda entry: (entry, errors_of(self._store, entry, choice=choice, columns=["type"])),
                _entries(plan),
            ):
                found[str(entry["epoch"])].update(types["type"].to_pylist())
        except LedgerError as error:
            for invariant in ("I4", "I8"):
                findings.fail(invariant, f"{where}: {error}")
            return
        counted = {epoch: dict(types) for epoch, types in found.items()}
        if counted != plan.retry.rows:
            findings.fail(
                "I5", f"{where} counts {plan.retry.rows}, and the units that it names have {counted}"
            )


def check_retried(
    store: Store, range_: JSON, choice: JSON, ids: pa.Table, *, name: str, findings: Findings
) -> None:
    """Each error row that the unit `name` took is there once, as itself or as rows made from it, and no other
    row is. `ids`: all of the unit's. Raises `LedgerError` where the error rows cannot be read."""
    if range_["choice"] != choice:
        findings.fail("I6", f"{name} takes other error rows than its plan says")
    columns = list(ID_COLUMNS)
    asked = [errors_of(store, entry, choice=choice, columns=columns) for entry in range_["retry"]]
    wanted = pa.concat_tables([ID_SCHEMA.empty_table(), *(table.cast(ID_SCHEMA) for table in asked)])
    twice = first_twice(ids)
    if twice is not None:
        findings.fail("I6", f"{twice} is more than once in {name}")
    open_, known = set(_tuples(wanted)), set(_tuples(wanted))
    for row_id in _tuples(ids):
        end = next((path for path in _paths(row_id) if path in known), None)
        if end is None:
            findings.fail("I6", f"{_said(row_id)} is in {name}, which did not take it")
        else:
            open_.discard(end)
    lost = min(open_, key=str, default=None)
    if lost is not None:
        findings.fail("I6", f"{_said(lost)}, an error row that {name} took, is not there")


Id = tuple[str, int, str | None]


def _paths(row_id: Id) -> Iterator[Id]:
    """The id itself, and those that it may have been made from."""
    source, row, child = row_id
    yield row_id
    while child is not None:
        child = child.rpartition(".")[0] or None
        yield source, row, child


def _tuples(ids: pa.Table) -> Iterator[Id]:
    return zip(*(ids[column].to_pylist() for column in ID_COLUMNS), strict=True)


def _said(row_id: Id) -> str:
    return spell(dict(zip(ID_COLUMNS, row_id, strict=True)))


def _entries(plan: Plan) -> Iterator[JSON]:
    for unit in plan.units:
        yield from unit.range["retry"]
