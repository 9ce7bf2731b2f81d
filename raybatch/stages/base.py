"""The contract of a stage, and the one place where its rows are accounted for.

A stage's config is parsed on the driver; `Config.build` runs on a worker and gives the `Stage`. The stage
sees plain tables of the user's columns; `apply` keeps ids, errors and drops.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from raybatch.engines.base import EngineClient, EngineSpec
from raybatch.errors import StageError
from raybatch.retried import keep_wanted
from raybatch.rows import DROPPED_SCHEMA, ERROR_SCHEMA, ID_COLUMNS, RowFailure, UnitRows


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What became of a stage's input rows (0 .. n-1): each is in `parents`, `failures` or `dropped`.

    `table` holds the output rows, without id columns; `parents[i]` is the input row that output row i came
    from. A row named in `expanded` was turned into a list: its output rows get child indices, even if there
    is only one. A row with several outputs must be in `expanded`.
    """

    table: pa.Table
    parents: np.ndarray[Any, np.dtype[np.int64]]
    failures: Sequence[RowFailure] = ()
    dropped: Sequence[int] = ()
    expanded: frozenset[int] = frozenset()
    stats: Mapping[str, float] = field(default_factory=dict)


class Stage(Protocol):
    """Built once per worker process and used for many units, one at a time."""

    def process(self, rows: pa.Table) -> StageResult:
        """Work on all rows of a unit. Must not depend on the order or the company of rows.

        A row's own trouble is a `RowFailure`; an exception means that the stage itself is broken and ends
        the run.
        """

    def close(self) -> None:
        """Free what the stage holds. Best effort: never called on SIGKILL."""


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What a stage is built with. `base_dir`: the pipeline file's folder, where its Python functions are."""

    base_dir: str
    engine: EngineClient | None = None


class StageConfig(Protocol):
    """What the registry expects of each stage's pydantic `Config` (a model with `type` and `name`)."""

    type: str
    name: str

    def reads(self) -> list[str] | None:
        """Columns that it needs; None when only running it tells."""

    def writes(self, available: list[str] | None) -> list[str] | None:
        """All columns after it, given those before it; None when only running it tells."""

    def engines(self) -> list[EngineSpec]:
        """The engines that it calls; equal specs are shared between stages. At most one today."""

    def build(self, context: StageContext) -> Stage:
        """On a worker: the stage itself. Heavy imports happen here. Raises `StageError`."""

    def resources(self) -> Mapping[str, float]:
        """Ray resources of one task, such as {"num_cpus": 1}; empty: whatever its neighbours use."""

    def fingerprint(self) -> Mapping[str, Any]:
        """What decides its output: prompt, model, sampling, code. Compared on resume, so JSON only."""


def apply(stage: Stage, name: str, rows: UnitRows) -> UnitRows:
    """Run `stage` (called `name`) over the living rows of a unit, and account for each of them.

    Raises `StageError` when the stage lost, invented or duplicated a row: better to stop than to publish.
    """
    started = time.perf_counter()
    user = rows.table.drop_columns(list(ID_COLUMNS))
    result = stage.process(user)
    _check(result, len(user), name)
    ids = rows.table.select(list(ID_COLUMNS))
    table = result.table
    for column, values in zip(ID_COLUMNS, _output_ids(ids, result), strict=True):
        table = table.append_column(column, values)
    errors = [rows.errors, error_rows(rows.table, result.failures, name)]
    dropped = [rows.dropped, _dropped_rows(ids, result.dropped, name)]
    stats = dict(result.stats) | {f"seconds.{name}": time.perf_counter() - started}
    held = len(table) + len(result.failures) + len(result.dropped)
    after = replace(
        rows,
        table=table,
        errors=pa.concat_tables(errors),
        dropped=pa.concat_tables(dropped),
        made=rows.made + held - len(user),
    ).with_stats(stats)
    return keep_wanted(after, stage=name)


def _check(result: StageResult, count: int, name: str) -> None:
    if len(result.parents) != len(result.table):
        raise StageError(f"stage '{name}': {len(result.table)} rows out, but {len(result.parents)} parents")
    seen = np.zeros(count, dtype=np.int64)
    failed = np.array([f.index for f in result.failures], dtype=np.int64)
    gone = np.array(result.dropped, dtype=np.int64)
    parents = np.asarray(result.parents, dtype=np.int64)
    for indices in (parents, failed, gone):
        if len(indices) and (indices.min() < 0 or indices.max() >= count):
            raise StageError(f"stage '{name}': names a row outside 0..{count - 1}")
    single = parents[~np.isin(parents, list(result.expanded))] if result.expanded else parents
    for indices in (single, np.unique(parents[np.isin(parents, list(result.expanded))]), failed, gone):
        np.add.at(seen, indices, 1)
    wrong = np.flatnonzero(seen != 1)
    if len(wrong):
        raise StageError(
            f"stage '{name}': row {wrong[0]} of {count} is accounted for {seen[wrong[0]]} times"
            f" instead of once ({len(wrong)} such rows)"
        )


def _output_ids(ids: pa.Table, result: StageResult) -> list[pa.ChunkedArray]:
    taken = ids.take(pa.array(result.parents, pa.int64()))
    if not result.expanded:
        return [taken[c] for c in ID_COLUMNS]
    children: list[str | None] = []
    next_index: dict[int, int] = {}
    for parent, child in zip(result.parents.tolist(), taken["_child"].to_pylist(), strict=True):
        if parent not in result.expanded:
            children.append(child)
            continue
        index = next_index.get(parent, 0)
        next_index[parent] = index + 1
        children.append(str(index) if child is None else f"{child}.{index}")
    return [taken["_source"], taken["_row"], pa.chunked_array([pa.array(children, pa.string())])]


def error_rows(table: pa.Table, failures: Sequence[RowFailure], name: str) -> pa.Table:
    """The rows of `table` (with ids) that `failures` name, as error rows of the stage `name`."""
    if not failures:
        return ERROR_SCHEMA.empty_table()
    found = table.take(pa.array([f.index for f in failures], pa.int64())).to_pylist()
    out = []
    for failure, row in zip(failures, found, strict=True):
        ids = {c: row.pop(c) for c in ID_COLUMNS}
        why = {"stage": name, "type": failure.type, "message": failure.message, "attempts": failure.attempts}
        out.append(ids | why | {"row": _row_text(row), "raw": None})
    return pa.Table.from_pylist(out, schema=ERROR_SCHEMA)


def _row_text(row: Mapping[str, Any]) -> str:
    try:
        return json.dumps(row, default=_to_json, allow_nan=False)
    except ValueError:  # JSON has no NaN and no infinity; readers refuse what Python writes for them
        return json.dumps(_finite(row), default=_to_json)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _to_json(value: object) -> object:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value)


def _dropped_rows(ids: pa.Table, dropped: Sequence[int], name: str) -> pa.Table:
    taken = ids.take(pa.array(dropped, pa.int64()))
    return taken.append_column("stage", pa.array([name] * len(dropped), pa.string())).cast(DROPPED_SCHEMA)
