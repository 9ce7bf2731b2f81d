"""What is told about vLLM without importing it, compared with the vLLM that is installed."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest

from raybatch.stages.json_grammar import check, regex_trouble
from raybatch.stages.sampling import NOT_OFFERED, Sampling

pytestmark = pytest.mark.vllm


def test_sampling_parameters_are_those_of_vllm() -> None:
    from vllm import SamplingParams

    fields = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")}
    assert Sampling.model_fields.keys() | NOT_OFFERED.keys() == fields
    assert not Sampling.model_fields.keys() & NOT_OFFERED.keys()


def test_sampling_defaults_are_those_of_vllm() -> None:
    from vllm import SamplingParams

    defaults = inspect.signature(SamplingParams).parameters
    differ = {
        name: (field.default, defaults[name].default)
        for name, field in Sampling.model_fields.items()
        if field.default != defaults[name].default
    }
    assert differ == {}


def test_every_sampling_parameter_is_taken_by_vllm() -> None:
    from vllm import SamplingParams

    said: dict[str, Any] = {
        "n": 2,
        "temperature": 0.5,
        "stop": ["x"],
        "logit_bias": {1: 2.0},
        "logprobs": 3,
        "bad_words": ["y"],
        "repetition_detection": {"max_pattern_size": 3, "min_count": 2},
        "extra_args": {"a": 1},
    }
    params = SamplingParams(**Sampling.model_validate(said).parameters())
    assert (params.n, params.logprobs, params.stop, params.logit_bias) == (2, 3, ["x"], {1: 2.0})


def text(**more: Any) -> dict[str, Any]:
    return {"type": "string"} | more


def obj(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **more}


INT: dict[str, Any] = {"type": "integer"}
A = {"a": INT}
AB = {"a": INT, "b": INT}

# Schemas, and JSON that breaks them. The grammar that vLLM makes must not let that through.
CASES: list[tuple[Any, Any]] = [
    (text(), 1),
    (text(maxLength=2), "aaa"),
    (text(pattern="^a+$"), "b"),
    (text(pattern="^a+$", maxLength=2), "aaa"),
    (text(pattern="^(?=a)b$"), "b"),
    (text(format="date"), "x"),
    (text(format="uri-reference"), " "),
    (text(format="idn-email"), "x"),
    (text(format="int32"), "x"),
    (text(enum=["a", "bbb"], maxLength=1), "bbb"),
    (text(**{"not": {"const": "a"}}), "a"),
    ({"maxLength": 2}, "aaa"),
    ({"pattern": "^a+$"}, "b"),
    ({"minimum": 5}, 4),
    ({"multipleOf": 5}, 4),
    ({"required": ["a"]}, {}),
    ({"type": ["string", "null"], "maxLength": 2}, "aaa"),
    ({"type": "integer", "minimum": 5, "maximum": 9}, 4),
    ({"type": "integer", "multipleOf": 5}, 4),
    ({"type": "number", "multipleOf": 0.5}, 4.3),
    ({"type": "integer", "const": "a"}, "a"),
    ({"enum": ["a", 1, None]}, "b"),
    ({"const": "a", "enum": ["b"]}, "a"),
    ({"type": "array", "items": INT, "uniqueItems": True}, [1, 1]),
    ({"items": INT, "uniqueItems": True}, [1, 1]),
    ({"type": "array", "contains": INT}, ["a"]),
    ({"type": "array", "items": INT, "minItems": 2}, [1]),
    ({"type": "array", "prefixItems": [INT], "items": False}, ["a"]),
    ({"type": "array", "prefixItems": [INT], "unevaluatedItems": False}, [1, 1]),
    ({"items": INT}, ["a"]),
    ({"minItems": 2}, [1]),
    (obj(A, required=["a"]), {}),
    (obj(A, required=["b"]), {"a": 1}),
    (obj(A, additionalProperties=False), {"b": 1}),
    (obj(A, unevaluatedProperties=False), {"b": 1}),
    (obj(AB, minProperties=2), {"a": 1}),
    (obj(AB, dependentRequired={"a": ["b"]}), {"a": 1}),
    (obj(AB, dependentSchemas={"a": {"required": ["b"]}}), {"a": 1}),
    (obj(A, anyOf=[{"required": ["a"]}]), {}),
    (obj(A, oneOf=[{"required": ["a"]}]), {}),
    (obj(A, allOf=[{"required": ["a"]}]), {}),
    (obj(A, **{"if": {"properties": {"a": {"const": 1}}}, "then": {"required": ["b"]}}), {"a": 1}),
    (obj(A, patternProperties={"^x": INT}), {"a": "x"}),
    ({"type": "object", "additionalProperties": INT, "maxProperties": 1}, {"a": 1, "b": 2}),
    ({"type": "object", "patternProperties": {"^a": INT}, "additionalProperties": False}, {"b": 1}),
    ({"type": "object", "propertyNames": {"pattern": "^a"}}, {"b": 1}),
    ({"type": "object", "additionalProperties": INT}, {"a": "x"}),
    ({"properties": A, "required": ["a"]}, {}),
    ({"allOf": [text(), {"enum": ["yes"]}]}, "no"),
    ({"allOf": [text()]}, 1),
    ({"anyOf": [text(), {"type": "null"}]}, 1),
    ({"oneOf": [{"const": "a"}, {"const": "b"}]}, "c"),
    ({"$ref": "https://example.com/a.json"}, 1),
    ({"$ref": "#/$defs/a", "$defs": {"a": text()}}, 1),
    ({"$ref": "#/$defs/a", "minLength": 3, "$defs": {"a": text()}}, "a"),
    ({"$ref": "#name", "$defs": {"a": text(**{"$anchor": "name"})}}, 1),
    ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": text()}}, 1),
    ({"$dynamicRef": "#a", "$defs": {"a": text(**{"$dynamicAnchor": "a"})}}, 1),
]


def _library(schema: Any) -> str:
    """The library that vLLM takes for `schema` by itself; "none" if it refuses."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import StructuredOutputsParams
    from vllm.v1.structured_output.backend_guidance import (
        has_guidance_unsupported_json_features,
        validate_guidance_grammar,
    )
    from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

    params = SamplingParams(structured_outputs=StructuredOutputsParams(json=schema))
    try:
        validate_xgrammar_grammar(params)
        return "xgrammar"
    except VLLMValidationError:
        pass
    if has_guidance_unsupported_json_features(schema):
        return "outlines"
    try:
        validate_guidance_grammar(params)
        return "guidance"
    except VLLMValidationError:
        return "none"


