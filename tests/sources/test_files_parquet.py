"""Parquet: units by row groups, and files that do not agree or do not hold together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from raybatch.errors import CorruptInputError, SourceError
from raybatch.sources.files import FilesConfig

ReadFiles = Callable[..., Any]


def write(path: Path, columns: dict[str, Any], *, group_rows: int | None = None) -> Path:
    parquet.write_table(pa.table(columns), path, row_group_size=group_rows)
    return path


def ranges(found: Any) -> list[list[int]]:
    return [unit.range["at"]["rows"] for unit in found.plan.units]


@pytest.mark.parametrize(
    ("max_rows", "expected"),
    [
        (1000, [[0, 100]]),
        (60, [[0, 60], [60, 100]]),
        (59, [[0, 30], [30, 60], [60, 100]]),
        (40, [[0, 30], [30, 60], [60, 100]]),
        (30, [[0, 30], [30, 60], [60, 90], [90, 100]]),
        (20, [[0, 15], [15, 30], [30, 45], [45, 60], [60, 75], [75, 90], [90, 100]]),
    ],
)
def test_units_join_small_row_groups_and_split_large_ones(
    max_rows: int, expected: list[list[int]], read_files: ReadFiles, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.parquet", {"id": range(100)}, group_rows=30)
    found = read_files(path, max_rows=max_rows)
    assert ranges(found) == expected
    assert [unit.rows for unit in found.plan.units] == [high - low for low, high in expected]
    assert found.column("id") == found.column("_row") == list(range(100))


def test_units_hold_to_the_size_in_bytes_too(read_files: ReadFiles, tmp_path: Path) -> None:
    rows = [f"{i:04}" * 250 for i in range(100)]  # 1,000 bytes each, and no two the same
    path = write(tmp_path / "a.parquet", {"text": rows}, group_rows=50)
    assert len(ranges(read_files(path, max_bytes=60_000))) == 2
    found = read_files(path, max_bytes=20_000)
    assert {high - low for low, high in ranges(found)} == {16, 17}
    assert found.column("text") == rows


def test_units_never_span_files(read_files: ReadFiles, tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.parquet", {"id": [1, 2]})
    assert ranges(read_files(tmp_path)) == [[0, 2], [0, 2]]


def test_columns_are_selected_in_the_order_asked_for(read_files: ReadFiles, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"a": [1], "b": ["x"], "a.b": [True]})
    found = read_files(path, columns=["b", "a"])
    assert found.plan.schema.names == ["b", "a"]
    assert (found.rows[0]["a"], found.rows[0]["b"]) == (1, "x")


def test_a_missing_column_is_answered_with_those_that_are_there(
    read_files: ReadFiles, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.parquet", {"id": [1], "body": ["x"]})
    with pytest.raises(
        SourceError, match=r"'boddy' is not in the input \(did you mean 'body'\?\).*: id, body"
    ):
        read_files(path, columns=["boddy"])


def test_types_that_conflict_between_files_are_an_error_that_names_both(
    read_files: ReadFiles, tmp_path: Path
) -> None:
    write(tmp_path / "1.parquet", {"id": [1], "v": [1]})
    write(tmp_path / "2.parquet", {"id": [1], "v": ["x"]})
    with pytest.raises(SourceError, match=r"'v' is int64 in .*1\.parquet, but string in .*2\.parquet"):
        read_files(tmp_path)
    assert read_files(tmp_path, columns=["id"]).column("id") == [1, 1]


def test_types_that_hold_each_other_are_widened(read_files: ReadFiles, tmp_path: Path) -> None:
    nothing = pa.nulls(1)
    write(tmp_path / "1.parquet", {"i": pa.array([1], pa.int32()), "n": nothing, "s": ["x"], "all": nothing})
    write(
        tmp_path / "2.parquet",
        {"i": [2**40], "n": ["y"], "s": pa.array(["z"], pa.large_string()), "all": nothing},
    )
    found = read_files(tmp_path)
    assert found.plan.schema.field("i").type == pa.int64()
    assert found.plan.schema.field("all").type == pa.string()
    assert [(r["i"], r["n"], r["s"]) for r in found.rows] == [(1, None, "x"), (2**40, "y", "z")]


def test_integers_are_never_made_floats(read_files: ReadFiles, tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", {"v": [2**60 + 1]})
    write(tmp_path / "2.parquet", {"v": [1.5]})
    with pytest.raises(SourceError, match=r"'v' is int64 in .* but double in "):
        read_files(tmp_path)


def test_a_column_that_some_files_lack_is_null_there_and_a_note_says_so(
    read_files: ReadFiles, tmp_path: Path
) -> None:
    write(tmp_path / "1.parquet", {"a": [1], "b": [1]})
    write(tmp_path / "2.parquet", {"a": [2]})
    found = read_files(tmp_path)
    assert found.column("b") == [1, None]
    assert any(
        "column 'b' is not in 1 of 2 files" in note and "2.parquet" in note for note in found.plan.notes
    )
    assert read_files(tmp_path, columns=["b"]).column("b") == [1, None]


def test_row_ids_of_an_upstream_output_are_replaced(read_files: ReadFiles, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"_source": ["x"], "_row": [9], "_child": ["0"], "text": ["t"]})
    found = read_files(path)
    assert found.rows == [{"text": "t", "_source": str(path), "_row": 0, "_child": None}]
    assert "columns _child, _row, _source are not read" in found.plan.notes[0]


def test_dictionary_columns_are_read_as_their_values(read_files: ReadFiles, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"s": pa.array(["x", "y", "x"]).dictionary_encode()})
    found = read_files(path)
    assert found.plan.schema == pa.schema([("s", pa.string())])
    assert found.column("s") == ["x", "y", "x"]


def test_a_string_that_is_not_utf8_is_an_error_row(read_files: ReadFiles, tmp_path: Path) -> None:
    raw = [b"one", b"\xff", b"three"]
    binary = pa.array(raw, pa.binary())
    strings = pa.Array.from_buffers(pa.string(), 3, binary.buffers())  # as a careless writer would
    path = write(tmp_path / "a.parquet", {"id": range(3), "s": strings})
    found = read_files(path)
    assert found.column("id") == found.column("_row") == [0, 2]
    assert [(e["_row"], e["type"], e["raw"]) for e in found.errors] == [(1, "InvalidUTF8", b"\xff")]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"not parquet at all",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-100] + b"\0" * 92 + data[-8:],
        lambda data: b"PAR1",
    ],
    ids=["text", "half", "footer", "stub"],
)
def test_a_corrupt_footer_is_an_error_before_the_run_that_names_the_file(
    damage: Callable[[bytes], bytes], read_files: ReadFiles, tmp_path: Path
) -> None:
    write(tmp_path / "1.parquet", {"id": range(100)})
    path = write(tmp_path / "2.parquet", {"id": range(100)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SourceError, match=r"2\.parquet: cannot be read: .*leave it out of source\.path"):
        read_files(tmp_path)


def test_a_corrupt_page_is_an_error_that_names_file_and_place(read_files: ReadFiles, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"id": [f"{i * 7919}" for i in range(10_000)]})
    data = bytearray(path.read_bytes())
    data[100:2000] = b"\xff" * 1900  # the footer, at the end, stays whole
    path.write_bytes(data)
    with pytest.raises(CorruptInputError, match=r"a\.parquet, unit 0 \(rows \[0, 10000\]\): cannot be read"):
        read_files(path, max_rows=20_000)


def test_a_file_without_rows_has_no_units(read_files: ReadFiles, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"id": pa.array([], pa.int64())})
    found = read_files(tmp_path)
    assert len(found.plan.units) == 0
    assert "the input is empty: no file has any rows" in found.plan.notes


def test_row_groups_cut_into_many_units_are_noted(read_files: ReadFiles, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"id": range(100)})
    assert "cut into up to 20 units" in read_files(path, max_rows=5).plan.notes[0]
    assert read_files(path, max_rows=50).plan.notes == []


def test_a_later_file_of_another_type_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", {"v": [1]})
    source = FilesConfig(type="files", path=str(tmp_path)).build(max_rows=10, max_bytes=1000)
    first = source.plan(after=None)
    write(tmp_path / "2.parquet", {"v": ["x"]})
    with pytest.raises(SourceError, match=r"'v' is int64 in earlier runs, but string in .*2\.parquet"):
        source.plan(after=first.end, history=first.units)
