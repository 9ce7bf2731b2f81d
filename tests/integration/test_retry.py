"""`raybatch retry`: the error rows of earlier epochs, taken through the pipeline again; each row counts once."""

from __future__ import annotations

import os
import random
import signal
from typing import Any

import pytest

import raybatch
from oracle import Output, input_ids, live_wrong
from pipelines import Project

pytestmark = pytest.mark.ray

# What fails is said by a file beside the module, so that code and pipeline stay the same
FAIL = """
    import json, os

    class TooHot(Exception): ...
    class TooCold(Exception): ...

    def check(row):
        state = json.load(open(os.path.join(os.path.dirname(__file__), "state.json")))
        if row["n"] in state["hot"]:
            raise TooHot(str(row["n"]))
        if row["n"] in state["cold"]:
            raise TooCold(str(row["n"]))
        return row

    def split(row):
        return [row | {"piece": piece} for piece in range(3)] if row["n"] % 2 else row

    def check_piece(row):
        state = json.load(open(os.path.join(os.path.dirname(__file__), "state.json")))
        if [row["n"], row["piece"]] in state.get("pieces", []):
            raise TooHot(f"piece {row['piece']} of {row['n']}")
        return row
"""
CHECK = {"type": "python", "name": "check", "function": "functions:check"}
SPLIT = {"type": "python", "name": "split", "function": "functions:split"}
PIECES = {
    "type": "python",
    "name": "pieces",
    "function": "functions:check_piece",
    "schema": {"id": "string", "text": "string", "n": "int64", "piece": "int64"},
}


def failing(project: Project, *, hot: Any = (), cold: Any = (), **more: Any) -> None:
    """Which rows fail from now on."""
    project.state(hot=list(hot), cold=list(cold), **more)


@pytest.fixture
def checked(project: Project) -> Project:
    """30 rows in units of 5; rows 0 to 9 fail, the even ones as TooHot, the odd ones as TooCold."""
    project.functions(FAIL)
    project.rows(30, n=lambda i: i)
    project.write(CHECK, run={"unit": {"max_rows": 5}, "max_error_rate": 0.5})
    failing(project, hot=range(0, 10, 2), cold=range(1, 10, 2))
    project.complete()
    return project


def retried(project: Project, *args: str, code: int = 0, **options: Any) -> dict[str, Any]:
    done = project.run(*args, command="retry", **options)
    assert done.code == code, str(done)
    return done.document


def whole(project: Project) -> None:
    """Every row counts once, by the oracle and by the audit."""
    expected = input_ids(project.input.glob("*.jsonl"))
    assert live_wrong(project.output, expected) == []
    report = raybatch.audit(str(project.output))
    assert report.ok, report.to_json()


def live(project: Project) -> list[tuple[str, int]]:
    rows = raybatch.live_errors(str(project.output)).to_pylist()
    return sorted((row["type"], row["epoch"]) for row in rows)


def test_rows_that_succeed_now_leave_the_errors_and_the_others_stay_live(checked: Project) -> None:
    failing(checked, hot=[2])
    document = retried(checked)
    assert document["retry"] == {
        "taken": 10,
        "ok": 9,
        "error": 1,
        "dropped": 0,
        "left": 1,
        "left_by_type": {"TooHot": 1},
    }
    assert document["rows"] == {"in": 10, "ok": 9, "error": 1, "dropped": 0}
    assert live(checked) == [("TooHot", 1)]
    first, second = Output(checked.output).commits()
    assert second["start"] == second["end"] == first["end"]
    assert second["retry"]["rows"] == {"0": {"TooHot": 5, "TooCold": 5}}
    assert second["totals"]["in"] == 10
    assert len(second["units"]) == 2  # five error rows of one unit, five of the next; at most five rows each
    whole(checked)


def test_only_what_is_asked_for_is_taken_again(checked: Project) -> None:
    failing(checked)
    assert retried(checked, "--type", "TooCold")["retry"]["taken"] == 5
    assert live(checked) == [("TooHot", 0)] * 5
    assert retried(checked, "--stage", "other")["retry"]["taken"] == 0
    assert retried(checked, "--epoch", "1")["retry"]["taken"] == 0
    assert retried(checked, "--stage", "check", "--epoch", "0")["retry"]["ok"] == 5
    assert live(checked) == []
    whole(checked)


def test_a_row_may_fail_again_and_again(checked: Project) -> None:
    failing(checked, cold=[0, 7])
    retried(checked)
    failing(checked, cold=[7])
    retried(checked)
    assert live(checked) == [("TooCold", 2)]
    failing(checked)
    assert retried(checked)["retry"] == {
        "taken": 1,
        "ok": 1,
        "error": 0,
        "dropped": 0,
        "left": 0,
        "left_by_type": {},
    }
    assert live(checked) == []
    whole(checked)


def test_without_error_rows_there_is_nothing_to_do_and_no_ray_is_started(checked: Project) -> None:
    failing(checked)
    retried(checked)
    done = checked.run(command="retry", env={"RAY_ADDRESS": "127.0.0.1:1"})
    assert done.code == 0, str(done)
    assert "no error row to retry: there is none" in done.err
    assert "nothing to do" in done.err
    assert len(Output(checked.output).commits()) == 2
    done = checked.run("--type", "NoSuch", command="retry", env={"RAY_ADDRESS": "127.0.0.1:1"})
    assert done.code == 0, str(done)


