"""CSV: where rows end, what becomes an error row, and of which types."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv as arrow_csv

from raybatch.errors import SourceError
from raybatch.sources.formats.ordinals import CsvScanner

ReadFiles = Callable[..., Any]


@pytest.fixture
def read(read_files: ReadFiles, tmp_path: Path) -> ReadFiles:
    """`read(text, **config)`: the text as one file, read."""

    def write_and_read(text: str | bytes, name: str = "in.csv", **config: Any) -> Any:
        data = text.encode() if isinstance(text, str) else text
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return read_files(tmp_path / name, **config)

    return write_and_read


def test_quotes_line_ends_and_empty_rows_are_as_rfc_4180_has_them(read: ReadFiles) -> None:
    found = read('a,b\r\n1,"x, ""y""\nz"\r\n\r\n2,plain "quote"\n\n3,"last"')
    assert found.column("a") == [1, 2, 3]
    assert found.column("b") == ['x, "y"\nz', 'plain "quote"', "last"]
    assert found.column("_row") == [0, 1, 2]


@pytest.mark.parametrize("name", ["in.csv", "in.csv.gz"])
@pytest.mark.parametrize(("max_rows", "max_bytes"), [(1, 1 << 20), (1000, 1), (7, 1 << 20), (1000, 300)])
def test_any_size_of_unit_gives_each_row_once(
    name: str, max_rows: int, max_bytes: int, read: ReadFiles
) -> None:
    lines = [f'{i},"line\n{i}, ""q""",{i / 8}' for i in range(100)]
    found = read("id,text,x\n" + "\r\n".join(lines), name=name, max_rows=max_rows, max_bytes=max_bytes)
    assert found.column("_row") == list(range(100))
    assert found.column("text") == [f'line\n{i}, "q"' for i in range(100)]
    assert found.column("x") == [i / 8 for i in range(100)]
    assert sum(unit.rows for unit in found.plan.units) == 100
    assert max(unit.rows for unit in found.plan.units) <= max_rows


def test_a_small_file_is_one_unit_that_planning_has_not_counted(read: ReadFiles) -> None:
    found = read("a\n1\n2\n")
    assert [unit.rows for unit in found.plan.units] == [None]
    assert found.column("a") == [1, 2]


@pytest.mark.parametrize(
    ("row", "kind", "says"),
    [
        (b"1", "InvalidCSV", "Expected 2 columns, got 1"),
        (b"1,2,3", "InvalidCSV", "Expected 2 columns, got 3"),
        (b"1,\xff", "InvalidUTF8", "byte 2 of the row, 0xff, is not UTF-8"),
        (b"one,two", "SchemaViolation", "column 'id' should be int64, but holds \"one\""),
        (b"1.5,two", "SchemaViolation", "column 'id' should be int64, but holds \"1.5\""),
        (b"1," + b"x" * 5000, "RowTooLarge", "over 4000 bytes long"),
    ],
)
@pytest.mark.parametrize("max_rows", [1000, 1])
def test_a_bad_row_is_an_error_row_and_its_neighbours_are_rows(
    row: bytes, kind: str, says: str, max_rows: int, read: ReadFiles
) -> None:
    data = b"id,text\n1,a\n" + row + b"\n3,c\n"
    found = read(data, schema={"id": "int64"}, max_row_bytes=4000, max_rows=max_rows)
    assert found.error_types() == [kind]
    assert found.errors[0]["_row"] == 1
    assert "in.csv, row 1: " in found.errors[0]["message"]
    assert says in found.errors[0]["message"]
    assert found.column("text") == ["a", "c"]


def test_a_row_that_breaks_the_schema_is_kept_as_json(read: ReadFiles) -> None:
    found = read('id,text\n1,a\nx,"é, ""b"""\n', schema={"id": "int64"})
    assert json.loads(found.errors[0]["row"]) == {"id": "x", "text": 'é, "b"'}


@pytest.mark.parametrize("max_rows", [1000, 1])
def test_a_quote_that_is_never_closed_is_one_error_row(max_rows: int, read: ReadFiles) -> None:
    found = read('id,text\n1,a\n2,"b\n3,c\n', max_rows=max_rows)
    assert found.column("id") == [1]
    assert found.error_types() == ["InvalidCSV"]
    assert found.errors[0]["raw"] == b'2,"b\n3,c'
    assert "a quote is not closed" in found.errors[0]["message"]


def test_a_quote_that_is_never_closed_in_a_large_file_is_not_read_to_its_end(read: ReadFiles) -> None:
    rows = "".join(f"{i},text\n" for i in range(50_000))
    found = read(f'id,text\n1,a\n2,"b\n{rows}', max_rows=1, max_bytes=1000, max_row_bytes=1000)
    assert found.column("id") == [1]
    assert found.error_types() == ["RowTooLarge"]
    # the row's first kilobyte and what is read at once, of half a megabyte
    assert len(found.errors[0]["raw"]) < 100_000


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "-2", ""], pa.int64()),
        (["1", "2.5", "NA"], pa.float64()),
        (["true", "False"], pa.bool_()),
        (["007", "12"], pa.string()),
        (["+1", "12"], pa.string()),
        (["12345678901234567890"], pa.string()),
        (["2026-01-02"], pa.string()),
        (["", "NA"], pa.string()),
        (["1", "x"], pa.string()),
    ],
)
def test_types_are_inferred_only_where_nothing_is_lost(
    values: list[str], expected: pa.DataType, read: ReadFiles
) -> None:
    found = read("v,w\n" + "".join(f"{value},x\n" for value in values))
    assert found.plan.schema.field("v").type == expected
    assert len(found.rows) == len(values)
    if expected == pa.string():
        assert found.column("v") == values


