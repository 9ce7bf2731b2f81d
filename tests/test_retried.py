"""Of rows that a retry takes through the stages, only what leads to the wanted ones is kept, each once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from raybatch.retried import keep_wanted
from raybatch.rows import ID_SCHEMA, RowFailure, UnitRows
from raybatch.stages.base import StageResult, apply


class Scripted:
    """Splits each row in three, or fails or drops all of them, as it was made to."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def process(self, rows: pa.Table) -> StageResult:
        count = len(rows)
        none, nobody = rows.slice(0, 0), np.array([], np.int64)
        if self.kind == "fail":
            failures = [RowFailure(index=i, type="Broken", message="") for i in range(count)]
            return StageResult(table=none, parents=nobody, failures=failures)
        if self.kind == "drop":
            return StageResult(table=none, parents=nobody, dropped=list(range(count)))
        if self.kind == "keep":
            return StageResult(table=rows, parents=np.arange(count))
        parents = np.repeat(np.arange(count), int(self.kind))
        return StageResult(table=rows.take(parents), parents=parents, expanded=frozenset(range(count)))

    def close(self) -> None:
        pass


def after(children: list[str | None], *kinds: str) -> UnitRows:
    """One input row, of which `children` are wanted, after stages of these kinds."""
    wanted = pa.Table.from_pylist(
        [{"_source": "f", "_row": 7, "_child": child} for child in children], schema=ID_SCHEMA
    )
    ids = pa.Table.from_pylist([{"_source": "f", "_row": 7, "_child": None}], schema=ID_SCHEMA)
    table = ids.append_column("v", pa.array([1])).select(["v", "_source", "_row", "_child"])
    rows = UnitRows(unit="u", rows_in=len(children), table=table, made=1 - len(children), wanted=wanted)
    for number, kind in enumerate(kinds):
        rows = UnitRows.from_block(apply(Scripted(kind), f"s{number}", rows).to_block())
    return keep_wanted(rows, stage="retry", last=True)


def of(table: pa.Table) -> list[str | None]:
    return sorted(table["_child"].to_pylist(), key=str)


@pytest.mark.parametrize(
    ("children", "kinds", "ok", "errors", "dropped"),
    [
        ([None], ["3"], ["0", "1", "2"], [], []),
        (["1"], ["3"], ["1"], [], []),
        (["0", "2"], ["3", "keep"], ["0", "2"], [], []),
        (["1.0"], ["3", "2"], ["1.0"], [], []),
        (["1"], ["3", "2"], ["1.0", "1.1"], [], []),
        (["0", "2"], ["fail", "3"], [], ["0", "2"], []),
        (["0", "2"], ["drop", "3"], [], [], ["0", "2"]),
        (["1.0", "1.1", "2.0"], ["3", "fail"], [], ["1.0", "1.1", "2.0"], []),
        (["0", "2"], ["2"], ["0"], ["2"], []),  # fewer rows were made this time
        (["0", "2"], ["keep"], [], ["0", "2"], []),  # none was made: it does not stand beside its siblings
    ],
)
def test_every_wanted_row_comes_out_once_and_no_sibling_does(
    children: list[str | None],
    kinds: list[str],
    ok: list[str | None],
    errors: list[str | None],
    dropped: list[str | None],
) -> None:
    rows = after(children, *kinds)
    assert (of(rows.table), of(rows.errors), of(rows.dropped)) == (ok, errors, dropped)
    assert rows.rows_in == len(children)
    assert rows.made == len(ok) + len(errors) + len(dropped) - len(children)


def test_what_is_not_made_again_says_so() -> None:
    assert after(["2"], "2").errors.to_pylist()[0]["type"] == "NotMadeAgain"
