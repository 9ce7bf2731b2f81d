"""A thousand random interleavings of two runs, with faults at every store operation; and every single fault."""

from __future__ import annotations

import os

import pytest
import story
from hypothesis import seed
from hypothesis.stateful import run_state_machine_as_test
from machine import TwoRuns, how_many
from stored import check, check_complete
from world import STORAGE_FAILED, World

from raybatch.store.memory import MemoryStore, Outcome

RUNS = int(os.environ.get("RAYBATCH_MODEL_RUNS", "1000"))


def test_no_interleaving_of_two_runs_with_faults_breaks_an_invariant() -> None:
    """The seed is in pytest's header; RAYBATCH_TEST_SEED repeats it, RAYBATCH_MODEL_RUNS asks for more."""
    chosen = int(os.environ["RAYBATCH_TEST_SEED"])
    run_state_machine_as_test(seed(chosen)(TwoRuns), settings=how_many(RUNS))


@pytest.fixture
def world() -> World:
    made = World()
    yield made
    made.close()


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("outcome", [Outcome.LOST, Outcome.UNSURE, Outcome.REPEATED])
def test_a_run_that_meets_one_fault_at_any_operation_is_finished_by_the_next(
    world: World, outcome: Outcome, continuous: bool
) -> None:
    """Each of a run's operations in turn; a continuous run has two epochs, which overlap."""
    if continuous:
        world.rows += story.EPOCH_UNITS * story.UNIT_ROWS
    number = 0
    while _run_with_one_fault(world, number, outcome, continuous=continuous):
        number += 1
    assert number > 30


def _run_with_one_fault(world: World, number: int, outcome: Outcome, *, continuous: bool) -> bool:
    """Whether the run has an operation of that number."""
    calls = 0

    def hook(operation: str, key: str) -> Outcome:
        nonlocal calls
        calls += 1
        return outcome if calls == number + 1 else Outcome.DONE

    objects: dict[str, bytes] = {}
    try:
        world.run(MemoryStore(objects, hook=hook), "run-1", continuous=continuous)
    except STORAGE_FAILED:
        check(objects)
        world.run(MemoryStore(objects), "run-2")
    check_complete(objects, rows=world.rows)
    return calls > number
