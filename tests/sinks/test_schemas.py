from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybatch.errors import LedgerError
from raybatch.rows import ID_FIELDS
from raybatch.sinks.schemas import conform, normalise, stored_as, unify

I64, F64, TEXT, NULL = pa.int64(), pa.float64(), pa.string(), pa.null()


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([*columns.items(), *ID_FIELDS])


def _struct(**fields: pa.DataType) -> pa.DataType:
    return pa.struct(list(fields.items()))


@pytest.mark.parametrize(
    ("types", "unified"),
    [
        ([I64, I64], I64),
        ([NULL, TEXT], TEXT),
        ([I64, NULL, F64], F64),
        ([NULL, NULL], TEXT),
        ([pa.list_(NULL), pa.list_(TEXT)], pa.list_(TEXT)),
        ([pa.list_(NULL)], pa.list_(TEXT)),
        ([_struct(a=I64), _struct(b=TEXT)], _struct(a=I64, b=TEXT)),
        ([_struct(a=NULL), _struct(a=_struct(b=NULL))], _struct(a=_struct(b=TEXT))),
        ([pa.list_(pa.float32(), 3), NULL], pa.list_(pa.float32(), 3)),
        ([pa.float16(), pa.float32()], pa.float32()),
        ([TEXT, pa.large_string()], pa.large_string()),
        ([pa.timestamp("ms"), pa.timestamp("us")], pa.timestamp("us")),
    ],
)
def test_types_of_units_are_reconciled(types: list[pa.DataType], unified: pa.DataType) -> None:
    assert unify([(unit, _schema(x=kind)) for unit, kind in enumerate(types)]).field("x").type == unified


def test_columns_come_in_the_order_in_which_units_have_them_and_ids_last() -> None:
    unified = unify([(0, _schema(b=I64, a=I64)), (1, _schema(a=I64, c=TEXT))])
    assert unified.names == ["b", "a", "c", "_source", "_row", "_child"]


@pytest.mark.parametrize(
    ("types", "says"),
    [
        ([(0, I64), (4, TEXT)], "the column 'x' is int64 in unit 0 and string in unit 4"),
        ([(0, NULL), (2, TEXT), (7, I64)], "the column 'x' is string in unit 2 and int64 in unit 7"),
        ([(0, I64), (1, F64), (2, TEXT)], "the column 'x' is double in unit 1 and string in unit 2"),
        (
            [(0, _struct(a=I64)), (1, _struct(a=TEXT))],
            "is struct<a: int64> in unit 0 and struct<a: string> in unit 1",
        ),
        ([(0, pa.list_(I64)), (1, I64)], "the column 'x' is list<item: int64> in unit 0 and int64 in unit 1"),
    ],
)
def test_types_that_cannot_be_reconciled_are_named_with_their_units(
    types: list[tuple[int, pa.DataType]], says: str
) -> None:
    with pytest.raises(LedgerError) as caught:
        unify([(unit, _schema(x=kind)) for unit, kind in types])
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("before", "now", "kept"),
    [
        (F64, I64, F64),
        (TEXT, NULL, TEXT),
        (I64, F64, F64),  # what does not fit the old type has its own
        (TEXT, I64, I64),
        (_struct(a=I64, b=TEXT), _struct(a=I64), _struct(a=I64, b=TEXT)),
    ],
)
def test_an_epoch_keeps_the_types_of_the_one_before_where_its_rows_fit(
    before: pa.DataType, now: pa.DataType, kept: pa.DataType
) -> None:
    assert unify([(0, _schema(x=now))], before=_schema(x=before)).field("x").type == kept


def test_an_epoch_keeps_the_columns_of_the_one_before_and_their_order() -> None:
    unified = unify([(0, _schema(new=I64, b=I64))], before=_schema(a=TEXT, b=I64))
    assert unified.names[:3] == ["a", "b", "new"]


def _conformed(values: pa.Array, to: pa.DataType) -> list[Any]:
    table = pa.table([values, *_ids(len(values))], names=["x", "_source", "_row", "_child"])
    result = conform(table, _schema(x=to), where="unit 3 of epoch 0")
    assert result.schema == _schema(x=to)
    found: list[Any] = result["x"].to_pylist()
    return found


def _ids(count: int) -> list[pa.Array]:
    return [pa.array(["f"] * count), pa.array(range(count), I64), pa.nulls(count, TEXT)]


