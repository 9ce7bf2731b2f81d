"""A second run of the same pipeline: what is new is an epoch of its own."""

from __future__ import annotations

import pytest

from oracle import Output, input_ids, wrong
from pipelines import Project

pytestmark = pytest.mark.ray

NO_RAY = {"RAY_ADDRESS": "127.0.0.1:1"}  # nobody listens: a run that wants Ray fails


@pytest.fixture
def finished(project: Project) -> Project:
    """A copy of 30 rows, as epoch 0."""
    project.rows(30)
    project.write()
    project.complete()
    return project


def test_without_new_input_there_is_nothing_to_do_and_no_ray_is_started(finished: Project) -> None:
    done = finished.run(env=NO_RAY)
    assert done.code == 0, str(done)
    assert "nothing to do: epoch 0 is complete" in done.err
    assert done.document["units"]["planned"] == 0
    assert len(Output(finished.output).commits()) == 1


def test_new_files_become_the_next_epoch(finished: Project) -> None:
    finished.rows(20, file="b.jsonl")
    done = finished.complete()
    assert (done.document["epoch"], done.document["rows"]["in"]) == (1, 20)
    first, second = Output(finished.output).commits()
    assert second["start"] == first["end"]
    assert wrong(finished.output, input_ids(finished.input.glob("*.jsonl"))) == []


def test_a_file_changed_after_it_was_taken_is_an_error_with_choices(finished: Project) -> None:
    finished.rows(31)
    finished.rows(20, file="b.jsonl")
    done = finished.run(env=NO_RAY)
    assert (done.code, done.error["type"]) == (2, "SourceError"), str(done)
    message = done.error["message"]
    assert f"changed after an earlier run took it: {finished.input / 'a.jsonl'}" in message
    assert all(choice in message for choice in ("Restore the file", "a new name", "another output"))
    assert len(Output(finished.output).plans()) == 1
