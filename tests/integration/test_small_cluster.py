"""A cluster of two CPUs, which engines and stages have to share."""

from __future__ import annotations

from typing import Any

import pytest

from oracle import Output, input_ids, wrong
from pipelines import Project, turn

pytestmark = pytest.mark.ray

SHOUT = """
    def shout(row):
        return row | {"text": row["text"].upper()}
"""


@pytest.mark.parametrize(
    "resources", [{}, {"num_cpus": 1}], ids=["engines without CPUs", "engines with every CPU"]
)
def test_two_engines_and_a_python_stage_do_not_wait_for_each_other(
    project: Project, resources: dict[str, Any]
) -> None:
    project.functions(SHOUT)
    project.rows(50)
    first = turn(resources=resources)
    second = turn(name="again", model="org/other", prompt="{{ turned.text }}", output="twice")
    project.write({"type": "python", "function": "functions:shout"}, first, second | {"resources": resources})
    project.complete()
    assert wrong(project.output, input_ids(project.input.glob("*.jsonl"))) == []
    assert all(row["twice"]["text"] == row["text"].upper() for row in Output(project.output).data())


def test_stages_that_name_the_same_engine_share_it(project: Project) -> None:
    project.rows(50)
    second = turn(name="again", prompt="{{ turned.text }}", output="twice")
    project.write(turn(), second)
    engines = project.complete().document["engines"]
    assert [(engine["rows"], engine["replaced"]) for engine in engines] == [(100, 0)]


def test_a_stage_that_no_machine_has_the_cpus_for_is_named(project: Project) -> None:
    project.functions(SHOUT)
    project.rows(1)
    project.write({"type": "python", "function": "functions:shout", "num_cpus": 4096})
    done = project.run(env={"RAY_ADDRESS": ""})
    assert (done.code, done.error["type"]) == (1, "StageError"), str(done)
    assert "stage 'python' asks for 4096 CPUs (num_cpus), and this machine has" in done.error["message"]
