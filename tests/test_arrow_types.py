"""Arrow types by name."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybatch.arrow_types import parse_type


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int64", pa.int64()),
        ("uint8", pa.uint8()),
        ("float32", pa.float32()),
        ("bool", pa.bool_()),
        (" string ", pa.string()),
        ("list<string>", pa.list_(pa.string())),
        ("list< list<int8> >", pa.list_(pa.list_(pa.int8()))),
        ("fixed_size_list<float32>[384]", pa.list_(pa.float32(), 384)),
        ("struct<a: int64, b: list<string>>", pa.struct({"a": pa.int64(), "b": pa.list_(pa.string())})),
        ('struct<"first name": string>', pa.struct({"first name": pa.string()})),
        ("map<string, double>", pa.map_(pa.string(), pa.float64())),
        ("timestamp[us]", pa.timestamp("us")),
        ("timestamp[ms, tz=Europe/Berlin]", pa.timestamp("ms", tz="Europe/Berlin")),
        ("decimal128(10, 2)", pa.decimal128(10, 2)),
        ("date32", pa.date32()),
    ],
)
def test_a_name_is_a_type(text: str, expected: pa.DataType) -> None:
    assert parse_type(text) == expected


_SCALARS = st.sampled_from(
    [
        *(pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.string()),
        *(pa.large_string(), pa.binary(), pa.large_binary(), pa.date32(), pa.date64()),
        *(pa.timestamp("ns", tz="UTC"), pa.timestamp("s"), pa.time32("ms"), pa.time64("ns")),
        *(pa.duration("us"), pa.decimal128(5, 1), pa.decimal256(50, -3)),
    ]
)
_TYPES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(pa.large_list),
        st.tuples(inner, st.integers(1, 9)).map(lambda pair: pa.list_(pair[0], pair[1])),
        st.tuples(inner, inner).map(lambda pair: pa.map_(*pair)),
        st.dictionaries(st.sampled_from(["a", "b_2", "value", "item"]), inner, min_size=1).map(pa.struct),
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(_TYPES)
def test_what_arrow_prints_is_understood(type_: pa.DataType) -> None:
    assert parse_type(str(type_)) == type_


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("strin", r"'strin' is unknown.*did you mean .string.\?.*; possible: null, bool, int8"),
        ("list<strin>", "'strin' is unknown"),
        ("list<string", r"'>' is missing \(at the end\)"),
        ("list<>", r"a type name is missing \(before '>'\)"),
        ("list", "'<' is missing"),
        ("int64 x", r"the text goes on \(before 'x'\)"),
        ("timestamp", "'timestamp' is unknown.*did you mean 'timestamp"),
        ("timestamp[h]", r"'timestamp\[h\]' is unknown"),
        ("fixed_size_list<float32>", r"needs its length, as in fixed_size_list<float32>\[384\]"),
        ("struct<a>", "look like `name: type`"),
        ("struct<a: int8, a: int8>", "has the field 'a' twice"),
        ("decimal128(99, 2)", "precision should be between 1 and 38"),
        ("map<null, int8>", "non-nullable"),
        ("", "a type name is missing"),
    ],
)
def test_what_is_no_type_says_what_is_wrong_and_what_is_possible(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_type(text)
