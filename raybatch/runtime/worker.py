"""What happens to one unit on a worker: read, each stage, publish. Ray Data calls these; see `dataset.py`.

Everything here is a small recipe that travels by pickle. Stages are built where they run, once per process.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from raybatch.errors import RaybatchError, StageError
from raybatch.ledger.failpoints import failpoint
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import PlanRef
from raybatch.retried import keep_wanted
from raybatch.rows import UnitRows
from raybatch.runtime.drain import StopSign
from raybatch.sinks.base import Sink
from raybatch.sources.base import Source, UnitSpec
from raybatch.stages.base import Stage, StageConfig, StageContext, apply

# Stages kept built in one worker process, least recently used first. Worker processes outlive runs on a
# shared cluster, so it is bounded.
_MAX_BUILT = 16
_built: OrderedDict[tuple[str, int], Stage] = OrderedDict()


@dataclass(frozen=True, kw_only=True)
class ReadUnit:
    """Reads one unit. A retry opens its input again."""

    source: Source
    unit: UnitSpec
    key: str
    schema: pa.Schema

    def __call__(self) -> UnitRows:
        failpoint("before-read")
        rows = self.source.read(self.unit, key=self.key, schema=self.schema)
        failpoint("after-read")
        return rows


@dataclass(frozen=True, kw_only=True)
class RunStage:
    """Runs one stage over a unit. `run_id` and `index` name it among the stages built in this process."""

    run_id: str
    index: int
    config: StageConfig
    context: StageContext

    def __call__(self, rows: UnitRows) -> UnitRows:
        stage = self._stage()
        try:
            return apply(stage, self.config.name, rows)
        except RaybatchError:
            raise
        except Exception as error:
            raise StageError(f"stage '{self.config.name}': {type(error).__name__}: {error}") from error

    def _stage(self) -> Stage:
        key = (self.run_id, self.index)
        if key not in _built:
            _built[key] = self.config.build(self.context)
            while len(_built) > _MAX_BUILT:
                _built.popitem(last=False)[1].close()
        _built.move_to_end(key)
        return _built[key]


@dataclass(frozen=True, kw_only=True)
class Publish:
    """Writes a unit's rows and publishes its record; gives the record that stands, as one row of JSON."""

    sink: Sink
    ledger: Ledger
    plan: PlanRef
    metadata: Mapping[str, str]

    def __call__(self, rows: UnitRows) -> pa.Table:
        attempt = uuid.uuid4().hex[:12]
        whole = keep_wanted(rows, stage="retry", last=True)
        record = self.sink.write(
            whole, plan=self.plan, attempt=attempt, ledger=self.ledger, metadata=self.metadata
        )
        return pa.table({"record": [record.to_json()]})


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Steps of one task. Between them a unit is handed on as it is; from task to task it travels as a block."""

    steps: tuple[RunStage | Publish, ...]

    def __call__(self, block: pa.Table) -> pa.Table:
        return self.after(UnitRows.from_block(block))

    def after(self, rows: UnitRows) -> pa.Table:
        """The block that leaves the task, given the rows that enter it."""
        held: UnitRows | pa.Table = rows
        for step in self.steps:
            assert isinstance(held, UnitRows), "nothing comes after publishing"
            held = step(held)
        return held.to_block() if isinstance(held, UnitRows) else held


@dataclass(frozen=True, kw_only=True)
class ReadThen:
    """Reads a unit and takes it through the steps of the same task: a read task of Ray Data.

    A run that is being drained begins no unit: then there is no block.
    """

    read: ReadUnit
    steps: Steps
    stop: StopSign

    def __call__(self) -> list[pa.Table]:
        return [] if self.stop.is_up() else [self.steps.after(self.read())]
