"""The story of a run: `run` is the whole of it; what it calls is one level down, here or in a module beside.

plan (or find the unfinished one) -> execute what is not published -> finalise -> commit -> acknowledge
"""

from __future__ import annotations

import datetime
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from raybatch.errors import InterruptedRunError
from raybatch.ledger.drift import differences
from raybatch.ledger.failpoints import failpoint
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Commit, Plan
from raybatch.runtime import planning
from raybatch.runtime.execute import Execution, refuse_too_many_errors
from raybatch.runtime.progress import Reporter, RunReport, Silent
from raybatch.runtime.resumed import resuming
from raybatch.runtime.watch import Watch
from raybatch.sinks.base import open_output
from raybatch.sources.base import Source
from raybatch.sources.retry import RetrySource
from raybatch.spec.pipeline import Pipeline
from raybatch.store.ahead import map_ahead

logger = logging.getLogger(__name__)

# As many as `ThreadPoolExecutor` takes for what it is not told, on a small and on a large machine
FINALISING = min(32, (os.cpu_count() or 1) + 4)


def run(pipeline: Pipeline, *, allow_drift: bool = False, reporter: Reporter | None = None) -> RunReport:
    """Run `pipeline` here: on the cluster in RAY_ADDRESS, or on one that lives as long as this call.

    Finishes the epoch that an earlier run left unfinished, if there is one; else, or if that was a retry, takes,
    as a new epoch, the input that has appeared since the last commit. Blocks until the commit. Raises what is listed in
    `raybatch.errors`; after any of these the same call resumes, and only units that are not published run.
    """
    run_id = new_run_id()
    ledger = Ledger(open_output(pipeline.sink), pipeline.name)
    source = planning.build_source(pipeline)
    watch = Watch(pipeline, run_id=run_id, reporter=reporter or Silent())
    with interruptible(), Execution(pipeline, watch=watch) as execution:
        ledger.open()
        commit = None
        while True:
            plan = planning.unfinished_plan(pipeline, ledger, allow_drift=allow_drift, watch=watch)
            plan = plan or planning.new_plan(pipeline, ledger, source, run_id=run_id, watch=watch)
            if plan is None:
                return watch.report(commit) if commit else watch.nothing_new(ledger.last_commit())
            # How many rows may fail again is for `raybatch retry` to judge: new input is not held up by them
            last = plan.retry is None
            rate = pipeline.run.max_error_rate if last else 1.0
            commit = finish(
                pipeline,
                plan,
                source=source,
                ledger=ledger,
                execution=execution,
                watch=watch,
                max_error_rate=rate,
                last=last,
            )
            if last:
                return watch.report(commit)


def finish(
    pipeline: Pipeline,
    plan: Plan,
    *,
    source: Source,
    ledger: Ledger,
    execution: Execution,
    watch: Watch,
    max_error_rate: float,
    last: bool,
) -> Commit:
    """Do what is left of an epoch, and commit it. After the `last` one engines are not held for the commit."""
    reader = source if plan.retry is None else RetrySource(source=source, store=ledger.store)
    with resuming(plan, ledger, watch) as todo:
        if todo:
            execution.execute(plan, todo, source=reader, ledger=ledger, max_error_rate=max_error_rate)
        if last:
            execution.release()
    refuse_too_many_errors(watch.tally, max_error_rate, complete=True)
    commit = _commit(pipeline, plan, ledger, watch)
    _acknowledge(source, commit)
    return commit


def _commit(pipeline: Pipeline, plan: Plan, ledger: Ledger, watch: Watch) -> Commit:
    """Lay the published units out for readers, then make the epoch visible."""
    watch.enter("finalising")
    started = time.monotonic()
    records = list(ledger.records(plan, range(len(plan.units))))
    # Linking waits for the store, merging for Arrow: neither holds the GIL. A merge holds a file in memory.
    parallel_map = partial(map_ahead, threads=FINALISING)
    files = pipeline.sink.build().finalise(plan, records, ledger=ledger, parallel_map=parallel_map)
    drift = differences(plan.fingerprint, planning.fingerprint(pipeline))
    commit = ledger.commit(plan, Commit.of(plan, records, files, run_id=watch.run_id, drift=drift))
    watch.finalise_s = time.monotonic() - started
    return commit


def _acknowledge(source: Source, commit: Commit) -> None:
    """Tell the outside world; it changes nothing here, and the next run repairs it."""
    failpoint("before-acknowledge")
    try:
        source.acknowledge(commit.end)
    except Exception:
        logger.warning("acknowledging the end of epoch %d failed", commit.epoch, exc_info=True)
    failpoint("after-acknowledge")


def new_run_id() -> str:
    """When, and a few characters that tell runs of one second apart."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


@contextmanager
def interruptible() -> Iterator[None]:
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
