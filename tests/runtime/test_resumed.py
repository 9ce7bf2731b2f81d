"""What earlier runs have published: known before work starts, counted beside it."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from made import Listener, pipeline, plan, record

from raybatch.errors import LedgerError
from raybatch.ledger import keys
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Plan
from raybatch.runtime import resumed
from raybatch.runtime.resumed import resuming
from raybatch.runtime.watch import Watch
from raybatch.sources.base import UnitSpec
from raybatch.store.memory import MemoryStore, Outcome

UNITS = 100
PUBLISHED = range(0, UNITS, 2)


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(pipeline(tmp_path), run_id="run-2", reporter=Listener())


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def ledger(store: MemoryStore) -> Ledger:
    return Ledger(store, "small")


@pytest.fixture
def unfinished(ledger: Ledger) -> Plan:
    """A plan of which every other unit is published, with ten rows each."""
    made = ledger.create_plan(plan([UnitSpec(range={}, rows=10, bytes=100)] * UNITS))
    for unit in PUBLISHED:
        ledger.publish(replace(record(unit, ok=10), plan_id=made.plan_id))
    return made


def test_work_starts_on_what_is_not_published_with_the_rest_counted(
    unfinished: Plan, ledger: Ledger, watch: Watch
) -> None:
    with resuming(unfinished, ledger, watch) as todo:
        assert todo == list(range(1, UNITS, 2))
        assert (watch.tally.published, watch.tally.resumed, watch.tally.rows["in"]) == (50, 50, 500)


def test_a_slow_store_does_not_hold_up_the_work_and_is_waited_for_at_the_end(
    unfinished: Plan, ledger: Ledger, watch: Watch, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumed, "WAIT_S", 0.01)
    answers = threading.Event()

    def slow(operation: str, key: str) -> Outcome:
        if operation == "read" and key.startswith(keys.UNITS):
            assert answers.wait(timeout=60)
        return Outcome.DONE

    store.hook = slow
    with resuming(unfinished, ledger, watch) as todo:
        assert (len(todo), watch.tally.rows["in"]) == (50, 0)
        answers.set()
    assert (watch.tally.resumed, watch.tally.rows["in"]) == (50, 500)


def test_a_record_that_makes_no_sense_stops_the_run(
    unfinished: Plan, ledger: Ledger, watch: Watch, store: MemoryStore
) -> None:
    store.objects[keys.unit_key(0, 40)] = b"{"
    with pytest.raises(LedgerError, match=r"00000040\.json is not JSON"), resuming(unfinished, ledger, watch):
        pytest.fail("work has started")


def test_an_error_of_the_work_ends_the_counting_and_is_the_one_that_is_raised(
    unfinished: Plan, ledger: Ledger, watch: Watch
) -> None:
    with pytest.raises(KeyboardInterrupt), resuming(unfinished, ledger, watch):
        raise KeyboardInterrupt
    assert [t.name for t in threading.enumerate() if t.name.startswith("raybatch-")] == []


def test_the_driver_and_the_thread_beside_it_count_every_unit(
    unfinished: Plan, ledger: Ledger, watch: Watch
) -> None:
    with resuming(unfinished, ledger, watch) as todo:
        for unit in todo:
            watch.add(unfinished, record(unit, ok=10))
    assert (watch.tally.published, watch.tally.resumed, watch.tally.rows["in"]) == (UNITS, 50, 1000)
