"""`apply`: whatever a stage does with its rows, each of them is accounted for, once."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybatch.errors import StageError
from raybatch.rows import ERROR_SCHEMA, ID_COLUMNS, ID_SCHEMA, RowFailure, UnitRows, source_errors
from raybatch.stages.base import StageResult, apply


class Scripted:
    """A stage that does what a test says."""

    def __init__(self, process: Callable[[pa.Table], StageResult]) -> None:
        self.process = process

    def close(self) -> None:
        pass


def unit(values: Sequence[Any], **columns: Any) -> UnitRows:
    count = len(values)
    ids = {
        "_source": pa.array(["file"] * count, pa.string()),
        "_row": pa.array(range(count), pa.int64()),
        "_child": pa.nulls(count, pa.string()),
    }
    return UnitRows(unit="u", rows_in=count, table=pa.table({"v": values, **columns, **ids}))


def result(table: pa.Table, parents: Sequence[int], **fields: Any) -> StageResult:
    return StageResult(table=table, parents=np.array(parents, dtype=np.int64), **fields)


def ids(table: pa.Table) -> list[tuple[str, int, str | None]]:
    return [tuple(row.values()) for row in table.select(list(ID_COLUMNS)).to_pylist()]


def test_a_stage_sees_the_user_s_columns_only() -> None:
    seen: list[list[str]] = []

    def process(table: pa.Table) -> StageResult:
        seen.append(table.column_names)
        return result(table, [0, 1])

    apply(Scripted(process), "s", unit(["a", "b"]))
    assert seen == [["v"]]


def test_a_row_keeps_its_id_wherever_the_stage_puts_it() -> None:
    moved = apply(Scripted(lambda t: result(t.take([2, 0, 1]), [2, 0, 1])), "s", unit(["a", "b", "c"]))
    assert [(row["v"], row["_row"]) for row in moved.table.to_pylist()] == [("c", 2), ("a", 0), ("b", 1)]


def test_rows_that_a_stage_makes_have_ids_of_their_own() -> None:
    def split(table: pa.Table) -> StageResult:
        count = len(table)
        return result(
            pa.concat_tables([table, table]), [*range(count), *range(count)], expanded=frozenset(range(count))
        )

    twice = apply(Scripted(split), "t", apply(Scripted(split), "s", unit(["a"])))
    assert sorted(ids(twice.table)) == [("file", 0, child) for child in ("0.0", "0.1", "1.0", "1.1")]
    assert (twice.rows_in, twice.made) == (1, 3)


def test_a_list_of_one_is_a_child_too() -> None:
    one = apply(Scripted(lambda t: result(t, [0], expanded=frozenset([0]))), "s", unit(["a"]))
    assert ids(one.table) == [("file", 0, "0")]
    assert one.made == 0


def test_a_failure_becomes_an_error_row_with_the_original() -> None:
    def fail(table: pa.Table) -> StageResult:
        failure = RowFailure(index=1, type="TooLong", message="9 > 8", attempts=3)
        return result(table.slice(0, 1), [0], failures=[failure])

    found = apply(Scripted(fail), "s", unit(["a", "b"]))
    [error] = found.errors.to_pylist()
    assert error == {
        "_source": "file",
        "_row": 1,
        "_child": None,
        "stage": "s",
        "type": "TooLong",
        "message": "9 > 8",
        "attempts": 3,
        "row": '{"v": "b"}',
        "raw": None,
    }


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (b"\xff\x00", {"base64": "/wA="}),
        (datetime.datetime(2024, 1, 2, 3, 4, 5), "2024-01-02T03:04:05"),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (1.5, 1.5),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        ({"a": [1, None, float("inf")]}, {"a": [1, None, "inf"]}),
        (None, None),
        ("é\u2028", "é\u2028"),
    ],
)
def test_the_original_row_is_json_whatever_it_holds(value: Any, written: Any) -> None:
    failed = Scripted(
        lambda t: result(t.slice(0, 0), [], failures=[RowFailure(index=0, type="T", message="m")])
    )
    [error] = apply(failed, "s", unit([value])).errors.to_pylist()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(error["row"], parse_constant=refuse) == {"v": written}


def test_what_is_dropped_is_recorded() -> None:
    found = apply(Scripted(lambda t: result(t.take([1]), [1], dropped=[0, 2])), "s", unit(["a", "b", "c"]))
    assert found.dropped.to_pylist() == [
        {"_source": "file", "_row": row, "_child": None, "stage": "s"} for row in (0, 2)
    ]


def test_errors_and_drops_of_earlier_stages_stay() -> None:
    before = source_errors(
        [{"_source": "file", "_row": 9, "type": "InvalidJSON", "message": "m", "raw": b"{"}]
    )
    rows = dataclasses.replace(unit(["a", "b"]), errors=before, rows_in=3)
    after = apply(Scripted(lambda t: result(t.slice(0, 1), [0], dropped=[1])), "one", rows)
    last = apply(
        Scripted(lambda t: result(t.slice(0, 0), [], failures=[RowFailure(index=0, type="T", message="m")])),
        "two",
        after,
    )
    assert [(e["_row"], e["stage"]) for e in last.errors.to_pylist()] == [(9, "source"), (0, "two")]
    assert [(d["_row"], d["stage"]) for d in last.dropped.to_pylist()] == [(1, "one")]


def test_statistics_are_added_up() -> None:
    counting = Scripted(lambda t: result(t, [0], stats={"tokens": 3}))
    found = apply(counting, "two", apply(counting, "one", unit(["a"])))
    assert found.stats["tokens"] == 6
    assert {"seconds.one", "seconds.two"} <= found.stats.keys()


def test_a_unit_whose_rows_have_no_columns_left_keeps_its_rows() -> None:
    rows = UnitRows(unit="u", rows_in=2, table=unit(["a", "b"]).table.select(list(ID_COLUMNS)))
    made = apply(Scripted(lambda _: result(pa.table({"w": [1, 2]}), [0, 1])), "s", rows)
    assert made.table["w"].to_pylist() == [1, 2]


def _fail(index: int) -> RowFailure:
    return RowFailure(index=index, type="T", message="m")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda t: result(t.slice(0, 1), [0]), "row 1 of 3 is accounted for 0 times instead of once .2 such"),
        (lambda t: result(t, [0, 1, 1]), "row 1 of 3 is accounted for 2 times"),
        (lambda t: result(t, [0, 1, 2], dropped=[2]), "row 2 of 3 is accounted for 2 times"),
        (lambda t: result(t, [0, 1, 2], failures=[_fail(0)]), "row 0 of 3 is accounted for 2 times"),
        (lambda t: result(t.slice(0, 2), [0, 1], failures=[_fail(2), _fail(2)]), "row 2 of 3 is accounted"),
        (lambda t: result(t, [0, 1, 3]), "names a row outside 0..2"),
        (lambda t: result(t.slice(0, 2), [0, 1], dropped=[-1]), "names a row outside 0..2"),
        (lambda t: result(t, [0, 1]), "3 rows out, but 2 parents"),
        (
            lambda t: result(t, [0, 1, 2], expanded=frozenset([2]), dropped=[2]),
            "row 2 of 3 is accounted for 2",
        ),
    ],
)
def test_a_stage_that_loses_or_invents_a_row_ends_the_run(
    wrong: Callable[[pa.Table], StageResult], message: str
) -> None:
    with pytest.raises(StageError, match=f"stage 's': {message}"):
        apply(Scripted(wrong), "s", unit(["a", "b", "c"]))


@st.composite
def plans(draw: st.DrawFn, rows: int) -> list[tuple[str, int]]:
    """For each row: kept, failed, dropped, or made into so many rows."""
    one = st.sampled_from([("keep", 1), ("fail", 0), ("drop", 0), ("list", 1), ("list", 2), ("list", 3)])
    return draw(st.lists(one, min_size=rows, max_size=rows))


def scripted(plan: list[tuple[str, int]], order: Callable[[list[int]], list[int]]) -> Scripted:
    def process(table: pa.Table) -> StageResult:
        parents = order([i for i, (_, count) in enumerate(plan) for _ in range(count)])
        return result(
            table.take(pa.array(parents, pa.int64())),
            parents,
            failures=[_fail(i) for i, (what, _) in enumerate(plan) if what == "fail"],
            dropped=[i for i, (what, _) in enumerate(plan) if what == "drop"],
            expanded=frozenset(i for i, (what, _) in enumerate(plan) if what == "list"),
        )

    return Scripted(process)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_after_any_stages_every_row_is_somewhere_once(data: st.DataObject) -> None:
    rows = unit([str(i) for i in range(data.draw(st.integers(0, 6)))])
    for step in range(data.draw(st.integers(1, 3))):
        plan = data.draw(plans(len(rows.table)))
        before = ids(rows.table)
        gone = set(ids(rows.errors)) | set(ids(rows.dropped))
        rows = apply(scripted(plan, lambda p: data.draw(st.permutations(p))), f"stage {step}", rows)
        everywhere = Counter([*ids(rows.table), *ids(rows.errors), *ids(rows.dropped)])
        assert set(everywhere.values()) <= {1}
        expected = set(gone)
        for (source, row, child), (what, count) in zip(before, plan, strict=True):
            if what == "list":
                prefix = "" if child is None else f"{child}."
                expected |= {(source, row, f"{prefix}{i}") for i in range(count)}
            else:
                expected.add((source, row, child))
        assert set(everywhere) == expected
        # What a row holds still belongs to its id
        assert rows.table["v"].to_pylist() == [str(row) for row in rows.table["_row"].to_pylist()]
    assert rows.errors.schema == ERROR_SCHEMA
    assert rows.table.select(list(ID_COLUMNS)).schema.names == ID_SCHEMA.names
