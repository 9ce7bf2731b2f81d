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
