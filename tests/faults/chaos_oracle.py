"""Counts the rows of a campaign's output, and shares no code with raybatch.

What becomes of an input row follows from its number `n` modulo 12 (see FUNCTIONS in campaign.py); whether rows fail
is decided while a run works, so for some there is a choice. An error row counts as long as no later epoch has the
same row, or one that was made from it: then a retry took it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from oracle import Output

Row = tuple[str, int]  # _source, _row
Children = tuple[str | None, ...]

ONE: Children = (None,)
TWO: Children = ("0", "1")
# An engine that is killed under a row again and again: the row is taken for the cause
ENGINE_KILLED = "EngineKilled"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A row that readers can find. `kind`: "data", "errors" or "dropped"; `type` and `stage` of error rows."""

    epoch: int
    kind: str
    row: Row
    child: str | None
    type: str | None = None
    stage: str | None = None


def becomes(n: int) -> Sequence[Children]:
    """What row `n` may stand as in the output: the row itself, or two that were made from it."""
    return {1: (ONE, TWO), 2: (TWO,), 8: (TWO,)}.get(n % 12, (ONE,))


def may_be(n: int, outcome: Outcome) -> bool:
    """Whether row `n`, or that which was made from it, may be a result, an error row of this type, or dropped."""
    if outcome.kind == "dropped":
        return n % 6 == 0 or n % 24 == 19
    if outcome.kind == "data":
        return n % 6 != 0
    failing = {1: "TooHot", 7: "TooCold", 2: "TooCold"}.get(n % 12)
    return outcome.type in (failing, ENGINE_KILLED)


def outcomes(stored: Path) -> list[Outcome]:
    """All of them, those of rows that were retried since included."""
    reasons = {}
    for file in (stored / "errors").rglob("*.parquet"):
        epoch = int(file.name.split("-")[0])
        columns = ["_source", "_row", "_child", "type", "stage"]
        for one in pq.ParquetFile(file).read(columns=columns).to_pylist():
            reasons[epoch, one["_source"], one["_row"], one["_child"]] = (one["type"], one["stage"])
    found = []
    for epoch, kind, (source, row, child) in Output(stored).outcomes():
        why = reasons.get((epoch, source, row, child), (None, None)) if kind == "errors" else (None, None)
        found.append(
            Outcome(epoch=epoch, kind=kind, row=(source, row), child=child, type=why[0], stage=why[1])
        )
    return found


def standing(found: Sequence[Outcome]) -> list[Outcome]:
    """Without the error rows that a later epoch has taken again."""
    by_row = defaultdict(list)
    for one in found:
        by_row[one.row].append(one)
    return [one for one in found if not _taken(one, by_row[one.row])]


def _taken(one: Outcome, of_its_row: Sequence[Outcome]) -> bool:
    return one.kind == "errors" and any(
        other.epoch > one.epoch and _is_or_is_from(other.child, one.child) for other in of_its_row
    )


def _is_or_is_from(child: str | None, other: str | None) -> bool:
    return other is None or f"{child}.".startswith(f"{other}.")


def problems(found: Sequence[Outcome], rows: Mapping[Row, int], *, complete: bool) -> list[str]:
    """What is wrong with an output that should hold `rows` (with their numbers) once each; before it is
    `complete`, some may be missing. Empty when all is well."""
    held: defaultdict[Row, Counter[str | None]] = defaultdict(Counter)
    wrong = []
    for one in standing(found):
        held[one.row][one.child] += 1
        if one.row not in rows:
            wrong.append(f"{one} was never put in")
        elif not may_be(rows[one.row], one):
            wrong.append(f"{one} must not be: it is row {rows[one.row]}")
    for row, n in rows.items():
        allowed = [Counter(children) for children in becomes(n)]
        if not any(held[row] == each if complete else held[row] <= each for each in allowed):
            wrong.append(f"{row}, which is row {n}, stands as {dict(held[row])}, and not as {becomes(n)}")
    return wrong