def test_declared_types_and_selected_columns_are_kept(read: ReadFiles) -> None:
    found = read("a,b,c\n1,2026-01-02,x\n", columns=["b", "a"], schema={"a": "string", "b": "timestamp[s]"})
    assert found.plan.schema == pa.schema([("b", pa.timestamp("s")), ("a", pa.string())])
    assert found.rows[0]["a"] == "1"


def test_a_type_that_csv_cannot_give_is_an_error_before_the_run(read: ReadFiles) -> None:
    with pytest.raises(SourceError, match=r"source.schema: a: list<.*cannot be read from CSV"):
        read("a\nx\n", schema={"a": "list<string>"})


def test_tabs_separate_the_fields_of_tsv(read: ReadFiles) -> None:
    assert read("a\tb\n1,5\tx\n", name="in.tsv").column("a") == ["1,5"]
    assert read("a\tb\n1,5\tx\n", name="in.tsv.gz").column("b") == ["x"]
    assert read("a;b\n1,5;x\n", delimiter=";").column("a") == ["1,5"]


def test_without_a_header_columns_are_numbered_or_named_by_the_config(read: ReadFiles) -> None:
    assert read("1,x\n2,y\n", header=False).column("f1") == ["x", "y"]
    assert read("1,x\n2,y\n", header=["id", "text"]).column("text") == ["x", "y"]
    with pytest.raises(
        SourceError, match=r"source.header names 3 columns \(a, b, c\), but the first row has 2"
    ):
        read("1,x\n", header=["a", "b", "c"])


def test_a_header_that_differs_between_files_is_an_error_that_shows_both(
    read_files: ReadFiles, tmp_path: Path
) -> None:
    (tmp_path / "1.csv").write_text("id,text\n1,a\n")
    (tmp_path / "2.csv").write_text("id,body\n1,a\n")
    with pytest.raises(SourceError, match=r"2\.csv: its header \(id, body\) differs.*1\.csv \(id, text\)"):
        read_files(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b,a\n1,2,3\n", "column 'a' more than once"),
        (",b\n1,2\n", "a column without a name"),
        ("\n\n", "no header: the file has only empty rows"),
        (b"\xff\xfea\0", "the first row is not UTF-8"),
        ("_row,b\n1,2\n", "'_row', a name that row ids need"),
    ],
)
def test_a_header_that_cannot_be_used_is_an_error(text: str | bytes, says: str, read: ReadFiles) -> None:
    with pytest.raises(SourceError, match=says):
        read(text)


def test_columns_can_be_selected_around_a_bad_header(read: ReadFiles) -> None:
    assert read(",b,b,c\n1,2,3,4\n", columns=["c"]).column("c") == [4]


def test_a_missing_column_is_answered_with_those_that_are_there(read: ReadFiles) -> None:
    with pytest.raises(
        SourceError, match=r"'texte' is not in the input \(did you mean 'text'\?\).*: id, text"
    ):
        read("id,text\n1,a\n", columns=["texte"])


def test_a_file_with_only_a_header_has_no_units(read: ReadFiles) -> None:
    found = read("id,text\n")
    assert (len(found.plan.units), found.rows) == (0, [])
    assert "the input is empty: no file has any rows" in found.plan.notes


def test_a_byte_order_mark_is_no_part_of_the_header(read: ReadFiles) -> None:
    assert read(b'\xef\xbb\xbf"id",text\n1,a\n').column("id") == [1]
    assert read(b'\xef\xbb\xbf"id",text\n1,a\n2,b\n', max_rows=1).column("id") == [1, 2]


PIECES = st.sampled_from(["\n", "\r", "\r\n", ",", '"', '""', 'a"b', "x", ' "', "\n\n", "long text"])


def _count_by_arrow(text: str) -> int | None:
    """Rows that pyarrow finds, those of another width included; None where a quote is left open."""
    skipped = 0

    def skip(_: object) -> str:
        nonlocal skipped
        skipped += 1
        return "skip"

    table = arrow_csv.read_csv(
        io.BytesIO(text.encode()),
        arrow_csv.ReadOptions(column_names=["a", "b"], use_threads=False),
        arrow_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
    )
    return len(table) + skipped


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(PIECES, max_size=25), cut=st.integers(1, 12))
def test_the_scanner_finds_the_rows_that_pyarrow_finds(pieces: list[str], cut: int) -> None:
    # A quote at the end closes the field that may be open, and a row before that gives pyarrow something.
    text = "".join(["x,y\n", *pieces, '"\n'])
    data = text.encode()
    scanner = CsvScanner(delimiter=",")
    ends = [at + e for at in range(0, len(data), cut) for e in scanner.feed(data[at : at + cut]).tolist()]
    if not scanner.finish():
        assert len(ends) == _count_by_arrow(text)
    assert ends == sorted(set(ends))
    whole = CsvScanner(delimiter=",")
    assert whole.feed(data).tolist() == ends
    assert whole.finish() == scanner.finish()
