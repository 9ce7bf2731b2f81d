"""What a run does with an epoch, whichever story it is part of: find or make its plan, publish its units, commit it.

The stories are `run.py` (take what there is), `continuous.py` (go on with what arrives) and `retry.py`.
"""

from __future__ import annotations

import datetime
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from raybatch.errors import InterruptedRunError
from raybatch.ledger.drift import differences
from raybatch.ledger.failpoints import failpoint
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Commit, Plan
from raybatch.runtime import planning
from raybatch.runtime.execute import Execution, refuse_too_many_errors
from raybatch.runtime.planning import Place
from raybatch.runtime.progress import Reporter, Silent
from raybatch.runtime.resumed import resuming
from raybatch.runtime.watch import Watch
from raybatch.sinks.base import open_output
from raybatch.sources.base import NO_LIMIT, Limit, Source, SourcePlan
from raybatch.sources.retry import RetrySource
from raybatch.spec.pipeline import Pipeline
from raybatch.store.ahead import map_ahead

# As many as `ThreadPoolExecutor` takes for what it is not told, on a small and on a large machine
FINALISING = min(32, (os.cpu_count() or 1) + 4)


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """One run, as all of its epochs need it. `commit` may be called from another thread than the rest."""

    pipeline: Pipeline
    source: Source
    ledger: Ledger
    execution: Execution
    watch: Watch
    allow_drift: bool

    def unfinished(self, epoch: int) -> Plan | None:
        """See `planning.unfinished_plan`."""
        return planning.unfinished_plan(
            self.pipeline, self.ledger, epoch, allow_drift=self.allow_drift, watch=self.watch
        )

    def look(self, place: Place, *, limit: Limit = NO_LIMIT) -> SourcePlan | None:
        """See `planning.look`."""
        return planning.look(self.pipeline, self.ledger, self.source, place, watch=self.watch, limit=limit)

    def freeze(self, found: SourcePlan, place: Place) -> Plan:
        """See `planning.freeze`."""
        return planning.freeze(self.pipeline, self.ledger, found, place, run_id=self.watch.run_id)

    def publish(
        self,
        plan: Plan,
        *,
        max_error_rate: float,
        check: Callable[[], None] = lambda: None,
        last: bool = False,
    ) -> None:
        """Publish the units of `plan` that are not published yet. After the `last` epoch engines are released.

        `check` is called as each is published; what it raises stops the work, and is raised.
        """
        retry = plan.retry is not None
        reader = RetrySource(source=self.source, store=self.ledger.store) if retry else self.source
        with resuming(plan, self.ledger, self.watch) as todo:
            if todo:
                self.execution.execute(
                    plan, todo, source=reader, ledger=self.ledger, max_error_rate=max_error_rate, check=check
                )
            if last:
                self.execution.release()
        refuse_too_many_errors(self.watch.tally, max_error_rate, complete=True)

    def commit(self, plan: Plan) -> Commit:
        """Lay the published units out for readers, make the epoch visible, and tell the outside world."""
        started = time.monotonic()
        records = list(self.ledger.records(plan, range(len(plan.units))))
        # Linking waits for the store, merging for Arrow: neither holds the GIL. A merge holds a file in memory.
        parallel_map = partial(map_ahead, threads=FINALISING)
        files = self.pipeline.sink.build().finalise(
            plan, records, ledger=self.ledger, parallel_map=parallel_map
        )
        drift = differences(plan.fingerprint, planning.fingerprint(self.pipeline))
        commit = self.ledger.commit(
            plan, Commit.of(plan, records, files, run_id=self.watch.run_id, drift=drift)
        )
        self.watch.finalise_s = (self.watch.finalise_s or 0.0) + time.monotonic() - started
        _acknowledge(self.source, commit, self.watch)
        return commit

    def finish(self, plan: Plan, *, max_error_rate: float, last: bool) -> Commit:
        """Do what is left of an epoch, and commit it. Engines are not held for the commit of the `last` one."""
        self.publish(plan, max_error_rate=max_error_rate, last=last)
        self.watch.enter("finalising")
        commit = self.commit(plan)
        self.watch.count(commit, self.watch.tally)
        return commit


@contextmanager
def begun(
    pipeline: Pipeline, *, allow_drift: bool = False, reporter: Reporter | None = None
) -> Iterator[Epochs]:
    """A run, from its beginning to its end, however that comes."""
    ledger = Ledger(open_output(pipeline.sink), pipeline.name)
    source = planning.build_source(pipeline)
    watch = Watch(pipeline, run_id=new_run_id(), reporter=reporter or Silent())
    with _interruptible(), Execution(pipeline, watch=watch) as execution:
        ledger.open()
        _repair(source, ledger.last_commit(), watch)
        yield Epochs(
            pipeline=pipeline,
            source=source,
            ledger=ledger,
            execution=execution,
            watch=watch,
            allow_drift=allow_drift,
        )


def new_run_id() -> str:
    """When, and a few characters that tell runs of one second apart."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def _acknowledge(source: Source, commit: Commit, watch: Watch) -> None:
    """Tell the outside world; that it fails changes nothing here, and the next run repairs it."""
    failpoint("before-acknowledge")
    try:
        source.acknowledge(commit.end)
    except Exception as error:
        watch.note(f"what is committed could not be acknowledged: {error}; the next run does it")
    failpoint("after-acknowledge")


def _repair(source: Source, last: Commit | None, watch: Watch) -> None:
    """Tell the outside world again what an earlier run could not, or what somebody has changed since."""
    if last is None:
        return
    try:
        told = source.acknowledged(last.end)
        if told is None or not (told.behind or told.ahead):
            return
        source.acknowledge(last.end)
    except Exception as error:
        watch.note(f"whether the last commit is acknowledged is not known: {error}")
        return
    first, *more = (*told.ahead, *told.behind)
    rest = f" (and {len(more)} more)" if more else ""
    watch.note(f"acknowledged the last commit again: {first}{rest}")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into `InterruptedRunError`, after everything was released."""

    def interrupt(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, interrupt) if main else None
    try:
        yield
    except KeyboardInterrupt as error:
        raise InterruptedRunError("interrupted; run it again to resume: what is published stays") from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
