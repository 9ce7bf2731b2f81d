"""Column types: as declared in the pipeline file, as inferred from sampled JSON, and what breaks them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from raybatch.arrow_types import parse_type

JSON_TEXT = "json"
"""The declared type of a column that holds any JSON value, read as its text."""

_SHOWN_CHARS = 80
_MAX_DEPTH = 100  # of nesting in sampled values; Python's own limit would come later, in the middle of things
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


def declared_type(text: str) -> pa.DataType:
    """The type that `text` declares for a column: `json`, or what `parse_type` knows. Raises `ValueError`."""
    return pa.string() if text.strip() == JSON_TEXT else parse_type(text)


class Seen:
    """The values seen in one place (a column, a struct's field, a list's items)."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.fields: dict[str, Seen] = {}
        self.items: Seen | None = None

    def add(self, value: object, *, depth: int = 0) -> None:
        """Take note of one value, as `json.loads` gives it. Raises `RecursionError` on very deep nesting."""
        if depth > _MAX_DEPTH:
            raise RecursionError(f"nested more than {_MAX_DEPTH} levels deep")
        self.kinds[_kind(value)] += 1
        if isinstance(value, dict):
            for key, field in value.items():
                self.fields.setdefault(key, Seen()).add(field, depth=depth + 1)
        elif isinstance(value, list):
            self.items = self.items or Seen()
            for item in value:
                self.items.add(item, depth=depth + 1)

    def resolve(self, path: str, notes: list[str], *, column: str) -> pa.DataType:
        """The type of most values; `notes` gets a line where others do not fit it. Only nulls give string.

        `path` names the place in notes, `column` the column that it is in. Raises `EmptyStructError`.
        """
        kinds = Counter({kind: n for kind, n in self.kinds.items() if kind != "null"})
        if not kinds:
            return pa.string()
        if kinds["float"] or kinds["large int"]:
            if kinds["large int"]:
                notes.append(
                    f"column '{path}' has integers beyond 64 bits, which float64 rounds; declare another type"
                    " for it under source.schema"
                )
            kinds["float"] += kinds.pop("int", 0) + kinds.pop("large int", 0)
        kind, count = kinds.most_common(1)[0]
        if len(+kinds) > 1:
            others = ", ".join(f"{n} {other}" for other, n in kinds.most_common()[1:] if n)
            notes.append(
                f"column '{path}' holds values of several types ({count} {kind}, {others} in the sample):"
                f" rows whose value is not {kind} become error rows; `{column}: json` under source.schema"
                " takes them all, as text"
            )
        return self._type(kind, path, notes, column=column)

    def _type(self, kind: str, path: str, notes: list[str], *, column: str) -> pa.DataType:
        if kind == "object":
            inner = self.fields.items()
            fields = [(key, seen.resolve(f"{path}.{key}", notes, column=column)) for key, seen in inner]
            if not fields:
                raise EmptyStructError(path)
            return pa.struct(fields)
        if kind == "array":
            return pa.list_((self.items or Seen()).resolve(f"{path}[]", notes, column=column))
        return {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "string": pa.string()}[kind]


class EmptyStructError(Exception):
    """Every object seen at `args[0]` is empty, which no Parquet type can hold."""


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if _INT64_MIN <= value <= _INT64_MAX else "large int"
    return {float: "float", str: "string", dict: "object", list: "array"}[type(value)]


def violation(value: object, kind: pa.DataType, path: str, *, column: str) -> str | None:
    """Why `value` (as `json.loads` gives it, at `path` in `column`) is not of type `kind`; None where nothing
    is seen to be wrong."""
    if value is None:
        return None
    types = pa.types
    if types.is_struct(kind):
        fields = value.items() if isinstance(value, dict) else None
        return _wrong(value, kind, path) if fields is None else _first_violation(fields, kind, path, column)
    if types.is_list(kind):
        if not isinstance(value, list):
            return _wrong(value, kind, path)
        items = enumerate(value)
        found = (violation(item, kind.value_type, f"{path}[{i}]", column=column) for i, item in items)
        return next((why for why in found if why), None)
    fits: type | tuple[type, ...] = object
    if types.is_boolean(kind):
        fits = bool
    elif types.is_integer(kind):
        fits = int
    elif types.is_floating(kind):
        fits = (int, float)
    elif (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_temporal(kind)
    ):
        fits = str
    wrong = not isinstance(value, fits) or (isinstance(value, bool) and not types.is_boolean(kind))
    return _wrong(value, kind, path) if wrong else None


def _first_violation(
    fields: Iterable[tuple[str, Any]], kind: pa.StructType, path: str, column: str
) -> str | None:
    for key, value in fields:
        index = kind.get_field_index(key)
        if index < 0:
            return unknown_field(f"{path}.{key}", column=column)
        why = violation(value, kind.field(index).type, f"{path}.{key}", column=column)
        if why:
            return why
    return None


def unknown_field(path: str, *, column: str) -> str:
    """The message for a field that the plan's schema does not have."""
    return (
        f"field '{path}' was in no sampled row, so it has no type: declare `{column}: json` (or its type)"
        " under source.schema, or select source.columns"
    )


def _wrong(value: object, kind: pa.DataType, path: str) -> str:
    return f"column '{path}' should be {kind}, but holds {shown(value)}"


def shown(value: object) -> str:
    """`value` as JSON, cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"