class _XGrammar:
    """Makes JSON schemas into grammars over a vocabulary of single characters."""

    def __init__(self) -> None:
        import xgrammar

        self._characters = [chr(code) for code in range(32, 127)]
        vocabulary = [*self._characters, "</s>"]
        info = xgrammar.TokenizerInfo(
            vocabulary, vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[len(vocabulary) - 1]
        )
        self._compiler = xgrammar.GrammarCompiler(info)
        self._matcher = xgrammar.GrammarMatcher

    def lets_through(self, schema: Any, value: Any) -> bool:
        matcher = self._matcher(self._compiler.compile_json_schema(json.dumps(schema)))
        return bool(matcher.accept_string(json.dumps(value)) and matcher.accept_token(len(self._characters)))


@pytest.fixture(scope="module")
def xgrammar_() -> _XGrammar:
    return _XGrammar()


@pytest.mark.parametrize(("schema", "wrong"), CASES, ids=[json.dumps(schema)[:60] for schema, _ in CASES])
def test_a_schema_is_taken_exactly_if_vllm_holds_the_output_to_it(
    schema: Any, wrong: Any, xgrammar_: _XGrammar
) -> None:
    library = _library(schema)
    enforced = library == "guidance" or (library == "xgrammar" and not xgrammar_.lets_through(schema, wrong))
    assert (check(schema, "auto") == []) == enforced


@pytest.mark.parametrize(
    "pattern",
    [
        *("a+", "^a+$", "(?:ab)+", "a{2,3}?", "[^a]", r"\d{4}", "(?P<x>a)", r"\(\?="),
        *("(?<=a)b", "(?=a)b", "(?!a)b", r"(a)\1", "(?P<x>a)(?P=x)", "(?>a)b", "(?#note)a", r"\ba", r"a\Z"),
    ],
)
def test_a_regular_expression_is_refused_exactly_if_guidance_refuses_it(pattern: str) -> None:
    import llguidance

    refused = bool(llguidance.LLMatcher.validate_grammar(llguidance.grammar_from("regex", pattern), None))
    assert (regex_trouble(pattern) is not None) == refused


def test_an_anchor_that_xgrammar_takes_for_a_letter_is_refused(xgrammar_: _XGrammar) -> None:
    assert xgrammar_.lets_through(text(pattern=r"\Aa"), "Aa")
    assert regex_trouble(r"\Aa") == r"'\A'"
