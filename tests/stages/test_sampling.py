"""Sampling parameters: of a stage, and of single rows."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from raybatch.stages.row_error import RowError
from raybatch.stages.sampling import Sampling, SamplingOverrides


def overrides(**base: Any) -> SamplingOverrides:
    return SamplingOverrides(Sampling.model_validate(base))


def test_only_what_was_said_is_sent() -> None:
    assert Sampling(temperature=0, max_tokens=None).parameters() == {"temperature": 0, "max_tokens": None}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"temprature": 0}, "temprature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"structured_outputs": {}}, "'structured_outputs' cannot be set: use `structured`"),
        ({"prompt_logprobs": 1}, "'prompt_logprobs' cannot be set: the output keeps logprobs of generated"),
        ({"n": 2, "temperature": 0}, "n is 2, but temperature 0 gives the same output each time"),
        ({"min_tokens": 5, "max_tokens": 4}, r"min_tokens \(5\) is more than max_tokens \(4\)"),
    ],
)
def test_what_vllm_would_refuse_is_refused_before(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Sampling.model_validate(said)


@pytest.mark.parametrize("value", [{"max_tokens": 9, "stop": None}, '{"max_tokens": 9}', {"max_tokens": 9.0}])
def test_a_row_goes_before_its_stage(value: object) -> None:
    assert overrides(temperature=0, max_tokens=5).merge(value) == {"temperature": 0, "max_tokens": 9}


def test_a_null_in_json_text_is_said_and_one_in_a_struct_is_not() -> None:
    merge = overrides(max_tokens=5).merge
    assert merge('{"max_tokens": null}') == {"max_tokens": None}
    assert merge({"max_tokens": None}) == {"max_tokens": 5}


@pytest.mark.parametrize("nothing", [None, {}, {"max_tokens": None}, "{}"])
def test_rows_without_overrides_share_one_object(nothing: object) -> None:
    merge = overrides(temperature=0).merge
    assert merge(nothing) is merge(None)


def test_rows_with_equal_overrides_share_one_object() -> None:
    merge = overrides(temperature=0).merge
    assert merge({"seed": 1, "max_tokens": 2}) is merge('{"max_tokens": 2, "seed": 1}')


def test_token_ids_of_a_bias_are_numbers_again_after_json() -> None:
    assert overrides().merge('{"logit_bias": {"42": -5}}') == {"logit_bias": {42: -5.0}}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"temperatur": 1}, r"'temperatur' is no sampling parameter \(did you mean 'temperature'\?\)"),
        ({"temperature": "hot"}, "temperature: Input should be a valid number"),
        ({"max_tokens": 1.5}, "max_tokens: "),
        ({"output_kind": 1}, "'output_kind' cannot be set"),
        ("{", "not JSON: "),
        ("[1]", "a JSON object is needed, not list"),
        (7, "a struct or JSON text is needed, not int"),
        ({"n": 2}, "n: a row can ask for several outputs only if the stage's sampling.n is above 1"),
        ({"logprobs": 2}, "logprobs: a row can ask for them only if the stage's sampling.logprobs is set"),
    ],
)
def test_an_override_that_cannot_be_used_is_the_row_s_error(value: object, message: str) -> None:
    with pytest.raises(RowError, match=message) as caught:
        overrides(temperature=0.5).merge(value)
    assert caught.value.type == "InvalidSampling"


def test_a_row_s_overrides_are_checked_together_with_its_stage_s() -> None:
    with pytest.raises(RowError, match="n is 4, but temperature 0"):
        overrides(n=4, temperature=1).merge({"temperature": 0})


def test_a_row_may_ask_for_fewer_outputs_than_its_stage() -> None:
    assert overrides(n=4, temperature=1).merge({"n": 1})["n"] == 1
