from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raybatch.errors import LedgerError, LostRaceError, SinkError, StoreError
from raybatch.ledger import keys
from raybatch.ledger.drift import differences
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Commit, Counts, Plan, UnitRecord
from raybatch.store import LocalStore
from raybatch.store.memory import MemoryStore, Outcome
from small_run import PIPELINE, Oracle, in_child, make_plan, make_sink, outcome_of, publish, run


class OneFault:
    """A hook that lets one operation on a key end otherwise."""

    def __init__(self, operation: str, key: str, outcome: Outcome) -> None:
        self.wanted = (operation, key)
        self.outcome = outcome
        self.met = False

    def __call__(self, operation: str, key: str) -> Outcome:
        if (operation, key) != self.wanted or self.met:
            return Outcome.DONE
        self.met = True
        return self.outcome


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def ledger(store: MemoryStore) -> Ledger:
    return Ledger(store, PIPELINE)


def _published(ledger: Ledger, plan: Plan) -> list[UnitRecord]:
    return [publish(ledger, plan, unit) for unit in range(len(plan.units))]


def _commit(ledger: Ledger, plan: Plan, *, run_id: str = "run-1", **kwargs: Any) -> Commit:
    records = [ledger.record(plan, unit) for unit in range(len(plan.units))]
    files = make_sink().finalise(plan, records, ledger=ledger)
    return Commit.of(plan, records, files, run_id=run_id, **kwargs)


def test_an_empty_output_starts_at_the_very_beginning(ledger: Ledger) -> None:
    ledger.open()
    assert (ledger.position(), ledger.last_commit(), ledger.plan(0)) == ((0, None), None, None)


def test_a_ledger_travels_by_pickle(tmp_path: Path) -> None:
    ledger = Ledger(LocalStore(str(tmp_path)), PIPELINE)
    plan = ledger.create_plan(make_plan())
    assert pickle.loads(pickle.dumps(ledger)).plan(0) == plan


def test_of_two_plans_the_first_stands_and_both_are_given_it(ledger: Ledger) -> None:
    first, second = make_plan(run_id="run-1"), make_plan(run_id="run-2")
    assert ledger.create_plan(first) == first
    assert ledger.create_plan(second) == first


def test_a_unit_is_the_attempt_that_was_published_first(ledger: Ledger) -> None:
    plan = ledger.create_plan(make_plan())
    first, second = publish(ledger, plan, 0), publish(ledger, plan, 0)
    assert first == second == ledger.record(plan, 0)


def test_published_lists_the_units_that_have_a_record(ledger: Ledger) -> None:
    plan = ledger.create_plan(make_plan())
    for unit in (3, 1):
        publish(ledger, plan, unit)
    assert ledger.published(plan) == {1, 3}


def test_the_position_follows_the_last_commit(ledger: Ledger) -> None:
    run(ledger.store, run_id="run-1", epochs=3, units=1)
    assert ledger.position() == (3, {"next": 3})


def test_the_recorded_checksum_is_that_of_the_stored_record(ledger: Ledger, store: MemoryStore) -> None:
    commit = run(store, run_id="run-1", units=1)
    assert commit is not None
    stored = store.objects[keys.unit_key(0, 0)]
    assert commit.units[0].checksum == hashlib.sha256(stored).hexdigest()


@pytest.mark.parametrize("key", [keys.plan_key(0), keys.unit_key(0, 0), keys.commit_key(0)])
def test_a_record_whose_answer_was_lost_is_found_to_stand(store: MemoryStore, key: str) -> None:
    fault = OneFault("create", key, Outcome.UNSURE)
    store.hook = fault
    commit = run(store, run_id="run-1", units=1)
    assert fault.met
    assert commit is not None
    assert commit.run_id == "run-1"


@pytest.mark.parametrize("key", [keys.plan_key(0), keys.unit_key(0, 0), keys.commit_key(0)])
def test_a_record_that_was_not_stored_is_an_error_and_the_next_run_goes_on(
    store: MemoryStore, key: str
) -> None:
    store.hook = OneFault("create", key, Outcome.LOST)
    with pytest.raises(StoreError, match="injected"):
        run(store, run_id="run-1", units=1)
    commit = run(store, run_id="run-2", units=1)
    assert commit is not None
    assert commit.totals.rows_in == 6


