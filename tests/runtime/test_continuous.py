"""When a continuous run looks for input, and what becomes of epochs that overlap."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made import Listener, pipeline

import raybatch
from oracle import Output, input_ids, wrong
from pipelines import wait_until
from raybatch.errors import DriftError, RaybatchError
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Plan
from raybatch.runtime import planning
from raybatch.runtime.continuous import Clock
from raybatch.runtime.progress import RunReport, Snapshot
from raybatch.runtime.watch import Watch
from raybatch.spec.pipeline import Pipeline, RunConfig
from raybatch.store import open_store

on_ray = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def clock(*, idle_exit_s: float | None = None, every_s: float = 30) -> Clock:
    run = RunConfig(mode="continuous", epoch={"every_s": every_s}, idle_exit_s=idle_exit_s)
    return Clock(run, now=100)


# --- the clock ---------------------------------------------------------------------------------------------


def test_the_first_look_is_at_once_and_the_next_ones_as_often_as_epochs_may_come() -> None:
    made = clock()
    assert made.due == 100
    made.looked(100)
    assert made.due == 130
    made.looked(131)
    assert made.due == 161


def test_an_epoch_that_was_full_is_followed_at_once() -> None:
    made = clock()
    made.looked(100, full=True)
    assert made.due == 100


def test_an_epoch_that_took_long_is_followed_at_once() -> None:
    made = clock()
    made.looked(100)
    made.idle(1000)
    assert made.due < 1000


def test_without_an_idle_exit_a_run_is_never_over() -> None:
    assert not clock().over(1e18)


def test_a_run_is_over_when_it_has_had_nothing_to_do_for_long_enough() -> None:
    made = clock(idle_exit_s=45)
    made.idle(200)
    assert not made.over(244)
    assert made.over(245)


def test_work_is_not_idleness() -> None:
    made = clock(idle_exit_s=45)
    made.looked(100)
    made.idle(1000)  # it took so long
    assert not made.over(1001)


def test_there_is_a_look_at_the_end_of_the_idle_time() -> None:
    made = clock(idle_exit_s=45)
    made.looked(100)
    made.looked(130)
    assert made.due == 145


# --- whole runs, in this process ---------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Pipeline]:
    """A pipeline that takes each file of ten rows below in/ as an epoch."""
    (tmp_path / "in").mkdir()

    def make(*stages: Any, **run: Any) -> Pipeline:
        known = {"mode": "continuous", "epoch": {"every_s": 0.1, "max_rows": 10}, "unit": {"max_rows": 5}}
        source = {"type": "files", "path": "in/*.jsonl"}
        return pipeline(tmp_path, *stages, source=source, run=known | run)

    return make


def arrive(folder: Path, file: str, rows: int = 10) -> None:
    text = "".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(rows))
    (folder / file).write_text(text)
    os.rename(folder / file, folder / "in" / file)


def complete(folder: Path) -> list[str]:
    return wrong(folder / "out", input_ids((folder / "in").glob("*.jsonl")))


class Going:
    """A run on a thread, which is waited for at the end of the block."""

    def __init__(self, made: Pipeline) -> None:
        self.listener = Listener()
        self.report: RunReport | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(made,))

    def __enter__(self) -> Going:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def waits_after(self, epochs: int) -> None:
        """Until so many epochs are committed, and it waits for more."""
        wait_until(
            lambda: self._waits(epochs) or not self._thread.is_alive(), what=f"{epochs} epochs are done"
        )
        assert self.error is None, self.error

    def _waits(self, epochs: int) -> bool:
        last = self.listener.snapshots[-1:]
        return any(one.phase == "waiting" and one.epochs == epochs for one in last)

    def _run(self, made: Pipeline) -> None:
        try:
            self.report = raybatch.run(made, reporter=self.listener)
        except BaseException as error:
            self.error = error


class TestOnRay:
    pytestmark = on_ray

    def test_counts_of_the_report_are_sums_over_epochs(self, tmp_path: Path, made: Any) -> None:
        for file in ("a", "b", "c"):
            arrive(tmp_path, f"{file}.jsonl")
        report = raybatch.run(made(idle_exit_s=0))
        assert (report.epoch, report.epochs, report.committed) == (2, 3, True)
        assert report.units == {"planned": 6, "published": 6, "resumed": 0}
        assert report.rows == {"in": 30, "ok": 30, "error": 0, "dropped": 0}
        assert complete(tmp_path) == []

    def test_an_input_that_is_empty_at_first_is_an_epoch_and_then_waited_for(
        self, tmp_path: Path, made: Any
    ) -> None:
        arrive(tmp_path, "a.jsonl", rows=0)
        with Going(made(idle_exit_s=5)) as going:
            going.waits_after(1)
            arrive(tmp_path, "b.jsonl")
            going.waits_after(2)
        assert going.report is not None
        assert going.report.rows["in"] == 10
        assert [len(commit["units"]) for commit in Output(tmp_path / "out").commits()] == [0, 2]

    def test_nothing_new_is_nothing_to_do(self, tmp_path: Path, made: Any) -> None:
        arrive(tmp_path, "a.jsonl")
        raybatch.run(made(idle_exit_s=0))
        report = raybatch.run(made(idle_exit_s=0))
        assert (report.epoch, report.epochs, report.units["planned"]) == (0, 0, 0)

    def test_an_epoch_that_another_run_commits_while_this_one_waits_is_not_done_again(
        self, tmp_path: Path, made: Any
    ) -> None:
        (tmp_path / "in" / "a.jsonl").write_text('{"text": "row"}\nnonsense\n')

        class Retrying(Listener):
            """Has the error row retried, and a file arrive, when the run waits for the first time."""

            def update(self, snapshot: Snapshot) -> None:
                super().update(snapshot)
                here = threading.current_thread() is threading.main_thread()
                b_came = (tmp_path / "in" / "b.jsonl").exists()
                if here and not b_came and snapshot.phase == "waiting" and snapshot.epochs == 1:
                    assert raybatch.retry(made(max_error_rate=1)).epoch == 1
                    arrive(tmp_path, "b.jsonl")

        report = raybatch.run(made(idle_exit_s=1, max_error_rate=1), reporter=Retrying())
        assert (report.epoch, report.epochs, report.rows["in"]) == (2, 2, 12)

    def test_code_that_changes_under_the_run_ends_it_before_the_next_epoch(
        self, tmp_path: Path, made: Any
    ) -> None:
        code = tmp_path / "changing_functions.py"
        code.write_text("def keep(row):\n    return row\n")
        arrive(tmp_path, "a.jsonl")
        with Going(made({"type": "python", "function": "changing_functions:keep"})) as going:
            going.waits_after(1)
            code.write_text("def keep(row):\n    return None\n")
            arrive(tmp_path, "b.jsonl")
        assert isinstance(going.error, DriftError)
        assert "stages[0].code" in str(going.error)
        assert "Start the run again" in str(going.error)
        assert len(Output(tmp_path / "out").plans()) == 1

    @pytest.mark.parametrize("mode", ["batch", "continuous"])
    def test_two_epochs_that_were_left_unfinished_are_finished_in_order(
        self, tmp_path: Path, made: Any, mode: str
    ) -> None:
        arrive(tmp_path, "a.jsonl")
        first = planned(made(), 0, None)
        arrive(tmp_path, "b.jsonl")
        planned(made(), 1, first.end)
        source = {"type": "files", "path": "in/*.jsonl"}
        run: dict[str, Any] = {"mode": mode} | ({"idle_exit_s": 0} if mode == "continuous" else {})
        report = raybatch.run(pipeline(tmp_path, source=source, run=run))
        assert (report.epoch, report.epochs) == (1, 2)
        assert complete(tmp_path) == []

    def test_a_failing_commit_ends_the_run_with_its_own_error(self, tmp_path: Path, made: Any) -> None:
        arrive(tmp_path, "a.jsonl")
        with Going(made()) as going:
            going.waits_after(1)
            stranger = tmp_path / "out" / "data" / "00000001-00099.parquet"
            stranger.write_bytes(b"not ours")
            arrive(tmp_path, "b.jsonl")
        assert isinstance(going.error, RaybatchError)
        assert stranger.name in str(going.error)


def planned(made: Pipeline, epoch: int, start: Any) -> Plan:
    ledger = Ledger(open_store(made.sink.path), made.name)
    watch = Watch(made, run_id="run-1", reporter=Listener())
    found = planning.look(made, ledger, planning.build_source(made), (epoch, start), watch=watch)
    assert found is not None
    return planning.freeze(made, ledger, found, (epoch, start), run_id="run-1")
