"""Worker processes killed with SIGKILL at every step of a unit: Ray runs the unit again, and it is there once."""

from __future__ import annotations

from collections import Counter

import pytest

from oracle import input_ids, wrong
from pipelines import Project

pytestmark = pytest.mark.ray

# Each time that it is given a row with `deaths`, it arms the next of them in the process it is in, and says so
ARM = """
    import os, pathlib

    def arm(row):
        if not row["deaths"]:
            if row["fails"]:
                raise ValueError("unwanted")
            return row
        marks = pathlib.Path(__file__).with_name("marks")
        with open(marks, "a") as file:
            file.write(row["id"] + "\\n")
        tried = marks.read_text().split().count(row["id"])
        deaths = row["deaths"].split()
        os.environ["RAYBATCH_FAILPOINT"] = deaths[tried - 1] if tried <= len(deaths) else ""
        return row
"""

# By the number of the unit. A second attempt at a published unit loses, and that is the way to before-discard
DEATHS = {
    0: "before-part",
    1: "after-part",
    2: "before-part@2",  # between the results and the error rows
    3: "after-part@2",
    4: "before-unit",
    5: "after-unit",
    6: "after-unit before-discard",
}
READING = ["before-read@2", "after-read@2"]
ROWS = 10

REMEMBER = """
    import os, pathlib

    def remember(row):
        with open(pathlib.Path(__file__).with_name("marks"), "a") as file:
            file.write(f"{os.getpid()} {row['id']}\\n")
        return row
"""


def marks(project: Project) -> list[str]:
    return (project.folder / "marks").read_text().splitlines()


def test_a_worker_killed_at_any_step_of_publishing_costs_one_more_attempt(project: Project) -> None:
    project.functions(ARM)
    for unit, deaths in DEATHS.items():  # a file is a unit
        project.rows(
            ROWS, file=f"{unit}.jsonl", deaths=lambda i, d=deaths: d if i == 0 else "", fails=lambda i: i == 9
        )
    run = {"max_error_rate": 1, "in_flight_units": 2}
    project.write({"type": "python", "function": "functions:arm"}, run=run)
    project.complete()
    died = Counter({f"{unit}.jsonl-0": len(deaths.split()) for unit, deaths in DEATHS.items()})
    assert Counter(marks(project)) == died + Counter(died.keys())
    assert wrong(project.output, input_ids(project.input.glob("*.jsonl"))) == []


@pytest.mark.parametrize("point", READING)
def test_a_worker_killed_while_it_reads_is_replaced(project: Project, point: str) -> None:
    project.functions(REMEMBER)
    for unit in range(4):
        project.rows(1, file=f"{unit}.jsonl")
    project.write({"type": "python", "function": "functions:remember"}, run={"in_flight_units": 1})
    project.complete(env={"RAYBATCH_FAILPOINT": point})
    # Each process dies at its second read, so none has worked on two units
    assert len({mark.split()[0] for mark in marks(project)}) == 4
    assert wrong(project.output, input_ids(project.input.glob("*.jsonl"))) == []


KILL = """
    import os, pathlib, signal

    def fall(row):
        if row["id"] == "1.jsonl-0" and not pathlib.Path(__file__).with_name("mended").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return row
"""


def test_a_unit_that_kills_every_worker_ends_the_run_and_is_finished_once_mended(project: Project) -> None:
    project.functions(KILL)
    for unit in range(2):
        project.rows(ROWS, file=f"{unit}.jsonl")
    project.write({"type": "python", "function": "functions:fall"}, run={"in_flight_units": 1})
    done = project.run()
    assert done.code == 1, done
    assert "11 worker processes died over one unit (WorkerCrashedError)" in done.error["message"]
    (project.folder / "mended").touch()
    project.complete()
    assert wrong(project.output, input_ids(project.input.glob("*.jsonl"))) == []