def test_an_epoch_is_not_committed_before_the_one_that_it_follows(ledger: Ledger) -> None:
    first = ledger.create_plan(make_plan())
    second = ledger.create_plan(make_plan(epoch=1, start=first.end))
    for plan in (first, second):
        _published(ledger, plan)
    with pytest.raises(LedgerError, match="epoch 1 does not follow the one before, which is not there"):
        ledger.commit(second, _commit(ledger, second))
    ledger.commit(first, _commit(ledger, first))
    assert ledger.commit(second, _commit(ledger, second)).epoch == 1


def test_an_epoch_is_not_committed_that_starts_elsewhere_than_the_one_before_ended(ledger: Ledger) -> None:
    run(ledger.store, run_id="run-1", units=1)
    plan = ledger.create_plan(make_plan(epoch=1, start={"next": 7}))
    _published(ledger, plan)
    with pytest.raises(LedgerError, match="epoch 1 does not follow the one before, which ends elsewhere"):
        ledger.commit(plan, _commit(ledger, plan))


def test_the_loser_of_a_commit_is_told_who_won(ledger: Ledger) -> None:
    plan = ledger.create_plan(make_plan())
    _published(ledger, plan)
    ours, theirs = _commit(ledger, plan, run_id="run-1"), _commit(ledger, plan, run_id="run-2")
    ledger.commit(plan, theirs)
    with pytest.raises(LostRaceError, match=r"run run-2 committed epoch 0 first.*run-1"):
        ledger.commit(plan, ours)


def test_a_commit_of_ours_that_stands_is_success(ledger: Ledger) -> None:
    plan = ledger.create_plan(make_plan())
    _published(ledger, plan)
    first = ledger.commit(plan, _commit(ledger, plan))
    again = ledger.commit(plan, replace(_commit(ledger, plan), created_at="later"))
    assert again == first


def test_a_commit_lacking_a_unit_is_refused(ledger: Ledger) -> None:
    plan = ledger.create_plan(make_plan())
    _published(ledger, plan)
    commit = _commit(ledger, plan)
    ledger.store.delete(keys.unit_key(0, 2))
    with pytest.raises(LedgerError, match=r"1 of them are not published \(first: 2\)"):
        ledger.commit(plan, commit)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"plan_id": "other"}, "is not of this plan"),
        ({"end": {"next": 9}}, "is not of this plan"),
        ({"data": ()}, "its files hold 0 ok rows, its units 25"),
        ({"errors": ()}, "its files hold 0 error rows, its units 5"),
        ({"units": ()}, "names 0 of 5 units"),
        ({"totals": Counts(rows_in=31, ok=25, error=5)}, "does not add up"),
    ],
)
def test_a_commit_that_does_not_add_up_to_its_plan_is_refused(
    ledger: Ledger, change: dict[str, Any], says: str
) -> None:
    plan = ledger.create_plan(make_plan())
    _published(ledger, plan)
    with pytest.raises(LedgerError, match=says):
        ledger.commit(plan, replace(_commit(ledger, plan), **change))
    assert ledger.last_commit() is None


def test_a_unit_that_does_not_add_up_is_not_published(ledger: Ledger) -> None:
    plan = ledger.create_plan(make_plan())
    record = replace(publish(ledger, plan, 0), unit=1, counts=Counts(rows_in=6, ok=5))
    with pytest.raises(LedgerError, match="does not add up"):
        ledger.publish(record)
    assert ledger.published(plan) == {0}


def test_drift_that_was_allowed_is_in_the_commit(ledger: Ledger) -> None:
    plan = ledger.create_plan(make_plan())
    _published(ledger, plan)
    drift = differences(plan.fingerprint, {"stages": [{"name": "generate", "prompt": "Sing {{ text }}"}]})
    ledger.commit(plan, _commit(ledger, plan, drift=drift))
    stored = json.loads(ledger.store.read(keys.commit_key(0)))["drift"]
    assert stored == [{"path": "stages[0].prompt", "planned": "Say {{ text }}", "now": "Sing {{ text }}"}]


def test_an_output_of_another_pipeline_is_refused_with_both_names(store: MemoryStore) -> None:
    run(store, run_id="run-1", units=1)
    with pytest.raises(SinkError, match=r"pipeline 'small'.*'other'.*sink\.path of its own"):
        Ledger(store, "other").open()


