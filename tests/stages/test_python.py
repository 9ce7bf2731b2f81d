"""The stage `python`: the user's function on rows and on batches."""

from __future__ import annotations

import datetime
import decimal
import json
import pickle
import textwrap
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from raybatch.errors import StageError
from raybatch.stages.base import StageContext, StageResult
from raybatch.stages.python import PythonConfig


class Pipeline:
    """A folder with a `rules.py`; `run` runs a function of it over a table."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def config(self, source: str, **fields: Any) -> PythonConfig:
        (self.folder / "rules.py").write_text(textwrap.dedent(source))
        said = {"function": "rules:f"} | fields
        return PythonConfig.model_validate(said, context={"base_dir": str(self.folder)})

    def run(self, source: str, rows: list[dict[str, Any]] | pa.Table, **fields: Any) -> StageResult:
        stage = self.config(source, **fields).build(StageContext(base_dir=str(self.folder)))
        try:
            return stage.process(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows))
        finally:
            stage.close()


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path)


NUMBERS = [{"n": n} for n in range(6)]

RETURNS = """
    def f(row):
        n = row["n"]
        if n == 0: return {"n": 10}
        if n == 1: return None
        if n == 2: return [{"n": 20}, {"n": 21}]
        if n == 3: return []
        if n == 4: return [{"n": 40}]
        raise KeyError("five")
"""
YIELDS = """
    def f(row):
        n = row["n"]
        if n == 0: yield {"n": 10}
        if n == 2: yield {"n": 20}; yield {"n": 21}
        if n == 4: yield {"n": 40}
        if n == 5: yield {"n": 50}; raise KeyError("five")
