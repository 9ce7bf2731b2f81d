"""`raybatch run` killed with SIGKILL: at every step that the driver takes, and at random moments."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator

import pytest
from family import AGENTS, Family

from oracle import Id, Output, input_ids, twice, wrong
from pipelines import Command, Project, turn, wait_until

pytestmark = pytest.mark.ray

# Before its plan, after it, and when every unit is published
BEFORE_FINISHING = ["before-plan", "after-plan", "before-verify"]
FINISHING = [
    "before-verify",
    "before-file",
    "after-file",
    "before-file@2",  # the file of error rows
    "after-file@2",
    "before-commit",
    "after-commit",
    "before-acknowledge",
    "after-acknowledge",
]

# Of six rows, one is dropped, one fails, one becomes two
FUNCTIONS = """
    def sort(row):
        kind = row["n"] % 6
        if kind == 1:
            raise ValueError("unwanted")
        return {0: None, 2: [row, row]}.get(kind, row)
"""
SORT = {"type": "python", "function": "functions:sort"}


def sorted_ids(project: Project) -> Counter[Id]:
    """What FUNCTIONS makes of the 60 rows of a.jsonl."""
    found: Counter[Id] = Counter()
    for n, (source, row, _) in enumerate(sorted(input_ids([project.input / "a.jsonl"]))):
        found.update([(source, row, "0"), (source, row, "1")] if n % 6 == 2 else [(source, row, None)])
    return found


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A run killed three times: every unit is published."""
    project = Project(tmp_path_factory.mktemp("killed"))
    project.functions(FUNCTIONS)
    project.rows(60, n=lambda i: i)
    project.write(SORT, run={"unit": {"max_rows": 10}, "max_error_rate": 1})
    for point in BEFORE_FINISHING:
        done = project.run(env={"RAYBATCH_FAILPOINT": point})
        assert done.code == -signal.SIGKILL, str(done)
        assert not twice(project.output)
    yield project
    project.close()


def test_a_run_killed_around_its_plan_leaves_one_plan(killed: Project) -> None:
    assert len(Output(killed.output).plans()) == 1


@pytest.mark.parametrize("point", FINISHING)
def test_a_driver_killed_after_the_last_unit_is_finished_by_the_next(killed: Project, point: str) -> None:
    output = killed.folder / f"out-{point}"
    shutil.copytree(killed.output, output)
    published = Output(output).units()
    dead = killed.run("--set", f"sink.path={output}", env={"RAYBATCH_FAILPOINT": point})
    assert dead.code == -signal.SIGKILL
    assert not twice(output)
    done = killed.complete("--set", f"sink.path={output}")
    committed = point in ("after-commit", "before-acknowledge", "after-acknowledge")
    assert done.document["units"]["resumed"] == (0 if committed else len(published))
    assert Output(output).units() == published
    assert wrong(output, sorted_ids(killed)) == []


@pytest.mark.timeout(1800)
def test_a_driver_killed_at_random_moments_loses_nothing_and_leaves_nobody(
    project: Project, family: Family
) -> None:
    seed = int(os.environ.get("RAYBATCH_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"RAYBATCH_TEST_SEED={seed}")  # noqa: T201  # pytest shows it when the test fails
    choose = random.Random(seed)
    project.rows(400)
    project.write(turn(engine={"seconds_per_row": 0.3}), run={"unit": {"max_rows": 8}})
    for _ in range(5):
        before = Output(project.output).units()
        if not killed_at_random(project, project.start(), choose, family):
            break
        family.wait_until_gone(but=AGENTS)
        assert not twice(project.output)
        assert before.items() <= Output(project.output).units().items()
    resumed = len(project.published())
    done = project.complete()
    assert done.document["units"]["resumed"] in (resumed, 0)
    assert wrong(project.output, input_ids(project.input.glob("*.jsonl"))) == []
    assert all(row["turned"]["text"] == row["text"][::-1] for row in Output(project.output).data())
    family.wait_until_gone()


def killed_at_random(project: Project, command: Command, choose: random.Random, family: Family) -> bool:
    """Kill it some units later, somewhere between two; now and then before Ray has started.

    False when it was complete before that.
    """
    wanted = len(project.published()) + choose.randrange(1, 9)
    if choose.random() < 0.8:
        wait_until(
            lambda: command.process.poll() is not None or len(project.published()) >= wanted,
            what=f"{wanted} units are published",
        )
    try:
        code = command.process.wait(choose.uniform(0, 0.5))
    except subprocess.TimeoutExpired:
        family.look(command)
        command.kill()
        return True
    assert code == 0, command.err.read_text()
    return False
