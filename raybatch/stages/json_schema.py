"""JSON Schema as data: what is below a schema, what a reference names, and whether anything satisfies it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

JSON = Mapping[str, Any] | bool
"""A schema: an object, or true or false."""

Unsatisfiable = tuple[str, str]
"""Where, as a JSON pointer, and why."""

_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "unevaluatedProperties", "unevaluatedItems", "propertyNames")


def invalid(schema: object) -> str | None:
    """Why `schema` is no valid JSON Schema of draft 2020-12, with the place; None if it is."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError, best_match

    try:
        error = best_match(Draft202012Validator(Draft202012Validator.META_SCHEMA).iter_errors(schema))
    except SchemaError as found:  # pragma: no cover - the meta-schema is valid
        error = found
    if error is None:
        return None
    return f"/{'/'.join(map(str, error.absolute_path))}: {error.message}"


def children(schema: Mapping[str, Any]) -> Iterator[tuple[str, JSON]]:
    """The schemas directly below, each with its place. Not those of keywords that no grammar can hold."""
    for key in _MAPS:
        for name, child in schema.get(key, {}).items():
            yield f"{key}/{_escaped(name)}", child
    for key in _LISTS:
        for index, child in enumerate(schema.get(key, ())):
            yield f"{key}/{index}", child
    for key in _SINGLE:
        if isinstance(schema.get(key), Mapping):
            yield key, schema[key]


def resolve(root: JSON, reference: str) -> JSON | None:
    """What a reference such as `#/$defs/name` names in `root`; None when there is no such place."""
    at: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(at, Mapping) and key in at:
            at = at[key]
        elif isinstance(at, list) and key.isdigit() and int(key) < len(at):
            at = at[int(key)]
        else:
            return None
    return at if isinstance(at, (Mapping, bool)) else None


def unsatisfiable(schema: JSON, root: JSON) -> Unsatisfiable | None:
    """Where and why no finite JSON value satisfies `schema`, as far as a look at its parts one by one
    tells."""
    return _dead(schema, "", root, frozenset())


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _dead(schema: JSON, path: str, root: JSON, visiting: frozenset[str]) -> Unsatisfiable | None:
    if isinstance(schema, bool):
        return None if schema else (path or "/", "nothing satisfies `false`")
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return _dead_reference(reference, path, root, visiting)
    if "enum" in schema:
        return None if schema["enum"] else (path or "/", "'enum' is empty")
    if "const" in schema:
        return None
    for key, quantifier in (("anyOf", all), ("oneOf", all), ("allOf", any)):
        branches = [_dead(s, f"{path}/{key}/{i}", root, visiting) for i, s in enumerate(schema.get(key, ()))]
        if branches and quantifier(branches):
            return next(b for b in branches if b)
    types = schema.get("type", "object" if "properties" in schema else ())
    checks = [_BY_TYPE.get(t, _alive) for t in ([types] if isinstance(types, str) else types)]
    found = [check(schema, path, root, visiting) for check in checks]
    return found[0] if found and all(found) else None


def _dead_reference(reference: str, path: str, root: JSON, visiting: frozenset[str]) -> Unsatisfiable | None:
    target = resolve(root, reference)
    if target is None:
        return None  # said elsewhere
    if reference in visiting:
        # Reached again through required parts only: a finite value would have to contain itself
        return path or "/", f"$ref '{reference}' requires itself without end"
    return _dead(target, reference.removeprefix("#"), root, visiting | {reference})


def _alive(*_: object) -> None:
    return None


def _dead_string(schema: Mapping[str, Any], path: str, *_: object) -> Unsatisfiable | None:
    return _crossed(schema, path, "minLength", "maxLength")


def _dead_number(schema: Mapping[str, Any], path: str, *_: object) -> Unsatisfiable | None:
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    open_ended = low in (schema.get("exclusiveMinimum"),) or high in (schema.get("exclusiveMaximum"),)
    if low > high or (low == high and open_ended):
        return path or "/", "its least value is above its greatest"
    return None


def _dead_integer(schema: Mapping[str, Any], path: str, *_: object) -> Unsatisfiable | None:
    low = max(_up(schema.get("minimum")), _up(schema.get("exclusiveMinimum"), above=True))
    high = -max(_up(_minus(schema, "maximum")), _up(_minus(schema, "exclusiveMaximum"), above=True))
    return (path or "/", "no integer is within its bounds") if low > high else None


def _up(bound: float | None, *, above: bool = False) -> float:
    if bound is None or math.isinf(bound):
        return -math.inf
    return math.floor(bound) + 1 if above else math.ceil(bound)


def _minus(schema: Mapping[str, Any], key: str) -> float | None:
    return -schema[key] if key in schema else None


def _dead_array(
    schema: Mapping[str, Any], path: str, root: JSON, visiting: frozenset[str]
) -> Unsatisfiable | None:
    least = schema.get("minItems", 0)
    prefix = schema.get("prefixItems", [])
    for index, item in enumerate(prefix[:least]):
        dead = _dead(item, f"{path}/prefixItems/{index}", root, visiting)
        if dead:
            return dead
    if least > len(prefix):
        dead = _dead(schema.get("items", True), f"{path}/items", root, visiting)
        if dead:
            return dead
    return _crossed(schema, path, "minItems", "maxItems")


def _dead_object(
    schema: Mapping[str, Any], path: str, root: JSON, visiting: frozenset[str]
) -> Unsatisfiable | None:
    required = schema.get("required", [])
    for name in required:
        rule = schema.get("properties", {}).get(name, True)
        dead = _dead(rule, f"{path}/properties/{_escaped(name)}", root, visiting)
        if dead:
            return dead
    if len(required) > schema.get("maxProperties", math.inf):
        return path or "/", "more properties are required than maxProperties allows"
    return _crossed(schema, path, "minProperties", "maxProperties")


def _crossed(schema: Mapping[str, Any], path: str, low: str, high: str) -> Unsatisfiable | None:
    if schema.get(low, 0) > schema.get(high, math.inf):
        return path or "/", f"{low} is more than {high}"
    return None


_BY_TYPE: Mapping[str, Callable[..., Unsatisfiable | None]] = {
    "string": _dead_string,
    "number": _dead_number,
    "integer": _dead_integer,
    "array": _dead_array,
    "object": _dead_object,
}
