"""The story of a run: `run` is the whole of it; what it calls is one level down, in `epochs.py` and beside.

plan (or find the unfinished one) -> execute what is not published -> finalise -> commit -> acknowledge
"""

from __future__ import annotations

from raybatch.runtime.continuous import run_continuously
from raybatch.runtime.epochs import begun
from raybatch.runtime.progress import Reporter, RunReport
from raybatch.spec.pipeline import Pipeline


def run(pipeline: Pipeline, *, allow_drift: bool = False, reporter: Reporter | None = None) -> RunReport:
    """Run `pipeline` here: on the cluster in RAY_ADDRESS, or on one that lives as long as this call.

    Finishes the epochs that an earlier run left unfinished, if there are any; else, or if that was a retry, takes,
    as a new epoch, the input that has appeared since the last commit. Blocks until the commit. With `run.mode:
    continuous`, goes on with new epochs. Raises what is listed in `raybatch.errors`; after any of these the same
    call resumes, and only units that are not published run.
    """
    if pipeline.run.mode == "continuous":
        return run_continuously(pipeline, allow_drift=allow_drift, reporter=reporter)
    with begun(pipeline, allow_drift=allow_drift, reporter=reporter) as epochs:
        ledger, watch, commit = epochs.ledger, epochs.watch, None
        while True:
            place = ledger.position()
            plan = epochs.unfinished(place[0])
            if plan is None and (found := epochs.look(place)):
                plan = epochs.freeze(found, place)
            if plan is None:
                return watch.report(commit) if commit else watch.nothing_new(ledger.last_commit())
            # How many rows may fail again is for `raybatch retry` to judge: new input is not held up by them
            rate = pipeline.run.max_error_rate if plan.retry is None else 1.0
            # A continuous run that was cut off may have left two
            last = plan.retry is None and ledger.plan(plan.epoch + 1) is None
            commit = epochs.finish(plan, max_error_rate=rate, last=last)
            if last:
                return watch.report(commit)
