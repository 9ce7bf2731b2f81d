"""The files source as a whole: formats by suffix, epochs, and input that changes or breaks."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet
from pydantic import ValidationError
from unprivileged import without_privileges

from raybatch.errors import CorruptInputError, InputChangedError, SourceError, StoreError
from raybatch.sources.files import FilesConfig, FilesSource

ReadFiles = Callable[..., Any]


def source_of(path: object, *, max_rows: int = 1000, **config: Any) -> FilesSource:
    parsed = FilesConfig.model_validate({"type": "files", "path": str(path), **config})
    return parsed.build(max_rows=max_rows, max_bytes=1 << 20)


def lines(*values: int) -> str:
    return "".join(json.dumps({"v": value}) + "\n" for value in values)


# --- formats ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.JSONL", "a.csv", "a.tsv", "a.txt"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_the_suffix_tells_format_and_compression(
    name: str, suffix: str, read_files: ReadFiles, tmp_path: Path
) -> None:
    text = {"c": "v\n1\n", "t": "v\n1\n"}.get(name[2], '{"v": 1}\n')
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    (tmp_path / (name + suffix)).write_bytes(compress(text.encode()))
    found = read_files(tmp_path)
    expected = [{"text": "v"}, {"text": "1"}] if name == "a.txt" else [{"v": 1}]
    assert [{k: v for k, v in row.items() if k[0] != "_"} for row in found.rows] == expected


def test_a_format_that_is_named_wins_over_the_suffix(read_files: ReadFiles, tmp_path: Path) -> None:
    (tmp_path / "part-0").write_text('{"v": 1}\n')
    (tmp_path / "part-1.log").write_text('{"v": 2}\n')
    assert read_files(tmp_path, format="jsonl").column("v") == [1, 2]
    assert read_files(tmp_path, format="text").column("text") == ['{"v": 1}', '{"v": 2}']


def test_an_unknown_suffix_is_an_error_with_choices(read_files: ReadFiles, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("hello")
    with pytest.raises(SourceError, match=r"README\.md: no format known by its suffix: set source\.format"):
        read_files(tmp_path)


def test_mixed_formats_are_an_error_that_names_a_file_of_each(read_files: ReadFiles, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / "b.csv").write_text("a\n")
    with pytest.raises(SourceError, match=r"b\.csv is csv, but .*a\.jsonl is jsonl"):
        read_files(tmp_path)


def test_a_text_column_has_the_name_it_is_given(read_files: ReadFiles, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n\n\xff\nfour")
    found = read_files(tmp_path, text_column="line", format="text")
    assert found.column("line") == ["one", "", "four"]
    assert [(e["_row"], e["type"], e["raw"]) for e in found.errors] == [(5, "InvalidUTF8", b"\xff")]


# --- config ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"path": ""}, "names no file"),
        ({"path": []}, "names no file"),
        ({"columns": []}, "at least one column"),
        ({"columns": ["a", "a"]}, "each only once"),
        ({"columns": ["_row"]}, "'_row' is the name of a row id"),
        ({"schema": {"a": "strnig"}}, r"a: 'strnig' is no Arrow type.*did you mean 'string'"),
        ({"schema": {"a": "string"}, "columns": ["b"]}, "schema declares 'a', which columns leaves out"),
        ({"delimiter": ";"}, "delimiter is an option of csv; this input is jsonl"),
        ({"format": "parquet", "schema": {"a": "string"}}, "schema is an option of jsonl and csv"),
        ({"format": "csv", "schema": {"a": "json"}}, "json is a type of jsonl columns"),
        ({"format": "text", "columns": ["a"]}, "text has one column, 'text'"),
        ({"path": "ftp://me:hunter2@host/a.jsonl"}, "a URL holds no credentials"),
        ({"max_row_byte": 5}, "Extra inputs are not permitted"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says) as caught:
        FilesConfig.model_validate({"type": "files", "path": "in/*.jsonl"} | config)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "columns"),
    [
        ({"path": "a.jsonl"}, None),
        ({"path": "a.jsonl", "schema": {"a": "string"}}, None),
        ({"path": "a.jsonl", "columns": ["b", "a"]}, ["b", "a"]),
        ({"path": "*.txt.gz"}, ["text"]),
        ({"path": "folder", "format": "text", "text_column": "line"}, ["line"]),
        ({"path": ["a.csv", "b.csv.zst"], "header": ["x", "y"]}, ["x", "y"]),
        ({"path": "a.csv"}, None),
        ({"path": "folder"}, None),
    ],
)
def test_columns_are_known_as_far_as_the_config_tells(
    config: dict[str, Any], columns: list[str] | None
) -> None:
    source = FilesConfig.model_validate({"type": "files"} | config).build(max_rows=1, max_bytes=1)
    assert source.columns() == columns


def test_a_relative_path_is_relative_to_the_pipeline_file(tmp_path: Path) -> None:
    config = FilesConfig.model_validate(
        {"type": "files", "path": ["in/*.jsonl", "s3://bucket/x"]}, context={"base_dir": str(tmp_path)}
    )
    assert config.paths() == [f"{tmp_path}/in/*.jsonl", "s3://bucket/x"]


# --- empty input -----------------------------------------------------------------------------------------


def test_an_empty_input_is_a_plan_without_units_and_a_note(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "c.jsonl").write_text("\n  \n")
    plan = source_of(tmp_path, columns=["v"]).plan(after=None)
    assert len(plan.units) == 0
    assert plan.schema.names == ["v"]
    assert plan.notes[0].startswith("2 empty files are not taken (first: ")
    assert plan.notes[1] == "the input is empty: no file has any rows"


def test_an_empty_file_among_others_is_taken_once_it_has_rows(read_files: ReadFiles, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(1))
    (tmp_path / "b.jsonl").touch()
    first = read_files(tmp_path)
    assert first.column("v") == [1]
    (tmp_path / "b.jsonl").write_text(lines(2))
    assert read_files(tmp_path, after=first).column("v") == [2]


def test_types_are_not_fixed_by_an_empty_first_epoch(read_files: ReadFiles, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    first = read_files(tmp_path, columns=["v"])
    (tmp_path / "b.jsonl").write_text(lines(2))
    assert read_files(tmp_path, columns=["v"], after=first).column("v") == [2]


# --- epochs ----------------------------------------------------------------------------------------------


def test_a_later_plan_takes_what_has_appeared_since(read_files: ReadFiles, tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(lines(1))
    first = read_files(tmp_path)
    assert len(read_files(tmp_path, after=first).plan.units) == 0
    (tmp_path / "a.jsonl").write_text(lines(2))
    (tmp_path / "c.jsonl").write_text(lines(3))
    second = read_files(tmp_path, after=first)
    assert second.column("v") == [2, 3]
    assert second.plan.end["files"] == 3
    third = read_files(tmp_path, after=second)
    assert (len(third.plan.units), third.plan.end) == (0, second.plan.end)


def test_a_file_that_changed_after_it_was_taken_is_an_error_with_choices(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines(1))
    source = source_of(tmp_path)
    first = source.plan(after=None)
    path.write_text(lines(1, 2))
    with pytest.raises(SourceError, match=r"a\.jsonl \(mtime_ns .*, size 9 -> 18\)") as caught:
        source.plan(after=first.end, history=first.units)
    for choice in ("Restore the file", "give the new one a new name", "write to another output"):
        assert choice in str(caught.value)


def test_a_file_that_is_gone_after_it_was_taken_is_a_note(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(lines(1))
    source = source_of(tmp_path / "*.jsonl")
    first = source.plan(after=None)
    (tmp_path / "a.jsonl").unlink()
    second = source.plan(after=first.end, history=first.units)
    assert (len(second.units), second.end) == (0, first.end)
    assert "1 files that earlier runs took are gone" in second.notes[0]
    (tmp_path / "b.jsonl").unlink()
    assert len(source.plan(after=first.end, history=first.units).units) == 0


def test_an_input_without_its_only_taken_file_is_not_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines(1))
    source = source_of(path)
    first = source.plan(after=None)
    path.unlink()
    assert len(source.plan(after=first.end, history=first.units).units) == 0
    with pytest.raises(SourceError, match="no such file"):
        source.plan(after=None)


# --- input that changes or breaks under the plan ---------------------------------------------------------


def _grow(path: Path) -> None:
    with path.open("a") as file:
        file.write(lines(3))


def _touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_grow, r"size 18 -> 27"),
        (_touch, r"mtime_ns \d+ -> 1\b"),
        (Path.unlink, r"a\.jsonl was deleted after it was planned"),
    ],
    ids=["grown", "touched", "deleted"],
)
def test_a_file_that_changed_since_the_plan_is_not_read(
    change: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines(1, 2))
    source = source_of(tmp_path)
    plan = source.plan(after=None)
    change(path)
    with pytest.raises(InputChangedError, match=says) as caught:
        source.read(plan.units[0], key="0/1", schema=plan.schema)
    assert "Restore the file" in str(caught.value)
    assert "another output (sink.path)" in str(caught.value)


def test_a_restored_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines(1))
    source = source_of(tmp_path)
    plan = source.plan(after=None)
    status = path.stat()
    path.write_text(lines(2))
    path.write_text(lines(1))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source.read(plan.units[0], key="u", schema=plan.schema).table["v"].to_pylist() == [1]


def test_a_file_that_may_no_longer_be_read_is_an_error_that_says_so_and_what_to_do(open_folder: Path) -> None:
    path = open_folder / "a.jsonl"
    path.write_text(lines(1))
    source = source_of(path)
    plan = source.plan(after=None)
    os.chmod(path, 0)
    with without_privileges(), pytest.raises(StoreError) as caught:
        source.read(plan.units[0], key="0/0", schema=plan.schema)
    message = str(caught.value)
    assert message.startswith(f"{path}, unit 0/0 (bytes [0, 9]): cannot be read: Permission denied.")
    assert "once the file can be read, run again" in message


def corrupt_in_place(path: Path, data: bytes) -> None:
    """As a bad disk does it: other bytes, the same size and time."""
    status = path.stat()
    assert len(data) == status.st_size
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
@pytest.mark.parametrize("max_rows", [10_000_000, 1000], ids=["one unit", "many units"])
def test_a_stream_that_is_corrupt_is_an_error_that_names_the_file_the_place_and_choices(
    max_rows: int, compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"a.jsonl.{'gz' if compress is gzip.compress else 'zst'}"
    data = compress(lines(*range(200_000)).encode())
    path.write_bytes(data)
    source = source_of(path, max_rows=max_rows)
    plan = source.plan(after=None)
    corrupt_in_place(path, data[: len(data) // 2] + b"\xff" * (len(data) - len(data) // 2))
    with pytest.raises(CorruptInputError) as caught:
        source.read(plan.units[-1], key="0/last", schema=plan.schema)
    message = str(caught.value)
    assert message.startswith(f"{path}, unit 0/last (row ")
    assert "Restore a good copy" in message
    assert "leave it out of source.path" in message


def test_a_truncated_gzip_that_planning_reads_is_an_error_before_the_run(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines(*range(1000)).encode())[:-20])
    with pytest.raises(SourceError, match=r"a\.jsonl\.gz: cannot be read: Truncated compressed stream"):
        source_of(tmp_path).plan(after=None)


def test_a_truncated_gzip_that_planning_did_not_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    # The plan samples 16 of 17 files, the last not among them.
    for i in range(17):
        (tmp_path / f"{i:02}.jsonl.gz").write_bytes(gzip.compress(lines(i).encode()))
    last = tmp_path / "16.jsonl.gz"
    last.write_bytes(gzip.compress(lines(*range(1000)).encode())[:-20])
    source = source_of(tmp_path, max_rows=10_000)
    plan = source.plan(after=None)
    [unit] = [unit for unit in plan.units if unit.range["path"] == str(last)]
    with pytest.raises(CorruptInputError, match=r"16\.jsonl\.gz, .*Truncated compressed stream"):
        source.read(unit, key="u", schema=plan.schema)


def test_what_is_no_gzip_at_all_is_an_error_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_text("a,b\n1,2\n")
    with pytest.raises(SourceError, match=r"a\.csv\.gz: cannot be read: .*incorrect header check"):
        source_of(tmp_path).plan(after=None)


def test_a_parquet_file_that_was_cut_since_the_plan_is_a_changed_input(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"v": range(100)}), path)
    source = source_of(tmp_path)
    plan = source.plan(after=None)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputChangedError, match=r"a\.parquet \(.*size"):
        source.read(plan.units[0], key="u", schema=plan.schema)


def test_many_files_are_sampled_evenly_and_all_read(read_files: ReadFiles, tmp_path: Path) -> None:
    for i in range(100):
        (tmp_path / f"{i:03}.jsonl").write_text(lines(i))
    assert read_files(tmp_path).column("v") == list(range(100))
