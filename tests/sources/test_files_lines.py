"""Cutting files of lines into units: whatever the cuts, every line comes once."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raybatch.sources.files import FilesConfig

# Bytes that matter to line splitting, and some that do not; multi-byte characters so that cuts fall inside.
PIECES = st.sampled_from([b"\n", b"\r", b"\r\n", b"a", b"bc", "é☃".encode(), b"  ", b"x" * 40])
TEXTS = st.lists(PIECES, max_size=40).map(b"".join)
VALUES = st.lists(st.text(max_size=30), max_size=15)
# tmp_path is one folder per test function, and each example overwrites its files.
ONE_FOLDER = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def lines_of(data: bytes) -> list[tuple[int, str]]:
    """The oracle: (offset, text) of each line, by Python's own means."""
    found, offset = [], 0
    for line in data.split(b"\n"):
        found.append((offset, line.removesuffix(b"\r").decode()))
        offset += len(line) + 1
    return found[:-1] if data.endswith(b"\n") or not data else found


def read_units(path: Path, *, max_rows: int, max_bytes: int) -> list[dict[str, object]]:
    source = FilesConfig(type="files", path=str(path)).build(max_rows=max_rows, max_bytes=max_bytes)
    plan = source.plan(after=None)
    units = [source.read(unit, key="u", schema=plan.schema) for unit in plan.units]
    assert sum(len(unit.errors) for unit in units) == 0
    for unit, spec in zip(units, plan.units, strict=True):
        assert spec.rows in (None, unit.rows_in)
    return [row for unit in units for row in unit.table.to_pylist()]


@ONE_FOLDER
@given(data=TEXTS, max_bytes=st.integers(1, 60), max_rows=st.integers(1, 20))
def test_any_cuts_of_a_text_give_each_line_once(
    data: bytes, max_bytes: int, max_rows: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    rows = read_units(path, max_rows=max_rows, max_bytes=max_bytes)
    assert [(row["_row"], row["text"]) for row in rows] == lines_of(data)


@ONE_FOLDER
@given(data=TEXTS, max_bytes=st.integers(1, 60), max_rows=st.integers(1, 20))
def test_any_cuts_of_a_compressed_text_give_each_line_once(
    data: bytes, max_bytes: int, max_rows: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(data))
    rows = read_units(path, max_rows=max_rows, max_bytes=max_bytes)
    assert [(row["_row"], row["text"]) for row in rows] == list(enumerate(text for _, text in lines_of(data)))


@ONE_FOLDER
@given(
    values=VALUES.filter(len),
    ends=st.lists(st.sampled_from(["\n", "\r\n", "\n\n", " \n", "\n\t\r\n"]), min_size=15, max_size=15),
    last=st.booleans(),
    compress=st.booleans(),
    max_bytes=st.integers(1, 80),
    max_rows=st.integers(1, 20),
)
def test_any_cuts_of_json_lines_give_each_object_once(
    values: list[str],
    ends: list[str],
    last: bool,
    compress: bool,
    max_bytes: int,
    max_rows: int,
    tmp_path: Path,
) -> None:
    texts = [json.dumps({"v": value}, ensure_ascii=False) for value in values]
    body = "".join(text + end for text, end in zip(texts, ends, strict=False))
    data = (body if last else body.rstrip()).encode()
    path = tmp_path / ("a.jsonl.gz" if compress else "a.jsonl")
    path.write_bytes(gzip.compress(data) if compress else data)
    rows = read_units(path, max_rows=max_rows, max_bytes=max_bytes)
    assert [row["v"] for row in rows] == values
    if compress:
        assert [row["_row"] for row in rows] == list(range(len(values)))
    else:
        for row, text in zip(rows, texts, strict=True):
            at = row["_row"]
            assert isinstance(at, int)
            assert data[at : at + len(text.encode())] == text.encode()


def test_a_byte_order_mark_belongs_to_no_row(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\ntwo\n")
    for max_bytes in (1, 2, 3, 4, 100):
        rows = read_units(path, max_rows=100, max_bytes=max_bytes)
        assert [(row["_row"], row["text"]) for row in rows] == [(0, "one"), (7, "two")]


def test_a_row_longer_than_many_units_belongs_to_the_one_it_starts_in(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    long = "x" * 300_000  # several times what is read beyond a unit's end
    path.write_text(f"one\n{long}\nthree\n")
    rows = read_units(path, max_rows=100, max_bytes=1000)
    assert [row["text"] for row in rows] == ["one", long, "three"]