"""


@pytest.mark.parametrize(
    "source",
    [
        RETURNS,
        RETURNS.replace("def f", "async def f"),
        RETURNS.replace("def f", "import asyncio\n    async def f").replace(
            "n = row", "await asyncio.sleep(0); n = row"
        ),
    ],
)
def test_a_row_becomes_one_row_none_or_several(pipeline: Pipeline, source: str) -> None:
    result = pipeline.run(source, NUMBERS)
    assert result.table.to_pylist() == [{"n": 10}, {"n": 20}, {"n": 21}, {"n": 40}]
    assert result.parents.tolist() == [0, 2, 2, 4]
    assert result.expanded == {2, 4}
    assert result.dropped == [1, 3]
    assert [(f.index, f.type) for f in result.failures] == [(5, "KeyError")]


@pytest.mark.parametrize("source", [YIELDS, YIELDS.replace("def f", "async def f")])
def test_a_generator_is_a_list(pipeline: Pipeline, source: str) -> None:
    result = pipeline.run(source, NUMBERS)
    assert result.table["n"].to_pylist() == [10, 20, 21, 40]
    assert result.expanded == {0, 2, 4}
    assert result.dropped == [1, 3]
    assert [(f.index, f.type) for f in result.failures] == [(5, "KeyError")]


def test_an_error_names_the_deepest_line_of_the_user_s_own_code(pipeline: Pipeline) -> None:
    result = pipeline.run(
        "import json\ndef f(row):\n    return g(row)\ndef g(row):\n    return json.loads('{')", [{"n": 1}]
    )
    [failure] = result.failures
    assert failure.type == "JSONDecodeError"
    assert failure.message.endswith("(rules.py:5)")


def test_a_function_that_exits_fails_its_row_only(pipeline: Pipeline) -> None:
    result = pipeline.run("import sys\ndef f(row): return row if row['n'] else sys.exit(3)", NUMBERS)
    assert [(f.index, f.type) for f in result.failures] == [(0, "SystemExit")]
    assert len(result.table) == 5


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("7", "it returned a value of type int; possible are a dict, None, and a list of dicts"),
        ("[{'n': 1}, 7]", "it returned a value of type int"),
        ("(row, row)", "it returned a value of type tuple"),
        ("{}", "it returned an empty dict; return None to drop the row"),
        ("{1: 2}", "it returned a dict with the key 1; keys are column names"),
        ("{'_row': 1}", "it returned the column '_row', whose name is reserved"),
        ("(lambda: (yield))()", "it returned a value of type NoneType"),
        ("g()", "it returned a coroutine: a function that calls async code is defined with `async def`"),
    ],
)
def test_what_is_no_row_fails(pipeline: Pipeline, returned: str, message: str) -> None:
    result = pipeline.run(f"async def g(): pass\ndef f(row): return {returned}", [{"n": 1}])
    [failure] = result.failures
    assert failure.type == "BadReturn"
    assert failure.message.startswith(message)


@pytest.mark.parametrize("value", ["object()", "2**70", "'\\ud800'", "{1: 2}", "f"])
def test_a_value_that_arrow_cannot_hold_fails_its_row_and_names_the_column(
    pipeline: Pipeline, value: str
) -> None:
    source = f"def f(row): return {{'n': row['n'], 'v': {value} if row['n'] == 3 else 'fine'}}"
    result = pipeline.run(source, NUMBERS)
    assert [(f.index, f.type) for f in result.failures] == [(3, "BadValue")]
    assert result.failures[0].message.startswith("column 'v': a value of type ")
    assert result.table["v"].to_pylist() == ["fine"] * 5
    assert result.parents.tolist() == [0, 1, 2, 4, 5]


def test_one_bad_child_fails_its_parent_and_no_sibling_is_kept(pipeline: Pipeline) -> None:
    source = "def f(row): return [{'v': 1}, {'v': object()}] if row['n'] == 1 else [{'v': 2}]"
    result = pipeline.run(source, NUMBERS[:3])
    assert result.table["v"].to_pylist() == [2, 2]
    assert [(f.index, f.type) for f in result.failures] == [(1, "BadValue")]
    assert result.expanded == {0, 2}


def test_values_of_the_rarer_type_fail(pipeline: Pipeline) -> None:
    source = "def f(row): return {'v': 'text' if row['n'] == 2 else row['n']}"
    result = pipeline.run(source, NUMBERS)
    assert result.table["v"].to_pylist() == [0, 1, 3, 4, 5]
    assert [f.index for f in result.failures] == [2]


def test_a_column_that_passes_through_keeps_its_type(pipeline: Pipeline) -> None:
    given = pa.table(
        {
            "i": pa.array([1, None], pa.int16()),
            "f": pa.array([1.5, None], pa.float32()),
            "t": pa.array([datetime.datetime(2024, 1, 2), None], pa.timestamp("ms", tz="UTC")),
            "d": pa.array([decimal.Decimal("1.50"), None], pa.decimal128(9, 2)),
            "l": pa.array([[1.0], None], pa.list_(pa.float32(), 1)),
            "s": pa.array([{"a": 1}, None], pa.struct({"a": pa.int8()})),
            "n": pa.array([None, None], pa.string()),
            "b": pa.array([b"\xff", None], pa.large_binary()),
        }
    )
    assert pipeline.run("def f(row): return row", given).table.equals(given)


def test_a_declared_schema_holds_for_every_unit(pipeline: Pipeline) -> None:
    source = "def f(row): return None if row['n'] < 3 else {'v': row['n'], 'tags': []}"
    schema = pa.schema({"v": pa.float32(), "tags": pa.list_(pa.string())})
    for rows in (NUMBERS, NUMBERS[:3], pa.table({"n": pa.array([], pa.int64())})):
        result = pipeline.run(source, rows, schema={"v": "float32", "tags": "list<string>"})
        assert result.table.schema == schema


def test_a_key_that_is_not_declared_fails_and_one_that_is_missing_is_null(pipeline: Pipeline) -> None:
    source = "def f(row): return {'v': 1} if row['n'] == 0 else {'w': 'x'} if row['n'] == 1 else {'u': 1}"
    result = pipeline.run(source, NUMBERS[:3], schema={"v": "int8", "w": "string"})
    assert result.table.to_pylist() == [{"v": 1, "w": None}, {"v": None, "w": "x"}]
    assert [(f.index, f.type, f.message) for f in result.failures] == [
        (2, "BadReturn", "it returned 'u', which is not declared; declared: v, w")
    ]


def test_a_value_that_is_not_of_the_declared_type_fails_its_row(pipeline: Pipeline) -> None:
    source = "def f(row): return {'v': 1000 if row['n'] == 1 else 1}"
    result = pipeline.run(source, NUMBERS[:3], schema={"v": "int8"})
    assert [(f.index, f.type) for f in result.failures] == [(1, "BadValue")]
    assert result.table["v"].to_pylist() == [1, 1]


def test_output_columns_take_their_types_from_the_input_where_the_schema_has_none(pipeline: Pipeline) -> None:
    given = pa.table({"id": pa.array([1], pa.int16()), "n": [1]})
    result = pipeline.run(
        "def f(row): return {'v': 1, 'id': row['id']}",
        given,
        output_columns=["id", "v"],
        schema={"v": "float64"},
    )
    assert result.table.schema == pa.schema({"id": pa.int16(), "v": pa.float64()})


def test_a_class_is_made_once_and_closed(pipeline: Pipeline) -> None:
    source = """
    class f:
        def __init__(self, start, log): self.count = start; self.log = log
        def __call__(self, row): self.count += 1; return {"v": self.count}
        def close(self): open(self.log, "w").write(str(self.count))
    """
    log = pipeline.folder / "log"
    result = pipeline.run(source, NUMBERS, init={"start": 10, "log": str(log)})
    assert result.table["v"].to_pylist() == [11, 12, 13, 14, 15, 16]
    assert log.read_text() == "16"


CONCURRENT = """
    import asyncio
    class f:
        def __init__(self): self.now = self.most = 0
        async def __call__(self, row):
            self.now += 1
            self.most = max(self.most, self.now)
            for _ in range(3): await asyncio.sleep(0)
            self.now -= 1
            return {"most": self.most}