def test_another_pipeline_that_planned_in_between_is_noticed_at_the_plan(store: MemoryStore) -> None:
    Ledger(store, "other").open()
    Ledger(store, PIPELINE).create_plan(make_plan())
    with pytest.raises(SinkError, match="belongs to the pipeline 'small'"):
        Ledger(store, "other").create_plan(replace(make_plan(), pipeline="other", plan_id=""))


@pytest.mark.parametrize("key", ["data/part-0.parquet", "errors/x.json"])
def test_files_of_another_origin_are_refused(store: MemoryStore, key: str) -> None:
    store.create(key, b"")
    with pytest.raises(SinkError, match=f"holds {key}, which no run of raybatch has written"):
        Ledger(store, PIPELINE).open()


def test_a_folder_with_other_things_beside_is_welcome(store: MemoryStore) -> None:
    store.create("README.md", b"")
    Ledger(store, PIPELINE).open()
    assert run(store, run_id="run-1", units=1) is not None


def test_an_output_that_cannot_be_written_is_a_sink_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match=r"sink\.path .*/file/out cannot be used: .* is a file"):
        Ledger(LocalStore(str(tmp_path / "file/out")), PIPELINE).open()


def test_opening_does_not_write_to_what_belongs_to_another(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.parquet").write_text("")
    with pytest.raises(SinkError):
        Ledger(LocalStore(str(tmp_path)), PIPELINE).open()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["data", "mine.parquet"]


Break = Callable[[MemoryStore], object]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda s: s.objects.pop(keys.commit_key(0)), "commit/00000000.json is missing"),
        (lambda s: s.objects.update({"_raybatch/commit/last.json": b""}), "commit/00000002.json is missing"),
        (lambda s: s.objects.update({keys.commit_key(1): s.objects[keys.commit_key(0)]}), "holds epoch 0"),
        (lambda s: s.objects.update({keys.commit_key(1): b"{"}), "is not JSON"),
    ],
)
def test_commits_that_contradict_each_other_stop_everything(
    store: MemoryStore, broken: Break, says: str
) -> None:
    run(store, run_id="run-1", epochs=2, units=1)
    broken(store)
    with pytest.raises(LedgerError, match=says):
        Ledger(store, PIPELINE).position()


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda s: s.objects.pop(keys.plan_key(0)), "exists, but no plan does"),
        (lambda s: s.objects.update({"_raybatch/plan/0.json": b""}), "is no plan"),
    ],
)
def test_plans_that_were_tampered_with_are_noticed_at_the_start(
    store: MemoryStore, broken: Break, says: str
) -> None:
    run(store, run_id="run-1", units=1)
    broken(store)
    with pytest.raises(LedgerError, match=says):
        Ledger(store, PIPELINE).open()


def test_a_unit_of_another_plan_is_a_contradiction(ledger: Ledger) -> None:
    plan = ledger.create_plan(make_plan())
    publish(ledger, plan, 0)
    other = make_plan(run_id="run-2")
    with pytest.raises(LedgerError, match=f"is of plan {plan.plan_id}, not of {other.plan_id}"):
        ledger.record(other, 0)


@pytest.mark.parametrize("name", ["00000005.json", "0.json", "notes.txt"])
def test_what_is_no_unit_of_the_plan_is_not_taken_for_one(ledger: Ledger, name: str) -> None:
    plan = ledger.create_plan(make_plan())
    ledger.store.create(f"_raybatch/units/00000000/00000/{name}", b"")
    with pytest.raises(LedgerError, match="is no unit of the plan of epoch 0, which has 5 units"):
        ledger.published(plan)


def test_processes_that_race_agree_on_plan_units_and_commit(tmp_path: Path) -> None:
    path = tmp_path / "out"

    def race(run_id: str) -> None:
        try:
            run(LocalStore(str(path)), run_id=run_id, epochs=3)
        except LostRaceError as error:
            (tmp_path / run_id).write_text(str(error))

    children = [in_child(lambda run_id=f"run-{n}": race(run_id)) for n in range(4)]
    assert [outcome_of(child) for child in children] == [0] * 4
    # Those who lost say so; the others finish what is left
    run(LocalStore(str(path)), run_id="run-9", epochs=3)
    Oracle.of_folder(path).check_complete(epochs=3)
