"""A run that goes on: files that arrive become epochs, engines stay, and nothing is lost where two epochs overlap."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import raybatch
from oracle import Output, input_ids, twice, wrong
from pipelines import Command, Project, turn, wait_until

pytestmark = pytest.mark.ray

FIRST_PLAN = "_raybatch/plan/00000000.json"
SECOND_PLAN = "_raybatch/plan/00000001.json"
FIRST_COMMIT = "_raybatch/commit/00000000.json"

SLOW = """
    import pathlib, time

    def slow(rows):
        here = pathlib.Path(__file__).parent
        (here / "begun" / str(rows["id"][0].as_py())).touch()
        while not (here / "on").exists():
            time.sleep(0.02)
        return rows
"""


def write(project: Project, *stages: Any, idle_exit_s: float | None = 0, **sections: Any) -> None:
    """A continuous pipeline that takes a file of ten rows, or more, as an epoch."""
    run: dict[str, Any] = {
        "mode": "continuous",
        "epoch": {"every_s": 0.2, "max_rows": 10},
        "unit": {"max_rows": 10},
    }
    if idle_exit_s is not None:
        run["idle_exit_s"] = idle_exit_s
    project.write(*stages, run=run, **sections)


def arrive(project: Project, count: int, *, file: str) -> None:
    """A file of rows, there at once."""
    project.rows(count, file=f".{file}")
    os.rename(project.input / f".{file}", project.input / file)


def held(project: Project) -> dict[str, Any]:
    """An output whose epochs overlap; see tests/integration/plugin/held_sink.py."""
    return {"type": "held", "path": str(project.output)}


def is_there(command: Command, path: Path) -> None:
    """Wait for a file, for as long as the command runs."""
    wait_until(lambda: path.exists() or command.process.poll() is not None, what=f"{path} is there")
    assert path.exists(), str(command.wait())


def complete(project: Project) -> list[str]:
    """What is wrong with the output; nothing if every row of every file is there once, and the audit agrees."""
    report = raybatch.audit(str(project.output))
    failed = [str(check.first) for check in report.checks if check.status == "failed"]
    return wrong(project.output, input_ids(project.input.glob("*.jsonl"))) + failed


def test_files_that_arrive_become_epochs_of_one_engine_until_nothing_comes(project: Project) -> None:
    arrive(project, 10, file="a.jsonl")
    write(project, turn(), idle_exit_s=3)
    command = project.start()
    for number, file in enumerate(["b.jsonl", "c.jsonl"]):
        is_there(command, project.output / "_raybatch" / "commit" / f"{number:08d}.json")
        arrive(project, 10, file=file)
    done = command.wait()
    assert done.code == 0, str(done)
    document = done.document
    assert (document["epoch"], document["epochs"]) == (2, 3)
    assert (document["units"]["published"], document["rows"]["in"], document["rows"]["ok"]) == (3, 30, 30)
    (engine,) = document["engines"]
    # An engine counts from when it was loaded
    assert (engine["rows"], engine["replaced"]) == (30, 0)
    assert "epoch 2 is committed: 10 rows" in done.err
    assert complete(project) == []


def test_what_is_there_already_is_taken_in_epochs_that_are_not_larger_than_they_may_be(
    project: Project,
) -> None:
    for file in ("a", "b", "c", "d", "e"):
        project.rows(5, file=f"{file}.jsonl")
    write(project)
    done = project.complete()
    plans = Output(project.output).plans()
    assert done.document["epochs"] == len(plans) == 3  # of two files, two files and one
    assert [plan["start"] for plan in plans[1:]] == [plan["end"] for plan in plans[:-1]]
    assert complete(project) == []


def test_rows_that_were_never_produced_at_a_time_have_no_latency(project: Project) -> None:
    project.rows(5)
    write(project)
    assert "latency_s" not in project.complete().document


@pytest.mark.parametrize(
    "point",
    [
        "before-plan@2",
        "after-plan@2",
        "before-verify",
        "before-file",
        "after-file",
        "before-commit",
        "after-commit",
        "before-acknowledge",
        "after-acknowledge",
        "before-commit@2",
    ],
)
def test_a_driver_killed_while_two_epochs_overlap_is_followed_by_one_that_finishes_both(
    project: Project, point: str
) -> None:
    for file in ("a", "b", "c"):
        project.rows(20, file=f"{file}.jsonl")
    write(project, sink=held(project))
    dead = project.run(env={"RAYBATCH_FAILPOINT": point})
    assert dead.code == -signal.SIGKILL, str(dead)
    assert (project.output / SECOND_PLAN).exists() == (point != "before-plan@2")
    assert not twice(project.output)
    published = Output(project.output).units()
    (project.folder / "go").touch()
    done = project.complete()
    assert published.items() <= Output(project.output).units().items()
    assert len(Output(project.output).commits()) == 3, str(done)
    assert complete(project) == []


def test_a_batch_run_finishes_both_epochs_that_a_continuous_one_left(project: Project) -> None:
    for file in ("a", "b"):
        project.rows(10, file=f"{file}.jsonl")
    write(project, sink=held(project))
    dead = project.run(env={"RAYBATCH_FAILPOINT": "before-commit"})
    assert dead.code == -signal.SIGKILL, str(dead)
    assert (project.output / SECOND_PLAN).exists()
    (project.folder / "go").touch()
    project.write(sink=held(project))
    done = project.complete()
    assert (done.document["epoch"], done.document["epochs"], done.document["rows"]["in"]) == (1, 2, 20)
    assert complete(project) == []


def test_sigterm_commits_the_epoch_before_and_leaves_the_one_that_is_worked_on_to_be_resumed(
    project: Project,
) -> None:
    (project.folder / "begun").mkdir()
    project.functions(SLOW)
    project.rows(10, file="a.jsonl")
    project.rows(60, file="b.jsonl")
    stage = {"type": "python", "function": "functions:slow", "mode": "batch"}
    (project.folder / "on").touch()
    write(project, stage, sink=held(project), idle_exit_s=None)
    command = project.start()
    is_there(command, project.output / "_raybatch" / "units" / "00000000" / "00000" / "00000000.json")
    (project.folder / "on").unlink()
    wait_until(lambda: any((project.folder / "begun").glob("b.jsonl-*")), what="the second epoch has begun")
    command.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "told to stop" in command.err.read_text(), what="it was told to stop")
    (project.folder / "on").touch()
    done = command.wait()
    assert (done.code, done.error["type"]) == (130, "InterruptedRunError"), str(done)
    assert done.document["epochs"] == 1
    assert len(Output(project.output).commits()) == 1
    begun = {int(file.name.rpartition("-")[2]) // 10 for file in (project.folder / "begun").glob("b.*")}
    published = {int(key.rpartition("/")[2].removesuffix(".json")) for key in project.published()[1:]}
    assert begun == published
    (project.folder / "go").touch()
    write(project, stage, sink=held(project))
    assert project.complete().document["units"]["resumed"] == len(begun)
    assert complete(project) == []


def test_sigterm_while_nothing_arrives_ends_the_run_at_once(project: Project) -> None:
    project.rows(10)
    write(project, idle_exit_s=None)
    command = project.start()
    is_there(command, project.output / FIRST_COMMIT)
    wait_until(lambda: " waiting " in command.err.read_text(), what="it waits")
    command.process.send_signal(signal.SIGTERM)
    done = command.wait()
    assert (done.code, done.error["type"]) == (130, "InterruptedRunError"), str(done)
    assert complete(project) == []


def test_an_epoch_that_cannot_be_committed_ends_the_run_with_its_own_error(project: Project) -> None:
    for file in ("a", "b", "c", "d", "e", "f"):
        project.rows(20, file=f"{file}.jsonl")
    write(project, sink=held(project))
    (project.output / "data").mkdir(parents=True)
    command = project.start()
    is_there(command, project.output / FIRST_PLAN)
    stranger = project.output / "data" / "00000001-00099.parquet"
    stranger.write_bytes(b"not ours")
    done = command.wait()
    assert done.code == 1, str(done)
    assert stranger.name in done.error["message"]
    assert len(Output(project.output).commits()) == 1
    stranger.unlink()
    (project.folder / "go").touch()
    project.complete()
    assert complete(project) == []


def test_an_epoch_with_too_many_errors_ends_the_run_and_the_one_before_is_committed(
    project: Project,
) -> None:
    project.rows(10, file="a.jsonl")
    (project.input / "b.jsonl").write_text('{"id": "b", "text": "row"}\n' + "nonsense\n" * 9)
    write(project, sink=held(project))
    done = project.run()
    assert (done.code, done.error["type"]) == (5, "TooManyErrorsError"), str(done)
    assert "9 of 10 rows are error rows" in done.error["message"]
    assert len(Output(project.output).commits()) == 1


def test_of_two_continuous_runs_the_one_that_commits_second_says_so_and_the_other_goes_on(
    project: Project,
) -> None:
    for number in range(6):
        project.rows(10, file=f"{number}.jsonl")
    write(project, turn(engine={"seconds_per_row": 0.2}), idle_exit_s=2)
    done = [command.wait() for command in (project.start(), project.start())]
    # 0 and 0: the second came when the first had committed
    assert sorted(one.code for one in done) in ([0, 4], [0, 0]), "\n".join(map(str, done))
    for one in done:
        if one.code == 4:
            assert one.error["type"] == "LostRaceError"
    assert len(Output(project.output).plans()) == len(Output(project.output).commits()) == 6
    assert complete(project) == []
