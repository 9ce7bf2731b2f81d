"""From records to a table and error rows: every record is one of the two, and what is good is as it was sent."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybatch.errors import SourceError
from raybatch.sources.formats.base import RAW_BYTES, Decoded
from raybatch.sources.kafka.client import Partition, Records
from raybatch.sources.kafka.columns import Columns, chunks
from raybatch.sources.kafka.config import KafkaConfig
from raybatch.sources.kafka.values import make_value

PARTITION = Partition("tickets", 3)
FIRST = 100  # the offset of the first record


def _config(**said: Any) -> KafkaConfig:
    return KafkaConfig.model_validate({"type": "kafka", "brokers": "a:9092", "topics": ["tickets"], **said})


def _records(values: Sequence[bytes | None], **columns: Any) -> Records:
    count = len(values)
    given = {
        "offsets": list(range(FIRST, FIRST + count)),
        "timestamps": [-1] * count,
        "timestamp_types": [0] * count,
        "keys": [None] * count,
        "values": values,
        "headers": [()] * count,
    }
    return Records(**(given | columns))


def _read(
    values: Sequence[bytes | None],
    *,
    sample: Sequence[bytes] | None = None,
    avro: Any = None,
    parts: dict[str, Any] | None = None,
    **said: Any,
) -> Decoded:
    """`values` as a source of this config reads them; `sample`, by default all of them, tells the columns."""
    config = _config(**said)
    value = make_value(config, json.dumps(avro) if avro else None)
    seen = [v for v in values if v is not None] if sample is None else sample
    columns = Columns(config, value)
    schema = columns.schema(value.infer(seen, before=None)[0])
    decoded = columns.read(PARTITION, _records(values, **(parts or {})), schema=schema)
    assert decoded.table.schema == schema
    return decoded


def _failed(decoded: Decoded) -> dict[int, tuple[str, bytes | None]]:
    """Type and bytes of each failure, by offset."""
    return {failure["_row"]: (failure["type"], failure["raw"]) for failure in decoded.failures}


# --- JSON ----------------------------------------------------------------------------------------------------


def test_fields_are_columns() -> None:
    decoded = _read([b'{"id": 1, "body": "a"}', b'{"body": "b", "tags": ["x"]}'])
    assert decoded.table.to_pylist() == [
        {"id": 1, "body": "a", "tags": None},
        {"id": None, "body": "b", "tags": ["x"]},
    ]


def test_a_tombstone_is_a_row_of_nulls() -> None:
    decoded = _read([b'{"id": 1}', None, b'{"id": 3}'])
    assert decoded.table["id"].to_pylist() == [1, None, 3]
    assert decoded.ids.tolist() == [FIRST, FIRST + 1, FIRST + 2]


def test_white_space_and_newlines_in_and_around_values_mean_nothing() -> None:
    pretty = json.dumps({"id": 1, "body": "a\nb"}, indent=2).encode()
    decoded = _read([pretty, b' \n{"id":\r\n2}\n', b'\t{"id":3} '])
    assert decoded.table["id"].to_pylist() == [1, 2, 3]
    assert decoded.table["body"].to_pylist() == ["a\nb", None, None]


def test_many_values_with_newlines_are_read() -> None:
    values = [json.dumps({"id": i, "body": "x" * 1000}, indent=1).encode() for i in range(3000)]
    assert _read(values).table["id"].to_pylist() == list(range(3000))


BAD = {
    b"": "InvalidJSON",
    b"   ": "InvalidJSON",
    b"null": "InvalidJSON",
    b"[1]": "InvalidJSON",
    b'"text"': "InvalidJSON",
    b"{": "InvalidJSON",
    b'{"id": 1} {"id": 2}': "InvalidJSON",
    b'{"id": 1}\n{"id": 2}': "InvalidJSON",
    b'{"body": "a\nb"}': "InvalidJSON",
    b"\xff": "InvalidUTF8",
    b'{"body": "\xc3"}': "InvalidUTF8",
}


def test_what_is_no_object_is_an_error_row_with_its_bytes() -> None:
    good = b'{"id": 7, "body": "x"}'
    values = [part for bad in BAD for part in (good, bad)]
    decoded = _read([*values, good], sample=[good])
    assert decoded.table["id"].to_pylist() == [7] * (len(BAD) + 1)
    expected = {FIRST + 1 + 2 * i: (kind, bad) for i, (bad, kind) in enumerate(BAD.items())}
    found = _failed(decoded)
    assert {row: kind for row, (kind, _) in found.items()} == {
        row: kind for row, (kind, _) in expected.items()
    }
    assert {row: raw.strip() for row, (_, raw) in found.items() if raw is not None} == {
        row: raw.strip() for row, (_, raw) in expected.items() if raw is not None
    }


def test_half_an_object_does_not_swallow_the_next_value() -> None:
    decoded = _read([b'{"body": "x}', b'{y"}', b'{"body": "z"}'], sample=[b'{"body": "z"}'])
    assert decoded.table["body"].to_pylist() == ["z"]
    assert {kind for kind, _ in _failed(decoded).values()} == {"InvalidJSON"}


def test_a_value_of_another_type_is_an_error_row_with_its_row() -> None:
    decoded = _read([b'{"id": 1}', b'{"id": "x"}', b'{"new": 1}'], sample=[b'{"id": 1}'])
    assert decoded.ids.tolist() == [FIRST]
    assert [(one["type"], one["row"]) for one in decoded.failures] == [
        ("SchemaViolation", '{"id": "x"}'),
        ("SchemaViolation", '{"new": 1}'),
    ]
    assert decoded.failures[0]["message"].startswith("tickets/3, offset 101: ")


def test_fields_that_nobody_wants_are_left_out() -> None:
    decoded = _read([b'{"id": 1}', b'{"id": 2, "new": "x"}'], sample=[b'{"id": 1}'], columns=["id"])
    assert decoded.table.to_pylist() == [{"id": 1}, {"id": 2}]


def test_declared_types_win() -> None:
    decoded = _read([b'{"id": 1, "any": [1, "x"]}', None], schema={"id": "string", "any": "json"})
    assert decoded.failures[0]["type"] == "SchemaViolation"
    decoded = _read([b'{"id": 1, "any": [1, "x"]}', None], schema={"id": "int16", "any": "json"})
    assert decoded.table.to_pylist() == [{"id": 1, "any": '[1, "x"]'}, {"id": None, "any": None}]
    assert decoded.table.schema.field("id").type == pa.int16()


def test_a_value_that_is_too_long_is_an_error_row_with_its_first_bytes() -> None:
    for kind in ("json", "text", "bytes"):
        long = json.dumps({"id": "x" * 2 * RAW_BYTES}).encode()
        decoded = _read([b'{"id": "a"}', long], sample=[b'{"id": "a"}'], value=kind, max_row_bytes=1000)
        assert _failed(decoded) == {FIRST + 1: ("RowTooLarge", long[:RAW_BYTES])}
        assert decoded.ids.tolist() == [FIRST]


def test_values_that_are_no_json_at_all_are_told_when_it_is_planned() -> None:
    with pytest.raises(SourceError, match=r"none of 2 sampled values is a JSON object.*source\.value"):
        _read([b"hello", b"world"])


def test_later_epochs_keep_their_columns_whatever_comes() -> None:
    before = pa.schema([("id", pa.int64())])
    value = make_value(_config())
    assert value.infer([], before=before)[0] == before
    assert value.infer([b"nonsense"], before=before)[0] == before
    assert value.infer([b'{"id": "text", "new": 1}'], before=before)[0] == pa.schema(
        [("id", pa.int64()), ("new", pa.int64())]
    )


def test_without_any_value_only_declared_columns_are_known() -> None:
    assert make_value(_config()).infer([], before=None)[0] == pa.schema([])
    declared = make_value(_config(schema={"id": "int64"}))
    assert declared.infer([], before=None)[0] == pa.schema([("id", pa.int64())])


OBJECTS = st.fixed_dictionaries(
    {"n": st.integers(-(2**63), 2**63 - 1), "s": st.text()}, optional={"f": st.floats(allow_nan=False)}
)
GOOD = OBJECTS.flatmap(
    lambda row: st.sampled_from([None, 1]).map(lambda indent: (row, json.dumps(row, indent=indent).encode()))
)
ANY = st.one_of(GOOD, st.just((None, None)), st.binary(max_size=20).map(lambda raw: (None, raw)))


@given(values=st.lists(ANY, max_size=40))
def test_each_record_is_one_row_or_one_failure_and_good_ones_are_as_sent(
    values: list[tuple[dict[str, Any] | None, bytes | None]],
) -> None:
    types = {"n": "int64", "s": "string", "f": "float64"}
    decoded = _read([raw for _, raw in values], sample=[b'{"n": 1}'], schema=types)
    rows = dict(zip(decoded.ids.tolist(), decoded.table.to_pylist(), strict=True))
    assert sorted([*rows, *_failed(decoded)]) == list(range(FIRST, FIRST + len(values)))
    for offset, (sent, raw) in enumerate(values, FIRST):
        if sent is not None:
            assert rows[offset] == {"n": sent["n"], "s": sent["s"], "f": sent.get("f")}
        if raw is None:
            assert rows[offset] == {"n": None, "s": None, "f": None}


# --- text and bytes ------------------------------------------------------------------------------------------


def test_text_is_one_column() -> None:
    decoded = _read([b"a\nb", None, b"", "é".encode(), b"\xff"], value="text")
    assert decoded.table.to_pylist() == [{"value": "a\nb"}, {"value": None}, {"value": ""}, {"value": "é"}]
    assert decoded.table.schema == pa.schema([("value", pa.string())])
    assert _failed(decoded) == {FIRST + 4: ("InvalidUTF8", b"\xff")}


@given(values=st.lists(st.one_of(st.none(), st.binary(max_size=30)), max_size=30))
def test_bytes_are_as_they_were_sent(values: list[bytes | None]) -> None:
    decoded = _read(values, value="bytes")
    assert decoded.table.schema == pa.schema([("value", pa.binary())])
    assert decoded.table["value"].to_pylist() == values


# --- Avro ----------------------------------------------------------------------------------------------------

AVRO: dict[str, Any] = {
    "type": "record",
    "name": "Ticket",
    "namespace": "org.example",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "body", "type": ["null", "string"]},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["BUG", "WISH"]}},
        {"name": "also", "type": ["null", "Kind"]},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {
            "name": "price",
            "type": {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2},
        },
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "by", "type": {"type": "map", "values": "int"}},
        {
            "name": "who",
            "type": {"type": "record", "name": "Who", "fields": [{"name": "name", "type": "string"}]},
        },
        {"name": "code", "type": {"type": "fixed", "name": "Code", "size": 3}},
    ],
}
TICKET = {
    "id": 7,
    "body": None,
    "kind": "BUG",
    "also": "WISH",
    "at": datetime(2026, 11, 1, 12, tzinfo=UTC),
    "day": date(2026, 11, 1),
    "price": Decimal("12.50"),
    "tags": ["a", "b"],
    "by": {"ada": 1},
    "who": {"name": "ada"},
    "code": b"abc",
}


def _avro(row: dict[str, Any], schema: Any = AVRO) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(json.loads(json.dumps(schema))), row)
    return stream.getvalue()


def test_avro_records_are_rows() -> None:
    decoded = _read([_avro(TICKET), None], value={"avro": "ticket.avsc"}, avro=AVRO)
    first, second = decoded.table.to_pylist()
    assert first == {**TICKET, "by": [("ada", 1)]}
    assert second == dict.fromkeys(TICKET)


def test_bytes_that_are_not_of_the_avro_schema_are_error_rows() -> None:
    good = _avro(TICKET)
    bad = [good[:-1], good + b"x", b"", b"\xff" * 40]
    decoded = _read([good, *bad], value={"avro": "ticket.avsc"}, avro=AVRO)
    assert decoded.ids.tolist() == [FIRST]
    assert _failed(decoded) == {FIRST + 1 + i: ("InvalidAvro", raw) for i, raw in enumerate(bad)}


def test_a_decimal_of_too_many_digits_is_an_error_row() -> None:
    wider = json.loads(json.dumps(AVRO).replace('"precision": 6', '"precision": 9'))
    large = _avro(TICKET | {"price": Decimal("1234567.25")}, wider)
    decoded = _read([_avro(TICKET), large], value={"avro": "ticket.avsc"}, avro=AVRO)
    assert decoded.ids.tolist() == [FIRST]
    assert _failed(decoded) == {FIRST + 1: ("InvalidAvro", large)}


def test_the_header_of_a_schema_registry_is_skipped_where_it_is_declared() -> None:
    said = {"avro": "ticket.avsc", "confluent_header": True}
    framed = b"\x00\x00\x00\x00\x2a" + _avro(TICKET)
    decoded = _read([framed, b"\x00\x00", b"\x01" + framed[1:]], value=said, avro=AVRO, columns=["id"])
    assert decoded.table.to_pylist() == [{"id": 7}]
    assert [kind for kind, _ in _failed(decoded).values()] == ["InvalidAvro"] * 2


@pytest.mark.parametrize(
    ("type_", "why"),
    [
        (["int", "string"], "field: a union of int32, string, which no column can hold"),
        ("Ticket", "field: 'Ticket' contains itself"),
        ("Nobody", "field: 'Nobody' is no Avro type"),
        ({"type": "record", "name": "Empty", "fields": []}, "field: a record without fields"),
        ({"type": "bytes", "logicalType": "decimal", "precision": 80}, "a decimal of 80 digits"),
    ],
)
def test_an_avro_schema_without_arrow_types_is_refused(type_: Any, why: str) -> None:
    schema = {"type": "record", "name": "Ticket", "fields": [{"name": "field", "type": type_}]}
    with pytest.raises(SourceError) as caught:
        _read([], value={"avro": "ticket.avsc"}, avro=schema)
    assert str(caught.value).startswith("ticket.avsc: ")
    assert why in str(caught.value)


def test_an_avro_schema_that_is_no_record_is_refused() -> None:
    with pytest.raises(SourceError, match="the schema has to be a record"):
        _read([], value={"avro": "ticket.avsc"}, avro="string")


# --- what else of a record is a column -------------------------------------------------------------------------

PARTS = {
    "keys": [b"\xff", None],
    "headers": [(("h", b"1"), ("g", None), ("h", b"2")), ()],
    "timestamps": [1_760_000_000_123, -1],
    "timestamp_types": [0, 1],
}
EVERYTHING = ["key", "headers", "timestamp", "timestamp_type", "topic", "partition", "offset"]


def test_everything_of_a_record_can_be_a_column() -> None:
    decoded = _read([b"a", b"b"], value="text", include=EVERYTHING, parts=PARTS)
    times = {
        "timestamp": datetime(2025, 10, 9, 8, 53, 20, 123_000, tzinfo=UTC),
        "timestamp_type": "CreateTime",
    }
    headers = [{"key": "h", "value": b"1"}, {"key": "g", "value": None}, {"key": "h", "value": b"2"}]
    place = {"topic": "tickets", "partition": 3}
    assert decoded.table.to_pylist() == [
        {"value": "a", "key": b"\xff", "headers": headers, **times, **place, "offset": FIRST},
        {"value": "b", "key": None, "headers": [], "timestamp": None, "timestamp_type": "LogAppendTime"}
        | {**place, "offset": FIRST + 1},
    ]


def test_columns_of_records_stay_beside_their_values_when_others_fail() -> None:
    values = [b'{"id": 0}', b"bad", b'{"id": 2}', None]
    keys = [b"k0", b"k1", b"k2", b"k3"]
    decoded = _read(values, sample=[b'{"id": 0}'], include={"key": "k", "offset": "o"}, parts={"keys": keys})
    assert decoded.table.to_pylist() == [
        {"id": 0, "k": b"k0", "o": FIRST},
        {"id": 2, "k": b"k2", "o": FIRST + 2},
        {"id": None, "k": b"k3", "o": FIRST + 3},
    ]


def test_text_keys_are_strings_and_others_error_rows() -> None:
    decoded = _read(
        [b"a", b"b", b"c"], value="text", include=["key"], key="text", parts={"keys": [b"k", b"\xfe", None]}
    )
    assert decoded.table.to_pylist() == [{"value": "a", "key": "k"}, {"value": "c", "key": None}]
    assert _failed(decoded) == {FIRST + 1: ("InvalidUTF8", b"\xfe")}


def test_records_that_all_have_bad_keys_are_all_error_rows() -> None:
    decoded = _read([b'{"id": 1}'] * 2, include=["key"], key="text", parts={"keys": [b"\xfe"] * 2})
    assert len(decoded.table) == len(decoded.ids) == 0
    assert list(_failed(decoded)) == [FIRST, FIRST + 1]


def test_a_field_and_a_part_of_a_record_of_one_name_are_refused() -> None:
    with pytest.raises(SourceError, match=r"values have a field 'key' too.*include: \{key: kafka_key\}"):
        _read([b'{"key": 1}'], include=["key"])


# --- chunks ----------------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.lists(st.integers(0, 700_000), min_size=1, max_size=3), max_size=6))
def test_chunks_hold_the_same_records_and_are_rarely_small(sizes: list[list[int]]) -> None:
    batches = [_records([bytes(size) for size in some]) for some in sizes]
    found = list(chunks(batches))
    assert [len(v or b"") for part in found for v in part.values] == [size for some in sizes for size in some]
    assert all(sum(len(v or b"") for v in part.values) >= 1 << 20 for part in found[:-1])
