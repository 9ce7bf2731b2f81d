"""The story of a run: `run` is the whole of it; what it calls is one level down, here or in a module beside.

plan (or find the unfinished one) -> execute what is not published -> finalise -> commit -> acknowledge
"""

from __future__ import annotations

import datetime
import logging
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from raybatch.errors import InterruptedRunError
from raybatch.ledger.drift import differences
from raybatch.ledger.failpoints import failpoint
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Commit, Plan
from raybatch.runtime import planning
from raybatch.runtime.execute import execute, refuse_too_many_errors
from raybatch.runtime.progress import Reporter, RunReport, Silent
from raybatch.runtime.watch import Watch
from raybatch.sources.base import Source
from raybatch.spec.pipeline import Pipeline
from raybatch.store import open_store

logger = logging.getLogger(__name__)


def run(pipeline: Pipeline, *, allow_drift: bool = False, reporter: Reporter | None = None) -> RunReport:
    """Run `pipeline` here: on the cluster in RAY_ADDRESS, or on one that lives as long as this call.

    Finishes the epoch that an earlier run left unfinished, if there is one; else takes, as a new epoch, the
    input that has appeared since the last commit. Blocks until the commit. Raises what is listed in
    `raybatch.errors`; after any of these the same call resumes, and only units that are not published run.
    """
    run_id = _new_run_id()
    ledger = Ledger(open_store(pipeline.sink.path), pipeline.name)
    source = planning.build_source(pipeline)
    watch = Watch(pipeline, run_id=run_id, reporter=reporter or Silent())
    with _interruptible():
        ledger.open()
        plan = planning.unfinished_plan(pipeline, ledger, allow_drift=allow_drift, watch=watch)
        plan = plan or planning.new_plan(pipeline, ledger, source, run_id=run_id, watch=watch)
        if plan is None:
            return watch.nothing_new(ledger.last_commit())
        todo = _resume(plan, ledger, watch)
        if todo:
            execute(pipeline, plan, todo, source=source, ledger=ledger, watch=watch)
        commit = _commit(pipeline, plan, ledger, watch)
        _acknowledge(source, commit)
    return watch.report(commit)


def _resume(plan: Plan, ledger: Ledger, watch: Watch) -> list[int]:
    """The units that are not published yet; those that are get counted."""
    watch.begin(plan)
    published = ledger.published(plan)
    for unit in sorted(published):
        watch.add(plan, ledger.record(plan, unit), resumed=True)
    watch.enter("starting")
    if published:
        watch.note(f"epoch {plan.epoch}: {len(published)} of {len(plan.units)} units are published already")
    return [unit for unit in range(len(plan.units)) if unit not in published]


def _commit(pipeline: Pipeline, plan: Plan, ledger: Ledger, watch: Watch) -> Commit:
    """Lay the published units out for readers, then make the epoch visible."""
    refuse_too_many_errors(watch.tally, pipeline.run.max_error_rate, complete=True)
    watch.enter("finalising")
    started = time.monotonic()
    records = [ledger.record(plan, unit) for unit in range(len(plan.units))]
    with (
        ThreadPoolExecutor() as threads
    ):  # linking waits for the store, merging for Arrow: neither holds the GIL
        files = pipeline.sink.build().finalise(plan, records, ledger=ledger, parallel_map=threads.map)
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


def _new_run_id() -> str:
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


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
