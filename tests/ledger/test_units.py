"""Units by column: the same units, in less room."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybatch.errors import LedgerError
from raybatch.ledger import codec
from raybatch.ledger.records import Plan
from raybatch.ledger.units import Units
from raybatch.sources.base import UnitSpec
from small_run import make_plan

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
# From a few values, so that there are runs; of one shape or of several
RANGES = st.lists(VALUES, min_size=1, max_size=3).flatmap(
    lambda few: st.lists(
        st.dictionaries(st.sampled_from("pq"), st.sampled_from(few), min_size=1)
        | st.fixed_dictionaries({"p": st.sampled_from(few), "at": st.integers()}),
        max_size=12,
    )
)


def _specs(ranges: list[dict[str, Any]], *, rows: list[int | None] | None = None) -> list[UnitSpec]:
    known = rows or [None] * len(ranges)
    return [
        UnitSpec(range=r, rows=n, bytes=7 * i) for i, (r, n) in enumerate(zip(ranges, known, strict=True))
    ]


def _spelled(specs: Any) -> list[str]:
    # 1, 1.0 and true are equal in Python, and different input to a source
    return [codec.canonical([spec.range, spec.rows, spec.bytes]) for spec in specs]


@settings(deadline=None)
@given(RANGES, st.data())
def test_units_come_back_from_columns_and_from_json_as_they_were(
    ranges: list[dict[str, Any]], data: st.DataObject
) -> None:
    rows = [data.draw(st.none() | st.integers(0, 2)) for _ in ranges]
    specs = _specs(ranges, rows=rows)
    units = Units.of(specs)
    again = Units.from_plain(json.loads(codec.canonical(units.to_plain())))
    assert _spelled(units) == _spelled(again) == _spelled(specs)
    assert _spelled(units[i] for i in range(len(units))) == _spelled(specs)
    assert codec.canonical(again.to_plain()) == codec.canonical(units.to_plain())


def test_units_are_a_sequence_like_any_other() -> None:
    specs = _specs([{"first": n} for n in range(5)])
    units = Units.of(specs)
    assert (units, len(units), units[-1], units[1:4:2]) == (specs, 5, specs[4], specs[1:4:2])
    assert (units == tuple(specs[:4]), units == Units.of(specs), units == "units") == (False, True, False)
    with pytest.raises(IndexError):
        units[5]


def test_what_repeats_is_said_once_and_what_looks_alike_by_field() -> None:
    ranges = [{"path": f"file-{n // 3}", "version": {"size": 9}, "at": {"start": n}} for n in range(6)]
    assert Units.of(_specs(ranges)).to_plain()["range"] == {
        "fields": {
            "path": {"runs": [[3, "file-0"], [3, "file-1"]]},
            "version": {"runs": [[6, {"size": 9}]]},
            "at": {"fields": {"start": {"values": [0, 1, 2, 3, 4, 5]}}},
        }
    }


@pytest.mark.parametrize(
    ("units", "says"),
    [
        ([], "units: units by column are expected: count, range, rows and bytes"),
        ({"count": 1}, "units by column are expected"),
        ({"bytes": {"values": [1, 2]}}, "units: bytes has 2 values for 1 units"),
        ({"range": {"values": [3]}}, "units: range: objects are expected, not 3"),
        ({"rows": {"values": ["x"]}}, 'units: rows: integers or null are expected, not "x"'),
        ({"bytes": {"values": [None]}}, "units: bytes: integers are expected, not null"),
        ({"bytes": {"values": [True]}}, "units: bytes: integers are expected, not true"),
        (
            {"rows": {"runs": [[0, 1], [1, 1]]}},
            "units: rows: a run is a positive count and a value, not [0,1]",
        ),
        ({"rows": {"runs": [5]}}, "units: rows: a run is a positive count and a value, not 5"),
        ({"rows": {"walks": []}}, "units: rows: values, runs or fields are expected"),
        (
            {"range": {"fields": {"a": {"values": [1]}, "b": {"values": [1, 2]}}}},
            "units: range: its fields are of different lengths",
        ),
        ({"range": {"fields": {"a": 1}}}, "units: range.a: values, runs or fields are expected, not 1"),
    ],
)
def test_units_that_are_none_are_named_with_their_place(units: Any, says: str) -> None:
    whole = {
        "count": 1,
        "range": {"values": [{}]},
        "rows": {"values": [None]},
        "bytes": {"values": [1]},
    }
    raw = json.loads(make_plan().to_json())
    raw["units"] = {**whole, **units} if isinstance(units, dict) and units != {"count": 1} else units
    with pytest.raises(LedgerError) as caught:
        Plan.from_json(codec.canonical(raw), where="/out/plan/0.json")
    assert str(caught.value).startswith("/out/plan/0.json: units: ")
    assert says in str(caught.value)


def test_a_plan_of_an_older_format_says_so() -> None:
    raw = json.loads(make_plan().to_json()) | {"version": 1, "units": []}
    with pytest.raises(LedgerError, match="version 1, and this raybatch reads version 2"):
        Plan.from_json(codec.canonical(raw))


def test_a_hundred_thousand_units_take_less_than_a_hundred_bytes_each() -> None:
    ranges = [{"path": f"part-{n // 100}", "at": {"start": n, "stop": n + 1}} for n in range(100_000)]
    raw = json.loads(json.dumps(Units.of(_specs(ranges)).to_plain()))
    tracemalloc.start()
    units = Units.from_plain(raw)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(units) == 100_000
    assert held < 100 * 100_000
