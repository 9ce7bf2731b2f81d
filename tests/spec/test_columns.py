"""The column check: what a stage reads must be there, and what it writes must not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raybatch.errors import SpecError
from raybatch.spec.columns import check_columns, keeps_columns
from raybatch.spec.pipeline import Pipeline

Load = Callable[..., Pipeline]
Refused = Callable[..., list[str]]


def text(*stages: str, fields: str = "[id, body]") -> str:
    listed = "".join(f"  - {stage}\n" for stage in stages)
    head = f"name: news\nsource:\n  type: toy\n  fields: {fields}\n"
    return f"{head}stages:\n{listed}sink: {{type: toy, path: out}}\n"


SUMMARISE = "{type: toy, name: summarise, input: body, output: summary}"


def test_a_column_that_nothing_writes_is_told_with_those_that_there_are(refused: Refused) -> None:
    assert refused(text(SUMMARISE, "{type: toy, name: embed, input: sumary, output: vector}")) == [
        "pipelines/news.yaml:7: stages[1] 'embed' reads 'sumary', which nothing writes "
        "(did you mean 'summary'?); available: id, body, summary"
    ]


def test_the_line_is_that_of_the_text_which_names_the_column(refused: Refused) -> None:
    stage = "type: toy\n    name: ask\n    output: x\n    prompt: |\n      What of\n      {{sumary}} then?"
    [line] = refused(text(SUMMARISE, stage))
    assert line.startswith("pipelines/news.yaml:10: stages[1] 'ask' reads 'sumary'")


def test_what_earlier_stages_write_can_be_read(load: Load) -> None:
    pipeline = load(text(SUMMARISE, "{type: toy, name: embed, input: summary, output: vector}"))
    assert check_columns(pipeline) == ["id", "body", "summary", "vector"]


def test_each_stage_with_a_missing_column_is_told(refused: Refused) -> None:
    lines = refused(
        text("{type: toy, name: a, input: x, output: p}", "{type: toy, name: b, input: y, output: q}")
    )
    assert [line.split(", which")[0] for line in lines] == [
        "pipelines/news.yaml:6: stages[0] 'a' reads 'x'",
        "pipelines/news.yaml:7: stages[1] 'b' reads 'y'",
    ]


def test_nothing_is_said_of_columns_that_only_the_input_knows(load: Load) -> None:
    pipeline = load(text("{type: toy, input: anything}", fields="null"))
    assert check_columns(pipeline) is None


def test_what_the_input_turned_out_to_have_can_be_checked_later(load: Load) -> None:
    pipeline = load(text("{type: toy, input: anything}", fields="null"))
    with pytest.raises(SpecError, match=r"reads 'anything', which nothing writes; available: id$"):
        check_columns(pipeline, source_columns=["id"])


def test_nothing_is_said_after_a_stage_that_does_what_it_likes(load: Load) -> None:
    assert check_columns(load(text("{type: opaque}", "{type: toy, input: anything}"))) is None


def test_a_stage_that_tells_its_columns_ends_the_not_knowing(refused: Refused) -> None:
    [line] = refused(text("{type: opaque, gives: [id]}", "{type: toy, input: body}", fields="null"))
    assert line.endswith("stages[1] 'toy' reads 'body', which nothing writes; available: id")


def test_a_column_of_the_source_is_not_written_over(refused: Refused) -> None:
    assert refused(text("{type: toy, output: body}")) == [
        "pipelines/news.yaml:6: stages[0] 'toy' writes 'body', which the source writes too; "
        "choose another name"
    ]


@pytest.mark.parametrize("fields", ["[id, body]", "null"])
def test_a_column_of_another_stage_is_not_written_over(refused: Refused, fields: str) -> None:
    stages = ("{type: toy, name: a, output: x}", "type: toy\n    name: b\n    output: x")
    assert refused(text(*stages, fields=fields)) == [
        "pipelines/news.yaml:9: stages[1] 'b' writes 'x', which stages[0] 'a' writes too; choose another name"
    ]


def test_a_column_that_is_gone_can_be_written_again(load: Load) -> None:
    pipeline = load(text("{type: opaque, gives: [id]}", "{type: toy, output: body}"))
    assert check_columns(pipeline) == ["id", "body"]


@pytest.mark.parametrize("column", ["_source", "_row", "_child"])
def test_the_names_of_row_ids_are_kept_for_raybatch(refused: Refused, column: str) -> None:
    [written] = refused(text(f"{{type: toy, output: {column}}}"))
    assert written.startswith(
        f"pipelines/news.yaml:6: stages[0] 'toy' writes '{column}', a name that raybatch keeps"
    )
    [given] = refused(text(fields=f"[id, {column}]").replace("stages:\n", "stages: []\n"))
    assert given.startswith(
        f"pipelines/news.yaml:2: source gives a column '{column}', a name that raybatch keeps"
    )


def test_a_column_that_the_sink_needs_and_nothing_writes_is_told(refused: Refused) -> None:
    file = text(SUMMARISE).replace(
        "sink: {type: toy, path: out}", "sink:\n  type: toy\n  path: out\n  by: [bdy]"
    )
    assert refused(file) == [
        "pipelines/news.yaml:10: sink reads 'bdy', which nothing writes (did you mean 'body'?); "
        "available: id, body, summary"
    ]


def test_nothing_is_said_of_the_sink_after_a_stage_that_does_what_it_likes(load: Load) -> None:
    file = text("{type: opaque}").replace("path: out", "path: out, by: [anything]")
    assert check_columns(load(file)) is None


@pytest.mark.parametrize(
    ("stages", "kept"),
    [
        ((), True),
        ((SUMMARISE,), True),
        (("{type: opaque}",), False),
        (("{type: opaque, gives: [id]}",), False),
    ],
)
def test_columns_are_kept_by_stages_that_only_add_some(
    load: Load, stages: tuple[str, ...], kept: bool
) -> None:
    file = text(*stages) if stages else text().replace("stages:", "stages: []")
    assert keeps_columns(load(file)) is kept