@pytest.mark.parametrize(
    ("values", "to", "expected"),
    [
        (pa.array([1, None]), F64, [1.0, None]),
        (pa.nulls(2), TEXT, [None, None]),
        (pa.nulls(2), pa.list_(pa.float32(), 3), [None, None]),
        (pa.array([{"a": 1}, None]), _struct(b=TEXT, a=F64), [{"b": None, "a": 1.0}, None]),
        (pa.array([[{"a": 1}]]), pa.list_(_struct(a=I64, b=TEXT)), [[{"a": 1, "b": None}]]),
        (pa.array([[], None], pa.list_(NULL)), pa.list_(TEXT), [[], None]),
        (pa.array([[1, 2]], pa.list_(I64, 2)), pa.list_(I64), [[1, 2]]),
        (pa.array([]), TEXT, []),
    ],
)
def test_rows_of_a_unit_are_brought_into_the_schema_of_all(
    values: pa.Array, to: pa.DataType, expected: list[Any]
) -> None:
    assert _conformed(values, to) == expected


def test_a_column_that_a_unit_lacks_is_null_in_its_rows() -> None:
    table = pa.table(_ids(2), names=["_source", "_row", "_child"])
    assert conform(table, _schema(x=TEXT), where="unit 0")["x"].to_pylist() == [None, None]


def test_a_number_that_the_wider_type_cannot_hold_is_an_error_and_not_another_number() -> None:
    with pytest.raises(LedgerError, match=r"unit 3 of epoch 0 does not fit.*9007199254740993"):
        _conformed(pa.array([2**53 + 1]), F64)


def test_ids_come_last_and_are_of_their_types() -> None:
    columns = {"_row": pa.array([7], pa.int32()), "a": [1], "_child": pa.nulls(1), "_source": ["f"]}
    assert normalise(pa.table(columns)).schema == _schema(a=I64)


def test_metadata_of_where_the_table_came_from_is_dropped() -> None:
    table = pa.table([[1], *_ids(1)], names=["a", "_source", "_row", "_child"])
    assert normalise(table.replace_schema_metadata({"pandas": "{}"})).schema.metadata is None


def test_dictionaries_are_decoded_so_that_units_agree() -> None:
    table = pa.table(
        [pa.array(["x"]).dictionary_encode(), *_ids(1)], names=["a", "_source", "_row", "_child"]
    )
    assert normalise(table).schema.field("a").type == TEXT


def test_a_column_that_is_there_twice_is_named() -> None:
    table = pa.table([[1], [2], *_ids(1)], names=["a", "a", "_source", "_row", "_child"])
    with pytest.raises(ValueError, match="the column 'a' is there twice"):
        normalise(table)


TYPES = [
    *(getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)),
    pa.bool_(),
    pa.float16(),
    pa.float32(),
    pa.float64(),
    TEXT,
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.binary(4),
    pa.date32(),
    pa.date64(),
    pa.decimal128(10, 2),
    pa.decimal256(50, 2),
    *(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")),
    pa.timestamp("us", "Europe/Berlin"),
    *(pa.duration(unit) for unit in ("s", "ms", "us", "ns")),
    pa.time32("s"),
    pa.time32("ms"),
    pa.time64("us"),
    NULL,
    pa.list_(I64),
    pa.large_list(TEXT),
    pa.list_(pa.float32(), 3),
    pa.map_(TEXT, I64),
    _struct(a=I64, b=pa.list_(TEXT)),
    pa.uuid(),
]


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_a_normalised_table_comes_back_from_parquet_in_its_own_schema(kind: pa.DataType) -> None:
    table = normalise(pa.table([pa.nulls(2, kind), *_ids(2)], names=["x", "_source", "_row", "_child"]))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    assert pq.read_schema(pa.BufferReader(sink.getvalue())).equals(table.schema)


@pytest.mark.parametrize(
    "kind", [_struct(), pa.list_(_struct()), _struct(a=_struct()), pa.month_day_nano_interval()], ids=str
)
def test_a_column_that_parquet_cannot_hold_is_named(kind: pa.DataType) -> None:
    with pytest.raises(ValueError, match=r"the column 'x' \(.*\) cannot be stored as Parquet"):
        stored_as(_schema(a=I64, x=kind))
