"""What stops a run half-way for a reason, and how the next one goes on."""

from __future__ import annotations

import pytest

from oracle import Output, input_ids, twice, wrong
from pipelines import Project, turn, wait_until

pytestmark = pytest.mark.ray

REFUSE = """
    def refuse(row):
        if row["refused"]:
            raise ValueError("unwanted")
        return row
"""


def test_too_many_errors_end_the_run_and_a_higher_limit_finishes_it(project: Project) -> None:
    project.functions(REFUSE)
    for unit in range(6):
        project.rows(10, file=f"{unit}.jsonl", refused=lambda i: i < 3)
    run = {"max_error_rate": 0.1, "in_flight_units": 1}
    project.write({"type": "python", "function": "functions:refuse"}, run=run)
    done = project.run()
    assert (done.code, done.error["type"]) == (5, "TooManyErrorsError"), str(done)
    assert "ValueError" in done.error["message"]
    assert "run.max_error_rate is 0.1" in done.error["message"]
    assert Output(project.output).commits() == []
    published = Output(project.output).units()
    assert 0 < len(published) < 6

    done = project.complete("--set", "run.max_error_rate=1")
    assert done.document["units"] == {"planned": 6, "published": 6, "resumed": len(published)}
    assert published.items() <= Output(project.output).units().items()
    assert done.document["rows"] == {"in": 60, "ok": 42, "error": 18, "dropped": 0}
    assert wrong(project.output, input_ids(project.input.glob("*.jsonl"))) == []


def test_a_changed_prompt_is_refused_on_resume_and_recorded_when_allowed(project: Project) -> None:
    project.rows(80)
    stage = turn(engine={"seconds_per_row": 0.4}, prompt="was: {{ text }}")
    project.write(stage)
    command = project.start()
    wait_until(
        lambda: command.process.poll() is not None or len(project.published()) >= 2,
        what="some units are published",
    )
    assert command.process.poll() is None, str(command.wait())
    command.kill()

    project.write(stage | {"prompt": "is: {{ text }}"})
    done = project.run(env={"RAY_ADDRESS": "127.0.0.1:1"})  # nobody listens: it must not come so far
    assert (done.code, done.error["type"]) == (1, "DriftError"), str(done)
    message = done.error["message"]
    assert 'stages[0].prompt: "was: {{ text }}" -> "is: {{ text }}"' in message
    assert all(choice in message for choice in ("undo the change", "--allow-drift", "another sink.path"))
    assert Output(project.output).commits() == []

    before = len(project.published())
    project.complete("--allow-drift")
    (commit,) = Output(project.output).commits()
    assert [entry["path"] for entry in commit["drift"]] == ["stages[0].prompt"]
    assert wrong(project.output, input_ids(project.input.glob("*.jsonl"))) == []
    assert not twice(project.output)
    answers = [row["turned"]["text"][::-1].split(":")[0] for row in Output(project.output).data()]
    assert set(answers) == {"was", "is"}
    assert answers.count("was") >= 10 * before - 10
