"""`raybatch schema`, on the components and the pipelines that raybatch comes with."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from raybatch.cli.main import run

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(ROOT.glob("pipelines/*.yaml")) + sorted(ROOT.glob("pipelines/*/*.yaml"))


@pytest.fixture
def validator(capsys: pytest.CaptureFixture[str]) -> jsonschema.Draft202012Validator:
    assert run(["schema"]) == 0
    return jsonschema.Draft202012Validator(json.loads(capsys.readouterr().out))


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_valid(validator: jsonschema.Draft202012Validator, example: Path) -> None:
    assert [error.message for error in validator.iter_errors(yaml.safe_load(example.read_text()))] == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
@pytest.mark.parametrize("section", ["source", "sink"])
def test_the_examples_with_a_key_too_many_are_not(
    validator: jsonschema.Draft202012Validator, example: Path, section: str
) -> None:
    pipeline = yaml.safe_load(example.read_text())
    pipeline[section]["pth"] = "x"
    assert not validator.is_valid(pipeline)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_pass_validate_with_the_local_profile(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, example: Path
) -> None:
    monkeypatch.setenv("KAFKA_BROKERS", "localhost:9092")  # what kafka.yaml asks for
    code = run(["validate", str(example), "--profile", str(ROOT / "configs/local.yaml")])
    assert (code, capsys.readouterr().out) == (0, "")
