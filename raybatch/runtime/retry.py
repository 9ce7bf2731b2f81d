"""The story of a retry: an epoch made of the error rows of earlier ones.

finish what is unfinished -> plan the live error rows of the choice -> execute, finalise, commit as any epoch
-> are there still too many?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raybatch.errors import DriftError, TooManyErrorsError
from raybatch.ledger.drift import differences
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Commit, Plan, Retry, now
from raybatch.ledger.retries import Choice, Found, committed_errors, find, related, rows_of, totals, units_of
from raybatch.ledger.units import Units
from raybatch.runtime import planning
from raybatch.runtime.epochs import Epochs, begun
from raybatch.runtime.progress import Reporter, RunReport
from raybatch.runtime.watch import Watch
from raybatch.spec.pipeline import Pipeline


def retry(
    pipeline: Pipeline,
    *,
    types: Sequence[str] = (),
    stages: Sequence[str] = (),
    epochs: Sequence[int] = (),
    allow_drift: bool = False,
    reporter: Reporter | None = None,
) -> RunReport:
    """Take the live error rows of these types, stages and epochs (empty: any) through the pipeline again.

    First finishes the epoch that an earlier run left, as `run` does, but however many error rows it has; if that
    is a retry of the same choice, it is all there is to do. Raises as `run` does; `TooManyErrorsError` only when
    all is committed, and of the rows concerned more than `run.max_error_rate` still are error rows. The report's
    `retry` says what became of the rows.
    """
    choice = Choice(
        types=tuple(sorted(set(types))), stages=tuple(sorted(set(stages))), epochs=tuple(sorted(set(epochs)))
    )
    commit = None
    with begun(pipeline, allow_drift=allow_drift, reporter=reporter) as work:
        while True:
            plan = work.unfinished(work.ledger.position()[0]) or _plan(work, choice)
            if plan is None:
                break
            last = plan.retry is not None and Choice.of(plan.retry) == choice
            # The error rate is of what is left, and that is known at the end
            commit = work.finish(plan, max_error_rate=1.0, last=last)
            if last:
                break
        return _end(pipeline, work.ledger, commit, choice=choice, watch=work.watch)


def _plan(work: Epochs, choice: Choice) -> Plan | None:
    """Freeze the live error rows of `choice`; None when there are none.

    The plan that stands may be one that another run has just made, also of other rows.
    """
    pipeline, ledger, watch = work.pipeline, work.ledger, work.watch
    # The position first: what another run commits after it is in the way of this epoch's plan, not among its rows
    epoch, start = ledger.position()
    found = list(find(ledger.store, choice))
    if not found:
        return None
    before = ledger.plan(epoch - 1)
    assert before is not None, "an epoch with error rows is committed"
    assert start is not None
    _check_source(pipeline, ledger, found, allow_drift=work.allow_drift, watch=watch)
    sink = pipeline.sink.build()
    sink.check_beside(before.layout)
    max_rows, max_bytes = planning.unit_limits(pipeline)
    units = units_of(found, choice=choice, max_rows=max_rows, max_bytes=max_bytes)
    taken = Retry(types=choice.types, stages=choice.stages, epochs=choice.epochs, rows=rows_of(found))
    watch.note(f"epoch {epoch}: retrying {taken.taken} error rows of {len(found)} units")
    return ledger.create_plan(
        Plan(
            epoch=epoch,
            pipeline=pipeline.name,
            start=start,
            end=start,
            units=Units.of(units),
            schema=before.schema,
            fingerprint=planning.fingerprint(pipeline),
            layout=sink.layout(),
            created_by=watch.run_id,
            created_at=now(),
            retry=taken,
        )
    )


def _check_source(
    pipeline: Pipeline, ledger: Ledger, found: Sequence[Found], *, allow_drift: bool, watch: Watch
) -> None:
    """Raise `DriftError` when rows may be counted in another way than when they got their ids."""
    now_read = _rows_decided_by(planning.fingerprint(pipeline))
    for epoch in sorted({one.entry["epoch"] for one in found}):
        plan = ledger.plan(epoch)
        assert plan is not None, "its units were just read"
        read = _rows_decided_by(plan.fingerprint)
        changed = differences(read, now_read, path="source")
        if changed and not allow_drift:
            lines = "\n".join(f"  {difference}" for difference in changed)
            raise DriftError(
                f"the source has changed since epoch {epoch}, whose error rows are to be retried:\n{lines}\n"
                "A row is found again by its place in the input, and with other options the place may be another"
                " row's. Choose: undo the change; or retry with it (--allow-drift), if it leaves places as they"
                " are, as a type of a column or a limit does; or start anew at another sink.path"
            )
        for difference in changed:
            watch.note(f"--allow-drift, since epoch {epoch}: {difference}")


def _rows_decided_by(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """The source's options, but which files or topics there are: that is in the ranges."""
    source = fingerprint.get("source", {})
    return {key: value for key, value in source.items() if key not in ("path", "topics", "topic_pattern")}


def _end(
    pipeline: Pipeline, ledger: Ledger, commit: Commit | None, *, choice: Choice, watch: Watch
) -> RunReport:
    """The report, or `TooManyErrorsError` where something was done and it was not enough."""
    epochs = committed_errors(ledger.store)
    whole = totals(epochs)
    done = commit.retry if commit is not None else None
    if done is None:
        watch.note(_nothing(choice, whole.errors))
    account = {
        "taken": done.taken if done else 0,
        "ok": commit.totals.ok if commit and done else 0,
        "error": commit.totals.error if commit and done else 0,
        "dropped": commit.totals.dropped if commit and done else 0,
        "left": whole.error,
        "left_by_type": dict(whole.errors),
    }
    if commit is not None:
        concerned = totals(related(epochs, commit.epoch))
        rate = pipeline.run.max_error_rate
        if concerned.error > rate * concerned.rows_in:
            raise TooManyErrorsError(
                f"{concerned.error} of {concerned.rows_in} rows still are error rows"
                f" ({_kinds(concerned.errors)}), and run.max_error_rate is {rate:g}. All of it is committed:"
                f" {account['taken']} were retried, {account['error']} failed again. Mend the cause and"
                " `raybatch retry` again, or leave them as they are: they are in errors/"
            )
    report = watch.nothing_new(ledger.last_commit()) if commit is None else watch.report(commit)
    return replace(report, retry=account)


def _nothing(choice: Choice, live: Mapping[str, int]) -> str:
    if not live:
        return "no error row to retry: there is none"
    named = [*choice.types, *choice.stages, *(f"epoch {epoch}" for epoch in choice.epochs)]
    return f"no error row to retry of {', '.join(named)}; there are {_kinds(live)}"


def _kinds(errors: Mapping[str, int]) -> str:
    ordered = sorted(errors.items(), key=lambda item: -item[1])
    return ", ".join(f"{kind} {count}" for kind, count in ordered)
