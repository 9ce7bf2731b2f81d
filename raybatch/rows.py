"""The rows of one unit on their way from a source, through the stages, to a sink.

A `UnitRows` holds every input row of its unit exactly once: alive in `table`, as an error in `errors`, or
as a recorded drop in `dropped`. Stages never see ids or failures of earlier stages:
`raybatch.stages.base.apply` does that accounting in one place.

Between Ray Data operators a unit travels as a block of exactly one row (`to_block`, `from_block`). One row
cannot be split, an empty unit is not an empty block (Ray Data drops those), and no schema has to agree
between units.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

# A row id is (source, row, child): the object or topic/partition it came from, its place there, and, for a
# row that a stage made from another, its path of indices ("0", "0.2"). Every published row carries these.
ID_FIELDS = (
    pa.field("_source", pa.string(), nullable=False),
    pa.field("_row", pa.int64(), nullable=False),
    pa.field("_child", pa.string()),
)
ID_COLUMNS = tuple(f.name for f in ID_FIELDS)
ID_SCHEMA = pa.schema(ID_FIELDS)

ERROR_SCHEMA = pa.schema(
    [
        *ID_FIELDS,
        pa.field("stage", pa.string(), nullable=False),  # "source", or the stage's name
        pa.field("type", pa.string(), nullable=False),  # a typed reason, such as "InvalidJSON"
        pa.field("message", pa.string(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("row", pa.string()),  # the row that failed, as JSON; null where it never was a row
        pa.field("raw", pa.binary()),  # what could not be decoded into a row
    ]
)
DROPPED_SCHEMA = pa.schema([*ID_FIELDS, pa.field("stage", pa.string(), nullable=False)])


@dataclass(frozen=True, kw_only=True)
class RowFailure:
    """Why one input row of a stage (at `index`) has no output."""

    index: int
    type: str
    message: str
    attempts: int = 1


@dataclass(frozen=True, kw_only=True)
class UnitRows:
    """All rows of one unit.

    `table` has the user's columns and the id columns, in any order of rows; `errors` is of ERROR_SCHEMA;
    `dropped` of DROPPED_SCHEMA. `rows_in` counts the input rows that the source delivered; `made` the rows
    that stages made beyond one per row. At any time
    `rows_in + made == len(table) + len(errors) + len(dropped)`.
    `stats` are sums such as prompt_tokens, generated_tokens, or seconds by stage.

    `wanted` is None but in a retry, where it holds the ids (ID_SCHEMA) that are taken again, and `rows_in` is
    their number; `made` may be below 0 on the way, where one input row leads to several of them. See
    `raybatch.retried`.
    """

    unit: str
    rows_in: int
    table: pa.Table
    errors: pa.Table = field(default_factory=ERROR_SCHEMA.empty_table)
    dropped: pa.Table = field(default_factory=DROPPED_SCHEMA.empty_table)
    made: int = 0
    stats: Mapping[str, float] = field(default_factory=dict)
    wanted: pa.Table | None = None

    def __post_init__(self) -> None:
        held = len(self.table) + len(self.errors) + len(self.dropped)
        if held != self.rows_in + self.made:
            raise AssertionError(
                f"unit {self.unit}: {self.rows_in} rows in and {self.made} made, but {held} accounted for"
            )

    def with_stats(self, stats: Mapping[str, float]) -> UnitRows:
        """The same rows with `stats` added to the sums."""
        merged = dict(self.stats)
        for key, value in stats.items():
            merged[key] = merged.get(key, 0) + value
        return replace(self, stats=merged)

    def to_block(self) -> pa.Table:
        """One row that carries the whole unit; see the module's docstring."""
        head = {"unit": self.unit, "rows_in": self.rows_in, "made": self.made, "stats": dict(self.stats)}
        columns: dict[str, pa.Array] = {"head": pa.array([json.dumps(head)])}
        for name in ("table", "errors", "dropped"):
            columns[name] = _single_binary(_ipc_bytes(getattr(self, name)))
        if self.wanted is not None:
            columns["wanted"] = _single_binary(_ipc_bytes(self.wanted))
        return pa.table(columns)

    @classmethod
    def from_block(cls, block: pa.Table) -> UnitRows:
        """The inverse of `to_block`; zero-copy."""
        if len(block) != 1:
            raise AssertionError(f"a unit is one row of a block, got {len(block)}")
        head: dict[str, Any] = json.loads(block["head"][0].as_py())
        names = [name for name in block.column_names if name != "head"]
        tables = {name: _ipc_table(block[name][0].as_buffer()) for name in names}
        return cls(**head, **tables)


def source_errors(failures: list[dict[str, Any]]) -> pa.Table:
    """An ERROR_SCHEMA table of rows that a source could not decode.

    A missing `stage` is "source", missing `attempts` is 1; the id, `type` and `message` must be there.
    """
    defaults = {"_child": None, "stage": "source", "attempts": 1, "row": None, "raw": None}
    return pa.Table.from_pylist([defaults | failure for failure in failures], schema=ERROR_SCHEMA)


def _ipc_bytes(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _ipc_table(buffer: pa.Buffer) -> pa.Table:
    with pa.ipc.open_stream(buffer) as reader:
        return reader.read_all()


def _single_binary(data: pa.Buffer) -> pa.Array:
    offsets = pa.array([0, data.size], pa.int64()).buffers()[1]
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, data])
