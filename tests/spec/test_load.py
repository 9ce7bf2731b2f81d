"""What a pipeline file may say, and what its writer is told when it says something else."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from raybatch.errors import SpecError
from raybatch.spec.load import load_pipeline
from raybatch.spec.pipeline import Pipeline

Load = Callable[..., Pipeline]
Refused = Callable[..., list[str]]
Write = Callable[..., str]

GOOD = textwrap.dedent(
    """\
    name: news
    source:
      type: toy
      fields: [id, body]
    stages:
      - type: toy
        name: summarise
        input: body
        output: summary
        sampling:
          temperature: 0
    sink:
      type: toy
      path: out
    """
)


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def test_a_good_file_becomes_typed_configs(load: Load) -> None:
    pipeline = load(GOOD)
    stage = pipeline.stages[0]
    assert (pipeline.name, pipeline.source.type, stage.name, stage.sampling.temperature) == (
        "news",
        "toy",
        "summarise",
        0,
    )
    assert (pipeline.run.mode, pipeline.run.max_error_rate, pipeline.run.unit.max_rows) == (
        "batch",
        0.01,
        None,
    )


def test_a_run_section_of_comments_is_all_defaults(load: Load) -> None:
    assert load(GOOD + "run:\n  # mode: batch\n").run == load(GOOD).run


def test_where_tells_the_line_of_each_key(load: Load) -> None:
    where = load(GOOD).where
    assert where["stages[0].sampling"] == "pipelines/news.yaml:10"
    assert where["stages[0].sampling.temperature"] == "pipelines/news.yaml:11"


def test_raw_is_plain_json_with_references_as_they_were_said(load: Load) -> None:
    pipeline = load(changed("path: out", "path: ${env:OUT}/2026-11-01"), env={"OUT": "/data"})
    assert pipeline.sink.path == "/data/2026-11-01"
    assert json.loads(json.dumps(pipeline.raw))["sink"] == {"type": "toy", "path": "${env:OUT}/2026-11-01"}


def test_an_unknown_key_is_told_with_line_path_nearest_and_valid_keys(refused: Refused) -> None:
    assert refused(changed("output:", "outptu:")) == [
        "pipelines/news.yaml:9: stages[0].outptu: unknown key (did you mean 'output'?); valid keys: "
        "type, name, input, output, prompt, model, sampling, replicas, engine"
    ]


def test_an_unknown_key_at_the_top_is_told_in_the_same_form(refused: Refused) -> None:
    assert refused(GOOD + "runs: {mode: batch}\n") == [
        "pipelines/news.yaml:15: runs: unknown key (did you mean 'run'?); "
        "valid keys: name, source, stages, sink, run"
    ]


def test_an_unknown_key_of_a_nested_mapping_lists_that_mapping_s_keys(refused: Refused) -> None:
    assert refused(changed("temperature: 0", "temprature: 0")) == [
        "pipelines/news.yaml:11: stages[0].sampling.temprature: unknown key (did you mean 'temperature'?); "
        "valid keys: temperature, max_tokens"
    ]


def test_a_wrong_type_quotes_what_was_said(refused: Refused) -> None:
    [line] = refused(changed("temperature: 0", "max_tokens: many"))
    assert line.startswith("pipelines/news.yaml:11: stages[0].sampling.max_tokens: should be a valid integer")
    assert line.endswith(", got 'many'")


def test_a_wrong_choice_names_the_nearest(refused: Refused) -> None:
    assert refused(changed("fields: [id, body]", "format: parqet")) == [
        "pipelines/news.yaml:4: source.format: should be 'jsonl', 'parquet' or 'csv', got 'parqet'"
        " (did you mean 'parquet'?)"
    ]


def test_a_wrong_member_of_a_union_is_told_without_its_simpler_members(refused: Refused) -> None:
    assert refused(changed("input: body", "input: body\n    replicas: {max: 1, minimal: 2}")) == [
        "pipelines/news.yaml:9: stages[0].replicas.minimal: unknown key (did you mean 'min'?); "
        "valid keys: min, max"
    ]


def test_a_value_of_no_member_of_a_union_is_told_once(refused: Refused) -> None:
    [line] = refused(changed("fields: [id, body]", "path: 5"))
    assert line == "pipelines/news.yaml:4: source.path: should be text, or should be a list, got 5"


def test_a_component_s_own_rule_is_told_at_the_component(refused: Refused) -> None:
    assert refused(changed("input: body", "input: body\n    prompt: Hm?")) == [
        "pipelines/news.yaml:6: stages[0]: give either input or prompt, not both"
    ]


def test_all_findings_are_told_at_once(refused: Refused) -> None:
    text = changed("output:", "outptu:").replace("path: out", "pth: out").replace("name: news", "name: News")
    assert {tuple(line.split(": ")[:2]) for line in refused(text)} == {
        ("pipelines/news.yaml:1", "name"),
        ("pipelines/news.yaml:9", "stages[0].outptu"),
        ("pipelines/news.yaml:12", "sink.path"),
        ("pipelines/news.yaml:14", "sink.pth"),
    }


def test_an_unknown_type_lists_the_known_ones_and_the_nearest(refused: Refused) -> None:
    [line] = refused(changed("- type: toy", "- type: opaqe"))
    assert line.startswith(
        "pipelines/news.yaml:6: stages[0]: unknown stage type 'opaqe' (did you mean 'opaque'?)"
    )
    assert "generate" in line
    assert "toy" in line


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("", "pipelines/news.yaml:1: name: is missing"),
        ("# nothing\n", "pipelines/news.yaml:1: source: is missing; it is a mapping with `type` one of: "),
        ("name: x\nsource: toy\n", "pipelines/news.yaml:2: source: should be a mapping that has a `type`"),
        ("name: x\nstages: {type: toy}\n", "pipelines/news.yaml:2: stages: should be a list"),
        (
            "name: x\nstages: [toy]\n",
            "pipelines/news.yaml:2: stages[0]: should be a mapping that has a `type`",
        ),
        ("name: x\nrun: 5\n", "pipelines/news.yaml:2: run: should be a mapping, got 5"),
        ("name: 5\n", "pipelines/news.yaml:1: name: should be text"),
        ("name: My News!\n", "pipelines/news.yaml:1: name: should be a DNS label"),
    ],
)
def test_a_wrong_shape_is_told_with_what_is_expected(refused: Refused, text: str, finding: str) -> None:
    assert [line for line in refused(text) if line.startswith(finding)]


def test_a_name_that_is_no_dns_label_is_given_one(refused: Refused) -> None:
    [line] = refused(changed("name: news", "name: My News!"))
    assert line.endswith("got 'My News!'; try 'my-news'")


@pytest.mark.parametrize(
    ("name", "good"), [("a" * 63, True), ("a" * 64, False), ("-a", False), ("a-", False)]
)
def test_a_name_has_at_most_63_characters_and_no_hyphen_at_its_ends(
    load: Load, name: str, good: bool
) -> None:
    try:
        accepted = load(changed("name: news", f"name: {name}")).name == name
    except SpecError:
        accepted = False
    assert accepted is good


def test_a_list_at_the_top_is_refused(refused: Refused) -> None:
    assert refused("- name: x\n") == [
        "pipelines/news.yaml:1: should be a mapping of keys to values (name: ..., source: ...)"
    ]


def test_a_missing_file_names_the_one_beside_it(write: Write) -> None:
    write(GOOD)
    with pytest.raises(
        SpecError, match=r"^pipelines/new\.yaml: no such file \(did you mean pipelines/news\.yaml\?\)$"
    ):
        load_pipeline("pipelines/new.yaml")


def test_a_folder_is_not_a_pipeline(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot be read: Is a directory"):
        load_pipeline(folder)


def test_no_stages_must_be_said(load: Load, refused: Refused) -> None:
    start, end = GOOD.index("stages:"), GOOD.index("sink:")
    assert "write `stages: []`" in refused(GOOD[:start] + GOOD[end:])[0]
    assert load(GOOD[:start] + "stages: []\n" + GOOD[end:]).stages == ()


def test_a_stage_is_called_by_its_type_unless_it_says_otherwise(load: Load) -> None:
    assert load(changed("    name: summarise\n", "")).stages[0].name == "toy"


def test_two_stages_of_one_name_are_told_to_choose(refused: Refused) -> None:
    two = "- type: toy\n    output: first\n  - type: toy\n    output: second"
    text = GOOD[: GOOD.index("- type: toy")] + two + "\n" + GOOD[GOOD.index("sink:") :]
    assert refused(text) == [
        "pipelines/news.yaml:8: stages[1].name: stages[0] is called 'toy' too; "
        "give one of them a `name:` of its own"
    ]


@pytest.mark.parametrize("name", ["source", "sink", "a.b", "a b", "''"])
def test_a_stage_name_that_would_confuse_reports_is_refused(refused: Refused, name: str) -> None:
    [line] = refused(changed("name: summarise", f"name: {name}"))
    assert line.startswith("pipelines/news.yaml:7: stages[0].name: should be letters, digits")


def test_continuous_mode_is_refused_for_a_source_that_ends(refused: Refused) -> None:
    [line] = refused(GOOD + "run:\n  mode: continuous\n")
    assert line.startswith("pipelines/news.yaml:16: run.mode: a 'toy' source is read to its end")


def test_continuous_mode_is_taken_by_a_source_that_does_not(load: Load) -> None:
    text = changed("  type: toy\n  fields", "  type: stream\n  fields") + "run: {mode: continuous}\n"
    assert load(text).run.mode == "continuous"


def test_what_cuts_a_stream_into_epochs_is_refused_in_a_batch_run(refused: Refused) -> None:
    [line] = refused(GOOD + "run:\n  epoch: {every_s: 5}\n  idle_exit_s: 60\n")
    assert line.endswith(
        "run: epoch, idle_exit_s: only with `mode: continuous`; in a batch run all that is there is one epoch"
    )


@pytest.mark.parametrize("epoch", ["{every_s: 0}", "{max_rows: 0}", "{max_bytes: -1}", "{each_s: 5}"])
def test_an_epoch_that_can_never_be_is_refused(refused: Refused, epoch: str) -> None:
    text = changed("  type: toy\n  fields", "  type: stream\n  fields")
    [line] = refused(text + f"run: {{mode: continuous, epoch: {epoch}}}\n")
    assert "run.epoch." in line


@pytest.mark.parametrize("rate", ["1.1", "-0.1", ".nan", "lots"])
def test_an_error_rate_is_a_share(refused: Refused, rate: str) -> None:
    assert any(":15:" in line for line in refused(GOOD + f"run: {{max_error_rate: {rate}}}\n"))


def test_relative_paths_start_at_the_pipeline_s_folder(load: Load, folder: Path) -> None:
    text = changed("input: body", "input: body\n    model: ./model").replace(
        "fields: [id, body]", "fields: [id, body]\n  path: [../in/a, 's3://b/c', /d/]"
    )
    pipeline = load(text)
    assert pipeline.source.path == [str(folder / "in/a"), "s3://b/c", "/d/"]
    assert pipeline.stages[0].model == str(folder / "pipelines/model")
    assert pipeline.sink.path == str(folder / "pipelines/out")


def test_a_hub_name_is_not_a_path(load: Load) -> None:
    text = changed("input: body", "input: body\n    model: Qwen/Qwen3-8B")
    assert load(text).stages[0].model == "Qwen/Qwen3-8B"


def test_a_pipeline_can_be_loaded_from_another_directory(
    load: Load, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(GOOD)
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert load_pipeline("../pipelines/news.yaml").sink.path == str(folder / "pipelines/out")
