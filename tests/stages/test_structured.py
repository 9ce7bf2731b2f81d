"""Structured output: schemas that no grammar can hold are refused, and what comes back is checked."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raybatch.stages.json_types import arrow_type, fit
from raybatch.stages.row_error import RowError
from raybatch.stages.structured import Structured, StructuredReader


def obj(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **more}


def reader(schema: dict[str, Any]) -> StructuredReader:
    return Structured.model_validate({"json": schema}).reader()


TEXT = {"type": "string"}

GOOD = [
    obj({"name": TEXT, "age": {"type": "integer", "minimum": 0}}, required=["name"]),
    obj(
        {"tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}}, additionalProperties=False
    ),
    obj({"not": TEXT, "if": TEXT, "uniqueItems": TEXT}),  # names of properties, no keywords
    obj({"kind": {"const": "not"}, "why": {"type": "string", "default": {"not": 1}}}),
    {"anyOf": [TEXT, {"type": "null"}], "title": "maybe", "default": None},
    {"type": "array", "items": {"$ref": "#/$defs/x", "description": "one"}, "$defs": {"x": TEXT}},
    {
        "$ref": "#/$defs/tree",
        "$defs": {"tree": obj({"sub": {"type": "array", "items": {"$ref": "#/$defs/tree"}}})},
    },
    {"type": "string", "pattern": r"^[(?!]+\d{3}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "pattern": "^a+$", "maxLength": 9},  # xgrammar refuses it, guidance does not
    {"allOf": [obj({"a": TEXT}), obj({"b": TEXT})]},
    {"type": "number", "multipleOf": 0.5},
    {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
]


@pytest.mark.parametrize("schema", GOOD)
def test_a_schema_that_can_be_enforced_is_taken(schema: dict[str, Any]) -> None:
    assert Structured.model_validate({"json": schema}).problems("auto") is None


BAD = [
    ({"type": "string", "not": {"const": "a"}}, "/: 'not' cannot be enforced"),
    (
        obj({"a": obj({"b": {"type": "array", "uniqueItems": True}})}),
        "/properties/a/properties/b: 'unique",
    ),
    (obj({"a/b": {"type": "array", "contains": TEXT}}), "/properties/a~1b: 'contains'"),
    (obj({"a": TEXT}, **{"if": {}, "then": {}}), "/: 'if' cannot be enforced"),
    (obj({"a": TEXT}, dependentRequired={"a": ["b"]}), "/: 'dependentRequired'"),
    (obj({"a": {"$ref": "https://example.com/a.json"}}), "/properties/a: \\$ref .* is outside of the schema"),
    (obj({"a": {"$ref": "#/$defs/b"}}), "/properties/a: \\$ref .* names nothing"),
    ({"$ref": "#/$defs/a", "minLength": 3, "$defs": {"a": TEXT}}, "/: 'minLength' beside '\\$ref'"),
    (obj({"a": TEXT}, anyOf=[{"required": ["a"]}]), "/: 'properties' beside 'anyOf' would be ignored"),
    (obj({"a": {"maxLength": 3}}), "/properties/a: 'maxLength' without 'type' would be ignored"),
    (obj({"a": {"type": "integer", "enum": ["x"]}}), "/properties/a: the value 'x' contradicts"),
    (
        obj({"a": {"type": "string", "format": "idn-email"}}),
        "/properties/a: 'format' 'idn-email' is",
    ),
    (obj({"a": {"type": "string", "pattern": "^(?=a)b$"}}), "/properties/a: 'pattern' has a lookahead"),
    (obj({"a": {"type": "string", "pattern": r"^(a)\1$"}}), "/properties/a: 'pattern' has a backreference"),
    (obj({"a": TEXT}, required=["b"]), "/: 'required' names 'b'"),
    # One library refuses each half, so neither takes both
    (obj({"a": {"type": "number", "multipleOf": 2}, "b": TEXT}, minProperties=1), "/: 'minProperties'"),
    # Nothing satisfies these
    (obj({"a": False}, required=["a"]), "/properties/a: nothing satisfies `false`"),
    (obj({"a": {"type": "integer", "minimum": 9, "maximum": 5}}, required=["a"]), "no integer is within"),
    (
        obj({"a": {"type": "number", "exclusiveMinimum": 5, "maximum": 5}}, required=["a"]),
        "least value is",
    ),
    ({"type": "string", "minLength": 9, "maxLength": 5}, "/: minLength is more than maxLength"),
    ({"type": "array", "items": False, "minItems": 1}, "/items: nothing satisfies `false`"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "requires itself without end"),
    (
        {"$ref": "#/$defs/a", "$defs": {"a": obj({"a": {"$ref": "#/$defs/a"}}, required=["a"])}},
        "/\\$defs/a/properties/a: \\$ref '#/\\$defs/a' requires itself without end",
    ),
]


@pytest.mark.parametrize(("schema", "message"), BAD)
def test_a_schema_that_no_grammar_can_express_is_refused_with_the_place(
    schema: dict[str, Any], message: str
) -> None:
    found = Structured.model_validate({"json": schema}).problems("auto")
    assert re.search(message, found or "nothing found")


def test_what_only_one_library_ignores_names_the_other() -> None:
    short = Structured.model_validate({"json": obj({"a": {"maxLength": 3}})})
    assert "backend: guidance" in (short.problems("auto") or "")
    assert short.problems("guidance") is None


def test_what_a_chosen_library_refuses_is_refused() -> None:
    odd = Structured.model_validate({"json": {"type": "integer", "multipleOf": 3}})
    assert odd.problems("auto") is None
    assert "'multipleOf' is not supported by xgrammar" in (odd.problems("xgrammar") or "")


@pytest.mark.parametrize(
    ("structured", "message"),
    [
        ({}, "exactly one of json, regex and choice is needed, got none"),
        ({"regex": "a", "choice": ["a"]}, "got regex, choice"),
        ({"json": "{"}, "the schema is not JSON"),
        ({"json": {"type": "objekt"}}, "not a valid JSON schema .draft 2020-12.: /type: 'objekt'"),
        (
            {"json": {"properties": {"a": {"minimum": "1"}}}},
            "/properties/a/minimum: '1' is not of type",
        ),
        ({"regex": ""}, "a regular expression is needed"),
        ({"regex": "a("}, "not a regular expression: missing \\)"),
        ({"regex": "(?=a)b"}, "no grammar can express a lookahead, '\\(\\?='"),
        ({"regex": r"(a)\1"}, "no grammar can express a backreference"),
        ({"regex": r"\bword\b"}, "no grammar can express '.b'"),
        ({"choice": []}, "at least one text is needed"),
        ({"choice": ["a", ""]}, "an empty text cannot be chosen"),
        ({"choice": ["a", "b", "a"]}, "'a' is listed twice"),
    ],
)
def test_what_is_no_constraint_is_refused(structured: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Structured.model_validate(structured)


def test_a_schema_that_is_nested_without_end_is_refused_before_it_is_read() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5_000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(ValidationError, match="more than 64 levels deep"):
        Structured.model_validate({"json": deep})


@pytest.mark.parametrize("regex", [r"\d{4}-\d\d", "[(?=]+", r"[\b]", "(?:ab)+|(?P<n>c)", r"\(\?=", "^a$"])
def test_a_regular_expression_that_a_grammar_can_express_is_taken(regex: str) -> None:
    assert Structured.model_validate({"regex": regex}).request() == {"regex": regex}


def test_a_schema_may_be_json_text() -> None:
    assert Structured.model_validate({"json": '{"type": "string"}'}).request() == {"json": TEXT}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (TEXT, pa.string()),
        ({"type": ["integer", "null"]}, pa.int64()),
        ({"type": "number"}, pa.float64()),
        ({"anyOf": [TEXT, {"type": "null"}]}, pa.string()),
        ({"enum": ["a", "b", None]}, pa.string()),
        ({"enum": [1, 2.5]}, pa.float64()),
        ({"const": True}, pa.bool_()),
        ({"type": "array", "items": {"type": "boolean"}}, pa.list_(pa.bool_())),
        ({"$ref": "#/$defs/a", "$defs": {"a": TEXT}}, pa.string()),
        (
            obj({"a": TEXT, "b": obj({"c": {"type": "integer"}})}),
            pa.struct({"a": pa.string(), "b": pa.struct({"c": pa.int64()})}),
        ),
        ({"type": ["string", "integer"]}, None),
        ({"enum": ["a", 1]}, None),
        ({"enum": [True, 1]}, None),
        ({}, None),
        (obj({"a": {}}), None),
        (obj({}), None),
        (obj({"a": TEXT}, additionalProperties=True), None),
        (obj({"a": TEXT}, additionalProperties=TEXT), None),
        ({"type": "array"}, None),
        ({"type": "array", "prefixItems": [TEXT], "items": TEXT}, None),
        ({"$ref": "#/$defs/t", "$defs": {"t": obj({"t": {"$ref": "#/$defs/t"}})}}, None),
    ],
)
def test_a_schema_has_an_arrow_type_where_it_maps_cleanly(
    schema: dict[str, Any], expected: pa.DataType | None
) -> None:
    assert arrow_type(schema) == expected


def test_the_output_is_parsed_into_the_type_of_the_schema() -> None:
    person = reader(obj({"name": TEXT, "age": {"type": "integer"}, "height": {"type": "number"}}))
    assert person.json_type == pa.struct({"name": pa.string(), "age": pa.int64(), "height": pa.float64()})
    assert person.read(' {"name": "é", "age": 3.0, "height": 2}', "stop") == {
        "name": "é",
        "age": 3,
        "height": 2.0,
    }


def test_an_output_without_an_arrow_type_stays_json_text() -> None:
    anything = reader({"type": "object"})
    assert anything.json_type == pa.string()
    assert anything.read('{ "a":  [1, "é"] }', "stop") == '{"a": [1, "é"]}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": ', "Expecting value"),
        ("", "Expecting value"),
        ('{"name": NaN}', "NaN is no JSON"),
        ('{"name": 1}', "/name: 1 is not of type 'string'"),
        ("{}", "/: 'name' is a required property"),
        ('{"name": "a", "other": 1}', "the key 'other' is not in the schema's properties"),
        ('{"name": "\\ud800"}', "/name: half of a surrogate pair"),
        ('{"name": "a", "age": 9223372036854775808}', "/age: no integer of 64 bits"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_an_output_that_breaks_the_schema_is_no_result(text: str, message: str) -> None:
    person = reader(obj({"name": TEXT, "age": {"type": "integer"}}, required=["name"]))
    with pytest.raises(RowError) as caught:
        person.read(text, "stop")
    assert caught.value.type == "InvalidJSONOutput"
    assert message in caught.value.message


def test_json_that_was_cut_says_so() -> None:
    with pytest.raises(RowError, match="InvalidJSONOutput: cut off by max_tokens"):
        reader(TEXT).read('"abc', "length")


def test_a_choice_that_was_cut_is_no_choice() -> None:
    colour = Structured.model_validate({"choice": ["green", "greenish"]}).reader()
    assert colour.read("green", "length") is None
    with pytest.raises(RowError, match="InvalidChoiceOutput: cut off by max_tokens: 'gree' is none"):
        colour.read("gree", "length")


def test_a_regular_expression_that_was_cut_is_no_match() -> None:
    date = Structured.model_validate({"regex": r"\d{4}-\d\d"}).reader()
    assert date.read("2024-01", "length") is None
    with pytest.raises(RowError, match="InvalidRegexOutput: cut off by max_tokens: '2024-' does not match"):
        date.read("2024-", "length")


_TYPES = st.recursive(
    st.sampled_from([pa.string(), pa.int64(), pa.float64(), pa.bool_()]),
    lambda inner: st.one_of(
        inner.map(pa.list_), st.dictionaries(st.sampled_from("abc"), inner, min_size=1).map(pa.struct)
    ),
    max_leaves=5,
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(_TYPES, _JSON)
def test_any_json_either_fits_a_type_or_says_why_not(type_: pa.DataType, value: Any) -> None:
    try:
        fitted = fit(value, type_)
    except ValueError:
        return
    assert pa.array([fitted], type_).type == type_
