"""One run as seen from outside: what it counts, whom it tells, and what it says at its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from raybatch.engines.pool import PoolStatus
from raybatch.ledger.records import Commit, Plan, UnitRecord
from raybatch.runtime.progress import Reporter, RunReport, Snapshot, Tally
from raybatch.spec.pipeline import Pipeline

INTERVAL_S = 1.0


class Watch:
    """Counts units as they are published, and tells the reporter. Safe to use from two threads."""

    def __init__(self, pipeline: Pipeline, *, run_id: str, reporter: Reporter) -> None:
        self.run_id = run_id
        self.tally = Tally(planned=0, expected_rows=None, expected_bytes=0)
        self.finalise_s: float | None = None
        self._pipeline = pipeline
        self._reporter = reporter
        self._phase = "planning"
        self._epoch = 0
        self._notes: list[str] = []
        self._engines: Sequence[PoolStatus] = ()
        self._started = time.monotonic()
        self._counting = threading.Lock()

    def note(self, text: str) -> None:
        """Something that a person should read, now and in the report."""
        self._notes.append(text)
        self._reporter.note(text)

    def say(self, text: str) -> None:
        """Something that a person should read now; not in the report."""
        self._reporter.note(text)

    def enter(self, phase: str) -> None:
        """A new phase; see `raybatch.runtime.progress.PHASES`."""
        self._phase = phase
        self._tell()

    def begin(self, plan: Plan) -> None:
        """The epoch is known; its published units are to be added, then the phase entered."""
        rows = plan.units.rows
        known = sum(r for r in rows if r is not None)
        self._epoch = plan.epoch
        self.tally = Tally(
            planned=len(plan.units),
            expected_rows=None if None in rows else known,
            expected_bytes=sum(plan.units.sizes),
        )

    def add(self, plan: Plan, record: UnitRecord, *, resumed: bool = False) -> None:
        """A unit is published. From several threads: the driver's, and the one that counts resumed units."""
        with self._counting:
            self.tally.add(record, unit_bytes=plan.units.sizes[record.unit], resumed=resumed)

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

    def nothing_new(self, last: Commit | None) -> RunReport:
        """The report of a run that found nothing to do."""
        self._epoch = last.epoch if last else 0
        self.enter("done")
        return self._report(committed=last is not None)

    def report(self, commit: Commit) -> RunReport:
        """The report of a run that committed."""
        self._epoch = commit.epoch
        self.enter("done")
        return self._report(committed=True)

    def _look(self, engines: Callable[[], Sequence[PoolStatus]]) -> None:
        self._engines = engines() or self._engines
        if self._phase == "starting" and (
            not self._engines or any(r.state == "ready" for e in self._engines for r in e.replicas)
        ):
            self._phase = "running"
        self._tell()

    def _units(self) -> dict[str, int]:
        tally = self.tally
        return {"planned": tally.planned, "published": tally.published, "resumed": tally.resumed}

    def _rows(self) -> dict[str, int]:
        return {name: self.tally.rows[name] for name in ("in", "ok", "error", "dropped")}

    def _tell(self) -> None:
        self._reporter.update(
            Snapshot(
                run_id=self.run_id,
                pipeline=self._pipeline.name,
                epoch=self._epoch,
                phase=self._phase,
                elapsed_s=time.monotonic() - self._started,
                units=self._units(),
                rows=self._rows(),
                rows_resumed=self.tally.rows_resumed,
                rows_expected=self.tally.rows_expected,
                errors=dict(self.tally.errors),
                tokens=self.tally.tokens(),
                engines=self._engines,
            )
        )

    def _report(self, *, committed: bool) -> RunReport:
        loads = [e.load_s for e in self._engines if e.load_s is not None]
        seconds = {"total": time.monotonic() - self._started, "model_load": max(loads, default=0.0)}
        if self.tally.first_published_s is not None:
            seconds["first_published"] = self.tally.first_published_s
        if self.finalise_s is not None:
            seconds["finalise"] = self.finalise_s
        for name, value in self.tally.stats.items():
            if name.startswith("seconds."):  # of a stage, summed over units
                seconds["stage." + name.removeprefix("seconds.")] = value
        return RunReport(
            run_id=self.run_id,
            pipeline=self._pipeline.name,
            epoch=self._epoch,
            committed=committed,
            units=self._units(),
            rows=self._rows(),
            errors=dict(self.tally.errors),
            tokens=self.tally.tokens(),
            seconds=seconds,
            engines=[_engine(e) for e in self._engines],
            output=self._pipeline.sink.path,
            notes=self._notes,
        )


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
