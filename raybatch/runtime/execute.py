"""The part of a run that needs Ray: engines up, each epoch's units through the dataset, records back, engines down."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from raybatch.errors import RaybatchError, StageError, TooManyErrorsError
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Plan, UnitRecord
from raybatch.runtime import cluster, dataset, engines
from raybatch.runtime.cluster import Cluster
from raybatch.runtime.drain import Drain, drained_on_sigterm
from raybatch.runtime.engines import Engines
from raybatch.runtime.progress import Tally
from raybatch.runtime.watch import Watch
from raybatch.runtime.worker import Publish, ReadUnit, RunStage
from raybatch.sources.base import Source, UnitSpec
from raybatch.spec.pipeline import Pipeline
from raybatch.stages.base import StageContext

# Per replica: one unit being computed, one whose rows wait in the engine's queue, one being read or published
UNITS_PER_REPLICA = 3
# Small units: as many as hold this many rows, four times what a large engine (1,024 sequences) computes at once
ROWS_PER_REPLICA = 4096
# Ray Data prepares all read tasks of a dataset before the first one runs: 1.5 ms and 12 kB each, so a million would
# take half an hour and 12 GB. Between two datasets engines run dry for some seconds; so many units make up for it.
UNITS_PER_DATASET = 10_000
BYTES_PER_ROW = 256  # where the source does not know: a short prompt


class Execution:
    """Takes epochs through Ray, any number of them, one after the other. A context manager.

    Ray and the engines are started for the first epoch that has something to do, and are there for the next
    ones: a model takes minutes to load. They are released by `release`, and at the end however it comes.
    Meanwhile SIGTERM lets units that have begun be finished, for up to `run.grace_s`.
    """

    def __init__(self, pipeline: Pipeline, *, watch: Watch) -> None:
        self._pipeline = pipeline
        self._watch = watch
        self._held = ExitStack()
        self._up: _Up | None = None

    def __enter__(self) -> Execution:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Stop the engines, and a Ray that was started here. Nothing is lost: what comes next starts them."""
        self._up = None
        self._held.close()

    def heed(self) -> None:
        """Raise `KeyboardInterrupt` if the run has been told to stop: for who waits between two epochs."""
        if self._up is not None:
            self._up.drain.heed()

    def grace_left_s(self) -> float:
        """How long the run may still take once it was told to stop."""
        return self._up.drain.grace_left_s() if self._up else self._pipeline.run.grace_s

    def execute(
        self,
        plan: Plan,
        todo: Sequence[int],
        *,
        source: Source,
        ledger: Ledger,
        max_error_rate: float,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Publish the units `todo` of `plan`, telling the watch of each, and calling `check`.

        Raises the `RaybatchError` that ended the work, or that `check` raised, and `KeyboardInterrupt` when a
        signal did; units published until then stay so.
        """
        if self._up is None:
            self._up = self._held.enter_context(_started(self._pipeline, watch=self._watch))
        up, watch = self._up, self._watch
        models = {stage.name: spec.model for stage in self._pipeline.stages for spec in stage.engines()}
        publish = Publish(
            sink=self._pipeline.sink.build(),
            ledger=ledger,
            plan=plan.reference(),
            metadata={"models": json.dumps(models)},
        )
        try:
            up.drain.heed()
            for first in range(0, len(todo), UNITS_PER_DATASET):
                some = todo[first : first + UNITS_PER_DATASET]
                reads = [_read(plan, unit, source=source) for unit in some]
                at_once = min(self._in_flight(reads, up), len(reads))
                for text in dataset.records(reads, up.stages, publish, in_flight=at_once, stop=up.drain.sign):
                    watch.add(plan, UnitRecord.from_json(text))
                    refuse_too_many_errors(watch.tally, max_error_rate, complete=False)
                    publish.sink.check_partitions(watch.tally.partitions)
                    check()
                up.drain.heed()
        except Exception as error:
            raise _known(error) from error

    def _in_flight(self, reads: Sequence[ReadUnit], up: _Up) -> int:
        asked = self._pipeline.run.in_flight_units
        return asked or _in_flight([read.unit for read in reads], up.pools, up.cluster)


@dataclass(frozen=True, kw_only=True)
class _Up:
    """What is there while Ray is."""

    cluster: Cluster
    pools: Engines
    stages: Sequence[RunStage]
    drain: Drain


@contextmanager
def _started(pipeline: Pipeline, *, watch: Watch) -> Iterator[_Up]:
    specs = [spec for stage in pipeline.stages for spec in stage.engines()]
    with (
        cluster.connect() as found,
        engines.started(specs, cluster=found) as pools,
        watch.following(pools.status),
        drained_on_sigterm(grace_s=pipeline.run.grace_s, say=watch.say) as drain,
    ):
        _refuse_stages_without_a_place(pipeline, found)
        stages = _stages(pipeline, run_id=watch.run_id, pools=pools)
        yield _Up(cluster=found, pools=pools, stages=stages, drain=drain)


def refuse_too_many_errors(tally: Tally, rate: float, *, complete: bool) -> None:
    """Raise `TooManyErrorsError` as soon as it is certain that the epoch's error rate exceeds `rate`.

    While rows are still to come (`complete` is False) all of them are taken to succeed.
    """
    rows = tally.rows["in"] if complete else max(tally.rows_expected or 0, tally.rows["in"])
    if not complete and tally.rows_expected is None:
        return
    errors = tally.rows["error"]
    if errors > rate * rows:
        kinds = ", ".join(f"{kind} {count}" for kind, count in tally.errors.most_common(3))
        raise TooManyErrorsError(
            f"{errors} of {rows} rows are error rows ({kinds}), and run.max_error_rate is {rate:g};"
            " what is published stays. Mend the cause and take the error rows again (raybatch retry, with"
            " --allow-drift if the pipeline has changed); or accept them: run again with a higher --set"
            " run.max_error_rate=...; or run again to another output"
        )


def _refuse_stages_without_a_place(pipeline: Pipeline, found: Cluster) -> None:
    """Raise `StageError` for a task that this cluster, which cannot grow, would wait for for ever."""
    for stage in pipeline.stages:
        asked = stage.resources().get("num_cpus", 0)
        if found.local and asked > found.cpus:
            raise StageError(
                f"stage '{stage.name}' asks for {asked:g} CPUs (num_cpus), and this machine has"
                f" {found.cpus:g}: ask for less, or run on a cluster that has them (RAY_ADDRESS)"
            )


def _read(plan: Plan, unit: int, *, source: Source) -> ReadUnit:
    return ReadUnit(source=source, unit=plan.units[unit], key=plan.unit_key(unit), schema=plan.input_schema)


def _stages(pipeline: Pipeline, *, run_id: str, pools: Engines) -> list[RunStage]:
    return [
        RunStage(
            run_id=run_id,
            index=index,
            config=config,
            context=StageContext(base_dir=pipeline.base_dir, engine=pools.client(config)),
        )
        for index, config in enumerate(pipeline.stages)
    ]


def _in_flight(units: Sequence[UnitSpec], pools: Engines, found: Cluster) -> int:
    """How many units to work on at a time: every engine busy, without a process for each of many small units."""
    if not pools.replicas():
        return max(1, int(found.cpus))
    rows = sum(unit.rows or max(1, unit.bytes // BYTES_PER_ROW) for unit in units)
    wanted = math.ceil(ROWS_PER_REPLICA * len(units) / max(rows, 1))
    return pools.replicas() * min(max(wanted, UNITS_PER_REPLICA), max(UNITS_PER_REPLICA, int(found.cpus)))


_DEATHS = ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError")


def _known(error: BaseException) -> BaseException:
    """The error of ours inside Ray's wrappings, or what they are wrapped around where there is none."""
    seen: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop(0)
        if current is None or current in seen:
            continue
        if isinstance(current, RaybatchError) and not hasattr(current, "cause"):
            return current
        seen.append(current)
        queue += [getattr(current, "cause", None), current.__cause__, current.__context__]
    root = error
    while (cause := getattr(root, "cause", None)) is not None:
        root = cause
    if type(root).__name__ in _DEATHS:
        return StageError(
            f"{dataset.MOST_DEATHS + 1} worker processes died over one unit ({type(root).__name__}): code that a"
            " stage calls ends its process, or a unit needs more memory than there is (run.unit makes it smaller)."
            " The log of Ray's worker says more; run it again to resume"
        )
    return RaybatchError(f"{type(root).__name__}: {root}")
