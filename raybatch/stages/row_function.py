"""`python` in mode row: a dict in; a dict, None or a list of dicts out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raybatch.stages.base import StageResult
from raybatch.stages.output_schema import OutputSchema
from raybatch.stages.row_error import RowError
from raybatch.stages.user_function import Raised, UserFunction

Row = Mapping[str, Any]

_REMEMBERED = 1_000


class RowFunctionStage:
    """Contract: `raybatch.stages.base.Stage`."""

    def __init__(self, name: str, function: UserFunction, output: OutputSchema) -> None:
        self._name = name
        self._function = function
        self._output = output
        self._good: set[tuple[str, ...]] = set()  # keys of rows that were checked: most rows have the same

    def process(self, rows: pa.Table) -> StageResult:
        made: list[tuple[int, Row]] = []  # of which input row, and what it became
        expanded: set[int] = set()
        failures: dict[int, RowError] = {}
        for index, found in enumerate(self._function.on_each(rows.to_pylist() if len(rows) else [])):
            try:
                made += [(index, row) for row in self._rows(found)]
            except RowError as error:
                failures[index] = error
            if isinstance(found, list):
                expanded.add(index)
        table, bad = self._output.table([row for _, row in made], rows.schema)
        for position, why in bad.items():
            failures.setdefault(made[position][0], RowError("BadValue", why))
        kept = [position for position, (index, _) in enumerate(made) if index not in failures]
        parents = [made[position][0] for position in kept]
        return StageResult(
            table=table if len(kept) == len(made) else table.take(pa.array(kept, pa.int64())),
            parents=np.array(parents, dtype=np.int64),
            failures=[failures[index].at(index) for index in sorted(failures)],
            dropped=sorted(set(range(len(rows))) - set(parents) - failures.keys()),
            expanded=frozenset(expanded.intersection(parents)),
        )

    def close(self) -> None:
        self._function.close()

    def _rows(self, found: Any) -> Sequence[Row]:
        """What the function returned for one row, as rows. Raises `RowError`."""
        if isinstance(found, Raised):
            raise found.as_row_error()
        if found is None:
            return []
        rows = found if isinstance(found, list) else [found]
        for row in rows:
            why = self._wrong(row)
            if why:
                raise RowError("BadReturn", why)
        return rows

    def _wrong(self, row: Any) -> str | None:
        if inspect.iscoroutine(row):
            row.close()
            return "it returned a coroutine: a function that calls async code is defined with `async def`"
        if not isinstance(row, Mapping):
            kind = type(row).__name__
            return f"it returned a value of type {kind}; possible are a dict, None, and a list of dicts"
        keys = tuple(row)
        if keys in self._good:
            return None
        if not keys:
            return "it returned an empty dict; return None to drop the row"
        other = [key for key in keys if not isinstance(key, str)]
        if other:
            return f"it returned a dict with the key {other[0]!r}; keys are column names"
        why = self._output.undeclared(keys)
        if why is None and len(self._good) < _REMEMBERED:
            self._good.add(keys)
        return why
