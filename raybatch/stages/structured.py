"""Structured output: what is asked of the engine, checked before an engine sees it, and what came back,
read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self

import pyarrow as pa
from pydantic import ConfigDict, Field, field_validator, model_validator

from raybatch.config import Config
from raybatch.stages.json_grammar import MAX_NESTING, check, nesting, regex_trouble
from raybatch.stages.json_schema import invalid
from raybatch.stages.json_types import arrow_type, fit, unicode_text
from raybatch.stages.row_error import RowError

_SHOWN = 5  # problems of one schema that an error lists


class Structured(Config):
    """What the output must be; exactly one field. vLLM enforces it token by token."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    json_schema: dict[str, Any] | None = Field(default=None, alias="json")
    """A JSON schema (draft 2020-12), as a mapping or as JSON text. The output gains a field `json`."""
    regex: str | None = None
    """A regular expression that the whole output matches."""
    choice: list[str] | None = None
    """The texts to choose from."""

    @field_validator("json_schema", mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"the schema is not JSON: {error}") from None

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is None:
            return None
        if nesting(value) > MAX_NESTING:
            raise ValueError(f"the schema nests objects and arrays more than {MAX_NESTING} levels deep")
        why = invalid(value)
        if why:
            raise ValueError(f"not a valid JSON schema (draft 2020-12): {why}")
        return value

    @field_validator("regex")
    @classmethod
    def _is_regex(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value or "\0" in value:
            raise ValueError("a regular expression is needed" if not value else "it contains a NUL character")
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        trouble = regex_trouble(value)
        if trouble:
            raise ValueError(f"no grammar can express {trouble}")
        return value

    @field_validator("choice")
    @classmethod
    def _are_choices(cls, value: list[str] | None) -> list[str] | None:
        if value is None:
            return None
        if not value or not all(value):
            raise ValueError("at least one text is needed" if not value else "an empty text cannot be chosen")
        twice = sorted({text for text in value if value.count(text) > 1})
        if twice:
            raise ValueError(f"{twice[0]!r} is listed twice")
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self.request()) != 1:
            said = ", ".join(self.request()) or "none"
            raise ValueError(f"exactly one of json, regex and choice is needed, got {said}")
        return self

    def problems(self, backend: str) -> str | None:
        """Why vLLM's structured-output `backend` cannot enforce this; None if it can."""
        if self.json_schema is None:
            return None
        found = check(self.json_schema, backend)
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return f"json: {'; '.join(found[:_SHOWN])}{more}" if found else None

    def request(self) -> dict[str, Any]:
        """Keyword arguments for `vllm.sampling_params.StructuredOutputsParams`."""
        said = {"json": self.json_schema, "regex": self.regex, "choice": self.choice}
        return {key: value for key, value in said.items() if value is not None}

    def reader(self) -> StructuredReader:
        """What reads the outputs; built once per stage."""
        return StructuredReader(self)


class StructuredReader:
    """Reads an output that was asked to be structured, and checks that it is.

    It can fail though a grammar held the engine: `max_tokens` cuts in the middle, and a library may ignore a
    part of a schema.
    """

    def __init__(self, structured: Structured) -> None:
        self._structured = structured
        self._choices = frozenset(structured.choice or ())
        self._type = arrow_type(structured.json_schema) if structured.json_schema is not None else None

    @property
    def json_type(self) -> pa.DataType | None:
        """The type of the field `json`: the schema's own where it maps to Arrow, else JSON text; None
        without."""
        if self._structured.json_schema is None:
            return None
        return self._type or pa.string()

    def read(self, text: str, finish_reason: str) -> Any:
        """The value of the field `json`; None without a schema.

        Raises `RowError` "InvalidJSONOutput", "InvalidRegexOutput" or "InvalidChoiceOutput".
        """
        if self._structured.json_schema is not None:
            return self._json(text, finish_reason)
        if self._choices and text not in self._choices:
            raise _invalid("Choice", f"{_short(text)} is none of the choices", finish_reason)
        # Only what was cut: elsewhere the library's idea of a regular expression may differ from Python's
        regex = self._structured.regex
        if regex is not None and finish_reason == "length" and not re.fullmatch(regex, text):
            raise _invalid("Regex", f"{_short(text)} does not match", finish_reason)
        return None

    def _json(self, text: str, finish_reason: str) -> Any:
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
            error = next(self._validator.iter_errors(value), None)
            if error is not None:
                place = "/".join(map(str, error.absolute_path))
                raise ValueError(f"/{place}: {error.message[:200]}")
            if self._type is not None:
                return fit(value, self._type)
            return unicode_text(json.dumps(value, ensure_ascii=False))
        except (ValueError, RecursionError) as error:
            raise _invalid("JSON", str(error), finish_reason) from None

    @cached_property
    def _validator(self) -> Any:
        from jsonschema import Draft202012Validator

        return Draft202012Validator(self._structured.json_schema or {})


def _invalid(kind: str, message: str, finish_reason: str) -> RowError:
    cut = "cut off by max_tokens: " if finish_reason == "length" else ""
    return RowError(f"Invalid{kind}Output", cut + message)


def _short(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "...")


def _refuse_constant(name: str) -> Mapping[str, Any]:
    raise ValueError(f"{name} is no JSON")