"""


@pytest.mark.parametrize(("limit", "most"), [(1, 1), (4, 4), (64, 20)])
def test_async_rows_are_bounded_in_flight(pipeline: Pipeline, limit: int, most: int) -> None:
    result = pipeline.run(CONCURRENT, [{"n": n} for n in range(20)], max_concurrency=limit)
    assert max(result.table["most"].to_pylist()) == most


def test_async_state_lives_across_units_on_one_loop(pipeline: Pipeline) -> None:
    source = """
    import asyncio
    loops = set()
    async def f(row):
        loops.add(asyncio.get_running_loop())
        return {"loops": len(loops)}
    """
    stage = pipeline.config(source).build(StageContext(base_dir=str(pipeline.folder)))
    found = [stage.process(pa.table({"n": [1]})).table["loops"].to_pylist() for _ in range(3)]
    stage.close()
    assert found == [[1], [1], [1]]


def test_an_async_function_that_raises_cancelled_fails_its_row(pipeline: Pipeline) -> None:
    source = "import asyncio\nasync def f(row):\n    raise asyncio.CancelledError('gone')"
    result = pipeline.run(source, NUMBERS[:2])
    assert [f.type for f in result.failures] == ["CancelledError"] * 2


def test_a_function_may_print(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    result = pipeline.run("def f(row): print('seen', row['n']); return row", NUMBERS[:1])
    assert len(result.table) == 1
    assert capsys.readouterr().out == "seen 0\n"


BATCH = "import pyarrow as pa, pyarrow.compute as pc\n"


def test_a_batch_is_a_table_with_an_index(pipeline: Pipeline) -> None:
    source = (
        BATCH
        + "def f(t): return t.append_column('i', t['_index']).append_column('c', pa.array([len(t)] * len(t)))"
    )
    result = pipeline.run(source, NUMBERS, mode="batch")
    assert result.table.column_names == ["n", "i", "c"]
    assert result.table["i"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert result.table["c"].to_pylist() == [6] * 6
    assert result.parents.tolist() == [0, 1, 2, 3, 4, 5]
    assert (list(result.dropped), result.expanded) == ([], frozenset())


def test_a_batch_may_drop_repeat_and_move_rows_if_it_keeps_the_index(pipeline: Pipeline) -> None:
    source = BATCH + "def f(t): return t.take([5, 1, 1, 3])"
    result = pipeline.run(source, NUMBERS, mode="batch")
    assert result.table.to_pylist() == [{"n": 5}, {"n": 1}, {"n": 1}, {"n": 3}]
    assert result.parents.tolist() == [5, 1, 1, 3]
    assert result.expanded == {1}
    assert result.dropped == [0, 2, 4]


def test_a_batch_without_the_index_keeps_its_rows(pipeline: Pipeline) -> None:
    source = BATCH + "async def f(t): return pa.table({'v': pc.multiply(t['n'], 2)})"
    result = pipeline.run(source, NUMBERS, mode="batch")
    assert result.table["v"].to_pylist() == [0, 2, 4, 6, 8, 10]
    assert result.parents.tolist() == [0, 1, 2, 3, 4, 5]


def test_of_a_batch_that_raises_only_the_rows_at_fault_fail(pipeline: Pipeline) -> None:
    source = """
    calls = []
    def f(t):
        calls.append(len(t))
        bad = {3, 700} & set(t["n"].to_pylist())
        if bad: raise ValueError(f"bad rows")
        return t.append_column("calls", [[len(calls)] * len(t)])
    """
    result = pipeline.run(source, [{"n": n} for n in range(1000)], mode="batch")
    assert [(f.index, f.type, f.message) for f in result.failures] == [
        (3, "ValueError", "bad rows (rules.py:6)"),
        (700, "ValueError", "bad rows (rules.py:6)"),
    ]
    assert result.parents.tolist() == [n for n in range(1000) if n not in (3, 700)]
    assert max(result.table["calls"].to_pylist()) <= 2 * 2 * 10 + 1  # two rows, two halves, log2(1000) levels


def test_a_batch_s_value_that_is_not_of_the_declared_type_fails_its_row(pipeline: Pipeline) -> None:
    source = BATCH + "def f(t): return pa.table({'v': pc.multiply(t['n'], 100)})"
    result = pipeline.run(source, NUMBERS, mode="batch", schema={"v": "int8"})
    assert result.table.schema == pa.schema({"v": pa.int8()})
    assert result.table["v"].to_pylist() == [0, 100]
    assert [(f.index, f.type) for f in result.failures] == [(n, "BadValue") for n in (2, 3, 4, 5)]


@pytest.mark.parametrize(
    ("returned", "fields", "message"),
    [
        ("None", {}, "it returned a value of type NoneType; a pyarrow.Table is needed"),
        ("t.to_pylist()", {}, "it returned a value of type list"),
        ("t.slice(2).drop_columns(['_index'])", {}, "it returned 4 rows for 6; .* keep the column '_index'"),
        ("t.select(['_index'])", {}, "it returned no column"),
        ("t.append_column('_row', t['n'])", {}, "'_row', whose name is reserved"),
        (
            "t.set_column(1, '_index', pc.add(t['n'], 1))",
            {},
            "it returned '_index' 6, which it was not given",
        ),
        ("t.set_column(1, '_index', pc.cast(t['n'], pa.string()))", {}, "returned '_index' as string"),
        ("t", {"schema": {"v": "int8"}}, "it returned 'n', which is not declared; declared: v"),
        ("t", {"output_columns": ["n", "v"]}, "it returned no column 'v'"),
    ],
)
def test_a_batch_function_that_breaks_its_contract_ends_the_run(
    pipeline: Pipeline, returned: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(StageError, match=f"stage 'python': the function broke its contract: .*{message}"):
        pipeline.run(BATCH + f"def f(t): return {returned}", NUMBERS, mode="batch", **fields)


def test_a_batch_with_a_column_of_the_index_s_name_ends_the_run(pipeline: Pipeline) -> None:
    with pytest.raises(StageError, match="the input has a column '_index'"):
        pipeline.run("def f(t): return t", [{"_index": 1}], mode="batch")


def test_a_unit_without_rows_calls_nothing(pipeline: Pipeline) -> None:
    for mode in ("row", "batch"):
        result = pipeline.run(
            "def f(x): raise RuntimeError", pa.table({"n": pa.array([], pa.int64())}), mode=mode
        )
        assert (len(result.table), result.failures) == (0, [])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"function": "rules"}, "a function is named `module:function`, got 'rules'"),
        ({"function": "rules.py:f()"}, "a function is named `module:function`"),
        ({"schema": {"v": "flaot32"}}, r"column 'v': 'flaot32' is no Arrow type: .*did you mean 'float32'"),
        ({"schema": {"_row": "int8"}}, "'_row' is a column that raybatch writes"),
        ({"output_columns": ["_index"]}, "'_index' is a column that raybatch writes"),
        (
            {"output_columns": ["a"], "schema": {"b": "int8"}},
            "schema names 'b', which output_columns does not",
        ),
        ({"mode": "rows"}, "mode"),
        ({"max_concurrency": 0}, "max_concurrency"),
    ],
)
def test_a_config_that_cannot_work_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PythonConfig.model_validate({"function": "rules:f"} | fields)


@pytest.mark.parametrize(
    ("fields", "writes"),
    [
        ({}, None),
        ({"schema": {"b": "int8", "a": "int8"}}, ["b", "a"]),
        ({"schema": {"b": "int8"}, "output_columns": ["a", "b"]}, ["a", "b"]),
    ],
)
def test_the_columns_that_it_writes_are_those_declared(
    fields: dict[str, Any], writes: list[str] | None
) -> None:
    found = PythonConfig.model_validate({"function": "rules:f", "input_columns": ["a"]} | fields)
    assert found.writes(["a", "z"]) == writes
    assert found.reads() == ["a"]


def test_it_takes_one_cpu_unless_said_otherwise() -> None:
    assert PythonConfig(function="a:b").resources() == {"num_cpus": 1}
    assert PythonConfig(function="a:b", num_cpus=0.5).resources() == {"num_cpus": 0.5}
    assert PythonConfig(function="a:b").engines() == []


def test_changed_code_is_in_the_fingerprint(pipeline: Pipeline) -> None:
    first = pipeline.config("def f(row): return row")
    before = first.fingerprint()
    assert pickle.loads(pickle.dumps(first)).fingerprint() == before
    assert json.loads(json.dumps(before)) == before
    assert pipeline.config("def f(row): return None").fingerprint() != before
    assert pipeline.config("def f(row): return row").fingerprint() == before
    assert pipeline.config("def f(row): return row", mode="batch").fingerprint() != before
    assert pipeline.config("def f(row): return row", num_cpus=2).fingerprint() == before


def test_its_fields_are_described_in_the_json_schema() -> None:
    properties = PythonConfig.model_json_schema()["properties"]
    assert {name for name, field in properties.items() if "description" not in field} == {"type"}
    assert "schema" in properties
