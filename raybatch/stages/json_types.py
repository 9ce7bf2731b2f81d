"""The Arrow type of what a JSON schema describes, and values brought into it.

A schema maps cleanly when every value that satisfies it is the same Arrow value for every reader: objects
with listed properties become structs, arrays of one kind lists, and what may be null is nullable like all
else. What does not (any value, maps, tuples, unions of types, recursion) has no type, and stays JSON text as
a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from raybatch.stages.json_schema import JSON, resolve

_SCALARS: Mapping[str, pa.DataType] = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}
_ANNOTATIONS = {
    "title",
    "description",
    "default",
    "examples",
    "$comment",
    "deprecated",
    "$defs",
    "definitions",
}


def arrow_type(schema: JSON) -> pa.DataType | None:
    """The type of all values of `schema`; None where it does not map cleanly."""
    return _type(schema, schema, frozenset())


def fit(value: Any, to: pa.DataType, path: str = "") -> Any:
    """`value`, parsed from JSON, as what `pa.array([...], to)` takes.

    Raises `ValueError`, which names the place, for what `to` cannot hold: an undeclared key, an integer of
    more than 64 bits, a text that is not Unicode.
    """
    if value is None:
        return None
    if pa.types.is_struct(to):
        return _fit_object(value, to, path)
    if pa.types.is_list(to):
        _expect(isinstance(value, list), value, "an array", path)
        return [fit(item, to.value_type, f"{path}/{i}") for i, item in enumerate(value)]
    if pa.types.is_boolean(to):
        _expect(isinstance(value, bool), value, "true or false", path)
        return value
    if pa.types.is_string(to):
        _expect(isinstance(value, str), value, "a string", path)
        return unicode_text(value, path)
    _expect(isinstance(value, (int, float)) and not isinstance(value, bool), value, "a number", path)
    return _fit_number(value, to, path)


def unicode_text(value: str, path: str = "") -> str:
    """`value` itself. Raises `ValueError` for half of a surrogate pair, which JSON can escape and Arrow not
    hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path or '/'}: half of a surrogate pair, which is no text") from None
    return value


def _fit_object(value: Any, to: pa.StructType, path: str) -> dict[str, Any]:
    _expect(isinstance(value, Mapping), value, "an object", path)
    names = {field.name for field in to}
    unknown = [key for key in value if key not in names]
    if unknown:
        raise ValueError(
            f"{path or '/'}: the key {unknown[0]!r} is not in the schema's properties;"
            " say additionalProperties: false to forbid it, or true to keep the column as JSON text"
        )
    return {field.name: fit(value.get(field.name), field.type, f"{path}/{field.name}") for field in to}


def _fit_number(value: float, to: pa.DataType, path: str) -> float:
    if pa.types.is_floating(to):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{path or '/'}: a number out of range") from None
    whole = isinstance(value, int) or value.is_integer()
    if not whole or not -(2**63) <= value < 2**63:
        raise ValueError(f"{path or '/'}: no integer of 64 bits")
    return int(value)


def _expect(holds: bool, value: Any, what: str, path: str) -> None:
    if not holds:
        raise ValueError(f"{path or '/'}: {what} is needed, not {type(value).__name__}")


def _type(schema: JSON, root: JSON, visiting: frozenset[str]) -> pa.DataType | None:
    if isinstance(schema, bool):
        return None
    reference = schema.get("$ref")
    if isinstance(reference, str):
        target = resolve(root, reference)
        known = target is not None and reference not in visiting and _only(schema, "$ref")
        return _type(target, root, visiting | {reference}) if known and target is not None else None
    if "enum" in schema or "const" in schema:
        return _common([_type_of(v) for v in schema.get("enum", [schema.get("const")]) if v is not None])
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            branches = [s for s in schema[key] if s != {"type": "null"}]
            joined = key == "allOf" and len(branches) > 1
            clean = _only(schema, key) and not joined
            return _common(_type(s, root, visiting) for s in branches) if clean else None
    return _typed(schema, root, visiting)


def _only(schema: Mapping[str, Any], key: str) -> bool:
    return not schema.keys() - _ANNOTATIONS - {key}


def _common(types: Iterable[pa.DataType | None]) -> pa.DataType | None:
    found = list(types)
    if set(found) == {pa.int64(), pa.float64()}:
        return pa.float64()
    return found[0] if found and all(t == found[0] for t in found) else None


def _type_of(constant: Any) -> pa.DataType | None:
    names = {str: "string", bool: "boolean", int: "integer", float: "number"}
    return _SCALARS.get(names.get(type(constant), ""))


def _typed(schema: Mapping[str, Any], root: JSON, visiting: frozenset[str]) -> pa.DataType | None:
    said = schema.get("type", "object" if "properties" in schema else [])
    names = [n for n in ([said] if isinstance(said, str) else said) if n != "null"]
    if set(names) == {"integer", "number"}:
        return pa.float64()
    if len(names) != 1:
        return None
    if names[0] == "array":
        item = None if "prefixItems" in schema else _type(schema.get("items", True), root, visiting)
        return None if item is None else pa.list_(item)
    if names[0] == "object":
        return _struct(schema, root, visiting)
    return _SCALARS.get(names[0])


def _struct(schema: Mapping[str, Any], root: JSON, visiting: frozenset[str]) -> pa.DataType | None:
    properties = schema.get("properties", {})
    # A missing additionalProperties counts as closed: xgrammar closes it, and `fit` refuses what it would
    # lose
    closed = schema.get("additionalProperties", False) is False and "patternProperties" not in schema
    types = {name: _type(rule, root, visiting) for name, rule in properties.items()}
    if not closed or not types or None in types.values():
        return None
    return pa.struct([pa.field(name, type_) for name, type_ in types.items()])
