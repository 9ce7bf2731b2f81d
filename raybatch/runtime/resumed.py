"""What earlier runs of an epoch have published: which units, before work starts; their rows, beside the work.

Which units are done takes a listing. What is in them (rows, errors, tokens) takes a read of each record, which
for a million is minutes on an object store. So the records are read on a thread, and the work waits only
`WAIT_S` for it: most runs start with everything counted, and none starts late.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Plan
from raybatch.runtime.watch import Watch

WAIT_S = 5.0


@contextmanager
def resuming(plan: Plan, ledger: Ledger, watch: Watch) -> Iterator[list[int]]:
    """Gives the units that are not published yet. Those that are have all been counted by `watch` when the
    block is left, unless it is left by an exception."""
    watch.begin(plan)
    published = ledger.published(plan)
    reading = _Reading(plan, ledger, watch, sorted(published))
    try:
        reading.wait(WAIT_S)
        watch.enter("starting")
        if published:
            watch.note(
                f"epoch {plan.epoch}: {len(published)} of {len(plan.units)} units are published already"
            )
        yield [unit for unit in range(len(plan.units)) if unit not in published]
        reading.wait(None)
    finally:
        reading.stop()


class _Reading:
    """Reads the records of `units` on a thread, and has them counted."""

    def __init__(self, plan: Plan, ledger: Ledger, watch: Watch, units: Sequence[int]) -> None:
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(
            target=self._read, args=(plan, ledger, watch, units), name="raybatch-resumed", daemon=True
        )
        self._thread.start()

    def wait(self, seconds: float | None) -> None:
        """Until all are counted, or so long; raises what went wrong meanwhile."""
        self._thread.join(seconds)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _read(self, plan: Plan, ledger: Ledger, watch: Watch, units: Sequence[int]) -> None:
        try:
            with closing(ledger.records(plan, units)) as records:
                for record in records:
                    watch.add(plan, record, resumed=True)
                    if self._over.is_set():
                        return
        except BaseException as error:
            self._failure = error
