"""Input whose columns change, within an epoch and from one to the next: it stops, or widens as declared (T23).

What the types of an epoch are is settled before any work. After that no value changes its type silently: it fits,
or is an error row, or the run stops before it starts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from raybatch.errors import SourceError

ReadFiles = Callable[..., Any]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Rows as the format that the suffix tells; the first row has all columns."""
    path = folder / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        body = [",".join(str(value) for value in row.values()) for row in rows]
        path.write_text("\n".join([",".join(rows[0]), *body]) + "\n")
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path)


TEXTUAL = ["jsonl", "csv"]
FORMATS = [*TEXTUAL, "parquet"]


# --- within an epoch ---------------------------------------------------------------------------------------


def test_parquet_files_whose_types_conflict_stop_before_any_work(
    read_files: ReadFiles, tmp_path: Path
) -> None:
    write(tmp_path, "1.parquet", [{"v": 1}])
    write(tmp_path, "2.parquet", [{"v": "one"}])
    with pytest.raises(SourceError, match=r"'v' is int64 in .*1\.parquet, but string in .*2\.parquet"):
        read_files(tmp_path)


def test_csv_files_whose_headers_differ_stop_before_any_work(read_files: ReadFiles, tmp_path: Path) -> None:
    write(tmp_path, "1.csv", [{"v": 1}])
    write(tmp_path, "2.csv", [{"v": 1, "w": 2}])
    with pytest.raises(SourceError, match=r"2\.csv: its header \(v, w\) differs from that of .*1\.csv"):
        read_files(tmp_path)


@pytest.mark.parametrize("suffix", TEXTUAL)
def test_a_value_of_another_type_than_the_sampled_ones_is_an_error_row(
    suffix: str, read_files: ReadFiles, tmp_path: Path
) -> None:
    write(tmp_path, f"1.{suffix}", [{"v": i} for i in range(20_000)] + [{"v": "one"}])
    found = read_files(tmp_path, max_rows=100_000)
    assert found.plan.schema == pa.schema([("v", pa.int64())])
    assert found.column("v") == list(range(20_000))
    assert found.error_types() == ["SchemaViolation"]


def test_a_field_that_no_sampled_row_had_is_an_error_row_unless_declared(
    read_files: ReadFiles, tmp_path: Path
) -> None:
    write(tmp_path, "1.jsonl", [{"v": i} for i in range(20_000)] + [{"v": 1, "late": 2}])
    assert read_files(tmp_path, max_rows=100_000).error_types() == ["SchemaViolation"]
    declared = read_files(tmp_path, max_rows=100_000, schema={"late": "int64"})
    assert (declared.column("late")[-1], declared.errors) == (2, [])


# --- across epochs -----------------------------------------------------------------------------------------


def test_a_later_parquet_file_of_another_type_stops_before_any_work(
    read_files: ReadFiles, tmp_path: Path
) -> None:
    write(tmp_path, "1.parquet", [{"v": 1}])
    first = read_files(tmp_path)
    write(tmp_path, "2.parquet", [{"v": 1.5}])
    with pytest.raises(SourceError, match=r"'v' is int64 in earlier runs, but double in .*2\.parquet"):
        read_files(tmp_path, after=first)


@pytest.mark.parametrize("suffix", TEXTUAL)
def test_a_later_value_of_another_type_is_an_error_row(
    suffix: str, read_files: ReadFiles, tmp_path: Path
) -> None:
    write(tmp_path, f"1.{suffix}", [{"v": 1}])
    first = read_files(tmp_path)
    write(tmp_path, f"2.{suffix}", [{"v": 1.5}, {"v": 2}])
    second = read_files(tmp_path, after=first)
    assert second.plan.schema == first.plan.schema
    assert (second.column("v"), second.error_types()) == ([2], ["SchemaViolation"])


@pytest.mark.parametrize("suffix", TEXTUAL)
def test_a_type_widens_as_declared(suffix: str, read_files: ReadFiles, tmp_path: Path) -> None:
    write(tmp_path, f"1.{suffix}", [{"v": 1}])
    first = read_files(tmp_path)
    write(tmp_path, f"2.{suffix}", [{"v": 1.5}, {"v": 2}])
    second = read_files(tmp_path, after=first, schema={"v": "float64"})
    assert (second.column("v"), second.errors) == ([1.5, 2.0], [])


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_column_that_is_new_is_read_and_a_note_names_it(
    suffix: str, read_files: ReadFiles, tmp_path: Path
) -> None:
    write(tmp_path, f"1.{suffix}", [{"v": 1}])
    first = read_files(tmp_path)
    write(tmp_path, f"2.{suffix}", [{"v": 2, "w": 3}])
    second = read_files(tmp_path, after=first)
    assert (second.column("v"), second.column("w")) == ([2], [3])
    assert any("new since the last epoch: columns w;" in note for note in second.plan.notes)


@pytest.mark.parametrize("suffix", FORMATS)
def test_columns_that_are_named_stay_those(suffix: str, read_files: ReadFiles, tmp_path: Path) -> None:
    write(tmp_path, f"1.{suffix}", [{"v": 1}])
    first = read_files(tmp_path, columns=["v"])
    write(tmp_path, f"2.{suffix}", [{"v": 2, "w": 3}])
    second = read_files(tmp_path, after=first, columns=["v"])
    assert second.plan.schema == first.plan.schema
    assert second.column("v") == [2]
    assert not any("new since" in note for note in second.plan.notes)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_column_that_is_gone_is_null(suffix: str, read_files: ReadFiles, tmp_path: Path) -> None:
    write(tmp_path, f"1.{suffix}", [{"v": 1, "w": 2}])
    first = read_files(tmp_path)
    write(tmp_path, f"2.{suffix}", [{"v": 3}])
    second = read_files(tmp_path, after=first)
    assert second.plan.schema == first.plan.schema
    assert (second.column("v"), second.column("w")) == ([3], [None])
