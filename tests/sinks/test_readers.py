"""What other people's readers see of data/, with one glob."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Commit
from raybatch.rows import UnitRows
from raybatch.sources.base import UnitSpec
from raybatch.store import LocalStore
from small_run import PIPELINE, make_plan, make_sink, ok_table, run


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three epochs of merged and linked files, and what a crash and a losing attempt leave beside them."""
    store = LocalStore(str(tmp_path))
    run(store, run_id="run-1", epochs=3)
    store.create("_raybatch/parts/00000000/00000/00000000-lost.ok.parquet", b"no parquet")
    store.create("_tmp/cut-off", b"no parquet")
    return tmp_path


# Three epochs of five units of six rows: one becomes two, three pass
ROWS = 75


def test_duckdb_reads_one_glob(dataset: Path) -> None:
    query = f"select count(*), count(distinct (_source, _row, _child)) from '{dataset}/data/*.parquet'"
    assert duckdb.sql(query).fetchall() == [(ROWS, ROWS)]


def test_duckdb_reads_the_errors(dataset: Path) -> None:
    query = f"select type, stage, count(*) from '{dataset}/errors/*.parquet' group by all"
    assert duckdb.sql(query).fetchall() == [("TooLong", "source", 15)]


def test_pandas_reads_the_folder_and_the_files_of_a_glob(dataset: Path) -> None:
    folder = pd.read_parquet(dataset / "data")
    files = pd.concat(pd.read_parquet(path) for path in glob.glob(f"{dataset}/data/*.parquet"))
    assert len(folder.drop_duplicates(["_source", "_row", "_child"])) == len(files) == ROWS


def test_pyarrow_reads_the_folder(dataset: Path) -> None:
    assert ds.dataset(dataset / "data", format="parquet").count_rows() == ROWS
    assert len(pq.read_table(dataset / "data", columns=["text"])) == ROWS


def test_readers_that_take_the_whole_folder_skip_what_is_ours_alone(dataset: Path) -> None:
    # Names with a leading underscore are hidden by convention: pyarrow, Spark and Hive keep to it
    assert ds.dataset(dataset, format="parquet", exclude_invalid_files=False).count_rows() == ROWS + 15


def _epochs(path: Path, *epochs: list[Any]) -> None:
    """One epoch for each list of columns `text`, which are its units."""
    for number, units in enumerate(epochs):
        ledger = Ledger(LocalStore(str(path)), PIPELINE)
        specs = tuple(UnitSpec(range={}, rows=len(column)) for column in units)
        plan = make_plan(epoch=number, units=0, start={"next": number} if number else None)
        plan = ledger.create_plan(plan.__class__(**{**vars(plan), "units": specs, "plan_id": ""}))
        records = []
        for unit, column in enumerate(units):
            ids = [(f"{number}", unit * 100 + row, None) for row in range(len(column))]
            table = ok_table(ids, column.to_pylist(), column.type)
            rows = UnitRows(unit=plan.unit_key(unit), rows_in=len(column), table=table)
            reference, attempt = plan.reference(), f"a{unit}"
            records.append(make_sink().write(rows, plan=reference, attempt=attempt, ledger=ledger))
        files = make_sink().finalise(plan, records, ledger=ledger)
        ledger.commit(plan, Commit.of(plan, records, files, run_id="run-1"))


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        ([[pa.nulls(1), pa.array(["a"])], [pa.nulls(2)]], [None, None, None, "a"]),
        ([[pa.array([0.5])], [pa.array([1, 2])], [pa.nulls(1)]], [None, 0.5, 1.0, 2.0]),
        ([[pa.nulls(1)], [pa.array(["a"])]], [None, "a"]),
        ([[pa.array(["a"])], []], ["a"]),
        ([[pa.array(["a"])], [pa.array([], pa.null())]], ["a"]),
    ],
)
def test_one_glob_reads_epochs_whose_rows_differ(
    tmp_path: Path, epochs: list[list[Any]], expected: list[Any]
) -> None:
    _epochs(tmp_path, *epochs)
    by_duckdb = duckdb.sql(
        f"select text from '{tmp_path}/data/*.parquet' order by text nulls first"
    ).fetchall()
    by_pyarrow = ds.dataset(tmp_path / "data").to_table()["text"].to_pylist()
    by_pandas = pd.read_parquet(tmp_path / "data")["text"]
    assert [value for (value,) in by_duckdb] == expected
    assert sorted(by_pyarrow, key=lambda v: (v is not None, v)) == expected
    assert by_pandas.isna().sum() == expected.count(None)


@pytest.mark.parametrize("kind", [pa.float32(), pa.float16()], ids=str)
def test_vectors_are_read_as_they_were_written(tmp_path: Path, kind: pa.DataType) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 8)).astype(kind.to_pandas_dtype())
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), kind), 8)
    _epochs(tmp_path, [column.slice(0, 20), column.slice(20)])
    rows = duckdb.sql(f"select text from '{tmp_path}/data/*.parquet' order by _row").fetchnumpy()["text"]
    np.testing.assert_array_equal(np.stack(rows).astype(vectors.dtype), vectors)
    table = pq.read_table(tmp_path / "data")
    assert table.schema.field("text").type == pa.list_(kind, 8)
    flat = table.sort_by("_row")["text"].combine_chunks().flatten()
    np.testing.assert_array_equal(flat.to_numpy(zero_copy_only=False), vectors.ravel())
