"""Reads error rows of earlier epochs again: a source around the pipeline's own.

The range of a unit of a retry is

    {"retry": [{"epoch": 0, "unit": 3, "part": KEY, "but": [CHOICE, …], "of": [PIECE, …]}, …], "choice": CHOICE}
    CHOICE    {"types": ["InvalidJSON"], "stages": []}: error rows of these types and stages; empty means any
    PIECE     {"range": a range of the source's own, "within": {_source: [first _row, last _row]}}

It takes, of each named unit's error rows (the Parquet object `part`), those of the choice, but those that
earlier retries took (`but`). The pieces are where the source has their input rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybatch.errors import CorruptInputError, InputChangedError, LedgerError
from raybatch.retried import keep_wanted
from raybatch.rows import ERROR_SCHEMA, ID_COLUMNS, ID_SCHEMA, UnitRows
from raybatch.sources.base import (
    JSON,
    NO_LIMIT,
    Acknowledged,
    Limit,
    Progress,
    Source,
    SourcePlan,
    UnitSpec,
    no_progress,
)
from raybatch.store.base import Store


@dataclass(frozen=True, kw_only=True)
class RetrySource:
    """See the module's docstring and `raybatch.sources.base.Source`; `store` is the output's.

    Rows that the source cannot give again (their file changed, or is gone) become error rows of the type
    `InputChanged` or `CorruptInput`: the epoch can always be finished, and they can be retried once the input
    is back.
    """

    source: Source
    store: Store

    def columns(self) -> list[str] | None:
        return self.source.columns()

    def plan(
        self,
        *,
        after: JSON | None,
        history: Iterable[UnitSpec] = (),
        progress: Progress = no_progress,
        limit: Limit = NO_LIMIT,
    ) -> SourcePlan:
        """New input, which a retry does not take: the wrapped source's plan."""
        return self.source.plan(after=after, history=history, progress=progress, limit=limit)

    def read(self, unit: UnitSpec, *, key: str, schema: pa.Schema) -> UnitRows:
        choice, entries = unit.range["choice"], unit.range["retry"]
        asked = [errors_of(self.store, entry, choice=choice) for entry in entries]
        before = pa.concat_tables([ERROR_SCHEMA.empty_table(), *asked])
        wanted = before.select(list(ID_COLUMNS)).cast(ID_SCHEMA)
        if len(wanted) != unit.rows:
            raise LedgerError(
                f"unit {key} was planned with {unit.rows} error rows of earlier epochs, and their files have"
                f" {len(wanted)}: one of {', '.join(entry['part'] for entry in entries)} was damaged"
            )
        pieces = [piece for entry in entries for piece in entry["of"]]
        read = [self._piece(piece, key=key, schema=schema, wanted=wanted) for piece in pieces]
        return _gathered(read, key=key, schema=schema, before=before, wanted=wanted)

    def acknowledge(self, end: JSON) -> None:
        self.source.acknowledge(end)

    def acknowledged(self, end: JSON) -> Acknowledged | None:
        return self.source.acknowledged(end)

    def _piece(self, piece: JSON, *, key: str, schema: pa.Schema, wanted: pa.Table) -> UnitRows | Exception:
        """The wanted input rows of one range of the source, or why it cannot be read any more."""
        try:
            found = self.source.read(UnitSpec(range=piece["range"]), key=key, schema=schema)
        except (InputChangedError, CorruptInputError) as error:
            return error
        table = among(found.table, wanted)
        errors = among(found.errors, wanted)
        return UnitRows(unit=key, rows_in=len(table) + len(errors), table=table, errors=errors)


