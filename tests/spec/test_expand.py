"""`${env:NAME}`, `${file:/path}`, and secrets, which are never written down and never shown."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from raybatch.config import Config, Secret
from raybatch.spec.pipeline import Pipeline

Load = Callable[..., Pipeline]
Refused = Callable[..., list[str]]
Write = Callable[..., str]

CANARY = "hunter2-canary"


def text(*, source: str = "", stage: str = "", name: str = "news") -> str:
    return (
        f"name: {name}\nsource:\n  type: toy\n  {source}\nstages:\n  - type: toy\n    {stage}\n"
        "sink: {type: toy, path: out}\n"
    )


def test_a_variable_is_expanded_inside_any_text(load: Load) -> None:
    said = text(stage="prompt: Hello ${env:WHO}, ${env:WHO}!", name="${env:TEAM}-news")
    pipeline = load(said, env={"WHO": "you", "TEAM": "blue"})
    assert (pipeline.name, pipeline.stages[0].prompt) == ("blue-news", "Hello you, you!")


def test_a_variable_names_the_type(load: Load) -> None:
    said = text().replace("- type: toy", "- type: ${env:TYPE}")
    assert load(said, env={"TYPE": "opaque"}).stages[0].type == "opaque"


def test_a_variable_s_text_is_read_as_the_number_that_a_field_wants(load: Load) -> None:
    stage = load(text(stage="sampling: {max_tokens: '${env:N}'}"), env={"N": "8"}).stages[0]
    assert stage.sampling.max_tokens == 8


def test_a_variable_s_text_is_never_read_as_yaml(load: Load) -> None:
    prompt = "{a: [1, 2]} ${env:N}"
    assert load(text(stage="prompt: ${env:P}"), env={"P": prompt, "N": "8"}).stages[0].prompt == prompt


@pytest.mark.parametrize(("env", "value"), [({}, "a:-b c"), ({"P": "set"}, "set"), ({"P": ""}, "")])
def test_a_default_is_for_variables_that_are_not_set(load: Load, env: dict[str, str], value: str) -> None:
    assert load(text(stage="prompt: ${env:P:-a:-b c}"), env=env).stages[0].prompt == value


def test_an_unset_variable_is_told_with_line_and_key(refused: Refused) -> None:
    assert refused(text(stage="sampling: {max_tokens: '${env:N}'}")) == [
        "pipelines/news.yaml:7: stages[0].sampling.max_tokens: the environment variable N is not set; "
        "set it, or write ${env:N:-default}"
    ]


@pytest.mark.parametrize("reference", ["${env:}", "${env:A B}", "${env:A-B}", "${env:1A}"])
def test_what_is_no_variable_name_is_refused(refused: Refused, reference: str) -> None:
    [line] = refused(text(stage=f"prompt: 'x {reference}'"))
    assert line.endswith(f"stages[0].prompt: {reference} should be ${{env:NAME}} or ${{env:NAME:-default}}")


def test_other_dollars_and_braces_are_text(load: Load) -> None:
    prompt = "$HOME ${HOME} {{ body }} ${x:y} $${env:A} $5"
    assert load(text(stage=f"prompt: '{prompt}'")).stages[0].prompt == prompt.replace("$${env:A}", "${env:A}")


def test_a_file_reference_is_for_secrets_only(refused: Refused) -> None:
    assert refused(text(stage="prompt: ${file:/etc/hostname}")) == [
        "pipelines/news.yaml:7: stages[0].prompt: ${file:/etc/hostname} is for secret fields only; "
        "this is none"
    ]


def test_a_secret_comes_from_the_environment(load: Load) -> None:
    said = text(source="login: {user: me, token: '${env:TOKEN}'}")
    assert load(said, env={"TOKEN": CANARY}).source.login.token.get_secret_value() == CANARY


def test_a_secret_comes_from_a_mounted_file_without_its_last_line_end(load: Load, folder: Path) -> None:
    (folder / "token").write_text(CANARY + "\n")
    said = text(source=f"password: ${{file:{folder}/token}}")
    assert load(said).source.password.get_secret_value() == CANARY


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (CANARY, "a secret is never written down: use ${env:NAME}, or ${file:/path} for a mounted file"),
        ("12345678", "a secret is never written down"),
        (f"{CANARY}${{env:TOKEN}}", "a secret is never written down"),
        (f"${{env:TOKEN:-{CANARY}}}", "a secret has no default; use ${env:NAME}"),
        ("$${env:TOKEN}", "a secret is never written down"),
        ("${env:NOT_SET}", "the environment variable NOT_SET is not set"),
        ("${file:token}", "${file:token} should be an absolute path"),
        ("${file:/no/such/token}", "the secret's file /no/such/token cannot be read: No such file"),
    ],
)  # fmt: skip
def test_a_secret_that_is_no_reference_is_refused_and_not_repeated(
    refused: Refused, value: str, what: str
) -> None:
    for source, key in (
        (f"password: {value}", "password"),
        (f"login: {{user: x, token: '{value}'}}", "login.token"),
    ):
        [line] = refused(text(source=source), env={"TOKEN": "t"})
        assert line.startswith(f"pipelines/news.yaml:4: source.{key}: {what}")
        assert CANARY not in line


def test_a_secret_is_in_nothing_that_is_printed_or_stored(load: Load) -> None:
    said = text(source="password: ${env:TOKEN}\n  login: {user: me, token: '${env:TOKEN}'}")
    pipeline = load(said, env={"TOKEN": CANARY})
    stored = json.dumps([pipeline.raw, dict(pipeline.where), pipeline.source.model_dump(mode="json")])
    assert CANARY not in stored + repr(pipeline) + str(pipeline.source)


def test_a_secret_is_in_no_error_about_its_neighbours(refused: Refused) -> None:
    said = text(source="login: {usr: me, token: '${env:TOKEN}'}\n  fields: '${env:FIELDS}'")
    lines = "\n".join(refused(said, env={"TOKEN": CANARY, "FIELDS": CANARY}))
    assert "source.login.usr: unknown key" in lines
    assert "source.fields: should be a list, got '${env:FIELDS}'" in lines
    assert CANARY not in lines


def test_a_secret_travels_to_workers(load: Load) -> None:
    source = load(text(source="password: ${env:TOKEN}"), env={"TOKEN": CANARY}).source
    assert pickle.loads(pickle.dumps(source)).password.get_secret_value() == CANARY


def test_python_gives_a_secret_as_a_secret_str() -> None:
    class Login(Config):
        token: Secret
        """Who."""

    assert Login(token=SecretStr("x")).token.get_secret_value() == "x"
    with pytest.raises(ValidationError, match="a secret is never written down"):
        Login.model_validate({"token": CANARY})


def test_a_variable_in_a_path_is_expanded_before_the_path_is_resolved(load: Load, folder: Path) -> None:
    said = text(source="path: ${env:WHERE}/rows")
    assert load(said, env={"WHERE": "s3://bucket"}).source.path == "s3://bucket/rows"
    assert load(said, env={"WHERE": "in"}).source.path == str(folder / "pipelines/in/rows")
