"""vLLM's sampling parameters, by their own names: checked without importing vLLM, and merged row by row.

The names and types are those of `vllm.SamplingParams`; a test compares them with the installed vLLM. Ranges
that vLLM has kept for many versions are checked here, the others by vLLM itself, per request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, PositiveInt, ValidationError, model_validator

from raybatch.config import Config
from raybatch.nearest import did_you_mean
from raybatch.stages.row_error import RowError

# Fields of vllm.SamplingParams that `generate` decides itself or cannot keep the result of, and what to do.
NOT_OFFERED: Mapping[str, str] = {
    "structured_outputs": "use `structured`",
    "output_kind": "only final outputs are kept",
    "stream_interval": "only final outputs are kept",
    "skip_clone": "it is an internal of vLLM",
    "output_text_buffer_length": "it is an internal of vLLM",
    "detokenize": "the output is text",
    "flat_logprobs": "logprobs are always written as lists",
    "prompt_logprobs": "the output keeps logprobs of generated tokens only",
    "prompt_logprob_token_ids": "the output keeps logprobs of generated tokens only",
    "prompt_logprob_start": "the output keeps logprobs of generated tokens only",
    "routed_experts_prompt_start": "routing is not kept",
    "trace_decode_token_ids": "it forces the output, for debugging vLLM",
}


class RepetitionDetection(Config):
    """When to stop an output that repeats itself."""

    max_pattern_size: int = Field(default=0, ge=0)
    """Longest repeated pattern to look for, in tokens; 0 looks for none."""
    min_pattern_size: int = Field(default=0, ge=0)
    """Shortest repeated pattern to look for, in tokens."""
    min_count: int = Field(default=0, ge=0)
    """Repetitions that end the output; at least 2."""


class Sampling(Config):
    """vLLM's `SamplingParams`. What is not said is left to vLLM and the model's generation config."""

    n: PositiveInt = 1
    """Outputs per prompt; more than 1 needs a temperature, and all are kept in the field `outputs`."""
    temperature: float = Field(default=1.0, ge=0)
    """0 is greedy; higher is more random."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Cumulative probability of the tokens to choose from."""
    top_k: int = Field(default=0, ge=-1)
    """How many of the likeliest tokens to choose from; 0 or -1 for all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Least probability of a token, relative to the likeliest."""
    seed: int | None = None
    """Seed of this request's random generator."""
    max_tokens: PositiveInt | None = 16
    """Tokens to generate at most; vLLM's default is 16, null means up to the context length."""
    min_tokens: int = Field(default=0, ge=0)
    """Tokens to generate before the end is allowed."""
    stop: str | list[str] | None = None
    """Texts that end the output."""
    stop_token_ids: list[int] | None = None
    """Tokens that end the output."""
    include_stop_str_in_output: bool = False
    """Whether the text keeps the stop text that ended it."""
    ignore_eos: bool = False
    """Go on after the end-of-sequence token."""
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Against tokens that have appeared in the output, -2 to 2."""
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Against tokens by how often they have appeared in the output, -2 to 2."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Against tokens of prompt and output; above 1 discourages repetition."""
    repetition_detection: RepetitionDetection | None = None
    """Stop an output that repeats itself."""
    logprobs: int | None = Field(default=None, ge=-1)
    """Log probabilities per generated token, in the field `logprobs`; -1 for the whole vocabulary."""
    logprob_token_ids: list[int] | None = None
    """Tokens whose log probabilities are wanted."""
    logit_bias: dict[int, float] | None = None
    """Added to the logits of these tokens."""
    bad_words: list[str] | None = None
    """Words that are not generated."""
    allowed_token_ids: list[int] | None = None
    """The only tokens that may be generated."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    spaces_between_special_tokens: bool = True
    """Put spaces between special tokens that are kept."""
    skip_reading_prefix_cache: bool | None = None
    """Compute the prompt even if its prefix is cached."""
    thinking_token_budget: int | None = Field(default=None, ge=-1)
    """Tokens of reasoning at most; -1 for no limit."""
    watermarking: bool | None = None
    """Whether the engine's watermark is applied."""
    extra_args: dict[str, Any] | None = None
    """For vLLM's plugins."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_not_offered(cls, data: Any) -> Any:
        for name in NOT_OFFERED.keys() & (data.keys() if isinstance(data, Mapping) else ()):
            raise ValueError(f"'{name}' cannot be set: {NOT_OFFERED[name]}")
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"n is {self.n}, but temperature 0 gives the same output each time; raise it")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) is more than max_tokens ({self.max_tokens})")
        return self

    def parameters(self) -> dict[str, Any]:
        """Keyword arguments for `vllm.SamplingParams`: what was said, not the defaults."""
        return self.model_dump(exclude_unset=True)

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None or self.logprob_token_ids is not None


class SamplingOverrides:
    """Merges rows' overrides with a stage's sampling. Equal overrides give the same dict object, so that a
    unit with a few kinds of rows sends, and parses, a few."""

    def __init__(self, base: Sampling) -> None:
        self._base = base
        self._plain = base.parameters()
        self._merged: dict[str, dict[str, Any]] = {}

    def merge(self, overrides: object) -> dict[str, Any]:
        """Keyword arguments for `vllm.SamplingParams`. `overrides`: None, a mapping of which nulls are
        ignored (a struct column has every field in every row), or JSON text of a mapping.

        Raises `RowError` "InvalidSampling".
        """
        found = _mapping(overrides)
        if not found:
            return self._plain
        key = json.dumps(found, sort_keys=True, default=str)
        if key not in self._merged:
            self._merged[key] = self._checked(found)
        return self._merged[key]

    def _checked(self, found: Mapping[str, Any]) -> dict[str, Any]:
        try:
            merged = Sampling.model_validate({**self._plain, **found})
        except ValidationError as error:
            raise _invalid(_explained(error)) from None
        if merged.n > 1 and self._base.n == 1:
            raise _invalid("n: a row can ask for several outputs only if the stage's sampling.n is above 1")
        if merged.wants_logprobs and not self._base.wants_logprobs:
            raise _invalid("logprobs: a row can ask for them only if the stage's sampling.logprobs is set")
        return merged.parameters()


def _mapping(overrides: object) -> dict[str, Any]:
    if overrides is None:
        return {}
    if isinstance(overrides, str):
        try:
            found = json.loads(overrides)
        except ValueError as error:
            raise _invalid(f"not JSON: {error}") from None
        if not isinstance(found, dict):
            raise _invalid(f"a JSON object is needed, not {type(found).__name__}")
        return found
    if isinstance(overrides, Mapping):
        return {str(k): v for k, v in overrides.items() if v is not None}
    raise _invalid(f"a struct or JSON text is needed, not {type(overrides).__name__}")


def _explained(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"'{name}' is no sampling parameter{did_you_mean(name, Sampling.model_fields)}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message


def _invalid(message: str) -> RowError:
    return RowError("InvalidSampling", message)
