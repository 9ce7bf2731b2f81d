"""What every stage promises, asked of every stage.

To add a stage, put a line into `CASES`: a config that reads the columns `id` and `text` and fails on rows
whose text is "bad", one that differs in what it gives, and how its engine answers.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raybatch.config import Config
from raybatch.engines.base import Reply
from raybatch.rows import ID_COLUMNS, UnitRows
from raybatch.stages.base import Stage, StageContext, apply
from raybatch.stages.embed import EmbedConfig
from raybatch.stages.generate import GenerateConfig
from raybatch.stages.python import PythonConfig
from raybatch.testing import FakeEngine, generated

BASE_DIR = str(Path(__file__).parent)


@dataclass(frozen=True, kw_only=True)
class Case:
    """`stage` and `other` are config classes and their fields, as a pipeline file says them."""

    stage: tuple[type[Config], dict[str, Any]]
    other: dict[str, Any]
    answer: Callable[[Any], str | Reply] | None = None

    def config(self, **changed: Any) -> Any:
        kind, fields = self.stage
        return kind.model_validate(fields | changed, context={"base_dir": BASE_DIR})

    def build(self) -> Stage:
        engine = FakeEngine(self.answer) if self.answer else None
        stage: Stage = self.config().build(StageContext(base_dir=BASE_DIR, engine=engine))
        return stage

    def apply(self, rows: UnitRows) -> UnitRows:
        stage = self.build()
        try:
            return apply(stage, "stage", rows)
        finally:
            stage.close()


def _answer(request: Any) -> str | Reply:
    return Reply(failure="PromptTooLong") if "bad" in request["prompt"] else request["prompt"].upper()


def _json(request: Any) -> Reply:
    return generated("{" if "bad" in request["prompt"] else json.dumps({"n": len(request["prompt"])}), "{}")


def _vector(request: Any) -> Reply:
    if "bad" in request["text"]:
        return Reply(failure="PromptTooLong")
    return Reply(value=np.array([len(request["text"]), 1.0], dtype=np.float32))


_GENERATE = {"model": "org/model", "prompt": "Say {{ text }}", "output": "out"}
_NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
_SEVERAL = {"structured": {"json": _NUMBER}, "sampling": {"n": 2, "temperature": 1}}
_EMBED = {"model": "org/model", "input": "text", "output": "vector"}
_PYTHON = {"function": "stage_functions:loud", "schema": {"id": "int64", "loud": "string"}}
_BATCH = {"id": "int64", "text": "string", "loud": "string"}

CASES = {
    "generate": Case(stage=(GenerateConfig, _GENERATE), other={"prompt": "{{ text }}"}, answer=_answer),
    "generate json": Case(
        stage=(GenerateConfig, _GENERATE | _SEVERAL), other={"structured": None}, answer=_json
    ),
    "embed": Case(stage=(EmbedConfig, _EMBED), other={"normalize_embeddings": True}, answer=_vector),
    "embed vllm": Case(
        stage=(EmbedConfig, _EMBED | {"engine": "vllm"}), other={"prompt": "q: "}, answer=_vector
    ),
    "python row": Case(stage=(PythonConfig, _PYTHON), other={"function": "stage_functions:other"}),
    "python rows": Case(
        stage=(
            PythonConfig,
            {"function": "stage_functions:words", "schema": {"id": "int64", "word": "string"}},
        ),
        other={"max_concurrency": 1, "mode": "batch"},
    ),
    "python batch": Case(
        stage=(PythonConfig, {"function": "stage_functions:loud_batch", "mode": "batch", "schema": _BATCH}),
        other={"schema": _BATCH | {"loud": "large_string"}},
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def unit(texts: list[str | None], rows: list[int] | None = None) -> UnitRows:
    """Rows `rows` (by default all) of an input with these texts."""
    chosen = list(range(len(texts))) if rows is None else rows
    columns = {
        "id": pa.array([100 + row for row in chosen], pa.int64()),
        "text": pa.array([texts[row] for row in chosen], pa.string()),
        "_source": pa.array(["file"] * len(chosen), pa.string()),
        "_row": pa.array(chosen, pa.int64()),
        "_child": pa.nulls(len(chosen), pa.string()),
    }
    return UnitRows(unit="u", rows_in=len(chosen), table=pa.table(columns))


def outcome(*units: UnitRows) -> list[str]:
    """All that became of the rows, in no order, without the time it took."""
    tables = [table for rows in units for table in (rows.table, rows.errors, rows.dropped)]
    return sorted(json.dumps(row, sort_keys=True) for table in tables for row in table.to_pylist())


TEXTS: list[str | None] = ["one", "two words", "bad", "é 😀", None, "", "bad", "last"]


def test_a_row_that_fails_leaves_the_others_alone(case: Case) -> None:
    alone = case.apply(unit(["one", "two words"]))
    among = case.apply(unit(["one", "two words", "bad"]))
    assert among.table.to_pylist() == alone.table.to_pylist()
    assert [(error["_row"], json.loads(error["row"])) for error in among.errors.to_pylist()] == [
        (2, {"id": 102, "text": "bad"})
    ]


def test_odd_rows_end_no_run(case: Case) -> None:
    found = case.apply(unit(TEXTS))
    rows = {row for table in (found.table, found.errors, found.dropped) for row in table["_row"].to_pylist()}
    assert rows == set(range(len(TEXTS)))


_LISTS = st.lists(st.sampled_from(TEXTS), max_size=8)
_SETTINGS = settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@_SETTINGS
@given(texts=_LISTS, data=st.data())
def test_the_order_of_rows_does_not_matter(case: Case, texts: list[str | None], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(texts))))
    assert outcome(case.apply(unit(texts, list(order)))) == outcome(case.apply(unit(texts)))


@_SETTINGS
@given(texts=_LISTS, data=st.data())
def test_the_company_of_rows_does_not_matter(
    case: Case, texts: list[str | None], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(texts)))
    halves = [list(range(cut)), list(range(cut, len(texts)))]
    assert outcome(*(case.apply(unit(texts, rows)) for rows in halves)) == outcome(case.apply(unit(texts)))


def test_every_unit_has_the_same_schema(case: Case) -> None:
    schemas = [case.apply(unit(texts)).table.schema for texts in (["one"], TEXTS, ["bad", "bad"], [])]
    assert schemas == [schemas[0]] * 4


def test_it_writes_the_columns_that_it_says(case: Case) -> None:
    written = [c for c in case.apply(unit(["one"])).table.column_names if c not in ID_COLUMNS]
    assert case.config().writes(["id", "text"]) == written


def test_it_reads_no_column_that_it_does_not_say(case: Case) -> None:
    reads = case.config().reads()
    assert reads is None or set(reads) <= {"id", "text"}


def test_a_built_stage_serves_many_units(case: Case) -> None:
    stage = case.build()
    first, second = (apply(stage, "stage", unit(TEXTS)) for _ in range(2))
    stage.close()
    assert outcome(first) == outcome(second)


def test_a_config_travels_by_pickle(case: Case) -> None:
    config = case.config()
    copy = pickle.loads(pickle.dumps(config))
    assert copy == config
    assert copy.fingerprint() == config.fingerprint()


def test_the_fingerprint_is_json_and_tells_configs_apart(case: Case) -> None:
    fingerprint = case.config().fingerprint()
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert case.config(**case.other).fingerprint() != fingerprint


def test_the_name_is_the_user_s(case: Case) -> None:
    assert case.config().name == case.config().type
    assert case.config(name="mine").name == "mine"


def test_its_engines_are_recipes_that_travel(case: Case) -> None:
    engines = case.config().engines()
    assert len(engines) == (1 if case.answer else 0)
    assert [pickle.loads(pickle.dumps(engine)).key for engine in engines] == [e.key for e in engines]


def test_what_a_task_reserves_are_numbers(case: Case) -> None:
    assert all(amount >= 0 for amount in case.config().resources().values())
