"""Real vLLM engines whose core is killed or stops, a driver killed beside them, and rows that vLLM refuses.

One story, because an engine takes half a minute to load; each test tells what it should show.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from family import AGENTS, Family

from oracle import Output, input_ids, twice, wrong
from pipelines import MODEL, Command, Done, Project, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(1800)]

ROWS = 600
UNIT = 4
CORE = "VLLM::EngineCore"
# Longer than any step of this model takes on a busy machine, far shorter than the default
WATCHDOG_S = 20

GENERATE: dict[str, Any] = {
    "type": "generate",
    "name": "iso",
    "model": str(MODEL),
    "prompt": "{{ text }}",
    # Slow on purpose: a few rows at a time, to the last token, so that there is a middle to be killed in
    "engine": {"dtype": "bfloat16", "max_model_len": 128, "enforce_eager": True, "max_num_seqs": 4},
    "sampling": {"temperature": 0, "max_tokens": 80, "ignore_eos": True},
    "output": "iso",
    "env": {"VLLM_CPU_KVCACHE_SPACE": "1"},
    "watchdog_s": WATCHDOG_S,
}


@dataclass(frozen=True, kw_only=True)
class Story:
    project: Project
    family: Family
    replaced: list[psutil.Process]  # the cores that were killed and stopped
    published: dict[str, str]  # units and their attempts, before the last run
    done: Done


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    family = Family()
    project = Project(tmp_path_factory.mktemp("vllm"), env=family.env)
    write_input(project)
    project.write(GENERATE, run={"unit": {"max_rows": UNIT}, "max_error_rate": 0.1})
    try:
        command = project.start()
        killed = core_at_work(project, family, command, [])
        killed.kill()
        stopped = core_at_work(project, family, command, [killed])
        stopped.send_signal(signal.SIGSTOP)
        wait_until(
            lambda: new_core(family, command, [killed, stopped]), what="the third core loads", deadline_s=600
        )
        command.kill()
        family.wait_until_gone(but=AGENTS)
        yield Story(
            project=project,
            family=family,
            replaced=[killed, stopped],
            published=Output(project.output).units(),
            done=project.run(),
        )
    finally:
        project.close()


def write_input(project: Project) -> None:
    rows = [
        {"id": i, "text": f"the invoice of {1 + i % 28} March {2000 + i // 28} was late =>"}
        for i in range(ROWS)
    ]
    rows[-5]["text"] = "long " * 200
    rows[-3]["text"] = "  "
    project.lines(rows)


def new_core(family: Family, command: Command, known: list[psutil.Process]) -> psutil.Process | None:
    """An engine core that is none of the known ones, as soon as it is."""
    assert command.process.poll() is None, str(command.wait())
    family.look(command)
    return next((core for core in family.named(CORE) if core not in known), None)


def core_at_work(
    project: Project, family: Family, command: Command, known: list[psutil.Process]
) -> psutil.Process:
    """A new engine core, once units are published by it and others still in flight."""
    core = wait_until(lambda: new_core(family, command, known), what="a core loads", deadline_s=600)
    before = len(project.published())

    def at_work() -> bool:
        assert command.process.poll() is None, str(command.wait())
        return len(project.published()) > before + 1

    wait_until(at_work, what="an engine core is at work", deadline_s=600)
    family.look(command)
    return core


def test_every_row_is_there_once(story: Story) -> None:
    assert story.done.code == 0, str(story.done)
    assert wrong(story.project.output, input_ids([story.project.input / "a.jsonl"])) == []
    assert not twice(story.project.output)


def test_the_cores_that_were_killed_and_stopped_were_replaced_while_the_run_went_on(story: Story) -> None:
    assert not any(core.is_running() for core in story.replaced)
    assert len(story.published) >= 4


def test_only_units_without_a_record_ran_again(story: Story) -> None:
    assert story.done.document["units"]["resumed"] == len(story.published)
    assert story.published.items() <= Output(story.project.output).units().items()
    assert story.done.document["engines"][0]["rows"] < ROWS


def test_nothing_is_left_of_a_finished_run(story: Story) -> None:
    story.family.wait_until_gone()


def test_rows_that_vllm_refuses_are_error_rows(story: Story) -> None:
    errors = Output(story.project.output).errors()
    assert Counter(row["type"] for row in errors) == {"PromptTooLong": 1, "EmptyPrompt": 1}
    message = next(row["message"] for row in errors if row["type"] == "PromptTooLong")
    assert "prompt tokens, and max_model_len is 128" in message
    assert all(json.loads(row["row"])["text"] for row in errors)


def test_a_kv_cache_too_small_for_the_model_is_said_in_vllms_own_words(project: Project) -> None:
    project.rows(1)
    engine = GENERATE["engine"] | {"kv_cache_memory_bytes": 10_000}
    project.write(GENERATE | {"engine": engine, "env": {}})
    done = project.run()
    assert (done.code, done.error["type"]) == (1, "EngineLoadError"), str(done)
    assert "No available memory for the cache blocks" in done.error["message"]
    assert Output(project.output).commits() == []
