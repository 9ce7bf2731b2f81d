"""`--set`: one value from the command line, above all files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from raybatch.spec.pipeline import Pipeline

Load = Callable[..., Pipeline]
Refused = Callable[..., list[str]]

TEXT = """\
name: news
source: {type: toy, password: "${env:PASSWORD}"}
stages:
  - type: toy
    sampling: {temperature: 1}
sink: {type: toy, path: out}
"""
ENV = {"PASSWORD": "x"}


@pytest.mark.parametrize("key", ["stages.0.sampling.temperature", "stages[0].sampling.temperature"])
def test_a_set_wins_over_the_file(load: Load, key: str) -> None:
    assert load(TEXT, env=ENV, sets=[f"{key}=0.25"]).stages[0].sampling.temperature == 0.25


def test_a_set_makes_the_mappings_on_its_way(load: Load) -> None:
    assert load(TEXT, env=ENV, sets=["run.unit.max_rows=7"]).run.unit.max_rows == 7


def test_of_two_sets_the_later_wins(load: Load) -> None:
    assert load(TEXT, env=ENV, sets=["name=a", "name=b"]).name == "b"


def test_a_set_mapping_replaces_and_does_not_merge(load: Load) -> None:
    pipeline = load(TEXT, env=ENV, sets=["stages.0.sampling={max_tokens: 3}"])
    assert (pipeline.stages[0].sampling.temperature, pipeline.stages[0].sampling.max_tokens) == (1, 3)
    assert pipeline.raw["stages"][0]["sampling"] == {"max_tokens": 3}


def test_a_set_value_may_hold_equal_signs_and_colons(load: Load) -> None:
    assert load(TEXT, env=ENV, sets=["stages.0.prompt=a=b: c"]).stages[0].prompt == "a=b: c"


def test_what_is_wrong_with_a_set_is_said_of_the_set(refused: Refused) -> None:
    assert refused(TEXT, env=ENV, sets=["stages.0.sampling.temperature=hot"]) == [
        "--set stages.0.sampling.temperature: stages[0].sampling.temperature: "
        "should be a valid number, unable to parse string as a number, got 'hot'"
    ]


def test_an_unknown_key_of_a_set_names_the_nearest(refused: Refused) -> None:
    [line] = refused(TEXT, env=ENV, sets=["run.max_eror_rate=0.5"])
    assert line.startswith(
        "--set run.max_eror_rate: run.max_eror_rate: unknown key (did you mean 'max_error_rate'?)"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name", "--set name: should be key.path=value, as in stages.0.sampling.temperature=0.5"),
        ("=5", "--set : should be key.path=value, as in stages.0.sampling.temperature=0.5"),
        ("a..b=5", "--set a..b: should be key.path=value, as in stages.0.sampling.temperature=0.5"),
        ("stages.1.name=x", "--set stages.1.name: stages has no item '1', but 0 to 0"),
        ("stages.toy.name=x", "--set stages.toy.name: stages has no item 'toy', but 0 to 0; 'toy' is item 0"),
        ("name.first=x", "--set name.first: name is no mapping, so it has no key 'first'"),
    ],
)  # fmt: skip
def test_a_set_that_names_no_place_is_refused(refused: Refused, text: str, message: str) -> None:
    assert refused(TEXT, env=ENV, sets=[text]) == [message]


def test_relative_paths_of_a_set_start_at_the_current_directory(load: Load, folder: Path) -> None:
    assert load(TEXT, env=ENV, sets=["sink.path=elsewhere"]).sink.path == str(folder / "elsewhere")


def test_a_literal_secret_in_a_set_is_refused_and_not_repeated(refused: Refused) -> None:
    [line] = refused(TEXT, env=ENV, sets=["source.password=hunter2"])
    assert line.startswith("--set source.password: source.password: a secret is never written down")
    assert "hunter2" not in line
