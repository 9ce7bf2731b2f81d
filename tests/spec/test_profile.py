"""Profiles: defaults of one environment, under every pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from raybatch.spec.pipeline import Pipeline

Load = Callable[..., Pipeline]
Refused = Callable[..., list[str]]
Write = Callable[..., str]

TEXT = """\
name: news
source: {type: toy}
stages:
  - type: toy
    name: first
    output: a
    sampling: {temperature: 0.5}
  - type: toy
    name: second
    output: b
sink: {type: toy, path: out}
"""


def test_a_profile_gives_what_the_pipeline_does_not_say(load: Load, write: Write) -> None:
    write("run: {max_error_rate: 0.5, unit: {max_rows: 3}}\n", "configs/here.yaml")
    run = load(TEXT + "run: {unit: {max_bytes: 9}}\n", profile="here").run
    assert (run.max_error_rate, run.unit.max_rows, run.unit.max_bytes) == (0.5, 3, 9)


def test_precedence_is_defaults_profile_pipeline_set(load: Load, write: Write) -> None:
    profile = "run: {max_error_rate: 0.1, in_flight_units: 1, report_interval_s: 1, mode: batch}\n"
    write(profile, "configs/here.yaml")
    text = TEXT + "run: {in_flight_units: 2, report_interval_s: 2}\n"
    run = load(text, profile="here", sets=["run.report_interval_s=3"]).run
    assert (run.unit.max_rows, run.max_error_rate, run.in_flight_units, run.report_interval_s) == (
        None,
        0.1,
        2,
        3,
    )


def test_stages_are_overlaid_by_type_and_by_name_with_more_weight(load: Load, write: Write) -> None:
    by_type = "  toy: {sampling: {temperature: 2, max_tokens: 5}, replicas: 4}\n"
    write(f"stages:\n{by_type}  second: {{sampling: {{max_tokens: 6}}}}\n", "configs/here.yaml")
    first, second = load(TEXT, profile="here").stages
    assert (first.sampling.temperature, first.sampling.max_tokens, first.replicas) == (0.5, 5, 4)
    assert (second.sampling.temperature, second.sampling.max_tokens, second.replicas) == (2, 6, 4)


def test_an_overlay_of_a_type_that_the_pipeline_does_not_use_is_ignored(load: Load, write: Write) -> None:
    write("stages: {opaque: {gives: [x]}}\n", "configs/here.yaml")
    assert [stage.name for stage in load(TEXT, profile="here").stages] == ["first", "second"]


def test_an_overlay_of_neither_a_stage_nor_a_type_is_an_error(refused: Refused, write: Write) -> None:
    write("stages:\n  frist: {replicas: 2}\n", "configs/here.yaml")
    [line] = refused(TEXT, profile="here")
    assert line.startswith(
        "configs/here.yaml:2: stages.frist: neither a stage of this pipeline nor a stage type "
        "(did you mean 'first'?); known: first, second, "
    )


def test_a_list_of_stages_in_a_profile_is_an_error(refused: Refused, write: Write) -> None:
    write("stages:\n  - type: toy\n", "configs/here.yaml")
    assert refused(TEXT, profile="here") == [
        "configs/here.yaml:1: stages: in a profile, this is a mapping of stage types or names, not a list"
    ]


def test_a_section_for_another_type_of_source_does_not_count(load: Load, write: Write) -> None:
    write("source: {type: stream, fields: [z]}\n", "configs/here.yaml")
    assert load(TEXT, profile="here").source.fields is None


def test_a_section_for_this_type_of_source_counts(load: Load, write: Write) -> None:
    write("source: {type: toy, fields: [z]}\n", "configs/here.yaml")
    assert load(TEXT, profile="here").source.fields == ["z"]


def test_a_value_of_the_profile_is_refused_with_the_profile_s_line(refused: Refused, write: Write) -> None:
    write(
        "run:\n  max_error_rate: 0.5\n  in_flight: 3\nstages:\n  toy:\n    replicas: many\n",
        "configs/here.yaml",
    )
    lines = refused(TEXT, profile="here")
    assert [line.split(": ")[:2] for line in lines] == [
        ["configs/here.yaml:6", "stages[0].replicas"],
        ["configs/here.yaml:6", "stages[1].replicas"],
        ["configs/here.yaml:3", "run.in_flight"],
    ]


def test_relative_paths_of_a_profile_start_at_its_own_folder(load: Load, write: Write, folder: Path) -> None:
    write("source: {path: rows}\nstages: {toy: {model: ../models/m}}\n", "configs/here.yaml")
    pipeline = load(TEXT, profile="here")
    assert pipeline.source.path == str(folder / "configs/rows")
    assert pipeline.stages[0].model == str(folder / "models/m")


def test_a_profile_is_a_file_if_it_looks_like_one(load: Load, write: Write) -> None:
    write("run: {in_flight_units: 4}\n", "some/where.yaml")
    assert load(TEXT, profile="some/where.yaml").run.in_flight_units == 4


@pytest.mark.parametrize(
    "place", ["configs/x.yaml", "configs/x.yml", "pipelines/configs/x.yaml", "cwd/configs/x.yaml"]
)
def test_a_profile_is_found_by_name(
    load: Load, write: Write, folder: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    from raybatch.spec.load import load_pipeline

    load(TEXT)
    write("run: {in_flight_units: 5}\n", place)
    (folder / "cwd").mkdir(exist_ok=True)
    monkeypatch.chdir(folder / "cwd")
    assert load_pipeline("../pipelines/news.yaml", profile="x").run.in_flight_units == 5


def test_an_unknown_profile_names_those_that_there_are(refused: Refused, write: Write) -> None:
    write("", "configs/local.yaml")
    write("", "configs/production.yaml")
    assert refused(TEXT, profile="prodution") == [
        "--profile prodution: no such profile (did you mean 'production'?); there is: local, production; "
        "looked in configs, pipelines/configs"
    ]


def test_an_empty_profile_changes_nothing(load: Load, write: Write) -> None:
    write("# nothing yet\n", "configs/here.yaml")
    assert load(TEXT, profile="here").raw == load(TEXT).raw


def test_a_null_in_the_pipeline_wins_over_the_profile(load: Load, write: Write) -> None:
    write("run: {in_flight_units: 4}\n", "configs/here.yaml")
    assert load(TEXT + "run: {in_flight_units: null}\n", profile="here").run.in_flight_units is None
