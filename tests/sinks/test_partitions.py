"""Which partition a row belongs to."""

from __future__ import annotations

import datetime
import json
import posixpath
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybatch.rows import UnitRows
from raybatch.sinks.partitions import (
    NULL,
    check_columns,
    check_type,
    columns_of,
    escape,
    split,
)
from raybatch.sinks.schemas import normalise
from small_run import ok_table


def _rows(columns: dict[str, Any]) -> UnitRows:
    table = pa.table(columns)
    ids = ok_table([("f", row, None) for row in range(len(table))], [""] * len(table)).drop_columns(["text"])
    for field in ids.schema:
        table = table.append_column(field, ids[field.name])
    return UnitRows(unit="00000000/00000000", rows_in=len(table), table=normalise(table))


def _paths(columns: dict[str, Any], *by: str) -> list[str]:
    """The path of each row, in the order of the rows."""
    _, slices = split(_rows(columns), by or tuple(columns))
    found = {row: one.path for one in slices for row in one.table["_row"].to_pylist()}
    return [found[row] for row in sorted(found)]


@pytest.mark.parametrize(
    ("values", "folders"),
    [
        (pa.array(["en", "EN", "zh-Hant_1.0"]), ["k=en", "k=EN", "k=zh-Hant_1.0"]),
        (pa.array(["../../x", "..", "/etc"]), ["k=..%2F..%2Fx", "k=..", "k=%2Fetc"]),
        (pa.array(["a/b", "a=b", "a\\b", "100%"]), ["k=a%2Fb", "k=a%3Db", "k=a%5Cb", "k=100%25"]),
        (pa.array([None, ""]), [f"k={NULL}"] * 2),
        (pa.nulls(1), [f"k={NULL}"]),
        (pa.array(["ü", "日本", "😀"]), ["k=ü", "k=日本", "k=😀"]),
        (pa.array(["a b", "a\nb", "a\0b", "a+b"]), ["k=a%20b", "k=a%0Ab", "k=a%00b", "k=a%2Bb"]),
        (pa.array([True, False, None]), ["k=true", "k=false", f"k={NULL}"]),
        (pa.array([-1, 2**40]), ["k=-1", "k=1099511627776"]),
        (pa.array([2**64 - 1], pa.uint64()), ["k=18446744073709551615"]),
        (pa.array([datetime.date(2026, 11, 1)]), ["k=2026-11-01"]),
        (pa.array([datetime.date(2026, 11, 1)], pa.date64()), ["k=2026-11-01"]),
        (pa.array(["a"], pa.large_string()), ["k=a"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["k=a", "k=b"]),
    ],
)
def test_a_value_is_spelled_as_the_readers_of_partitions_spell_it(
    values: pa.Array, folders: list[str]
) -> None:
    assert _paths({"k": values}) == folders


@given(st.text())
def test_no_value_leaves_its_folder_and_each_can_be_read_back(value: str) -> None:
    name = escape(value)
    assert "/" not in name
    assert posixpath.normpath(f"data/k={name}/file") == f"data/k={name}/file"
    assert unquote(name) == (value or NULL)


@given(st.text(), st.text())
def test_two_values_never_share_a_folder(one: str, other: str) -> None:
    assert (escape(one) == escape(other)) == ((one or NULL) == (other or NULL))


def test_several_columns_are_folders_in_the_order_they_are_named() -> None:
    columns = {"day": ["mo", "tu", "mo"], "n": [1, 2, None]}
    assert _paths(columns, "n", "day") == ["n=1/day=mo", "n=2/day=tu", f"n={NULL}/day=mo"]


def test_rows_keep_their_order_within_a_partition_and_partitions_have_one() -> None:
    rows, slices = split(_rows({"k": ["b", "a", "b", "a", "b"], "v": [0, 1, 2, 3, 4]}), ["k"])
    assert [(one.path, one.table["v"].to_pylist()) for one in slices] == [("k=a", [1, 3]), ("k=b", [0, 2, 4])]
    assert len(rows.table) == 5


def test_what_the_path_tells_is_left_out_of_the_rows() -> None:
    _, [one] = split(_rows({"k": ["a"], "v": [0]}), ["k"])
    assert one.table.column_names == ["v", "_source", "_row", "_child"]


def test_no_rows_make_no_partition_whatever_their_columns_are() -> None:
    rows = _rows({"v": pa.array([], pa.int64())})
    assert split(rows, ["k"]) == (rows, [])


@pytest.mark.parametrize("value", ["x" * 300, "ü" * 127, "/" * 85])
def test_a_value_too_long_for_a_folder_costs_its_row_and_no_other(value: str) -> None:
    rows, slices = split(_rows({"k": ["a", value, "b"], "v": [0, 1, 2]}), ["k"])
    assert [one.path for one in slices] == ["k=a", "k=b"]
    [error] = rows.errors.to_pylist()
    assert (error["stage"], error["type"], error["_row"]) == ("sink", "PartitionTooLong", 1)
    assert "the partition column 'k' is" in error["message"]
    assert json.loads(error["row"]) == {"k": value, "v": 1}
    assert rows.table["v"].to_pylist() == [0, 2]


def test_folders_of_255_bytes_are_allowed_up_to_512_together() -> None:
    fits = {name: ["x" * 253] for name in ("a", "b")}  # 255 each, and a slash between
    assert split(_rows(fits), ["a", "b"])[0].errors.num_rows == 0
    more = fits | {"c": ["x"]}
    assert split(_rows(more), ["a", "b", "c"])[0].errors["type"].to_pylist() == ["PartitionTooLong"]


@pytest.mark.parametrize(
    "kind",
    [
        pa.float64(),  # NaN, -0.0 and 1e5 have as many spellings as there are readers
        pa.timestamp("us"),
        pa.timestamp("us", tz="UTC"),
        pa.decimal128(10, 2),
        pa.binary(),
        pa.duration("s"),
        pa.time32("s"),
        pa.list_(pa.string()),
        pa.struct([("text", pa.string())]),
        pa.list_(pa.float32(), 2),
    ],
    ids=str,
)
def test_a_type_without_one_spelling_is_refused(kind: pa.DataType) -> None:
    with pytest.raises(
        ValueError, match=r"column 'k' is .*partitions are made of text, integers, booleans and"
    ):
        check_type(pa.field("k", kind))
    with pytest.raises(ValueError, match="the column 'k' is"):
        split(_rows({"k": pa.array([None], kind)}), ["k"])


def test_a_column_that_rows_lack_is_named_with_those_they_have() -> None:
    with pytest.raises(ValueError, match=r"'lnag', which its rows lack.*'lang'.*they have: lang, v"):
        split(_rows({"lang": ["en"], "v": [1]}), ["lnag"])


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["_row"], "'_row' stays in the files"),
        (["a", "b", "a"], "the column 'a' is there twice"),
        (["a/b"], "'a/b' cannot name a folder"),
        (["a=b"], "cannot name a folder"),
        (["_hidden"], "readers skip what starts with"),
        ([".hidden"], "cannot name a folder"),
        ([""], "cannot name a folder"),
        (["x" * 65], "at most 64"),
    ],
)
def test_a_column_that_cannot_name_a_folder_is_refused(names: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_columns(names)


@pytest.mark.parametrize("name", ["lang", "Sprache", "größe", "a.b-c_d", "2026"])
def test_ordinary_names_are_allowed(name: str) -> None:
    check_columns([name])
    assert _paths({name: ["v"], "other": [None]}, name, "other") == [f"{name}=v/other={NULL}"]
    assert columns_of(f"{name}=v/other={NULL}") == [name, "other"]
