"""Each way to break what is stored is found by the invariant that it breaks, and named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybatch.errors import SinkError
from raybatch.ledger import audit_objects, keys
from raybatch.ledger.audit import AuditReport, audit
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Commit, Layout, Plan
from raybatch.rows import UnitRows
from raybatch.sources.base import UnitSpec
from raybatch.store.memory import MemoryStore
from small_run import PIPELINE, Id, make_plan, make_sink, ok_table, publish, run

DATA = "data/00000000-00000.parquet"
Objects = dict[str, bytes]


def _edit(objects: Objects, key: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a record, and spell it as raybatch does."""
    raw = json.loads(objects[key])
    change(raw)
    objects[key] = json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()


def _edit_plan(objects: Objects, epoch: int, **changes: Any) -> None:
    """Change a plan and give it the id that belongs to its new content."""
    plan = Plan.from_json(objects[keys.plan_key(epoch)])
    objects[keys.plan_key(epoch)] = replace(plan, **changes, plan_id="").to_json().encode()


def _edit_unit(objects: Objects, unit: int, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a unit's record of epoch 0, and what the commit says of it."""
    key = keys.unit_key(0, unit)
    _edit(objects, key, change)
    checksum = hashlib.sha256(objects[key]).hexdigest()
    _edit(objects, keys.commit_key(0), lambda raw: raw["units"][unit].update(checksum=checksum))


def _part(objects: Objects, unit: int, kind: str) -> str:
    key: str = json.loads(objects[keys.unit_key(0, unit)])["parts"][kind]["key"]
    return key


def _first(report: AuditReport, invariant: str) -> str:
    check = next(check for check in report.checks if check.invariant == invariant)
    assert check.status == "failed", report.to_json()
    assert check.first is not None
    return check.first


def test_a_whole_output_passes_and_its_source_is_not_asked(output: MemoryStore) -> None:
    report = audit(output)
    statuses = {check.invariant: check.status for check in report.checks}
    assert statuses == {f"I{n}": "ok" for n in range(1, 9)} | {"I7": "not checked"}
    assert (report.ok, report.pipeline, report.epochs, report.notes) == (True, PIPELINE, 2, ())


def test_it_says_how_much_it_looked_at(output: MemoryStore) -> None:
    checked = {check.invariant: check.checked for check in audit(output).checks}
    # 2 epochs of 5 units of 6 rows, of which one becomes two
    assert checked["I1"] == "2 commits, 2 plans"
    assert checked["I5"] == "60 rows"
    assert checked["I6"] == "70 rows"
    # 3 parts a unit, and 4 files an epoch
    assert checked["I8"] == "38 objects"


def test_auditing_writes_nothing(output: MemoryStore) -> None:
    before = dict(output.objects)
    audit(output)
    assert output.objects == before


def test_an_epoch_may_be_planned_before_the_one_that_it_follows_is_committed(output: MemoryStore) -> None:
    ledger = Ledger(output, PIPELINE)
    for epoch in (2, 3):
        ledger.create_plan(make_plan(epoch=epoch, start={"next": epoch}))
    report = audit(output)
    assert report.ok, report.to_json()
    assert [note.split(":")[0] for note in report.notes] == ["epoch 2 is open", "epoch 3 is open"]


def test_an_epoch_that_is_planned_ahead_starts_where_the_plan_before_it_ends(output: MemoryStore) -> None:
    ledger = Ledger(output, PIPELINE)
    ledger.create_plan(make_plan(epoch=2, start={"next": 2}))
    ledger.create_plan(make_plan(epoch=3, start={"next": 2}))
    found = _first(audit(output), "I2")
    assert found == "epoch 3 starts at {'next': 2}, and the one before it ended at {'next': 3}"


Break = Callable[[Objects], object]

I1: list[tuple[Break, str]] = [
    (lambda o: o.pop(keys.plan_key(0)), "the plan of epoch 0 is missing, and later ones exist"),
    (lambda o: o.pop(keys.commit_key(0)), "the commit of epoch 0 is missing, and later ones exist"),
    (lambda o: o.pop(keys.plan_key(1)), "epoch 1 is committed, and has no plan"),
    (lambda o: o.update({"_raybatch/plan/0.json": b""}), "_raybatch/plan/0.json is named like no record"),
    (lambda o: o.update({keys.plan_key(0): b"{"}), f"{keys.plan_key(0)} is not JSON"),
    (lambda o: o.update({keys.commit_key(1): b"{}"}), f"{keys.commit_key(1)} is no record of raybatch"),
    (lambda o: o.update({keys.plan_key(3): o[keys.plan_key(1)]}), "the plan of epoch 2 is missing"),
    (
        lambda o: o.update({keys.plan_key(epoch): o[keys.plan_key(1)] for epoch in (2, 3, 4)}),
        "epoch 4 is planned, and epoch 2 is not committed",
    ),
    (lambda o: _edit_plan(o, 1, pipeline="other"), "the plan of epoch 1 is of pipeline 'other', not 'small'"),
    (lambda o: _edit_plan(o, 1, created_by="another"), "the commit of epoch 1 names plan "),
    (
        lambda o: o.update({keys.commit_key(1): o[keys.commit_key(0)]}),
        "the commit of epoch 1 says that it is of epoch 0",
    ),
]
I2: list[tuple[Break, str]] = [
    (
        lambda o: _edit_plan(o, 1, start={"next": 7}),
        "epoch 1 starts at {'next': 7}, and the one before it ended at {'next': 1}",
    ),
    (
        lambda o: _edit_plan(o, 0, start={"next": 0}),
        "epoch 0 starts at {'next': 0}, and the one before it ended at None",
    ),
    (
        lambda o: _edit(o, keys.commit_key(1), lambda raw: raw.update(end={})),
        "the commit of epoch 1 has another start or end than its plan",
    ),
]
I3: list[tuple[Break, str]] = [
    (
        lambda o: _edit_unit(o, 3, lambda raw: raw.update(plan_id="other")),
        f"{keys.unit_key(0, 3)} says that it is unit 3 of epoch 0, plan other",
    ),
    (
        lambda o: o.update({keys.unit_key(0, 3): o[keys.unit_key(0, 2)]}),
        f"{keys.unit_key(0, 3)} says that it is unit 2 of epoch 0",
    ),
    (lambda o: o.update({keys.unit_key(0, 3): b"[]"}), f"{keys.unit_key(0, 3)} is no record of raybatch"),
    (lambda o: o.update({keys.unit_key(0, 9): b""}), f"{keys.unit_key(0, 9)} is no unit of the plan"),
    (lambda o: o.update({keys.unit_key(7, 0): b""}), f"{keys.unit_key(7, 0)} is of no epoch that has a plan"),
]
I4: list[tuple[Break, str]] = [
    (lambda o: _flip(o, _part(o, 2, "errors")), ".errors.parquet, named by unit 2 of epoch 0, has "),
    (lambda o: _flip(o, DATA), f"{DATA}, named by the commit of epoch 0, has "),
    (lambda o: o.update({DATA: o[DATA][:-1]}), f"{DATA}, named by the commit of epoch 0, has "),
    (lambda o: o.pop(DATA), f"{DATA}, named by the commit of epoch 0, is missing"),
    (
        lambda o: o.pop(keys.unit_key(0, 4)),
        f"{keys.unit_key(0, 4)}, named by the commit of epoch 0, is missing",
    ),
    (
        lambda o: _edit(o, keys.unit_key(0, 1), lambda raw: raw.update(created_at="later")),
        "the commit of epoch 0 names attempt",
    ),
    (
        lambda o: _edit(o, keys.commit_key(0), lambda raw: raw["units"].pop()),
        "the commit of epoch 0 names 4 units of 5",
    ),
]
I5: list[tuple[Break, str]] = [
    (
        lambda o: _edit_unit(o, 1, lambda raw: raw["counts"].update(ok=7)),
        "unit 1 of epoch 0 does not add up: 6 in and 1 made, 7 ok, 1 errors, 1 dropped",
    ),
    (
        lambda o: _edit_unit(o, 1, lambda raw: raw["counts"].update(ok=6, dropped=0)),
        "unit 1 of epoch 0 counts 6 in and 1 made, 6 ok, 1 errors, 0 dropped, and its parts hold",
    ),
    (
        lambda o: _edit_unit(o, 1, lambda raw: raw.update(error_types={"TooLong": 2})),
        "unit 1 of epoch 0 counts 1 errors, and by type {'TooLong': 2}",
    ),
    (
        lambda o: _edit_unit(o, 1, lambda raw: raw["parts"]["ok"].update(rows=6)),
        "unit 1 of epoch 0 counts 6 in and 1 made, 5 ok, 1 errors, 1 dropped, and its parts hold",
    ),
    (
        lambda o: _edit(o, keys.commit_key(0), lambda raw: raw["totals"].update({"in": 31})),
        "the commit of epoch 0 totals 31 in",
    ),
    (
        lambda o: _edit(o, keys.commit_key(0), lambda raw: raw["data"][0].update(rows=9)),
        f"{DATA} holds 10 rows, and its commit records 9",
    ),
]
I6: list[tuple[Break, str]] = [
    (
        lambda o: o.update({"data/extra.parquet": b""}),
        "data/extra.parquet is named by no commit, and readers see its rows",
    ),
    (
        lambda o: o.update({"errors/00000000-00007.parquet": b""}),
        "errors/00000000-00007.parquet is named by no commit",
    ),
    (
        lambda o: o.update({"data/00000002-00000.parquet": b""}),
        "data/00000002-00000.parquet is named by no commit",
    ),
    (
        lambda o: _edit(o, keys.commit_key(0), lambda raw: raw["data"].pop()),
        "the commit of epoch 0: 0 files hold the ok rows of unit 3, not 1",
    ),
    (
        lambda o: _edit(o, keys.commit_key(0), lambda raw: raw["data"].append(raw["data"][0])),
        "the commit of epoch 0: 2 files hold the ok rows of unit 0, not 1",
    ),
]
I8: list[tuple[Break, str]] = [
    (lambda o: o.pop(_part(o, 1, "dropped")), ".dropped.parquet, named by unit 1 of epoch 0, is missing"),
    (lambda o: o.pop(DATA), f"{DATA}, named by the commit of epoch 0, is missing"),
    (
        lambda o: o.pop(keys.unit_key(0, 4)),
        f"{keys.unit_key(0, 4)}, named by the commit of epoch 0, is missing",
    ),
]
BROKEN = [
    pytest.param(invariant, broken, says, id=f"{invariant}-{number}")
    for invariant, cases in (
        ("I1", I1),
        ("I2", I2),
        ("I3", I3),
        ("I4", I4),
        ("I5", I5),
        ("I6", I6),
        ("I8", I8),
    )
    for number, (broken, says) in enumerate(cases)
]


def _flip(objects: Objects, key: str) -> None:
    data = bytearray(objects[key])
    data[len(data) // 2] ^= 1
    objects[key] = bytes(data)


@pytest.mark.parametrize(("invariant", "broken", "says"), BROKEN)
def test_a_violation_is_found_and_named(
    output: MemoryStore, invariant: str, broken: Break, says: str
) -> None:
    broken(output.objects)
    report = audit(output)
    assert says in _first(report, invariant)
    assert not report.ok


def test_only_the_first_violation_is_told_and_all_are_counted(output: MemoryStore) -> None:
    for epoch in (0, 1):
        _flip(output.objects, keys.file_key("data/", epoch, 0))
    check = next(check for check in audit(output).checks if check.invariant == "I4")
    assert check.violations == 2
    assert check.first is not None
    assert check.first.startswith(DATA)


def test_the_first_violation_is_the_first_in_order_however_many_are_looked_at_at_once() -> None:
    store = MemoryStore()
    run(store, run_id="run-1", units=40)
    for unit in (37, 11, 29):
        _flip(store.objects, _part(store.objects, unit, "dropped"))
    check = next(check for check in audit(store).checks if check.invariant == "I4")
    assert check.violations == 3
    assert "named by unit 11 of epoch 0" in (check.first or "")


def test_objects_too_large_to_be_held_are_checked_by_ranges(
    output: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_objects, "_WHOLE_BYTES", 0)
    assert audit(output).ok
    _flip(output.objects, DATA)
    assert _first(audit(output), "I4").startswith(f"{DATA}, named by the commit of epoch 0, has ")


class Doctored:
    """An output of epoch 0 whose units hold the ids that a test says: one list of ids per unit."""

    def __init__(self, *units: list[Id], rows: int = 2, commit: bool = True) -> None:
        self.store = MemoryStore()
        ledger = Ledger(self.store, PIPELINE)
        # Small enough that all units are merged into one file
        plan = make_plan(units=0, layout=Layout(target_bytes=1 << 20, small_bytes=1 << 20))
        specs = tuple(UnitSpec(range={}, rows=rows) for _ in units)
        self.plan = ledger.create_plan(replace(plan, units=specs, plan_id=""))
        self.records = [self._publish(ledger, unit, ids) for unit, ids in enumerate(units)]
        if commit:
            files = make_sink().finalise(self.plan, self.records, ledger=ledger)
            ledger.commit(self.plan, Commit.of(self.plan, self.records, files, run_id="run-1"))

    def _publish(self, ledger: Ledger, unit: int, ids: list[Id]) -> Any:
        table = ok_table(ids, ["text"] * len(ids), pa.string())
        rows = UnitRows(unit=self.plan.unit_key(unit), rows_in=2, table=table, made=len(ids) - 2)
        reference = self.plan.reference()
        return make_sink().write(rows, plan=reference, attempt=f"attempt-{unit}", ledger=ledger)

    def replace_file(self, table: pa.Table) -> None:
        """Put other rows into the merged file, and make the commit's account of it right."""
        metadata = pq.read_schema(pa.BufferReader(self.store.objects[DATA])).metadata
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata(metadata), sink)
        data = self.store.objects[DATA] = sink.getvalue().to_pybytes()
        account = {"rows": len(table), "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        _edit(self.store.objects, keys.commit_key(0), lambda raw: raw["data"][0].update(account))

    def rows(self) -> pa.Table:
        return pq.read_table(pa.BufferReader(self.store.objects[DATA]))


FIRST_UNIT: list[Id] = [("a", 0, None), ("a", 1, None)]
SECOND_UNIT: list[Id] = [("a", 2, None), ("b", 0, None)]


@pytest.mark.parametrize(
    ("units", "says"),
    [
        (
            [FIRST_UNIT, [("a", 2, None), ("a", 1, None)]],
            "a row 1 is in unit 0 of epoch 0 and in unit 1 of epoch 0",
        ),
        (
            [FIRST_UNIT, [("a", 2, None), ("a", 1, "0")]],
            "a row 1 is in unit 0 of epoch 0 and in unit 1 of epoch 0",
        ),
        ([[("a", 0, None), ("a", 0, None)]], "a row 0 is more than once in unit 0 of epoch 0"),
        ([[("a", 0, "1"), ("a", 0, "1")]], "a row 0 child 1 is more than once in unit 0 of epoch 0"),
        ([[("a", 0, None), ("a", 1, None), ("a", 1, "0")]], "a row 1 is more than once in unit 0 of epoch 0"),
        ([[("a", 0, "0"), ("a", 0, "1")]], "unit 0 of epoch 0 took 2 rows in, and has ids of 1 input rows"),
        (
            [[("a", r, None) for r in range(3)]],
            "unit 0 of epoch 0 took 2 rows in, and has ids of 3 input rows",
        ),
    ],
)
def test_ids_that_are_not_there_exactly_once_are_named(units: list[list[Id]], says: str) -> None:
    assert _first(audit(Doctored(*units).store), "I6") == says


def test_a_row_of_two_epochs_is_named(output: MemoryStore) -> None:
    twice = Doctored([("input-1", 0, None), ("input-1", 1, None)]).store.objects
    run(MemoryStore(twice), run_id="run-2", epochs=2)
    assert _first(audit(MemoryStore(twice)), "I6") == (
        "input-1 row 0 is in unit 0 of epoch 0 and in unit 0 of epoch 1"
    )


def test_rows_with_children_of_equal_numbers_in_other_sources_are_different_rows() -> None:
    units: list[list[Id]] = [[("a", 0, "0"), ("a", 0, "1"), ("a", 1, None)], [("b", 0, "0"), ("b", 1, None)]]
    assert audit(Doctored(*units).store).ok


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t: pa.concat_tables([t.slice(0, 3), t.slice(0, 1)]),
            "has a row 0 where b row 0 belongs, at row 1",
        ),
        (lambda t: t.slice(0, 3), "lacks b row 0 (unit 1 of epoch 0)"),
        (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "has, beyond the unit's rows, a row 0"),
        (lambda t: t.take([1, 0, 2, 3]), "has a row 1 where a row 0 belongs, at row 0 of the unit"),
    ],
)
def test_a_merged_file_must_hold_the_rows_of_its_units(
    change: Callable[[pa.Table], pa.Table], says: str
) -> None:
    output = Doctored(FIRST_UNIT, SECOND_UNIT)
    output.replace_file(change(output.rows()))
    assert says in _first(audit(output.store), "I6")


