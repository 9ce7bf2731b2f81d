"""One run as seen from outside: what it counts, whom it tells, and what it says at its end."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from raybatch.engines.pool import PoolStatus
from raybatch.latency import Latency
from raybatch.ledger.records import Commit, Plan, UnitRecord
from raybatch.runtime.progress import Reporter, RunReport, Snapshot, Tally
from raybatch.spec.pipeline import Pipeline

INTERVAL_S = 1.0
# A run may go on for months, and say something at each epoch: the report has the last of it
MOST_NOTES = 100


class Watch:
    """Counts units as they are published, and tells the reporter. Safe to use from two threads."""

    def __init__(self, pipeline: Pipeline, *, run_id: str, reporter: Reporter) -> None:
        self.run_id = run_id
        self.tally = Tally(planned=0, expected_rows=None, expected_bytes=0)
        self.finalise_s: float | None = None
        self._pipeline = pipeline
        self._reporter = reporter
        self._phase = "planning"
        self._up = False  # whether engines are there for what comes next
        self._epoch = 0
        self._epochs = 0
        self._sums = Tally(planned=0, expected_rows=None, expected_bytes=0)  # over epochs that are committed
        self._latency = Latency()
        self._notes: deque[str] = deque(maxlen=MOST_NOTES)
        self._engines: Sequence[PoolStatus] = ()
        self._started = time.monotonic()
        self._counting = threading.Lock()

    def note(self, text: str) -> None:
        """Something that a person should read, now and in the report; once, if it is said of epoch after epoch."""
        with self._counting:
            if text in self._notes:
                return
            self._notes.append(text)
        self._reporter.note(text)

    def say(self, text: str) -> None:
        """Something that a person should read now; not in the report."""
        self._reporter.note(text)

    def enter(self, phase: str) -> None:
        """A new phase; see `raybatch.runtime.progress.PHASES`. Nothing has to start where engines are up already."""
        self._phase = "running" if phase == "starting" and self._up else phase
        self._tell()

    def begin(self, plan: Plan) -> None:
        """The epoch is known; its published units are to be added, then the phase entered."""
        if self.tally.planned:
            self._tell()  # the last of the epoch before, whose counts go now
        rows = plan.units.rows
        known = sum(r for r in rows if r is not None)
        tally = Tally(
            planned=len(plan.units),
            expected_rows=None if None in rows else known,
            expected_bytes=sum(plan.units.sizes),
        )
        with self._counting:  # nobody sees the counts of one epoch under the number of another
            self._epoch, self.tally = plan.epoch, tally

    def add(self, plan: Plan, record: UnitRecord, *, resumed: bool = False) -> None:
        """A unit is published. From several threads: the driver's, and the one that counts resumed units."""
        with self._counting:
            self.tally.add(record, unit_bytes=plan.units.sizes[record.unit], resumed=resumed)

    def count(self, commit: Commit, tally: Tally) -> str:
        """An epoch is committed, whose units `tally` has counted; gives a sentence about it. From any thread, in
        order of epochs."""
        own = Latency()
        with self._counting:
            self._epochs += 1
            self._sums.take_in(tally)
            for latency in (own, self._latency):
                if commit.retry is None:  # rows of a retry were visible before, as errors
                    latency.add(commit.stats, visible_at=commit.created_at)
        took = own.to_json()
        late = f", visible after {took['p50']:,.1f} s (p50), {took['p99']:,.1f} s (p99)" if took else ""
        return f"epoch {commit.epoch} is committed: {commit.totals.rows_in:,} rows{late}"

    @contextmanager
    def following(self, engines: Callable[[], Sequence[PoolStatus]]) -> Iterator[None]:
        """Tell the reporter about once a second, from a thread, until the block is left."""
        over = threading.Event()

        def follow() -> None:
            while not over.wait(INTERVAL_S):
                self._look(engines)

        thread = threading.Thread(target=follow, name="raybatch-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=10)
            self._look(engines)
            self._up = False

    def nothing_new(self, last: Commit | None) -> RunReport:
        """The report of a run that found nothing to do."""
        self._epoch = last.epoch if last else 0
        self.enter("done")
        return self._report(committed=last is not None)

    def report(self, commit: Commit) -> RunReport:
        """The report of a run that committed, `commit` last."""
        self._epoch = commit.epoch
        self.enter("done")
        return self._report(committed=True)

    def _look(self, engines: Callable[[], Sequence[PoolStatus]]) -> None:
        self._engines = engines() or self._engines
        if self._phase == "starting" and (
            not self._engines or any(r.state == "ready" for e in self._engines for r in e.replicas)
        ):
            self._phase, self._up = "running", True
        self._tell()

    def _tell(self) -> None:
        self._reporter.update(self._snapshot())

    def _snapshot(self) -> Snapshot:
        with self._counting:
            return Snapshot(
                run_id=self.run_id,
                pipeline=self._pipeline.name,
                epoch=self._epoch,
                phase=self._phase,
                elapsed_s=time.monotonic() - self._started,
                units=_units(self.tally),
                rows=_rows(self.tally),
                rows_resumed=self.tally.rows_resumed,
                rows_expected=self.tally.rows_expected,
                errors=dict(self.tally.errors),
                tokens=self.tally.tokens(),
                engines=self._engines,
                epochs=self._epochs,
            )

    def _report(self, *, committed: bool) -> RunReport:
        loads = [e.load_s for e in self._engines if e.load_s is not None]
        seconds = {"total": time.monotonic() - self._started, "model_load": max(loads, default=0.0)}
        if self._sums.first_published_s is not None:
            seconds["first_published"] = self._sums.first_published_s
        if self.finalise_s is not None:
            seconds["finalise"] = self.finalise_s
        for name, value in self._sums.stats.items():
            if name.startswith("seconds."):  # of a stage, summed over units
                seconds["stage." + name.removeprefix("seconds.")] = value
        return RunReport(
            run_id=self.run_id,
            pipeline=self._pipeline.name,
            epoch=self._epoch,
            epochs=self._epochs,
            committed=committed,
            units=_units(self._sums),
            rows=_rows(self._sums),
            errors=dict(self._sums.errors),
            tokens=self._sums.tokens(),
            seconds=seconds,
            engines=[_engine(e) for e in self._engines],
            output=self._pipeline.sink.path,
            notes=list(self._notes),
            latency_s=self._latency.to_json(),
        )


def _units(tally: Tally) -> dict[str, int]:
    return {"planned": tally.planned, "published": tally.published, "resumed": tally.resumed}


def _rows(tally: Tally) -> dict[str, int]:
    return {name: tally.rows[name] for name in ("in", "ok", "error", "dropped")}


def _engine(status: PoolStatus) -> dict[str, Any]:
    """An engine in the report: what was loaded, and what it did."""
    busy = None
    if status.ready_at is not None and status.last_reply_at is not None:
        busy = round(status.last_reply_at - status.ready_at, 3)
    return {
        **status.describe,
        "kind": status.kind,
        "replaced": status.deaths,
        "rows": status.rows,
        "generated_tokens": status.generated_tokens,
        "load_s": status.load_s,
        "busy_s": busy,
    }
