"""Rows of a retry on their way through the stages: only what leads to the ids that are wanted again.

What is wanted may be a row that a stage had made from another ("0.2"), whose siblings succeeded before. The
input row goes through the stages again, and after each of them what is neither a wanted row, nor made from one,
nor on the way to one is left out: it is in the output already. Each wanted id ends as rows of its own id or made
from it, and at least one:

- where a row on the way fails or is dropped, every wanted row that would have come from it does;
- one that is not made this time is an error row of the type `NotMadeAgain`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from raybatch.rows import DROPPED_SCHEMA, ERROR_SCHEMA, ID_COLUMNS, UnitRows

Id = tuple[str, int, str | None]


def keep_wanted(rows: UnitRows, *, stage: str, last: bool = False) -> UnitRows:
    """`rows` as `stage` left them, without what is not wanted; `last`: no other stage will make rows.

    Rows of a unit that is no retry, and of one that retries input rows only, stay as they are.
    """
    wanted = rows.wanted
    if wanted is None or wanted["_child"].null_count == len(wanted):
        return rows
    paths = _Wanted(_ids(wanted))
    table = rows.table.take(pa.array(paths.living(_ids(rows.table), last=last), pa.int64()))
    errors = [row | {"_child": end} for row in rows.errors.to_pylist() for end in paths.ended(_id(row))]
    dropped = [row | {"_child": end} for row in rows.dropped.to_pylist() for end in paths.ended(_id(row))]
    errors += [_not_made(row_id, stage) for row_id in paths.lost()]
    held = len(table) + len(errors) + len(dropped)
    return replace(
        rows,
        table=table,
        errors=pa.Table.from_pylist(errors, schema=ERROR_SCHEMA),
        dropped=pa.Table.from_pylist(dropped, schema=DROPPED_SCHEMA),
        made=held - rows.rows_in,
    )


class _Wanted:
    """The wanted ids, and which of them have been met."""

    def __init__(self, wanted: Iterable[Id]) -> None:
        self._ends: defaultdict[tuple[str, int], dict[str | None, bool]] = defaultdict(dict)
        self._above: set[Id] = set()
        for source, row, child in wanted:
            self._ends[source, row][child] = False
            self._above.update((source, row, path) for path in _ancestors(child))

    def living(self, ids: Iterable[Id], *, last: bool) -> list[int]:
        """The positions of the rows that are wanted or, unless it is the last stage, may become so."""
        kept = []
        for position, row_id in enumerate(ids):
            if row_id in self._above and last:
                continue
            if list(self.ended(row_id)):
                kept.append(position)
        return kept

    def ended(self, row_id: Id) -> Iterator[str | None]:
        """The children that an error or drop of `row_id` stands for: itself, if it is wanted or was made from a
        wanted row; every wanted row below it. All are met."""
        source, row, child = row_id
        ends = self._ends[source, row]
        for path in (child, *_ancestors(child)):
            if path in ends:
                ends[path] = True
                yield child
                return
        if row_id in self._above:
            for end in ends:
                if child is None or (end is not None and end.startswith(f"{child}.")):
                    ends[end] = True
                    yield end

    def lost(self) -> list[Id]:
        """What has not been met."""
        return [(*of, end) for of, ends in self._ends.items() for end, met in ends.items() if not met]


def _ancestors(child: str | None) -> Iterator[str | None]:
    """ "0.2.1" was made from "0.2", that from "0", and that from the input row."""
    while child is not None:
        child = child.rpartition(".")[0] or None
        yield child


def _not_made(row_id: Id, stage: str) -> Mapping[str, Any]:
    message = (
        "an earlier epoch made this row from its input row, and it failed; this time the input row did not become"
        " it. Whether rows of one input row are counted the same way each time is up to the stage that makes them"
    )
    why = {
        "stage": stage,
        "type": "NotMadeAgain",
        "message": message,
        "attempts": 1,
        "row": None,
        "raw": None,
    }
    return dict(zip(ID_COLUMNS, row_id, strict=True)) | why


def _ids(table: pa.Table) -> Iterator[Id]:
    return zip(*(table[column].to_pylist() for column in ID_COLUMNS), strict=True)


def _id(row: Mapping[str, Any]) -> Id:
    return row["_source"], row["_row"], row["_child"]
