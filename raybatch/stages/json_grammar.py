"""Whether vLLM can hold its output to a JSON schema, told from the schema alone.

vLLM makes a grammar of the schema with one of two libraries. Left to itself (`backend: auto`) it takes
xgrammar, unless it knows that xgrammar refuses something, and then guidance. Both leave out parts of JSON
Schema; worse, xgrammar ignores some of them without an error, so that the output breaks the schema. Each such
part is an `Obstacle` that says what either library does with it; `check` knows which library gets the schema.

The behaviour described here is that of vLLM 0.32 with xgrammar 0.2 and llguidance 1.7; a test compares it
with what is installed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raybatch.stages.json_schema import JSON, children, resolve, unsatisfiable

Verdict = Literal["enforces", "ignores", "refuses"]

MAX_NESTING = 64  # vLLM's own limit on objects and arrays within a schema

# No grammar can hold these: each asks about text that has been written already.
_NEVER: Mapping[str, str] = {
    "not": "say what is allowed instead",
    "if": "use anyOf with one branch per case",
    "uniqueItems": "remove it, and check it in a python stage",
    "contains": "remove it, and check it in a python stage",
    "minContains": "remove it, and check it in a python stage",
    "maxContains": "remove it, and check it in a python stage",
    "dependentRequired": "use anyOf with one branch per case",
    "dependentSchemas": "use anyOf with one branch per case",
    "dependencies": "use anyOf with one branch per case",
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
}
_BY_TYPE: Mapping[str, tuple[str, ...]] = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "unevaluatedItems"),
    "object": (
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "unevaluatedProperties",
    ),
}
_IMPLIES_TYPE = {
    "properties": "object",
    "additionalProperties": "object",
    "unevaluatedProperties": "object",
    "items": "array",
    "prefixItems": "array",
    "unevaluatedItems": "array",
}
_APPLICATORS = ("$ref", "anyOf", "oneOf", "allOf")
_CONSTRAINTS = {"type", "enum", "const", *_APPLICATORS, *_NEVER, *(k for ks in _BY_TYPE.values() for k in ks)}
_FORMATS_GUIDANCE = {
    "email",
    "date",
    "time",
    "date-time",
    "duration",
    "ipv4",
    "ipv6",
    "hostname",
    "uuid",
    "uri",
}
_FORMATS_XGRAMMAR = _FORMATS_GUIDANCE | {
    "uri-reference",
    "uri-template",
    "json-pointer",
    "relative-json-pointer",
}


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """A part of a schema, at `path` (a JSON pointer), that not every library holds the output to."""

    path: str
    what: str
    advice: str
    xgrammar: Verdict
    guidance: Verdict


def check(schema: JSON, backend: str) -> list[str]:
    """Why vLLM's `backend` cannot hold its output to `schema`; empty if it can. `schema` is valid JSON
    Schema.

    Not noticed: `oneOf` whose branches overlap, which becomes `anyOf`.
    """
    found = list(obstacles(schema))
    library = backend
    if backend == "auto":
        library = "guidance" if any(o.xgrammar == "refuses" for o in found) else "xgrammar"
    if library == "guidance":
        return [f"{o.path}: {o.what}; {o.advice}" for o in found if o.guidance != "enforces"]
    if library == "xgrammar":
        way_out = "" if any(o.guidance != "enforces" for o in found) else _WAY_OUT
        return [f"{o.path}: {o.what}; {o.advice}{way_out}" for o in found if o.xgrammar != "enforces"]
    hopeless = [o for o in found if o.xgrammar != "enforces" and o.guidance != "enforces"]
    return [f"{o.path}: {o.what}; {o.advice}" for o in hopeless]


_WAY_OUT = ", or choose the library that can: `engine: {structured_outputs_config: {backend: guidance}}`"


def obstacles(schema: JSON) -> Iterator[Obstacle]:
    """Everything in `schema` and its parts that one of the libraries does not enforce."""
    if nesting(schema) > MAX_NESTING:
        what = f"objects and arrays are nested more than {MAX_NESTING} levels deep"
        yield _hopeless("/", what, "make it flatter")
        return
    dead = unsatisfiable(schema, schema)
    if dead:
        yield _hopeless(*dead, "nothing can be generated")
    yield from _below(schema, "", schema)


def _below(schema: JSON, path: str, root: JSON) -> Iterator[Obstacle]:
    if isinstance(schema, bool):
        return
    where = path or "/"
    yield from _never(schema, where)
    yield from _applicators(schema, where, root)
    yield from _scalars(schema, where)
    yield from _objects(schema, where)
    for key, child in children(schema):
        # Names are strings, so nobody says it
        implied = {"type": "string"} if key == "propertyNames" else {}
        full = child if isinstance(child, bool) else {**implied, **child}
        yield from _below(full, f"{path}/{key}", root)


def _hopeless(path: str, what: str, advice: str, *, xgrammar: Verdict = "refuses") -> Obstacle:
    return Obstacle(path=path, what=what, advice=advice, xgrammar=xgrammar, guidance="refuses")


def _never(schema: Mapping[str, Any], path: str) -> Iterator[Obstacle]:
    for key in _NEVER.keys() & schema.keys():
        known = "array" in _types(schema) and key in ("uniqueItems", "contains", "minContains", "maxContains")
        what = f"'{key}' cannot be enforced while text is generated"
        yield _hopeless(path, what, _NEVER[key], xgrammar="refuses" if known else "ignores")


def _applicators(schema: Mapping[str, Any], path: str, root: JSON) -> Iterator[Obstacle]:
    reference = schema.get("$ref")
    if isinstance(reference, str):
        yield from _references(reference, path, root)
    all_of = schema.get("allOf", ())
    if len(all_of) > 1:
        yield Obstacle(
            path=path,
            what="'allOf' of several schemas is not supported by xgrammar",
            advice="write them as one",
            xgrammar="refuses",
            guidance="enforces",
        )
    for key in _APPLICATORS:
        if key not in schema or (key == "allOf" and len(all_of) > 1):
            continue
        beside = sorted((_CONSTRAINTS & schema.keys()) - {key, "type"} - _NEVER.keys())
        if beside:
            yield Obstacle(
                path=path,
                what=f"{_quoted(beside)} beside '{key}' would be ignored",
                advice=f"write it inside what '{key}' names",
                xgrammar="ignores",
                guidance="enforces",
            )
            return


def _references(reference: str, path: str, root: JSON) -> Iterator[Obstacle]:
    if not reference.startswith("#"):
        yield _hopeless(
            path, f"$ref '{reference}' is outside of the schema", "copy it in", xgrammar="ignores"
        )
    elif reference != "#" and not reference.startswith("#/"):
        yield Obstacle(
            path=path,
            what=f"$ref '{reference}' is an anchor",
            advice="name its place, as in #/$defs/name",
            xgrammar="ignores",
            guidance="enforces",
        )
    elif resolve(root, reference) is None:
        yield _hopeless(path, f"$ref '{reference}' names nothing in the schema", "define it there")
    elif re.search(r"[~%]|/\d+(/|$)", reference):
        yield Obstacle(
            path=path,
            what=f"$ref '{reference}' is not a plain name",
            advice="move what it names to #/$defs/name",
            xgrammar="refuses",
            guidance="enforces",
        )


def _scalars(schema: Mapping[str, Any], path: str) -> Iterator[Obstacle]:
    types = _types(schema)
    for type_, keys in _BY_TYPE.items():
        found = [k for k in keys if k in schema]
        covers = {"number": {"number", "integer"}}.get(type_, {type_})
        if found and not types:
            yield Obstacle(
                path=path,
                what=f"{_quoted(found)} without 'type' would be ignored",
                advice=f'say "type": "{type_}"',
                xgrammar="ignores",
                guidance="enforces",
            )
        elif found and covers & types:
            yield from _strings(schema, path) if type_ == "string" else ()
            yield from _numbers(schema, path) if type_ == "number" else ()
    yield from _constants(schema, path)


def _strings(schema: Mapping[str, Any], path: str) -> Iterator[Obstacle]:
    if schema.keys() & {"pattern", "format"} and schema.keys() & {"minLength", "maxLength"}:
        yield Obstacle(
            path=path,
            what="a length beside 'pattern' or 'format' is not supported by xgrammar",
            advice="say the length in the pattern",
            xgrammar="refuses",
            guidance="enforces",
        )
    form = schema.get("format")
    if form is not None and form not in _FORMATS_GUIDANCE:
        known = form in _FORMATS_XGRAMMAR
        yield Obstacle(
            path=path,
            what=f"'format' {form!r} is not known",
            advice=f"known are {', '.join(sorted(_FORMATS_XGRAMMAR))}",
            xgrammar="enforces" if known else "refuses",
            guidance="refuses",
        )
    trouble = regex_trouble(schema["pattern"]) if "pattern" in schema else None
    if trouble:
        yield _hopeless(path, f"'pattern' has {trouble}", "write it without", xgrammar="ignores")


def _numbers(schema: Mapping[str, Any], path: str) -> Iterator[Obstacle]:
    if "multipleOf" in schema:
        yield Obstacle(
            path=path,
            what="'multipleOf' is not supported by xgrammar",
            advice="remove it",
            xgrammar="refuses",
            guidance="enforces",
        )


def _constants(schema: Mapping[str, Any], path: str) -> Iterator[Obstacle]:
    """`enum` and `const` beside something that forbids them: xgrammar writes them all the same."""
    from jsonschema import Draft202012Validator

    values = list(schema.get("enum", ()))
    values += [schema["const"]] if "const" in schema else []
    plain = {"type", "enum", "const", *_BY_TYPE["string"], *_BY_TYPE["number"]}
    rule = Draft202012Validator({k: v for k, v in schema.items() if k in plain})
    wrong = [v for v in values if not rule.is_valid(v)]
    if wrong:
        yield Obstacle(
            path=path,
            what=f"the value {wrong[0]!r} contradicts what is said beside it",
            advice="remove one of them",
            xgrammar="ignores",
            guidance="enforces" if len(wrong) < len(values) else "refuses",
        )


def _objects(schema: Mapping[str, Any], path: str) -> Iterator[Obstacle]:
    properties = schema.get("properties", {})
    required = schema.get("required", ())
    missing = [name for name in required if name not in properties]
    if missing:
        yield Obstacle(
            path=path,
            what=f"'required' names {_quoted(missing)}, which 'properties' does not",
            advice="add it to 'properties'",
            xgrammar="ignores",
            guidance="enforces" if schema.get("additionalProperties", True) is not False else "refuses",
        )
    counted = schema.keys() & {"minProperties", "maxProperties"}
    if counted and set(properties) - set(required):
        yield Obstacle(
            path=path,
            what=f"{_quoted(sorted(counted))} beside optional properties",
            advice="require them all",
            xgrammar="enforces",
            guidance="refuses",
        )
    named = schema.keys() & {"propertyNames", "patternProperties"}
    together = (
        len(named) == 2 or (named and "properties" in schema) or len(schema.get("patternProperties", {})) > 1
    )
    for key in sorted(named | schema.keys() & {"unevaluatedProperties", "unevaluatedItems"}):
        yield Obstacle(
            path=path,
            what=f"'{key}' is not supported here",
            advice="list the properties, and say additionalProperties: false",
            xgrammar="refuses" if together and key in named else "enforces",
            guidance="refuses",
        )


def _types(schema: Mapping[str, Any]) -> set[str]:
    """The types that a schema says, or that the libraries infer."""
    said = schema.get("type", ())
    if said:
        return {said} if isinstance(said, str) else set(said)
    return {type_ for key, type_ in _IMPLIES_TYPE.items() if key in schema}


def _quoted(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def nesting(value: Any) -> int:
    """Levels of objects and arrays; without recursion, since the value may be as deep as it likes."""
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, (dict, list))]:
        depth += 1
        level = [child for v in level for child in (v.values() if isinstance(v, dict) else v)]
        if depth > MAX_NESTING:
            break
    return depth


# A class in brackets is one token, so that what is inside of it is not looked at.
_REGEX_TOKEN = re.compile(r"\\(.)|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?(<?[=!]|>|P=|\(|#)", re.DOTALL)
_REGEX_GROUPS = {
    "=": "a lookahead",
    "!": "a lookahead",
    "<=": "a lookbehind",
    "<!": "a lookbehind",
    ">": "an atomic group",
    "P=": "a backreference",
    "(": "a condition",
    "#": "a comment",
}


def regex_trouble(pattern: str) -> str | None:
    """What in a regular expression (which compiles as Python's) no grammar can express; None if nothing is
    found."""
    for token in _REGEX_TOKEN.finditer(pattern):
        escape, group = token.groups()
        if group:
            return f"{_REGEX_GROUPS[group]}, '{token.group()}'"
        if escape and escape in "123456789":
            return f"a backreference, '{token.group()}'"
        if escape and escape in "bBAZ":
            return f"'{token.group()}'"
    return None
