"""The story of a continuous run: `run_continuously` is the whole of it; `Clock` and `Tail` are its two parts.

    look for input, by the clock -> plan -> execute what is not published -> hand over to the tail, and again
    tail, one epoch at a time: finalise -> commit -> acknowledge

An epoch is planned from where the one before ends by its plan, which may not be committed yet: it will end there, or
never. So there are at most two unfinished plans, and whoever comes after a crash finishes both, in order.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from types import TracebackType

from raybatch.errors import DriftError
from raybatch.ledger.drift import differences
from raybatch.ledger.records import Commit, Plan
from raybatch.runtime import planning
from raybatch.runtime.epochs import Epochs, begun
from raybatch.runtime.planning import Place
from raybatch.runtime.progress import Reporter, RunReport, Tally
from raybatch.sources.base import Limit
from raybatch.spec.pipeline import Pipeline, RunConfig

logger = logging.getLogger(__name__)

PAUSE_S = 0.1  # between two looks at whether a wait is over


def run_continuously(
    pipeline: Pipeline, *, allow_drift: bool = False, reporter: Reporter | None = None
) -> RunReport:
    """Run `pipeline` epoch by epoch, until there has been nothing to do for `run.idle_exit_s`, or for ever.

    Finishes first what an earlier run left. Raises as `raybatch.runtime.run.run` does; whatever ends it, an epoch
    that is being committed at that moment is committed first, after SIGTERM and Ctrl-C as far as `run.grace_s`
    allows. Of two runs at the same time the one that commits second ends with `LostRaceError`.
    """
    with begun(pipeline, allow_drift=allow_drift, reporter=reporter) as epochs, Tail(epochs) as tail:
        arrivals = _Arrivals(epochs, tail)
        while (plan := arrivals.next()) is not None:
            # As in a batch run, how many rows may fail again is for `raybatch retry` to judge
            rate = pipeline.run.max_error_rate if plan.retry is None else 1.0
            epochs.publish(plan, max_error_rate=rate, check=tail.check)
            tail.take(plan)
        tail.wait()
        done = tail.last
        return epochs.watch.report(done) if done else epochs.watch.nothing_new(epochs.ledger.last_commit())


class Tail:
    """Commits epochs in order, on a thread, beside the work on the next one. A context manager: when the block is
    left, however it is, the commit that is being made has been made, unless it fails or there is no time left."""

    def __init__(self, epochs: Epochs) -> None:
        self.last: Commit | None = None
        self._epochs = epochs
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def __enter__(self) -> Tail:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self._thread is None or not self._thread.is_alive():
            return
        self._epochs.watch.say("the epoch before is being committed: waiting for that")
        told_to_stop = kind is not None and issubclass(kind, KeyboardInterrupt)
        # A second more: at the end of the grace period a signal interrupts this wait, and not what comes after it.
        # The thread is a daemon: the process then ends without it, as if it had been killed
        left_s = self._epochs.execution.grace_left_s() + 1
        self._thread.join(left_s if told_to_stop else None)

    def take(self, plan: Plan) -> None:
        """Commit an epoch whose units are all published, after the one before; returns when that is done."""
        self.wait()
        tally = self._epochs.watch.tally
        self._thread = threading.Thread(
            target=self._commit, args=(plan, tally), name="raybatch-tail", daemon=True
        )
        self._thread.start()

    def check(self) -> None:
        """Raise what the tail failed with, if it did."""
        if self._failure is not None:
            raise self._failure

    def wait(self) -> None:
        """Until there is nothing to commit. Raises what it failed with."""
        if self._thread is not None:
            self._thread.join()
        self.check()

    def _commit(self, plan: Plan, tally: Tally) -> None:
        watch = self._epochs.watch
        try:
            self.last = self._epochs.commit(plan)
            watch.say(watch.count(self.last, tally))
        except BaseException as error:
            logger.error("epoch %d could not be committed", plan.epoch, exc_info=error)
            self._failure = error


class Clock:
    """When to look for input: `run.epoch.every_s` after the last look, at once where that left some of it, and once
    more before the run ends because it has had nothing to do for `run.idle_exit_s`. All in seconds of one clock."""

    def __init__(self, run: RunConfig, *, now: float) -> None:
        self._every_s = run.epoch.every_s
        self._idle_s = math.inf if run.idle_exit_s is None else run.idle_exit_s
        self._next = self._idle_since = now

    @property
    def due(self) -> float:
        """When to look next."""
        return min(self._next, self._idle_since + self._idle_s)

    def idle(self, now: float) -> None:
        """From now on there is nothing to do."""
        self._idle_since = now

    def looked(self, at: float, *, full: bool = False) -> None:
        """Somebody looked at `at`; `full` says that there was more than could be taken."""
        self._next = at if full else at + self._every_s

    def over(self, at: float) -> bool:
        """Whether the run ends if there was nothing at `at`."""
        return at >= self._idle_since + self._idle_s


class _Arrivals:
    """Gives the plans of a run, in order: those that are unfinished, then of what arrives, as it arrives."""

    def __init__(self, epochs: Epochs, tail: Tail) -> None:
        self._epochs = epochs
        self._tail = tail
        self._place: Place = epochs.ledger.position()
        run = epochs.pipeline.run
        self._limit = Limit(max_rows=run.epoch.max_rows, max_bytes=run.epoch.max_bytes)
        self._clock = Clock(run, now=time.monotonic())
        self._fingerprint = planning.fingerprint(epochs.pipeline)

    def next(self) -> Plan | None:
        """The next plan; None when there has been nothing to do for too long. Called when the last one's units are
        published."""
        self._clock.idle(time.monotonic())
        while True:
            self._pause()
            self._skip_what_others_did()
            plan = self._epochs.unfinished(self._place[0])
            if plan is None:
                at = time.monotonic()
                found = self._epochs.look(self._place, limit=self._limit)
                self._clock.looked(at, full=found is not None and found.full)
                if found is None and self._clock.over(at):
                    return None
                if found is None:
                    continue
                self._refuse_drift()
                plan = self._epochs.freeze(found, self._place)
            self._place = (plan.epoch + 1, plan.end)
            return plan

    def _pause(self) -> None:
        """Until the clock says so, or there is a reason to end."""
        if time.monotonic() < self._clock.due:
            self._epochs.watch.enter("waiting")
        while True:
            self._epochs.execution.heed()
            self._tail.check()
            left = self._clock.due - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, PAUSE_S))

    def _skip_what_others_did(self) -> None:
        """Epochs that were made and committed while this run waited, such as that of a `raybatch retry`."""
        while (commit := self._epochs.ledger.committed(self._place[0])) is not None:
            self._place = (commit.epoch + 1, commit.end)

    def _refuse_drift(self) -> None:
        """Raise `DriftError` when the code or the model on disk is not what this run began with, and goes on with."""
        changed = differences(self._fingerprint, planning.fingerprint(self._epochs.pipeline))
        if changed:
            lines = "\n".join(f"  {difference}" for difference in changed)
            raise DriftError(
                f"the pipeline has changed under the continuous run, before epoch {self._place[0]}:\n{lines}\n"
                "What is loaded is what there was before. Start the run again: it goes on with what there is now"
            )