def errors_of(store: Store, entry: JSON, *, choice: JSON, columns: Sequence[str] | None = None) -> pa.Table:
    """The live error rows of the choice that `entry` (see the module's docstring) stands for.

    Raises `LedgerError` where the unit's part cannot be read.
    """
    import pyarrow.parquet as pq

    needed = None if columns is None else [*dict.fromkeys([*columns, "type", "stage"])]
    try:
        with store.open(entry["part"]) as file:
            table = pq.ParquetFile(file).read(columns=needed)
    except KeyError:
        raise LedgerError(f"{entry['part']}, the error rows of an earlier epoch, is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise LedgerError(f"{entry['part']} is not a readable Parquet file: {error}") from None
    mask = chosen(table, choice)
    for taken in entry["but"]:
        mask = pc.and_not(mask, chosen(table, taken))
    kept = table.filter(mask).replace_schema_metadata(None)
    return kept if columns is None else kept.select(list(columns))


def chosen(errors: pa.Table, choice: JSON) -> pa.ChunkedArray:
    """Which error rows are of the choice's types and stages."""
    mask = pa.chunked_array([pa.array(np.ones(len(errors), dtype=bool))])
    for column, values in (("type", choice["types"]), ("stage", choice["stages"])):
        if values:
            mask = pc.and_(mask, pc.is_in(errors[column], value_set=pa.array(values, pa.string())))
    return mask


def pieces_of(pieces: Sequence[JSON], errors: pa.Table) -> list[JSON]:
    """Those of `pieces` that may hold an input row of `errors`, with the places that these are at."""
    found = errors.group_by("_source").aggregate([("_row", "min"), ("_row", "max")])
    spans = {row["_source"]: [row["_row_min"], row["_row_max"]] for row in found.to_pylist()}
    kept: list[JSON] = []
    for piece in pieces:
        before: Mapping[str, Sequence[int]] = piece.get("within") or spans
        within = {
            source: [max(low, before[source][0]), min(high, before[source][1])]
            for source, (low, high) in spans.items()
            if source in before
        }
        if any(low <= high for low, high in within.values()):
            kept.append({"range": piece["range"], "within": within})
    return kept


def among(rows: pa.Table, wanted: pa.Table) -> pa.Table:
    """The rows whose input row is one of those behind `wanted`, in their order."""
    keys = ["_source", "_row"]
    places = rows.select(keys).append_column("place", pa.array(np.arange(len(rows))))
    return rows.take(_sorted(places.join(_input_rows(wanted), keys, join_type="left semi")["place"]))


def _sorted(places: pa.ChunkedArray) -> pa.Array:
    return pa.array(np.sort(places.to_numpy()))


def _input_rows(ids: pa.Table) -> pa.Table:
    return ids.select(["_source", "_row"]).group_by(["_source", "_row"]).aggregate([])


def _gathered(
    read: Sequence[UnitRows | Exception], *, key: str, schema: pa.Schema, before: pa.Table, wanted: pa.Table
) -> UnitRows:
    """One unit of what the pieces gave; rows that none gave are error rows."""
    given = [piece for piece in read if isinstance(piece, UnitRows)]
    empty = pa.schema([*schema, *ID_SCHEMA]).empty_table()
    table = pa.concat_tables([empty, *(piece.table.cast(empty.schema) for piece in given)])
    errors = pa.concat_tables([ERROR_SCHEMA.empty_table(), *(piece.errors for piece in given)])
    reasons = [piece for piece in read if not isinstance(piece, UnitRows)]
    errors = pa.concat_tables([errors, _missing(before, [table, errors], reasons)])
    rows = UnitRows(
        unit=key,
        rows_in=len(wanted),
        table=table,
        errors=errors,
        made=len(table) + len(errors) - len(wanted),
        wanted=wanted,
    )
    return keep_wanted(rows, stage="source")


def _missing(before: pa.Table, given: Sequence[pa.Table], reasons: Sequence[Exception]) -> pa.Table:
    """Error rows for what was asked for and not given, each with the row as it was kept the last time."""
    keys = ["_source", "_row"]
    have = pa.concat_tables([table.select(keys).cast(pa.schema(list(ID_SCHEMA)[:2])) for table in given])
    places = before.select(keys).append_column("place", pa.array(np.arange(len(before))))
    lost = before.take(_sorted(places.join(_input_rows(have), keys, join_type="left anti")["place"]))
    if not len(lost):
        return ERROR_SCHEMA.empty_table()
    kind, why = "InputChanged", "the source does not give this row again: did its options change?"
    if reasons:
        kind = type(reasons[0]).__name__.removesuffix("Error")
        why = " ".join(dict.fromkeys(str(reason) for reason in reasons))
    rows = [
        row
        | {"stage": "source", "type": kind, "attempts": 1}
        | {"message": f"{why} (the last error: {row['stage']}, {row['type']}: {row['message']})"}
        for row in lost.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=ERROR_SCHEMA)


def entry_of(*, epoch: int, unit: int, part: str, but: Sequence[JSON], of: Sequence[JSON]) -> dict[str, Any]:
    """An entry of a range; see the module's docstring."""
    return {"epoch": epoch, "unit": unit, "part": part, "but": list(but), "of": list(of)}
