"""Two drivers on one output, interleaved at every store operation, each of which may be done, lost, or done
with its answer lost; and either driver may die between any two. Whatever happens, I1 to I6 hold."""

from __future__ import annotations

import json
import queue
import threading
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raybatch.errors import LostRaceError, SinkError, StoreError
from raybatch.ledger.audit import audit
from raybatch.store.memory import MemoryStore, Outcome
from small_run import Oracle, run

EPOCHS, UNITS = 2, 2
RECORDS = ("_raybatch/plan/", "_raybatch/units/", "_raybatch/commit/")
WRITES = (*RECORDS, "_raybatch/parts/", "data/", "errors/")


# SinkError: the storage failed while the ledger was being opened, which is before anything was started
STORAGE_FAILED = (StoreError, SinkError)


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches SIGKILL."""


class Driver:
    """A run on a thread of its own, parked before each of its store operations until told how that ends."""

    def __init__(self, objects: dict[str, bytes], run_id: str) -> None:
        self.store = MemoryStore(objects, hook=self._park)
        self.ended: str | None = None
        self.about_to = ("", "")  # the operation that it is parked before, and its key
        self._orders: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._parked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._dead = False
        self._thread = threading.Thread(target=self._work, args=(run_id,), daemon=True)
        self._thread.start()
        self._parked.get(timeout=60)

    def step(self, order: Outcome | None) -> None:
        """Let it do one operation, with that outcome, up to the next; None kills it instead."""
        if self.ended is None:
            self._orders.put(order)
            self._parked.get(timeout=60)

    def _park(self, operation: str, key: str) -> Outcome:
        if self._dead:
            raise Killed
        self.about_to = (operation, key)
        self._parked.put(None)
        order = self._orders.get(timeout=60)
        if order is None:
            self._dead = True
            raise Killed
        return order

    def _work(self, run_id: str) -> None:
        try:
            run(self.store, run_id=run_id, epochs=EPOCHS, units=UNITS)
            self.ended = "complete"
        except Killed:
            self.ended = "killed"
        except STORAGE_FAILED:
            self.ended = "failed"  # resumable
        except LostRaceError:
            self.ended = "lost"
        except BaseException as error:
            self.ended = f"broken: {type(error).__name__}: {error}"
        finally:
            self._parked.put(None)


class TwoDrivers(RuleBasedStateMachine):
    """See the module's docstring."""

    which = st.integers(0, 1)

    @initialize()
    def start(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.started = 0
        self.seen: dict[str, bytes] = {}
        self.drivers = [self._new_driver(), self._new_driver()]

    def _new_driver(self) -> Driver:
        self.started += 1
        return Driver(self.objects, f"run-{self.started}")

    # A run has some 80 operations, most of which read. Strides from write to write, and both drivers brought
    # to stand before the same one, make races likely that single steps would hardly ever meet.
    @rule(number=which, folder=st.sampled_from(WRITES))
    def work_until_about_to_write(self, number: int, folder: str) -> None:
        driver = self._working(number)
        driver.step(Outcome.DONE)
        while driver.ended is None and not self._writes(driver, folder):
            driver.step(Outcome.DONE)

    @rule(first=which, folder=st.sampled_from(WRITES), outcome=st.sampled_from(Outcome))
    def race_to_write(self, first: int, folder: str, outcome: Outcome) -> None:
        for number in (0, 1):
            if not self._writes(self._working(number), folder):
                self.work_until_about_to_write(number, folder)
        self.drivers[first].step(outcome)
        self.drivers[1 - first].step(Outcome.DONE)

    @rule(number=which, steps=st.integers(1, 8))
    def work(self, number: int, steps: int) -> None:
        for _ in range(steps):
            self._working(number).step(Outcome.DONE)

    @rule(number=which, outcome=st.sampled_from([Outcome.LOST, Outcome.UNSURE]))
    def fail_one_operation(self, number: int, outcome: Outcome) -> None:
        self._working(number).step(outcome)

    @rule(number=which)
    def kill(self, number: int) -> None:
        self._working(number).step(None)

    def _working(self, number: int) -> Driver:
        """That driver, started anew if it has ended."""
        if self.drivers[number].ended is not None:
            self.drivers[number] = self._new_driver()
        return self.drivers[number]

    def _writes(self, driver: Driver, folder: str) -> bool:
        operation, key = driver.about_to
        return operation in ("create", "link", "delete") and key.startswith(folder)

    @invariant()
    def nothing_is_broken_and_nobody_sees_a_row_twice(self) -> None:
        broken = [d.ended for d in self.drivers if (d.ended or "").startswith("broken")]
        assert broken == []
        for ids in Oracle(self.objects).ids().values():
            assert max(Counter(ids).values(), default=1) == 1

    @invariant()
    def records_never_change_and_never_vanish(self) -> None:
        records = {key: data for key, data in self.objects.items() if key.startswith(RECORDS)}
        assert {key: records.get(key) for key in self.seen} == self.seen
        self.seen = records

    @invariant()
    def what_a_record_names_is_there(self) -> None:
        named: list[dict[str, Any]] = []
        for key, data in self.objects.items():
            if key.startswith("_raybatch/units/"):
                named += json.loads(data)["parts"].values()
            if key.startswith("_raybatch/commit/"):
                commit = json.loads(data)
                named += commit["data"] + commit["errors"]
        assert [n["key"] for n in named if len(self.objects.get(n["key"], b"")) != n["size"]] == []

    def teardown(self) -> None:
        if not hasattr(self, "drivers"):
            return
        for driver in self.drivers:
            driver.step(None)
        run(MemoryStore(self.objects), run_id="run-last", epochs=EPOCHS, units=UNITS)
        Oracle(self.objects).check_complete(epochs=EPOCHS, units=UNITS)
        report = audit(MemoryStore(self.objects))
        assert report.ok, report.to_json()


TestTwoDrivers = TwoDrivers.TestCase
TestTwoDrivers.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_a_driver_that_meets_every_fault_once_still_completes() -> None:
    """Each of a run's operations in turn: lost, or done with its answer lost; then a second run."""
    for outcome in (Outcome.LOST, Outcome.UNSURE):
        number, met = 0, True
        while met:
            met = _run_with_one_fault(number, outcome)
            number += 1
        assert number > 30


def _run_with_one_fault(number: int, outcome: Outcome) -> bool:
    """Whether the run has an operation of that number."""
    calls = 0

    def hook(operation: str, key: str) -> Outcome:
        nonlocal calls
        calls += 1
        return outcome if calls == number + 1 else Outcome.DONE

    objects: dict[str, bytes] = {}
    try:
        run(MemoryStore(objects, hook=hook), run_id="run-1", units=UNITS)
    except STORAGE_FAILED:
        run(MemoryStore(objects), run_id="run-2", units=UNITS)
    Oracle(objects).check_complete(units=UNITS)
    return calls > number
