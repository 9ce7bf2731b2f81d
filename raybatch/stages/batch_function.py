"""`python` in mode batch: a pyarrow.Table in, a pyarrow.Table out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybatch.errors import StageError
from raybatch.rows import RowFailure
from raybatch.stages.base import StageResult
from raybatch.stages.output_schema import INDEX, OutputSchema
from raybatch.stages.row_error import RowError
from raybatch.stages.user_function import Raised, UserFunction


class BatchFunctionStage:
    """Contract: `raybatch.stages.base.Stage`."""

    def __init__(self, name: str, function: UserFunction, output: OutputSchema) -> None:
        self._name = name
        self._function = function
        self._output = output

    def process(self, rows: pa.Table) -> StageResult:
        if INDEX in rows.column_names:
            raise StageError(f"stage '{self._name}': the input has a column '{INDEX}', which batches use")
        done: list[tuple[pa.Table, np.ndarray[Any, np.dtype[np.int64]]]] = []
        failures: list[RowFailure] = []
        # A stack of batches, the first on top; one that raises makes way for its halves
        todo = [rows.append_column(INDEX, pa.array(np.arange(len(rows))))] if len(rows) else []
        while todo:
            batch = todo.pop()
            try:
                done.append(self._answer(batch))
            except RowError as error:
                if len(batch) == 1:
                    failures.append(error.at(batch[INDEX][0].as_py()))
                    continue
                half = len(batch) // 2
                todo += [batch.slice(half), batch.slice(0, half)]
        table = self._joined([table for table, _ in done], rows.schema)
        parents = np.concatenate([found for _, found in done] or [np.array([], np.int64)])
        counts = np.bincount(parents, minlength=len(rows))
        lost = set(np.flatnonzero(counts == 0).tolist()) - {failure.index for failure in failures}
        return StageResult(
            table=table,
            parents=parents,
            failures=failures,
            dropped=sorted(lost),
            expanded=frozenset(np.flatnonzero(counts > 1).tolist()),
        )

    def close(self) -> None:
        self._function.close()

    def _answer(self, batch: pa.Table) -> tuple[pa.Table, np.ndarray[Any, np.dtype[np.int64]]]:
        """The function's table, without `_index`, and the input row of each of its rows.

        Raises `RowError` for what may be the fault of a row, `StageError` for what is the function's.
        """
        [found] = self._function.on_each([batch])
        if isinstance(found, Raised):
            raise found.as_row_error()
        if not isinstance(found, pa.Table):
            raise self._broken(
                f"it returned a value of type {type(found).__name__}; a pyarrow.Table is needed"
            )
        parents = self._parents(found, batch)
        table = found.drop_columns([INDEX]) if INDEX in found.column_names else found
        why = self._output.undeclared(table.column_names)
        missing = sorted(set(self._output.columns or ()) - set(table.column_names))
        if why or missing or not table.column_names:
            raise self._broken(why or f"it returned no column {', '.join(map(repr, missing))}".rstrip())
        try:
            return self._output.cast(table), parents
        except ValueError as error:
            raise RowError("BadValue", str(error)) from None

    def _parents(self, found: pa.Table, batch: pa.Table) -> np.ndarray[Any, np.dtype[np.int64]]:
        if INDEX not in found.column_names:
            if len(found) != len(batch):
                raise self._broken(
                    f"it returned {len(found)} rows for {len(batch)}; to drop or to make rows, keep the"
                    f" column '{INDEX}', which says what each one comes from"
                )
            return np.asarray(batch[INDEX])
        index = found[INDEX]
        if not pa.types.is_integer(index.type) or index.null_count:
            raise self._broken(f"it returned '{INDEX}' as {index.type} with {index.null_count} nulls")
        parents = np.asarray(index.cast(pa.int64()))
        if not pc.all(pc.is_in(index.cast(pa.int64()), value_set=batch[INDEX].combine_chunks())).as_py():
            unknown = sorted(set(parents.tolist()) - set(batch[INDEX].to_pylist()))
            raise self._broken(f"it returned '{INDEX}' {unknown[0]}, which it was not given")
        return parents

    def _joined(self, tables: list[pa.Table], given: pa.Schema) -> pa.Table:
        if not tables:
            return self._output.table([], given)[0]
        try:
            return pa.concat_tables(tables, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise self._broken(f"parts of one unit differ in their schema: {error}") from None

    def _broken(self, why: str) -> StageError:
        return StageError(f"stage '{self._name}': the function broke its contract: {why}")
