"""The columns and types of what a user's function returns, and its values brought into them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raybatch.rows import ID_COLUMNS

INDEX = "_index"  # of the input row, in the tables that batch functions see
RESERVED = frozenset({INDEX, *ID_COLUMNS})


@dataclass(frozen=True, kw_only=True)
class OutputSchema:
    """What was declared. `columns` are all columns, in order; None leaves them to the function. `types` bind;
    a column without one keeps the type that it has in the input, if there is one of that name and all values
    fit it, and else takes the type that most of its values have."""

    columns: Sequence[str] | None = None
    types: Mapping[str, pa.DataType] = field(default_factory=dict)

    def undeclared(self, names: Sequence[str]) -> str | None:
        """What is wrong with a result of these columns; None if nothing."""
        reserved = [name for name in names if name in RESERVED]
        if reserved:
            return f"it returned the column '{reserved[0]}', whose name is reserved"
        extra = [name for name in names if self.columns is not None and name not in self.columns]
        if extra:
            return (
                f"it returned '{extra[0]}', which is not declared; declared: {', '.join(self.columns or ())}"
            )
        return None

    def table(self, rows: Sequence[Mapping[str, Any]], given: pa.Schema) -> tuple[pa.Table, dict[int, str]]:
        """One Arrow row per dict, missing keys as nulls; and why some positions hold what Arrow cannot.

        Those positions are null in the column at fault: the caller takes them out. `given` is the input's
        schema.
        """
        hints = {f.name: f.type for f in given}
        # Distinct sets of keys first: most rows have the same
        names = self.columns or list(
            dict.fromkeys(k for keys in dict.fromkeys(map(tuple, rows)) for k in keys)
        )
        bad: dict[int, str] = {}
        arrays = {}
        for name in names:
            values = [row.get(name) for row in rows]
            arrays[name], wrong = _array(values, self.types.get(name), hints.get(name))
            for position, why in wrong.items():
                bad.setdefault(position, f"column '{name}': {why}")
        return pa.table(arrays), bad

    def cast(self, table: pa.Table) -> pa.Table:
        """`table` with its columns in the declared order and types. Raises `ValueError` for a value that does
        not fit, `KeyError` for a declared column that is missing."""
        ordered = table if self.columns is None else table.select(list(self.columns))
        for position, name in enumerate(ordered.column_names):
            if name in self.types and ordered.schema.field(name).type != self.types[name]:
                try:
                    values = ordered[name].cast(self.types[name])
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                    raise ValueError(f"column '{name}': {error}") from None
                ordered = ordered.set_column(position, name, values)
        return ordered


def _array(
    values: list[Any], declared: pa.DataType | None, hint: pa.DataType | None
) -> tuple[pa.Array, dict[int, str]]:
    attempts = [declared] if declared is not None else [hint, None] if hint is not None else [None]
    for type_ in attempts:
        try:
            return pa.array(values, type_), {}
        # ValueErrors, TypeErrors, OverflowErrors, pyarrow's own, and whatever the methods of a value raise
        except Exception:
            continue
    return _one_by_one(values, declared if declared is not None else _common_type(values))


def _one_by_one(values: list[Any], type_: pa.DataType) -> tuple[pa.Array, dict[int, str]]:
    wrong: dict[int, str] = {}
    for position, value in enumerate(values):
        try:
            pa.array([value], type_)
        except Exception as error:
            wrong[position] = f"a value of type {type(value).__name__} is no {type_}: {error}"
    kept = [None if position in wrong else value for position, value in enumerate(values)]
    return pa.array(kept, type_), wrong


def _common_type(values: list[Any]) -> pa.DataType:
    """The type of most values that have one; the first of those, by name, on a tie."""
    found: Counter[pa.DataType] = Counter()
    for value in values:
        try:
            inferred = pa.array([value]).type
        except Exception:
            continue
        if not pa.types.is_null(inferred):
            found[inferred] += 1
    return min(found, key=lambda t: (-found[t], str(t))) if found else pa.null()