def test_after_too_many_errors_the_epoch_is_finished_and_its_error_rows_are_retried(project: Project) -> None:
    project.functions(FAIL)
    project.rows(30, n=lambda i: i)
    run = {"unit": {"max_rows": 5}, "max_error_rate": 0.1, "in_flight_units": 1}
    project.write(CHECK, run=run)
    failing(project, hot=range(20))
    done = project.run()
    assert done.code == 5, str(done)
    assert "raybatch retry" in done.error["message"]
    assert Output(project.output).commits() == []

    failing(project, hot=range(10))
    done = project.run(command="retry")
    assert (done.code, done.error["type"]) == (5, "TooManyErrorsError"), str(done)
    assert "10 of 30 rows still are error rows (TooHot 10)" in done.error["message"]
    assert len(Output(project.output).commits()) == 2
    whole(project)

    failing(project, hot=[3])
    document = retried(project)
    assert (document["retry"]["taken"], document["retry"]["left"]) == (10, 1)
    whole(project)


def test_of_several_rows_made_from_one_only_the_failed_one_comes_out_again(project: Project) -> None:
    project.functions(FAIL)
    project.rows(10, n=lambda i: i)
    project.write(CHECK, SPLIT, PIECES, run={"unit": {"max_rows": 5}, "max_error_rate": 1})
    failing(project, pieces=[[1, 0], [1, 2], [7, 1]])
    project.complete()
    expected = sum(3 if n % 2 else 1 for n in range(10))
    assert (len(Output(project.output).data()), len(live(project))) == (expected - 3, 3)

    failing(project, cold=[1], pieces=[])  # now all of row 1 fails, in an earlier stage
    document = retried(project)
    assert document["rows"] == {"in": 3, "ok": 1, "error": 2, "dropped": 0}
    assert live(project) == [("TooCold", 1), ("TooCold", 1)]
    failing(project)
    retried(project)
    assert live(project) == []
    ids = [(row["n"], row["piece"]) for row in Output(project.output).data()]
    wanted = [(n, piece) for n in range(10) for piece in (range(3) if n % 2 else [None])]
    assert sorted(ids, key=str) == sorted(wanted, key=str)
    assert raybatch.audit(str(project.output)).ok


def test_rows_whose_file_is_gone_stay_error_rows_until_it_is_back(checked: Project) -> None:
    failing(checked)
    file, aside = checked.input / "a.jsonl", checked.folder / "aside"
    file.rename(aside)
    document = retried(checked)
    assert document["retry"]["left_by_type"] == {"InputChanged": 10}
    [message] = {row["message"].split(" was deleted")[0] for row in Output(checked.output).errors()[10:]}
    assert message == str(file)
    aside.rename(file)
    assert retried(checked)["retry"]["left"] == 0
    whole(checked)


def test_rows_that_did_not_decode_are_read_again(project: Project) -> None:
    long = {"text": "x" * 500}
    project.lines([{"text": "a"}, long, {"text": "b"}])
    source = {"type": "files", "path": "in/*.jsonl", "max_row_bytes": 100}
    project.write(source=source, run={"max_error_rate": 1})
    project.complete()
    project.write(source=source | {"max_row_bytes": 1000}, run={"max_error_rate": 1})
    done = project.run(command="retry")
    assert (done.code, done.error["type"]) == (1, "DriftError"), str(done)
    assert "source.max_row_bytes: 100 -> 1000" in done.error["message"]
    assert retried(project, "--allow-drift")["retry"]["ok"] == 1
    whole(project)


POINTS = ["after-plan", "before-unit", "after-unit", "before-commit", "after-commit"]


@pytest.mark.parametrize("command", ["retry", "run"])
def test_a_killed_retry_is_finished_by_the_next_command(checked: Project, command: str) -> None:
    failing(checked)
    for point in ("after-plan", "before-commit"):
        dead = checked.run(command="retry", env={"RAYBATCH_FAILPOINT": point})
        assert dead.code == -signal.SIGKILL, str(dead)
    checked.rows(5, file="b.jsonl", n=lambda i: i)
    checked.complete(command=command)
    assert live(checked) == []
    taken = [commit["totals"]["in"] for commit in Output(checked.output).commits()]
    assert taken == ([30, 10] if command == "retry" else [30, 10, 5])
    assert len(Output(checked.output).plans()) == len(taken)
    if command == "retry":
        checked.complete()  # what is new was not held up for good
    whole(checked)


def test_random_failures_and_selections_and_kills_leave_every_row_once(project: Project) -> None:
    seed = int(os.environ.get("RAYBATCH_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"RAYBATCH_TEST_SEED={seed}")  # noqa: T201  # pytest shows it when the test fails
    choose = random.Random(seed)
    project.functions(FAIL)
    for file in ("a", "b"):
        project.rows(20, file=f"{file}.jsonl", n=lambda i: i)
    project.write(CHECK, run={"unit": {"max_rows": 6}, "max_error_rate": 1})
    failing(project, hot=range(12), cold=range(12, 17))
    project.complete()
    for _ in range(4):
        rows = choose.sample(range(20), choose.randrange(8))
        failing(project, hot=rows[::2], cold=rows[1::2])
        asked = choose.choice([[], ["--type", "TooHot"], ["--type", "TooCold"], ["--epoch", "0"]])
        env = {"RAYBATCH_FAILPOINT": choose.choice([*POINTS, "", ""])}
        done = project.run(*asked, command="retry", env=env)
        assert done.code in (0, -signal.SIGKILL), str(done)
    failing(project)
    for _ in range(2):  # the first may have to finish a retry of something else
        retried(project)
    assert live(project) == []
    whole(project)
