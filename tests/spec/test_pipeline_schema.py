"""The JSON Schema for editors agrees with what the loader takes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from raybatch.spec.schema import pipeline_schema

GOOD = """\
name: news
source: {type: toy, fields: [id, body], password: "${env:PASSWORD}"}
stages:
  - type: toy
    name: a
    input: body
    replicas: {max: 2}
    sampling: {temperature: 0, max_tokens: "${env:N:-8}"}
  - {type: opaque}
sink: {type: toy, path: out}
run: {mode: batch, max_error_rate: 0.5, unit: {max_rows: 10}}
"""


@functools.cache  # not a fixture of the module: the plugin is on the path in tests only
def _validator() -> jsonschema.Draft202012Validator:
    schema = pipeline_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture
def validator() -> jsonschema.Draft202012Validator:
    return _validator()


def test_a_good_file_is_valid(validator: jsonschema.Draft202012Validator) -> None:
    assert [error.message for error in validator.iter_errors(yaml.safe_load(GOOD))] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: news", "name: My News"),
        ("name: news\n", ""),
        ("run:", "runs:"),
        ("{type: toy, path: out}", "{path: out}"),
        ("{type: toy, path: out}", "{type: toy}"),
        ("{type: toy, path: out}", "{type: toys, path: out}"),
        ("input: body", "inptu: body"),
        ("temperature: 0", "temperature: hot"),
        ("temperature: 0", "temperature: -1"),
        ("{max: 2}", "{maximum: 2}"),
        ("name: a", "name: a.b"),
        ("mode: batch", "mode: forever"),
        ("${env:PASSWORD}", "hunter2"),
        ("${env:N:-8}", "eight"),
    ],
)
def test_a_bad_file_is_not_valid(validator: jsonschema.Draft202012Validator, old: str, new: str) -> None:
    assert old in GOOD
    assert not validator.is_valid(yaml.safe_load(GOOD.replace(old, new)))


def _undescribed(schema: Any, path: str) -> Iterator[str]:
    if isinstance(schema, dict):
        for name, field in schema.get("properties", {}).items():
            if isinstance(field, dict) and "description" not in field:
                yield f"{path}.{name}"
        for key, child in schema.items():
            yield from _undescribed(child, f"{path}.{key}")
    elif isinstance(schema, list):
        for i, child in enumerate(schema):
            yield from _undescribed(child, f"{path}[{i}]")


def test_every_field_of_every_component_is_described() -> None:
    assert list(_undescribed(pipeline_schema(), "schema")) == []
