"""Ctrl-C and SIGTERM: the run says how to go on, and releases everything before it ends."""

from __future__ import annotations

import re
import signal

import pytest
from family import Family

from oracle import input_ids, twice, wrong
from pipelines import Command, Done, Project, turn, wait_until

pytestmark = pytest.mark.ray


def amid_the_work(project: Project, family: Family) -> Command:
    """A run that has published a unit of its own, and has others in flight."""
    before = len(project.published())
    command = project.start()
    wait_until(
        lambda: command.process.poll() is not None or len(project.published()) > before,
        what="a unit is published",
    )
    assert command.process.poll() is None, str(command.wait())
    family.look(command)
    assert family.named("raylet")
    assert family.named("ray::Replica")
    return command


def says_how_to_resume(done: Done) -> bool:
    """The units it counts are those whose records it has seen: those of its last second may be more."""
    return bool(re.search(r"run it again to resume: \d+ of \d+ units are published", done.err))


SLOW = """
import pathlib, time

def remember(rows):
    begun = pathlib.Path(__file__).parent / "begun"
    (begun / str(rows["id"][0].as_py())).touch()
    time.sleep(2)
    return rows
"""


def slow_units(project: Project, *, units: int, **run: object) -> None:
    """A pipeline whose units take some seconds each, and leave a file in begun/ when they begin."""
    (project.folder / "begun").mkdir()
    project.rows(10 * units)
    project.functions(SLOW)
    stage = {"type": "python", "function": "functions:remember", "mode": "batch"}
    project.write(stage, run={"unit": {"max_rows": 10}, **run})


def test_sigterm_lets_units_that_have_begun_be_published_and_begins_no_others(
    project: Project, family: Family
) -> None:
    slow_units(project, units=30)
    command = project.start()
    wait_until(lambda: any((project.folder / "begun").iterdir()), what="a unit has begun")
    family.look(command)
    command.process.send_signal(signal.SIGTERM)
    done = command.wait()
    assert (done.code, done.error["type"]) == (130, "InterruptedRunError"), str(done)
    assert "told to stop: finishing the units that have begun, for up to 20 s" in done.err
    begun = {int(file.name.rpartition("-")[2]) // 10 for file in (project.folder / "begun").iterdir()}
    assert begun == {int(key.rpartition("/")[2].removesuffix(".json")) for key in project.published()}
    assert 0 < len(begun) < 30
    family.wait_until_gone()
    assert project.complete().document["units"]["resumed"] == len(begun)
    assert wrong(project.output, input_ids(project.input.glob("*.jsonl"))) == []


def test_units_that_take_longer_than_the_grace_period_are_given_up(project: Project, family: Family) -> None:
    slow_units(project, units=8, grace_s=0.2)
    command = project.start()
    wait_until(lambda: any((project.folder / "begun").iterdir()), what="a unit has begun")
    family.look(command)
    command.process.send_signal(signal.SIGTERM)
    done = command.wait()
    assert (done.code, done.error["type"]) == (130, "InterruptedRunError"), str(done)
    begun = len(list((project.folder / "begun").iterdir()))
    assert len(project.published()) < begun
    family.wait_until_gone()


@pytest.mark.timeout(1200)
def test_an_interrupted_run_leaves_nothing_behind_and_is_resumed(project: Project, family: Family) -> None:
    project.rows(400)
    project.write(turn(engine={"seconds_per_row": 0.5}))

    command = amid_the_work(project, family)
    command.interrupt()
    done = command.wait()
    assert (done.code, done.error["type"]) == (130, "InterruptedRunError"), str(done)
    assert says_how_to_resume(done)
    family.wait_until_gone()

    command = amid_the_work(project, family)
    command.process.send_signal(signal.SIGTERM)
    done = command.wait()
    assert (done.code, done.error["type"]) == (130, "InterruptedRunError"), str(done)
    assert says_how_to_resume(done)
    family.wait_until_gone()

    assert not twice(project.output)
    resumed = len(project.published())
    assert project.complete().document["units"]["resumed"] == resumed >= 2
    assert wrong(project.output, input_ids(project.input.glob("*.jsonl"))) == []
