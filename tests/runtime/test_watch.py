"""A run as seen from outside."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import Listener, pipeline, plan, record

from raybatch.engines.pool import PoolStatus, ReplicaStatus
from raybatch.latency import produced
from raybatch.ledger.records import Commit, Retry
from raybatch.runtime import watch as watching
from raybatch.runtime.watch import Watch
from raybatch.sources.base import UnitSpec

UNITS = [UnitSpec(range={}, rows=10, bytes=100), UnitSpec(range={}, rows=10, bytes=100)]


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def watch(tmp_path: Path, listener: Listener) -> Watch:
    return Watch(pipeline(tmp_path), run_id="run-1", reporter=listener)


def engine(state: str, **options: Any) -> PoolStatus:
    base: dict[str, Any] = {"deaths": 0, "rows": 0, "generated_tokens": 0, "error": None, "describe": {}}
    times = {"load_s": None, "ready_at": None, "last_reply_at": None}
    replicas = [ReplicaStatus(name="r", state=state)]
    known = {"key": "k", "kind": "simulated", "model": "m", "replicas": replicas}
    return PoolStatus(**known | base | times | options)


def test_each_phase_is_told_as_it_is_entered(watch: Watch, listener: Listener) -> None:
    for phase in ("planning", "starting", "finalising"):
        watch.enter(phase)
    assert [snapshot.phase for snapshot in listener.snapshots] == ["planning", "starting", "finalising"]


def test_a_resumed_run_starts_with_what_is_published_already(watch: Watch, listener: Listener) -> None:
    watch.begin(plan(UNITS))
    watch.add(plan(UNITS), record(0, ok=10), resumed=True)
    watch.enter("starting")
    (snapshot,) = listener.snapshots
    assert snapshot.units == {"planned": 2, "published": 1, "resumed": 1}
    assert (snapshot.rows["in"], snapshot.rows_resumed, snapshot.rows_expected) == (10, 10, 20)


def test_rows_expected_are_unknown_as_soon_as_one_units_are(watch: Watch, listener: Listener) -> None:
    watch.begin(plan([*UNITS, UnitSpec(range={}, rows=None, bytes=100)]))
    watch.enter("starting")
    assert listener.snapshots[-1].rows_expected is None


def test_a_run_is_running_once_an_engine_is_ready(
    watch: Watch, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "INTERVAL_S", 0.01)
    found = [engine("loading")]
    watch.begin(plan(UNITS))
    watch.enter("starting")
    with watch.following(lambda: found):
        wait_for(lambda: len(listener.snapshots) > 2)
        assert {snapshot.phase for snapshot in listener.snapshots} == {"starting"}
        found[:] = [engine("ready")]
        wait_for(lambda: listener.snapshots[-1].phase == "running")


def test_the_next_epoch_is_running_at_once_as_long_as_engines_are_there(
    watch: Watch, listener: Listener
) -> None:
    watch.enter("starting")
    with watch.following(lambda: [engine("ready")]):
        wait_for(lambda: listener.snapshots[-1].phase == "running")
        watch.enter("waiting")
        watch.enter("starting")
        assert [s.phase for s in listener.snapshots if s.phase != "running"] == ["starting", "waiting"]
    watch.enter("starting")
    assert listener.snapshots[-1].phase == "starting"


def test_a_run_of_many_epochs_reports_their_sums_and_each_note_once(watch: Watch, listener: Listener) -> None:
    for _ in range(3):
        watch.begin(plan(UNITS))
        watch.note("2 empty files are not taken")
        for unit in range(2):
            watch.add(plan(UNITS), record(unit, ok=9, error=1, errors={"TooLong": 1}), resumed=unit == 0)
        said = watch.count(commit(), watch.tally)
    report = watch.report(commit(epoch=2))
    assert (report.epoch, report.epochs, report.units) == (2, 3, {"planned": 6, "published": 6, "resumed": 3})
    assert report.rows == {"in": 60, "ok": 54, "error": 6, "dropped": 0}
    assert report.errors == {"TooLong": 6}
    assert report.notes == listener.notes == ["2 empty files are not taken"]
    assert said == "epoch 0 is committed: 20 rows"


def test_what_a_run_keeps_does_not_grow_with_its_notes(watch: Watch) -> None:
    for number in range(1000):
        watch.note(f"note {number}")
    notes = watch.nothing_new(None).notes
    assert (len(notes), notes[-1]) == (watching.MOST_NOTES, "note 999")


def test_latency_is_told_of_new_rows_and_not_of_retried_ones(watch: Watch) -> None:
    watch.begin(plan(UNITS))
    made = commit()
    times = produced(np.array([1000 * (datetime.fromisoformat(made.created_at).timestamp() - 60)]))
    made = replace(made, stats=times)
    assert ", visible after " in watch.count(made, watch.tally)
    again = Retry(types=(), stages=(), epochs=(), rows={})
    old = produced(np.array([0]))
    watch.count(replace(made, stats=old, retry=again), watch.tally)
    latency = watch.report(made).latency_s
    assert latency is not None
    assert latency["p99"] == pytest.approx(60, rel=0.1)


def test_what_was_last_known_of_engines_outlives_them(watch: Watch, listener: Listener) -> None:
    with watch.following(lambda: [engine("ready", rows=7)]):
        pass
    with watch.following(list):
        pass
    assert listener.snapshots[-1].engines[0].rows == 7


def test_nobody_is_told_after_the_work_has_ended(watch: Watch, listener: Listener) -> None:
    with watch.following(list):
        pass
    assert not [thread for thread in threading.enumerate() if thread.name == "raybatch-watch"]


def test_the_report_says_what_each_engine_did_and_how_long_it_was_busy(watch: Watch) -> None:
    status = engine(
        "ready",
        deaths=1,
        rows=20,
        generated_tokens=300,
        load_s=4.0,
        ready_at=1000.0,
        last_reply_at=1002.5,
        describe={"engine": "simulated", "model": "m"},
    )
    watch.begin(plan(UNITS))
    for unit in range(2):
        watch.add(plan(UNITS), record(unit, ok=9, error=1, errors={"TooLong": 1}, stats={"seconds.iso": 2.0}))
    with watch.following(lambda: [status]):
        pass
    watch.count(commit(), watch.tally)
    report = watch.report(commit())
    assert report.engines[0]["busy_s"] == 2.5
    assert report.engines[0]["replaced"] == 1
    assert report.seconds["model_load"] == 4.0
    assert report.seconds["stage.iso"] == 4.0
    assert report.rows == {"in": 20, "ok": 18, "error": 2, "dropped": 0}
    assert report.errors == {"TooLong": 2}
    assert report.committed


def test_with_nothing_new_the_report_names_the_last_epoch(watch: Watch, listener: Listener) -> None:
    report = watch.nothing_new(commit(epoch=3))
    assert (report.epoch, report.committed, report.units["planned"]) == (3, True, 0)
    assert listener.snapshots[-1].phase == "done"


def commit(epoch: int = 0) -> Commit:
    records = [record(0, ok=10), record(1, ok=10)]
    made = Commit.of(plan(UNITS), records, [], run_id="run-1", drift=[])
    object.__setattr__(made, "epoch", epoch)
    return made


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
