from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybatch.errors import LedgerError
from raybatch.ledger.records import (
    Commit,
    CommittedUnit,
    Counts,
    DataFile,
    Part,
    Plan,
    UnitRecord,
    schema_from_text,
    schema_to_text,
)
from raybatch.sources.base import UnitSpec
from small_run import make_plan

PART = Part(key="_raybatch/parts/00000000/00000/00000000-a.ok.parquet", size=10, sha256="ab", rows=2)
RECORD = UnitRecord(
    plan_id="p",
    epoch=0,
    unit=0,
    attempt="a",
    parts={"ok": PART},
    counts=Counts(rows_in=2, ok=2),
    error_types={},
    stats={"seconds.x": 0.5, "tokens": 3},
    schema=schema_to_text(pa.schema([("a", pa.int64())])),
    created_at="2030-01-01T00:00:00.000+00:00",
)
COMMIT = Commit(
    epoch=0,
    pipeline="small",
    plan_id="p",
    run_id="r",
    start=None,
    end={"next": 1},
    data=(DataFile(key="data/00000000-00000.parquet", rows=2, size=10, sha256="ab", units=(0,)),),
    errors=(),
    units=(CommittedUnit(attempt="a", checksum="cd"),),
    totals=Counts(rows_in=2, ok=2),
    error_types={},
    stats={},
    drift=(),
    created_at="2030-01-01T00:00:00.000+00:00",
)
RECORDS = [make_plan(), RECORD, COMMIT]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_a_record_comes_back_from_json_as_it_was(record: Any) -> None:
    assert type(record).from_json(record.to_json()) == record


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(), json_values, max_size=3), max_size=4), json_values)
def test_a_source_may_put_any_json_into_a_plan(ranges: list[dict[str, Any]], value: Any) -> None:
    units = tuple(UnitSpec(range=r, rows=None, bytes=7) for r in ranges)
    plan = replace(make_plan(), units=units, end={"is": value}, plan_id="")
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_records_are_plain_ascii_json_with_a_version(record: Any) -> None:
    text = record.to_json()
    assert text.isascii()
    assert json.loads(text)["version"] == 2


def test_counts_are_spelled_as_in_the_command_line() -> None:
    assert set(json.loads(RECORD.to_json())["counts"]) == {"in", "ok", "error", "dropped", "made"}


def _edited(record: Any, edit: Callable[[dict[str, Any]], object]) -> str:
    raw = json.loads(record.to_json())
    edit(raw)
    return json.dumps(raw, sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda raw: raw.update(extra=1), "unknown field 'extra'; known: "),
        (lambda raw: raw.pop("attempt"), "the field 'attempt' is missing"),
        (lambda raw: raw.update(version=1), "is of version 1, and this raybatch reads version 2"),
        (lambda raw: raw.pop("version"), "is no record of raybatch"),
        (lambda raw: raw.update(unit="0"), 'unit: int is expected, not "0"'),
        (lambda raw: raw.update(unit=True), "unit: int is expected, not true"),
        (lambda raw: raw.update(unit=None), "unit: int is expected, not null"),
        (lambda raw: raw["counts"].update(ok=1.5), "counts: ok: int is expected, not 1.5"),
        (lambda raw: raw["counts"].pop("in"), "counts: the field 'in' is missing"),
        (lambda raw: raw["parts"]["ok"].update(rows="many"), 'parts.ok: rows: int is expected, not "many"'),
        (lambda raw: raw.update(parts=[]), "parts: Mapping is expected, not []"),
    ],
)
def test_what_is_wrong_with_a_record_is_named_with_its_place(
    edit: Callable[[dict[str, Any]], object], says: str
) -> None:
    with pytest.raises(LedgerError) as caught:
        UnitRecord.from_json(_edited(RECORD, edit), where="/out/units/0.json")
    assert str(caught.value).startswith("/out/units/0.json")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"plan"', "\x00", '{"version":2', b"\xff\xfe{\x00}\x00"]
)
def test_what_is_no_record_is_a_ledger_error(text: str | bytes) -> None:
    with pytest.raises(LedgerError, match=r"/out/plan/0\.json"):
        Plan.from_json(text, where="/out/plan/0.json")


def test_a_record_that_was_spelled_anew_is_refused_as_its_checksum_would_not_hold() -> None:
    with pytest.raises(LedgerError, match="was edited"):
        UnitRecord.from_json(json.dumps(json.loads(RECORD.to_json()), indent=1))


def test_a_plan_whose_content_was_changed_is_not_the_plan_of_its_id() -> None:
    text = _edited(make_plan(), lambda raw: raw.update(end={}))
    with pytest.raises(LedgerError, match=r"/out/plan/0\.json: the plan of epoch 0 is not the one"):
        Plan.from_json(text, where="/out/plan/0.json")


def test_plans_that_differ_in_any_field_have_different_ids() -> None:
    plan = make_plan()
    changes: list[dict[str, Any]] = [{"created_by": "run-2"}, {"end": {}}, {"units": ()}, {"epoch": 1}]
    ids = {replace(plan, **change, plan_id="").plan_id for change in changes}
    assert len(ids | {plan.plan_id}) == len(changes) + 1


@pytest.mark.parametrize("text", ["no base64!", "AAAA", ""])
def test_a_damaged_schema_is_a_ledger_error(text: str) -> None:
    with pytest.raises(LedgerError, match="schema cannot be read"):
        schema_from_text(text)


def test_a_schema_comes_back_from_text_as_it_was() -> None:
    schema = pa.schema(
        [pa.field("v", pa.list_(pa.float32(), 3), nullable=False), ("t", pa.timestamp("us", "UTC"))]
    )
    assert schema_from_text(schema_to_text(schema)) == schema


@pytest.mark.parametrize(
    ("counts", "balanced"),
    [
        (Counts(rows_in=3, ok=1, error=1, dropped=1), True),
        (Counts(rows_in=3, made=2, ok=5), True),
        (Counts(rows_in=3, ok=2), False),
        (Counts(rows_in=3, ok=3, made=1), False),
    ],
)
def test_counts_balance_when_every_row_is_accounted_for(counts: Counts, balanced: bool) -> None:
    assert counts.balanced is balanced
