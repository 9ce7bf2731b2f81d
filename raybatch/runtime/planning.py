"""Before any work: what a new epoch consists of, and whether an unfinished one is still the same work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raybatch.ledger.drift import differences, drift_error
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Plan, now, schema_to_text
from raybatch.ledger.units import Units
from raybatch.runtime.history import earlier_units
from raybatch.runtime.watch import Watch
from raybatch.sources.base import JSON, NO_LIMIT, Limit, Source, SourcePlan
from raybatch.spec.columns import check_columns, keeps_columns
from raybatch.spec.pipeline import Pipeline

# The number of an epoch, and the position that it starts at (None: the very beginning)
Place = tuple[int, JSON | None]

MIB = 1 << 20
# A unit is what is lost when a worker dies, and what a resume counts in; overhead per unit is some 100 ms.
# 1,024 prompts or 4,096 texts are seconds to minutes of an engine; 128 MiB are a second or two without one, and
# even a quarter of them, compressed, is a file that readers take as it is: merging would do the work again.
UNIT_LIMITS = {"vllm": (1024, 8 * MIB), "sentence_transformers": (4096, 16 * MIB)}
UNIT_LIMITS_WITHOUT_ENGINE = (1_000_000, 128 * MIB)


def unfinished_plan(
    pipeline: Pipeline, ledger: Ledger, epoch: int, *, allow_drift: bool, watch: Watch
) -> Plan | None:
    """The plan of `epoch`, one that is not committed, if an earlier run has made one, and it is still the plan of
    this pipeline.

    Raises `DriftError` when what decides the output has changed since, unless that is allowed; the commit
    then records what has changed.
    """
    plan = ledger.plan(epoch)
    if plan is None:
        return None
    changed = differences(plan.fingerprint, fingerprint(pipeline))
    if changed and not allow_drift:
        raise drift_error(plan.epoch, changed)
    pipeline.sink.build().check_beside(plan.layout)
    watch.note(f"epoch {plan.epoch} is unfinished (planned by run {plan.created_by}): resuming it")
    for difference in changed:
        watch.note(f"--allow-drift: {difference}")
    return plan


def look(
    pipeline: Pipeline, ledger: Ledger, source: Source, place: Place, *, watch: Watch, limit: Limit = NO_LIMIT
) -> SourcePlan | None:
    """The input that has appeared since `place`, checked against the pipeline; None when there is none.

    For the very first epoch an empty one is given, so that an empty input has an output too.
    """
    epoch, start = place
    history = earlier_units(ledger, epochs=epoch)
    found = source.plan(after=start, history=history, progress=watch.say, limit=limit)
    for text in found.notes:
        watch.note(text)
    if found.units:  # what is empty has no columns to check
        check_columns(pipeline, source_columns=found.schema.names)
    pipeline.sink.build().check(found.schema, kept=keeps_columns(pipeline))
    return found if found.units or epoch == 0 else None


def freeze(pipeline: Pipeline, ledger: Ledger, found: SourcePlan, place: Place, *, run_id: str) -> Plan:
    """Make what was found the plan of the epoch at `place`.

    The plan that stands may be one that another run has just made, of the same input or more; either will do.
    """
    epoch, start = place
    sink = pipeline.sink.build()
    before = ledger.plan(epoch - 1) if epoch else None
    if before is not None:
        sink.check_beside(before.layout)
    return ledger.create_plan(
        Plan(
            epoch=epoch,
            pipeline=pipeline.name,
            start=start,
            end=found.end,
            units=Units.of(found.units),
            schema=schema_to_text(found.schema),
            fingerprint=fingerprint(pipeline),
            layout=sink.layout(),
            created_by=run_id,
            created_at=now(),
        )
    )


def build_source(pipeline: Pipeline) -> Source:
    """The source, with units of the size that suits the pipeline."""
    max_rows, max_bytes = unit_limits(pipeline)
    source: Source = pipeline.source.build(max_rows=max_rows, max_bytes=max_bytes)
    return source


def unit_limits(pipeline: Pipeline) -> tuple[int, int]:
    """The most rows and bytes of a unit: what the pipeline says, or what suits its first engine."""
    kinds = [spec.kind for stage in pipeline.stages for spec in stage.engines()]
    rows, size = UNIT_LIMITS.get(kinds[0], UNIT_LIMITS["vllm"]) if kinds else UNIT_LIMITS_WITHOUT_ENGINE
    unit = pipeline.run.unit
    return unit.max_rows or rows, unit.max_bytes or size


def fingerprint(pipeline: Pipeline) -> dict[str, Any]:
    """What decides the output: the source, and each stage with its model's files or its code. Plain JSON;
    compared with the plan's on resume."""
    source = _plain(pipeline.raw.get("source", {}))
    left_out = getattr(pipeline.source, "decides_nothing", ())
    return {
        "source": {key: value for key, value in source.items() if key not in left_out},
        "stages": [{"name": stage.name, **_plain(stage.fingerprint())} for stage in pipeline.stages],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