def test_a_footer_that_names_another_plan_is_found() -> None:
    output = Doctored(FIRST_UNIT, SECOND_UNIT)
    objects = output.store.objects
    objects[DATA] = objects[DATA].replace(output.plan.plan_id.encode(), b"0" * 64)
    digest = hashlib.sha256(objects[DATA]).hexdigest()
    _edit(objects, keys.commit_key(0), lambda raw: raw["data"][0].update(sha256=digest))
    assert _first(audit(output.store), "I3").startswith(f"the footer of {DATA} says plan 000000")


def test_a_unit_that_lacks_rows_of_its_plan_is_named() -> None:
    output = Doctored(FIRST_UNIT, rows=3, commit=False)
    assert _first(audit(output.store), "I5") == (
        "unit 0 of epoch 0 was planned with 3 rows, and accounts for 2"
    )


def test_open_epochs_garbage_and_cut_off_writes_are_told_and_no_violation() -> None:
    output = Doctored(FIRST_UNIT, SECOND_UNIT, commit=False)
    output.store.objects["_raybatch/parts/00000000/00000/00000001-lost.ok.parquet"] = b"12345"
    output.store.objects["_tmp/abc"] = b"123"
    output.store.objects[DATA] = b""
    report = audit(output.store)
    assert report.ok
    assert report.notes == (
        "epoch 0 is open: 2 of 2 units are published, none is committed",
        "epoch 0: 1 parts (5 bytes) of attempts that were not published, such as"
        " _raybatch/parts/00000000/00000/00000001-lost.ok.parquet; some may be of attempts that are still at work",
        f"{DATA} waits for the commit of epoch 0",
        "_tmp/abc (3 bytes) is left of a write that was cut off",
    )


def test_a_damaged_part_of_an_open_epoch_is_a_violation() -> None:
    output = Doctored(FIRST_UNIT, commit=False)
    _flip(output.store.objects, _part(output.store.objects, 0, "ok"))
    assert "named by unit 0 of epoch 0" in _first(audit(output.store), "I4")


def test_what_is_no_output_is_a_sink_error() -> None:
    with pytest.raises(SinkError, match="holds no output of raybatch"):
        audit(MemoryStore({"data/x.parquet": b""}))


def test_an_epoch_published_by_several_attempts_counts_the_standing_one_only() -> None:
    store = MemoryStore()
    ledger = Ledger(store, PIPELINE)
    plan = ledger.create_plan(make_plan())
    publish(ledger, plan, 0)
    publish(ledger, plan, 0)
    run(store, run_id="run-1")
    assert audit(store).ok
