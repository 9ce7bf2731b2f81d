"""SIGKILL at every durable step, on a real filesystem, then a second run: every row once."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
from pathlib import Path

import pytest

from raybatch.errors import LostRaceError
from raybatch.ledger.audit import audit
from raybatch.ledger.failpoints import FAILPOINTS, failpoint
from raybatch.ledger.ledger import Ledger
from raybatch.store import LocalStore
from small_run import PIPELINE, Oracle, in_child, make_plan, make_sink, outcome_of, publish, run, unit_rows

EPOCHS = 2

# A miniature run reads no source and loses no race; those points are passed elsewhere.
NOT_PASSED = {"before-read", "after-read", "before-discard"}
FIRST = [name for name in FAILPOINTS if name not in NOT_PASSED]
# Amid the parts of a unit, amid the units, amid the files (three of data, one of errors), in the second epoch
LATER = [
    "before-part@2",
    "after-part@3",
    "before-part@9",
    "before-unit@3",
    "after-unit@5",
    "before-verify@4",
    "before-file@2",
    "after-file@3",
    "before-file@4",
    "after-file@4",
    "before-plan@2",
    "after-unit@8",
    "before-commit@2",
    "after-commit@2",
]


def _published(path: Path) -> dict[str, str]:
    """The attempt of each published unit, by the record's name."""
    records = (path / "_raybatch/units").rglob("*.json")
    return {str(r.relative_to(path)): json.loads(r.read_text())["attempt"] for r in records}


@pytest.mark.parametrize("point", FIRST + LATER)
def test_a_run_killed_at_any_point_is_finished_by_the_next(tmp_path: Path, point: str) -> None:
    store = LocalStore(str(tmp_path))
    child = in_child(lambda: run(store, run_id="run-1", epochs=EPOCHS), failpoint=point)
    assert outcome_of(child) == -signal.SIGKILL
    before = _published(tmp_path)
    run(store, run_id="run-2", epochs=EPOCHS)
    Oracle.of_folder(tmp_path).check_complete(epochs=EPOCHS)
    assert before.items() <= _published(tmp_path).items()
    assert audit(store).ok


def test_the_points_that_the_story_passes_are_the_known_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    passed: list[str] = []
    for module in ("ledger.ledger", "sinks.parquet", "sinks.files"):
        monkeypatch.setattr(f"raybatch.{module}.failpoint", passed.append)
    monkeypatch.setattr("small_run.failpoint", passed.append)
    run(LocalStore(str(tmp_path)), run_id="run-1")
    assert set(passed) == set(FIRST)


def test_a_loser_killed_before_it_tidies_up_leaves_garbage_and_no_rows(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    ledger = Ledger(store, PIPELINE)
    plan = ledger.create_plan(make_plan())
    publish(ledger, plan, 0)
    child = in_child(lambda: publish(ledger, plan, 0), failpoint="before-discard")
    assert outcome_of(child) == -signal.SIGKILL
    run(store, run_id="run-2")
    Oracle.of_folder(tmp_path).check_complete()
    report = audit(store)
    assert report.ok
    assert [note for note in report.notes if "3 parts" in note and "garbage" in note] == list(report.notes)


def test_a_loser_deletes_its_own_parts_and_only_those(tmp_path: Path) -> None:
    ledger = Ledger(LocalStore(str(tmp_path)), PIPELINE)
    plan = ledger.create_plan(make_plan())
    standing = publish(ledger, plan, 0)
    make_sink().write(unit_rows(plan, 0, "loser"), plan=plan.reference(), attempt="loser", ledger=ledger)
    stored = {f.relative_to(tmp_path).as_posix() for f in (tmp_path / "_raybatch/parts").rglob("*.parquet")}
    assert stored == {part.key for part in standing.parts.values()}


def test_a_run_killed_again_and_again_at_random_moments_still_ends_whole(tmp_path: Path) -> None:
    store, rng = LocalStore(str(tmp_path)), random.Random(7)
    for number in range(20):
        points = [f"{name}@{rng.randint(1, 3)}" for name in FIRST]
        name = rng.choice(points)
        child = in_child(lambda n=number: run(store, run_id=f"run-{n}", epochs=4, units=3), failpoint=name)
        assert outcome_of(child) in (0, -signal.SIGKILL)
    run(store, run_id="run-last", epochs=4, units=3)
    Oracle.of_folder(tmp_path).check_complete(epochs=4, units=3)


def test_two_runs_of_which_one_is_killed_do_not_harm_each_other(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    for point in ("after-part@5", "before-file@2", "before-commit"):
        children = [
            in_child(lambda p=point: run(store, run_id=f"killed-at-{p}", epochs=2), failpoint=point),
            in_child(lambda: _run_or_lose(store)),
        ]
        for child in children:
            outcome_of(child)
    run(store, run_id="run-last", epochs=2)
    Oracle.of_folder(tmp_path).check_complete(epochs=2)
    assert audit(store).ok


def _run_or_lose(store: LocalStore) -> None:
    try:
        run(store, run_id="run-beside", epochs=2)
    except LostRaceError:
        return


def test_a_run_on_a_full_disk_is_finished_by_the_next_when_there_is_room(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = LocalStore(str(tmp_path))

    def run_out_of_space() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # the third unit's part has 26 kB
        run(store, run_id="run-1")

    assert outcome_of(in_child(run_out_of_space)) == 1
    assert "StoreError: cannot write" in capfd.readouterr().err
    assert len(_published(tmp_path)) == 2
    run(store, run_id="run-2")
    Oracle.of_folder(tmp_path).check_complete()


@pytest.mark.parametrize(("setting", "passings"), [("p", 1), ("p@1", 1), ("p@3", 3)])
def test_a_failpoint_kills_at_the_passing_it_says(tmp_path: Path, setting: str, passings: int) -> None:
    def act() -> None:
        for number in range(10):
            failpoint("other")
            (tmp_path / str(number)).touch()
            failpoint("p")

    assert outcome_of(in_child(act, failpoint=setting)) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == passings


def test_a_failpoint_that_nobody_set_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYBATCH_FAILPOINT", raising=False)
    assert outcome_of(in_child(lambda: [failpoint(name) for name in FAILPOINTS])) == 0
    assert os.environ.get("RAYBATCH_FAILPOINT") is None
