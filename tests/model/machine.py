"""Two runs of one pipeline, a straggling worker and a clean-up, interleaved at every store operation.

Each operation may be done, lost, done with its answer lost, or done and repeated by the client; any of them may
die before any operation; clocks step; input arrives. Whatever happens, the invariants hold, by two judges.
"""

from __future__ import annotations

from typing import Any

import story
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from stored import check, check_complete
from world import Actor, Order, World

from raybatch.errors import SinkError
from raybatch.ledger.audit import audit
from raybatch.ledger.gc import collect_garbage
from raybatch.ledger.ledger import Ledger
from raybatch.store.base import Store
from raybatch.store.memory import MemoryStore

RECORDS = ("_raybatch/plan/", "_raybatch/units/", "_raybatch/commit/")
WRITES = (*RECORDS, "_raybatch/parts/", "data/", "errors/")
DRIVERS = (0, 1)
STRAGGLER = 2
CLEAN_UP = 3
FAULTS = (Order.LOST, Order.UNSURE, Order.REPEATED)
HOUR_S = 3600.0
# More steps than this finish most epochs; the rest is the teardown's
STEPS = 20


class TwoRuns(RuleBasedStateMachine):
    """See the module's docstring."""

    which = st.sampled_from((*DRIVERS, STRAGGLER, CLEAN_UP))

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.seen: dict[str, bytes] = {}
        self.checked = 0
        self.started = 0
        self.actors: dict[int, Actor] = {}
        # Runs that say they have committed, with what they say
        self.claims: list[tuple[str, Any]] = []

    # -- what may happen ---------------------------------------------------------------------------------

    # A run has some 80 operations, most of which read. Strides from write to write, and both runs brought to
    # stand before the same one, make races likely that single steps would hardly ever meet.
    @rule(number=which, folder=st.sampled_from(WRITES))
    def work_until_about_to_write(self, number: int, folder: str) -> None:
        self._working(number).work_until_about_to_write(folder)

    @rule(first=st.sampled_from(DRIVERS), folder=st.sampled_from(WRITES), order=st.sampled_from(Order))
    def race_to_write(self, first: int, folder: str, order: Order) -> None:
        for number in DRIVERS:
            if not self._working(number).writes(folder):
                self._working(number).work_until_about_to_write(folder)
        self.actors[first].step(order)
        self.actors[1 - first].step(Order.DONE)

    @rule(first=st.sampled_from(DRIVERS), steps=st.integers(1, 12))
    def clean_up_amid_a_race(self, first: int, steps: int) -> None:
        """Two attempts at a unit, of which one is published while the clean-up looks at them."""
        for number in DRIVERS:
            if not self._working(number).writes("_raybatch/units/"):
                self._working(number).work_until_about_to_write("_raybatch/units/")
        self.work(CLEAN_UP, steps)
        self.actors[first].step(Order.DONE)
        self.work(CLEAN_UP, steps)

    @rule(number=which, steps=st.integers(1, 8))
    def work(self, number: int, steps: int) -> None:
        for _ in range(steps):
            self._working(number).step(Order.DONE)

    @rule(number=which, order=st.sampled_from(FAULTS))
    def fail_one_operation(self, number: int, order: Order) -> None:
        self._working(number).step(order)

    @rule(
        number=which,
        folder=st.sampled_from(WRITES),
        order=st.sampled_from((*FAULTS, Order.KILL)),
        # Who is unsure reads what stands, and that may fail too
        then=st.sampled_from((Order.DONE, Order.LOST, Order.KILL)),
    )
    def fail_a_write(self, number: int, folder: str, order: Order, then: Order) -> None:
        actor = self._working(number)
        if not actor.writes(folder):
            actor.work_until_about_to_write(folder)
        actor.step(order)
        actor.step(then)

    @rule(number=which)
    def kill(self, number: int) -> None:
        self._working(number).step(Order.KILL)

    @rule(rows=st.integers(1, 2 * story.UNIT_ROWS))
    def input_arrives(self, rows: int) -> None:
        self.world.rows += rows

    @rule(number=which, hours=st.sampled_from((-24.0 * 365, -1.0, 1.0, 24.0)))
    def clock_steps(self, number: int, hours: float) -> None:
        self._working(number).clock_s += hours * HOUR_S

    @rule()
    def audit(self) -> None:
        self._audit()

    # -- what must hold ----------------------------------------------------------------------------------

    @invariant()
    def nobody_meets_a_contradiction(self) -> None:
        broken = [a.ended for a in self.actors.values() if (a.ended or "").startswith("broken")]
        assert broken == [], broken

    @invariant()
    def what_is_stored_holds_the_invariants(self) -> None:
        if self.checked == self.world.writes:
            return
        check(self.world.objects)
        records = {key: data for key, data in self.world.objects.items() if key.startswith(RECORDS)}
        changed = [key for key, data in self.seen.items() if records.get(key) != data]
        assert changed == [], f"I1, I3: changed or gone: {changed}"
        self.seen = records
        self.checked = self.world.writes

    def teardown(self) -> None:
        """Everyone dies; then a run in peace must finish, with every row there once."""
        try:
            for actor in self.actors.values():
                actor.step(Order.KILL)
                self._note_claim(actor)
            self._audit()
            try:
                self.world.run(MemoryStore(self.world.objects), "run-last")
            finally:
                check(self.world.objects)
            self.nobody_meets_a_contradiction()
            check_complete(self.world.objects, rows=self.world.rows)
            self._check_claims()
            self._audit()
        finally:
            self.world.close()

    # -- how ---------------------------------------------------------------------------------------------

    def _working(self, number: int) -> Actor:
        """That actor, started anew if it has ended."""
        actor = self.actors.get(number)
        if actor is None or actor.ended is not None:
            if actor is not None:
                self.nobody_meets_a_contradiction()
                self._note_claim(actor)
            starts = {STRAGGLER: self._straggler, CLEAN_UP: self._clean_up}
            self.actors[number] = starts.get(number, self._run)()
        return self.actors[number]

    def _run(self) -> Actor:
        """Every other run is a continuous one."""
        self.started += 1
        run_id, continuous = f"run-{self.started}", self.started % 2 == 0
        return Actor(self.world, lambda store: (run_id, self.world.run(store, run_id, continuous=continuous)))

    def _straggler(self) -> Actor:
        """A worker of a run that may have died long ago: it works on a unit of the oldest or newest plan."""
        self.started += 1
        turn = self.started

        def work(store: Store) -> None:
            ledger = Ledger(store, story.PIPELINE)
            plans = sum(1 for _ in store.list("_raybatch/plan/"))
            plan = ledger.plan((plans - 1) * (turn % 2)) if plans else None
            if plan is not None and plan.units:
                story.attempt(ledger, plan, turn // 2 % len(plan.units), self.world.name())

        return Actor(self.world, work)

    def _clean_up(self) -> Actor:
        return Actor(self.world, lambda store: collect_garbage(store) and None)

    def _note_claim(self, actor: Actor) -> None:
        if actor.ended == "complete" and actor.result is not None:
            self.claims.append(actor.result)

    def _check_claims(self) -> None:
        """Who says that it has committed an epoch has: the commit that stands is its own."""
        ledger = Ledger(MemoryStore(self.world.objects), story.PIPELINE)
        for run_id, commits in self.claims:
            for commit in commits:
                assert ledger.committed(commit.epoch).run_id == run_id, f"I1: commit {commit.epoch}"

    def _audit(self) -> None:
        try:
            report = audit(MemoryStore(self.world.objects))
        except SinkError:
            assert not any(key.startswith("_raybatch/") for key in self.world.objects)
            return
        failed = {check.invariant: check.first for check in report.checks if check.status == "failed"}
        assert failed == {}, f"audit: {failed}"


def how_many(examples: int, **options: Any) -> settings:
    """The settings of `examples` runs."""
    return settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        derandomize=False,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        **options,
    )
