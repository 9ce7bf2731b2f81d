"""What garbage is, what is none, and that a clean-up beside live runs removes nothing that is referenced."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raybatch.errors import LostRaceError, SinkError
from raybatch.ledger import keys
from raybatch.ledger.audit import audit
from raybatch.ledger.gc import LEFTOVER_AGE_S, collect_garbage
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Plan
from raybatch.store import LocalStore, Store
from raybatch.store.memory import MemoryStore, Outcome, always_done
from small_run import (
    PIPELINE,
    Oracle,
    in_child,
    make_plan,
    make_sink,
    outcome_of,
    publish,
    run,
    unit_rows,
    wait_until,
)

Objects = dict[str, bytes]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def ledger(store: MemoryStore) -> Ledger:
    return Ledger(store, PIPELINE)


@pytest.fixture
def plan(ledger: Ledger) -> Plan:
    return ledger.create_plan(make_plan())


def _leave_parts(store: Store, plan: Plan, unit: int, attempt: str) -> set[str]:
    """The parts of an attempt that dies before it publishes."""
    other = MemoryStore()
    record = make_sink().write(
        unit_rows(plan, unit, attempt),
        plan=plan.reference(),
        attempt=attempt,
        ledger=Ledger(other, PIPELINE),
    )
    for part in record.parts.values():
        store.put(part.key, other.objects[part.key])
    return {part.key for part in record.parts.values()}


def _removed(store: MemoryStore, **options: Any) -> set[str]:
    before = set(store.objects)
    collect_garbage(store, **options)
    return before - set(store.objects)


def test_parts_of_other_attempts_at_a_published_unit_go(
    store: MemoryStore, ledger: Ledger, plan: Plan
) -> None:
    lost = _leave_parts(store, plan, 0, "lost-1") | _leave_parts(store, plan, 0, "lost-2")
    publish(ledger, plan, 0)
    size = sum(len(store.objects[key]) for key in lost)
    report = collect_garbage(store)
    assert (report.parts, report.leftovers, report.bytes, report.notes) == (6, 0, size, ())
    assert not lost & set(store.objects)


def test_what_is_referenced_stays_to_the_last_byte(store: MemoryStore) -> None:
    run(store, run_id="run-1", epochs=2)
    ledger = Ledger(store, PIPELINE)
    open_epoch = ledger.create_plan(make_plan(epoch=2, start={"next": 2}))
    publish(ledger, open_epoch, 3)
    before = dict(store.objects)
    _leave_parts(store, open_epoch, 3, "lost")
    _leave_parts(store, make_plan(epoch=1), 2, "lost")
    assert collect_garbage(store).parts == 6
    assert store.objects == before


def test_parts_of_a_unit_without_a_record_stay_as_an_attempt_may_be_at_work(
    store: MemoryStore, plan: Plan
) -> None:
    waiting = _leave_parts(store, plan, 0, "one") | _leave_parts(store, plan, 0, "two")
    report = collect_garbage(store)
    assert (report.parts, waiting <= set(store.objects)) == (0, True)
    assert report.notes == (
        "1 units have parts of several attempts and no record yet: left alone, as one of them may be at work",
    )


def test_a_dry_run_says_the_same_and_removes_nothing(store: MemoryStore, ledger: Ledger, plan: Plan) -> None:
    publish(ledger, plan, 0)
    _leave_parts(store, plan, 0, "lost")
    before = dict(store.objects)
    said = collect_garbage(store, dry_run=True)
    assert store.objects == before
    assert said.to_json() | {"dry_run": False} == collect_garbage(store).to_json()
    assert said.parts == 3


Break = Callable[[Objects], object]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda o: o.pop(keys.unit_key(0, 0)), "its epoch is committed, and its record is missing"),
        (lambda o: o.update({keys.unit_key(0, 0): b"{"}), "is not JSON"),
        (lambda o: o.update({keys.unit_key(0, 0): o[keys.unit_key(0, 1)]}), "is of unit 1 of epoch 0"),
        (lambda o: o.update({keys.commit_key(0): b"{"}), f"{keys.commit_key(0)} is not JSON"),
    ],
)
def test_where_records_make_no_sense_everything_is_left_for_a_person(
    store: MemoryStore, broken: Break, says: str
) -> None:
    run(store, run_id="run-1")
    lost = _leave_parts(store, make_plan(), 0, "lost")
    broken(store.objects)
    report = collect_garbage(store)
    assert (report.parts, lost <= set(store.objects)) == (0, True)
    [note] = report.notes
    assert note.startswith("the parts of unit 0 of epoch 0 are left alone: ")
    assert says in note


def test_the_attempt_that_a_commit_names_stays_also_when_its_record_was_replaced(store: MemoryStore) -> None:
    run(store, run_id="run-1")
    ledger = Ledger(store, PIPELINE)
    plan = ledger.plan(0)
    assert plan is not None
    store.delete(keys.unit_key(0, 0))
    publish(ledger, plan, 0)
    before = dict(store.objects)
    report = collect_garbage(store)
    assert store.objects == before
    assert "its record and the commit of its epoch name different attempts" in report.notes[0]


def test_strange_names_stay(store: MemoryStore, plan: Plan) -> None:
    strange = {f"{keys.PARTS}notes.txt", f"{keys.PARTS}00000000/00007/00000000-a.ok.parquet"}
    store.objects.update(dict.fromkeys(strange, b""))
    assert collect_garbage(store).notes == (
        "what is below _raybatch/parts/ and named like no part is left alone",
    )
    assert strange <= set(store.objects)


def test_what_is_no_output_is_a_sink_error() -> None:
    with pytest.raises(SinkError, match="holds no output of raybatch"):
        collect_garbage(MemoryStore({"data/x.parquet": b""}))


def test_cut_off_writes_go_a_day_after_their_last_byte(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    run(store, run_id="run-1", units=1)
    before = {file for file in tmp_path.rglob("*") if file.is_file()}
    for name, age in (("_tmp/old", 3600.0), ("_probe/old", 3600.0), ("_tmp/young", -3600.0)):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"12345")
        then = time.time() - LEFTOVER_AGE_S - age
        os.utime(file, (then, then))
    report = collect_garbage(store)
    assert (report.leftovers, report.bytes) == (2, 10)
    assert report.notes == ("1 temporary objects are younger than 24 hours: left alone",)
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == before | {tmp_path / "_tmp/young"}


def test_a_store_without_times_keeps_its_temporary_objects(store: MemoryStore, plan: Plan) -> None:
    store.objects["_probe/left"] = b""
    assert collect_garbage(store).notes == ("1 temporary objects are left alone: this store tells no times",)
    assert "_probe/left" in store.objects


# --- beside live runs ------------------------------------------------------------------------------------


def _about_to_publish(store: MemoryStore, act: Callable[[], object]) -> None:
    """Have `act` happen when the next attempt has stored its parts, and is about to create its record."""

    def hook(operation: str, key: str) -> Outcome:
        if (operation, key) == ("create", keys.unit_key(0, 0)):
            store.hook = always_done
            act()
        return Outcome.DONE

    store.hook = hook


def test_an_attempt_that_loses_after_its_parts_were_removed_is_told_who_won(
    store: MemoryStore, ledger: Ledger, plan: Plan
) -> None:
    removed: list[int] = []

    def another_wins_and_gc_runs() -> None:
        publish(ledger, plan, 0)
        removed.append(collect_garbage(store).parts)

    _about_to_publish(store, another_wins_and_gc_runs)
    standing = publish(ledger, plan, 0)
    assert removed == [3]
    assert ledger.record(plan, 0) == standing
    run(store, run_id="run-1")
    Oracle(store.objects).check_complete()


def test_an_attempt_about_to_publish_keeps_its_parts(store: MemoryStore, ledger: Ledger, plan: Plan) -> None:
    _leave_parts(store, plan, 0, "dead")
    removed: list[int] = []
    _about_to_publish(store, lambda: removed.append(collect_garbage(store).parts))
    standing = publish(ledger, plan, 0)
    assert removed == [0]
    assert collect_garbage(store).parts == 3
    assert {part.key for part in standing.parts.values()} <= set(store.objects)


EPOCHS, UNITS = 3, 6


def _clean_until(stop: Path, store: LocalStore, told: Path) -> None:
    removed = 0
    while not stop.exists():
        try:
            removed += collect_garbage(store).parts
        except SinkError:
            continue  # nothing is planned yet
        told.write_text(str(removed))


def _publish_again(store: LocalStore) -> None:
    """An attempt at every unit of every epoch there is, also at those that are published."""
    ledger = Ledger(store, PIPELINE)
    for epoch in range(EPOCHS):
        plan = ledger.plan(epoch)
        for unit in range(UNITS if plan else 0):
            publish(ledger, plan, unit)


def _run_or_lose(store: LocalStore, run_id: str) -> None:
    try:
        run(store, run_id=run_id, epochs=EPOCHS, units=UNITS)
    except LostRaceError:
        return


def test_a_clean_up_beside_live_runs_removes_nothing_that_is_referenced(tmp_path: Path) -> None:
    store, stop, told = LocalStore(str(tmp_path / "out")), tmp_path / "stop", tmp_path / "told"
    cleaner = in_child(lambda: _clean_until(stop, store, told))
    points = [
        "after-part@4",
        "before-unit@5",
        "before-discard",
        "after-part@20",
        "before-discard@4",
        "before-commit@2",
    ]
    for number, point in enumerate(points):
        children = [
            in_child(lambda n=number: _run_or_lose(store, f"killed-{n}"), failpoint=point),
            in_child(lambda n=number: _run_or_lose(store, f"run-{n}"), failpoint="before-file@3"),
            in_child(lambda: _publish_again(store), failpoint=point),
        ]
        assert {outcome_of(child) for child in children} <= {0, -signal.SIGKILL}
    _run_or_lose(store, "run-last")
    _publish_again(store)
    wait_until(lambda: told.exists() and told.read_text() not in ("", "0"))  # it had something to do
    stop.touch()
    assert outcome_of(cleaner) == 0
    collect_garbage(store)

    Oracle.of_folder(tmp_path / "out").check_complete(epochs=EPOCHS, units=UNITS)
    report = audit(store)
    assert report.ok, report.to_json()
    assert [note for note in report.notes if "garbage" in note] == []
