"""JSON lines: what becomes a row, what an error row, and of which types."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raybatch.errors import SourceError
from raybatch.sources.files import FilesConfig

ReadFiles = Callable[..., Any]


@pytest.fixture
def read(read_files: ReadFiles, tmp_path: Path) -> ReadFiles:
    """`read(line, line, …, **config)`: the lines (bytes, or what becomes JSON) as one file, read."""

    def write_and_read(*lines: object, **config: Any) -> Any:
        path = tmp_path / "in.jsonl"
        encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path.write_bytes(b"".join(line + b"\n" for line in encoded))
        return read_files(path, **config)

    return write_and_read


GOOD = {"id": 1, "text": "good"}


@pytest.mark.parametrize(
    ("line", "kind", "says"),
    [
        (b'{"id": 1, "text": "a"', "InvalidJSON", "not JSON: Expecting ',' delimiter at character 21"),
        (b"nonsense", "InvalidJSON", 'not JSON: Expecting value at character 0 of the row, near "nonsense"'),
        (b"[1, 2]", "InvalidJSON", "not an object but [1, 2]"),
        (b"null", "InvalidJSON", "not an object but null"),
        (b'{"id": 1}{"id": 2}', "InvalidJSON", "not JSON: Extra data at character 9"),
        (b'{"id": 1},', "InvalidJSON", "not JSON: Extra data at character 9"),
        (b'{"id": 1, "text": "a\tb"}', "InvalidJSON", "Invalid control character at character 20"),
        (b'{"id": 1, "text": "a\0b"}', "InvalidJSON", "Invalid control character at character 20"),
        (b'{"id": 01}', "InvalidJSON", "not JSON: Expecting ',' delimiter"),
        (b'{"text": "\\ud800"}', "InvalidJSON", "half of a surrogate pair"),
        (b'{"text": ' + b"[" * 100_000, "InvalidJSON", "not readable as JSON: maximum recursion depth"),
        (b'{"text": "a\xffb"}', "InvalidUTF8", "byte 11 of the row, 0xff, is not UTF-8"),
        (b'{"text": "\xed\xa0\x80"}', "InvalidUTF8", "byte 10 of the row, 0xed"),
        (b'{"id": "one"}', "SchemaViolation", "column 'id' should be int64, but holds \"one\""),
        (b'{"id": 1.5}', "SchemaViolation", "column 'id' should be int64, but holds 1.5"),
        (b'{"id": true}', "SchemaViolation", "column 'id' should be int64, but holds true"),
        (b'{"id": 9223372036854775808}', "SchemaViolation", "9223372036854775808"),
        (b'{"id": NaN}', "SchemaViolation", "column 'id' should be int64, but holds NaN"),
        (b'{"text": 1}', "SchemaViolation", "column 'text' should be string, but holds 1"),
        (b'{"text": {"a": 1}}', "SchemaViolation", "column 'text' should be string, but holds {\"a\": 1}"),
    ],
)
def test_a_bad_line_is_an_error_row_and_its_neighbours_are_rows(
    line: bytes, kind: str, says: str, read: ReadFiles
) -> None:
    found = read(GOOD, line, GOOD, schema={"id": "int64", "text": "string"})
    assert found.error_types() == [kind]
    error = found.errors[0]
    assert says in error["message"]
    assert f"in.jsonl, byte {error['_row']}: " in error["message"]
    assert (error["raw"] or error["row"].encode()) == line[: 64 * 1024]
    assert (error["stage"], error["attempts"], error["_child"]) == ("source", 1, None)
    assert found.column("text") == ["good", "good"]


def test_a_field_that_the_sample_did_not_show_is_an_error_row_with_choices(read: ReadFiles) -> None:
    rows = [GOOD] * 10_000
    found = read(*rows, {"id": 2, "new": 3}, max_rows=20_000)
    assert found.error_types() == ["SchemaViolation"]
    assert "field 'new' was in no sampled row" in found.errors[0]["message"]
    assert "declare `new: json`" in found.errors[0]["message"]
    assert read(*rows, {"new": 3}, max_rows=20_000, schema={"new": "int64"}).column("new")[-1] == 3
    assert read(*rows, {"id": 2, "new": 3}, max_rows=20_000, columns=["id"]).column("id")[-1] == 2


def test_one_bad_line_among_thousands_costs_no_other(read: ReadFiles) -> None:
    lines: list[object] = [{"id": i} for i in range(5000)]
    bad = {17: b"{", 2500: b'{"id": "x"}', 2501: b"\xff", 4999: b"[]"}
    for i, line in bad.items():
        lines[i] = line
    found = read(*lines, max_rows=10_000)
    assert found.column("id") == [i for i in range(5000) if i not in bad]
    assert found.error_types() == ["InvalidJSON", "SchemaViolation", "InvalidUTF8", "InvalidJSON"]


def test_a_schema_violation_keeps_the_row_as_json(read: ReadFiles) -> None:
    found = read(GOOD, {"id": "two", "text": "é"}, schema={"id": "int64"})
    assert json.loads(found.errors[0]["row"]) == {"id": "two", "text": "é"}
    assert found.errors[0]["raw"] is None


def test_a_violation_inside_a_nested_value_names_its_place(read: ReadFiles) -> None:
    rows = [{"turns": [{"role": "user", "words": 3}]}] * 10_000
    found = read(*rows, {"turns": [{"role": "user", "words": 3}, {"role": 7}]}, max_rows=20_000)
    assert "column 'turns[1].role' should be string, but holds 7" in found.errors[0]["message"]
    found = read(*rows, {"turns": [{"role": "user", "name": "x"}]}, max_rows=20_000)
    assert "field 'turns[0].name' was in no sampled row" in found.errors[0]["message"]
    assert "declare `turns: json`" in found.errors[0]["message"]


def test_a_row_over_the_limit_keeps_its_beginning(read: ReadFiles) -> None:
    found = read(GOOD, {"text": "x" * 200_000}, GOOD, max_row_bytes=100_000)
    assert found.error_types() == ["RowTooLarge"]
    assert found.errors[0]["raw"] == b'{"text": "' + b"x" * (64 * 1024 - 10)
    assert "over 100000 bytes long; source.max_row_bytes" in found.errors[0]["message"]
    assert found.column("text") == ["good", "good"]


def test_a_row_of_fifty_megabytes_is_one_error_row_of_one_unit(read: ReadFiles) -> None:
    huge = b'{"text": "' + b"x" * 50_000_000 + b'"}'
    found = read(GOOD, huge, GOOD, max_bytes=8 << 20)
    assert found.error_types() == ["RowTooLarge"]
    assert len(found.rows) == 2


def test_a_row_of_exactly_the_limit_is_a_row(read: ReadFiles) -> None:
    line = json.dumps({"text": "x" * 1000}).encode()
    assert len(read(line, line + b"\r", max_row_bytes=len(line)).rows) == 2
    assert read(line, max_row_bytes=len(line) - 1, schema={"text": "string"}).error_types() == ["RowTooLarge"]


def test_blank_lines_are_no_rows(read: ReadFiles) -> None:
    assert read(GOOD, b"", b"   ", b"\t\r", GOOD).column("id") == [1, 1]


def test_not_a_number_and_infinity_are_floats(read: ReadFiles) -> None:
    values = read({"x": 1.5}, b'{"x": NaN}', b'{"x": -Infinity}').column("x")
    assert (values[0], values[2]) == (1.5, -math.inf)
    assert math.isnan(values[1])


def test_a_number_too_big_for_a_float_is_an_error_row(read: ReadFiles) -> None:
    found = read({"x": 1.5}, b'{"x": 1e999}')
    assert found.error_types() == ["InvalidJSON"]
    assert "1e999 is too big" in found.errors[0]["message"]


def test_of_a_key_given_twice_the_last_counts(read: ReadFiles) -> None:
    assert read({"id": 1}, b'{"id": 2, "id": 3}').column("id") == [1, 3]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([True, None], pa.bool_()),
        (["a", None], pa.string()),
        ([None, None], pa.string()),
        (["2026-01-02T03:04:05Z"], pa.string()),
        ([2**70, 1], pa.float64()),
        ([[1], [2.5], []], pa.list_(pa.float64())),
        ([[], []], pa.list_(pa.string())),
        ([{"a": 1}, {"b": "x"}, {}], pa.struct([("a", pa.int64()), ("b", pa.string())])),
        ([[{"a": [1]}]], pa.list_(pa.struct([("a", pa.list_(pa.int64()))]))),
    ],
)
def test_types_are_inferred(values: list[object], expected: pa.DataType, read: ReadFiles) -> None:
    found = read(*({"v": value} for value in values))
    assert found.plan.schema == pa.schema([("v", expected)])
    assert len(found.rows) == len(values)


def test_where_types_differ_the_most_common_one_wins_and_a_note_says_so(read: ReadFiles) -> None:
    found = read({"v": "a"}, {"v": "b"}, {"v": 3})
    assert found.column("v") == ["a", "b"]
    assert found.error_types() == ["SchemaViolation"]
    assert "column 'v' holds values of several types (2 string, 1 int in the sample)" in found.plan.notes[0]


def test_a_declared_type_replaces_the_inferred_one(read: ReadFiles) -> None:
    found = read({"d": "2026-01-02", "n": 1}, schema={"d": "date32", "n": "float64", "later": "int64"})
    assert found.rows[0]["d"] == datetime.date(2026, 1, 2)
    assert found.plan.schema.field("n").type == pa.float64()
    assert found.rows[0]["later"] is None


def test_a_date_that_is_none_is_an_error_row(read: ReadFiles) -> None:
    found = read({"d": "2026-13-02"}, {"d": "2026-12-02"}, schema={"d": "date32"})
    assert found.error_types() == ["SchemaViolation"]
    assert len(found.rows) == 1


def test_the_json_type_takes_any_value_as_text(read: ReadFiles) -> None:
    values = [{"a": 1}, [1, "é"], "text", 1.5, True, {}]
    found = read(*({"v": value, "i": 1} for value in values), {"v": None}, {}, b"x", schema={"v": "json"})
    assert [json.loads(text) if text else text for text in found.column("v")] == [*values, None, None]
    assert found.error_types() == ["InvalidJSON"]
    assert found.errors[0]["raw"] == b"x"


def test_selected_columns_come_in_their_order_and_other_fields_are_ignored(read: ReadFiles) -> None:
    found = read({"a": 1, "b": 2, "c": {"d": 1}}, {"b": 3, "e": [1]}, columns=["b", "a"])
    assert found.plan.schema.names == ["b", "a"]
    assert [(row["b"], row["a"]) for row in found.rows] == [(2, 1), (3, None)]


def test_a_selected_column_that_is_not_there_is_answered_with_those_that_are(read: ReadFiles) -> None:
    with pytest.raises(
        SourceError, match=r"'boddy' is not in the input \(did you mean 'body'\?\).*: id, body"
    ):
        read({"id": 1, "body": "x"}, columns=["boddy"])


def test_a_field_named_like_a_row_id_is_an_error_before_the_run(read: ReadFiles) -> None:
    with pytest.raises(SourceError, match="'_source', a name that row ids need"):
        read({"_source": {"a": 1}, "b": 1})
    assert read({"_source": {"a": 1}, "b": 1}, columns=["b"]).column("b") == [1]


def test_a_file_that_is_one_array_is_an_error_that_says_how_to_rewrite_it(read: ReadFiles) -> None:
    with pytest.raises(SourceError, match=r"none of 3 sampled lines is a JSON object.*jq -c"):
        read(b"[", b"1,", b"2]")


def test_a_column_of_empty_objects_is_an_error_with_choices(read: ReadFiles) -> None:
    with pytest.raises(SourceError, match=r"'m.x' holds only empty objects.*declare `m: json`"):
        read({"m": {"x": {}}})
    assert read({"m": {"x": {}}}, schema={"m": "json"}).column("m") == ['{"x": {}}']


def test_rows_without_any_field_are_an_error(read: ReadFiles) -> None:
    with pytest.raises(SourceError, match="the input has no columns"):
        read({}, {})


def test_a_type_that_json_cannot_give_is_an_error_before_the_run(read: ReadFiles) -> None:
    with pytest.raises(SourceError, match=r"source.schema: a: map<.*cannot be read from JSON"):
        read({"a": {}}, schema={"a": "map<string, string>"})


def test_a_sample_row_longer_than_its_share_is_sampled_all_the_same(
    read_files: ReadFiles, tmp_path: Path
) -> None:
    for i in range(16):
        (tmp_path / f"{i:02}.jsonl").write_text(json.dumps({"text": "x" * 600_000, "i": i}) + "\n")
    found = read_files(tmp_path, max_bytes=1 << 30)
    assert found.column("i") == list(range(16))


def test_the_type_of_a_column_stays_in_later_epochs(read_files: ReadFiles, tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text('{"a": 1, "b": "x"}\n')
    first = read_files(tmp_path)
    (tmp_path / "2.jsonl").write_text('{"a": "one"}\n{"a": 2, "c": 1}\n')
    second = read_files(tmp_path, after=first)
    assert second.plan.schema == pa.schema([("a", pa.int64()), ("b", pa.string()), ("c", pa.int64())])
    assert [(row["a"], row["b"], row["c"]) for row in second.rows] == [(2, None, 1)]
    assert second.error_types() == ["SchemaViolation"]


# Lines near JSON, where the fast way (all at once, by pyarrow) and Python's parser might disagree.
TOKENS = st.sampled_from(
    [
        b"{",
        b"}",
        b'"a"',
        b":",
        b",",
        b"1",
        b'"x"',
        b"[",
        b"]",
        b"null",
        b" ",
        b"1.5",
        b"\\",
        b'"',
        b"\xff",
        b"\0",
    ]
)
LINES = st.lists(
    st.one_of(st.just(b'{"a":1}'), st.just(b'{"a":null}'), st.lists(TOKENS, max_size=9).map(b"".join)),
    max_size=12,
)


def _is_row(line: bytes) -> bool:
    try:
        value = json.loads(line.decode())
    except ValueError:
        return False
    return isinstance(value, dict) and set(value) <= {"a"} and type(value.get("a")) in (int, type(None))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES)
def test_rows_and_errors_are_those_that_python_tells_line_by_line(lines: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"a":0}\n' + b"\n".join(lines))
    config = FilesConfig.model_validate(
        {"type": "files", "path": str(path), "schema": {"a": "int64"}, "max_row_bytes": 1000}
    )
    source = config.build(max_rows=100, max_bytes=10_000)
    schema = pa.schema([("a", pa.int64())])
    found = source.read(source.plan(after=None).units[0], key="u", schema=schema)
    full = [line for line in lines if line.strip(b" \t\r")]
    good = [json.loads(line).get("a") for line in full if _is_row(line)]
    assert found.table["a"].to_pylist() == [0, *good]
    assert len(found.errors) == len(full) - len(good)
