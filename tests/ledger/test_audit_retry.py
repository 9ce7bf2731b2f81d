"""What an audit says of retries: each takes live error rows, and accounts for each of them once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from raybatch.ledger import keys
from raybatch.ledger.audit import audit
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Commit, Plan, Retry
from raybatch.ledger.retries import Choice, committed_errors, find, live_rows, rows_of, totals, units_of
from raybatch.rows import UnitRows
from raybatch.store.memory import MemoryStore
from small_run import PIPELINE, make_plan, make_sink, ok_table, run

# Of each unit's six rows, the fifth failed: rows 4, 10, 16, 22 and 28
CHOICE = Choice(types=("TooLong",))


def retry(
    store: MemoryStore,
    *,
    succeeds: Callable[[int], bool] = lambda row: True,
    change: Callable[[Plan], Plan] = lambda plan: plan,
    invent: bool = False,
) -> None:
    """A retry of everything, of at most three rows a unit; with `change`, of something else."""
    ledger, sink = Ledger(store, PIPELINE), make_sink()
    epoch, start = ledger.position()
    found = list(find(store, CHOICE))
    units = units_of(found, choice=CHOICE, max_rows=3, max_bytes=1 << 20)
    taken = Retry(types=CHOICE.types, stages=(), epochs=(), rows=rows_of(found))
    plan = make_plan(epoch=epoch, start=start)
    plan = change(replace(plan, end=start, units=units, retry=taken, plan_id=""))
    plan = ledger.create_plan(plan)
    records = []
    for number, unit in enumerate(plan.units):
        asked = pa.concat_tables(errors_of_unit(store, unit.range))
        rows = asked["_row"].to_pylist()
        good = [("input-0", row + 1000 * invent, None) for row in rows if succeeds(row)]
        held = UnitRows(
            unit=plan.unit_key(number),
            rows_in=len(rows),
            table=ok_table(good, ["again"] * len(good), pa.string()),
            errors=asked.filter(pa.array([not succeeds(row) for row in rows])),
        )
        records.append(sink.write(held, plan=plan.reference(), attempt=f"again-{number}", ledger=ledger))
    files = sink.finalise(plan, records, ledger=ledger)
    ledger.commit(plan, Commit.of(plan, records, files, run_id="run-retry"))


def errors_of_unit(store: MemoryStore, at: Any) -> list[pa.Table]:
    from raybatch.sources.retry import errors_of

    return [errors_of(store, entry, choice=at["choice"]) for entry in at["retry"]]


def first(store: MemoryStore, invariant: str) -> str:
    check = next(check for check in audit(store).checks if check.invariant == invariant)
    assert check.status == "failed", audit(store).to_json()
    assert check.first is not None
    return check.first


@pytest.fixture
def output() -> MemoryStore:
    store = MemoryStore()
    run(store, run_id="run-1")
    return store


def test_retries_keep_every_invariant_and_count_each_row_once(output: MemoryStore) -> None:
    retry(output, succeeds=lambda row: row < 20)
    retry(output, succeeds=lambda row: row == 22)
    report = audit(output)
    assert report.ok, report.to_json()
    assert [(epoch, table["_row"].to_pylist()) for epoch, table in live_rows(output)] == [(2, [28])]
    counted = totals(committed_errors(output))
    assert (counted.rows_in, counted.ok, counted.error, counted.dropped) == (30, 29, 1, 5)
    assert counted.errors == {"TooLong": 1}


def test_several_units_are_retried_together_up_to_the_limit_of_rows(output: MemoryStore) -> None:
    found = list(find(output, CHOICE))
    units = units_of(found, choice=CHOICE, max_rows=3, max_bytes=1 << 20)
    assert [unit.rows for unit in units] == [3, 2]
    assert list(find(output, Choice(types=("Other",)))) == []
    assert list(find(output, Choice(stages=("other",)))) == []
    assert list(find(output, Choice(epochs=(3,)))) == []


def test_rows_that_were_not_taken_are_named(output: MemoryStore) -> None:
    retry(output, invent=True)
    assert first(output, "I6") == "input-0 row 1004 is in unit 0 of epoch 1, which did not take it"


def named(plan: Plan, **changes: Any) -> Plan:
    """The plan with its first entry changed."""
    unit = plan.units[0]
    entries = [dict(entry) for entry in unit.range["retry"]]
    entries[0] |= changes
    units = [replace(unit, range={**unit.range, "retry": entries}), *plan.units[1:]]
    return replace(plan, units=units, plan_id="")


@pytest.mark.parametrize(
    ("change", "invariant", "says"),
    [
        (lambda p: named(p, unit=1), "I6", "takes error rows of unit 1 of epoch 0 from"),
        (lambda p: named(p, unit=7), "I6", "unit 7 of epoch 0, and no such unit with errors is committed"),
        (lambda p: replace(p, end={"next": 9}, plan_id=""), "I2", "ends elsewhere than where it starts"),
        (
            lambda p: replace(p, retry=replace(p.retry, rows={"0": {"TooLong": 4}}), plan_id=""),
            "I5",
            "counts {'0': {'TooLong': 4}}, and the units that it names have {'0': {'TooLong': 5}}",
        ),
        (
            lambda p: replace(p, units=[*p.units, p.units[0]], plan_id=""),
            "I6",
            "takes error rows of unit 0 of epoch 0 twice",
        ),
    ],
)
def test_a_plan_that_takes_the_wrong_rows_is_named(
    output: MemoryStore, change: Callable[[Plan], Plan], invariant: str, says: str
) -> None:
    retry(output, change=change)
    assert says in first(output, invariant)


def test_rows_that_an_earlier_retry_took_may_not_be_taken_again(output: MemoryStore) -> None:
    before = list(find(output, CHOICE))
    retry(output)

    def the_same(plan: Plan) -> Plan:
        units = units_of(before, choice=CHOICE, max_rows=3, max_bytes=1 << 20)
        assert plan.retry is not None
        return replace(plan, units=units, retry=replace(plan.retry, rows=rows_of(before)), plan_id="")

    retry(output, change=the_same)
    assert "and not just those that earlier retries have left" in first(output, "I6")


def test_a_retry_whose_error_rows_are_gone_is_named(output: MemoryStore) -> None:
    retry(output)
    part = next(find_part(output))
    del output.objects[part]
    assert "is missing" in first(output, "I8")


def find_part(store: MemoryStore) -> Any:
    plan = Plan.from_json(store.objects[keys.plan_key(1)])
    return (entry["part"] for unit in plan.units for entry in unit.range["retry"])
