"""Hive-style partitions: which folder below data/ a row's file is in, such as `lang=en/day=2026-11-01`.

A folder's name comes from row data, so it is made of escaped text only. Escaping is percent-encoding of every
ASCII character but letters, digits, '-', '_' and '.'; all others stand as they are. That is what pyarrow
writes for ASCII and Spark for the rest, and what all readers that were tried decode to the value: Spark takes
%C3%BC for two characters, while ü is ü for everybody. A name always begins with "column=", so that no value
makes a folder of its own, and none that leaves data/. A value whose folder would be too long is no folder's:
its row becomes an error row.

Null is __HIVE_DEFAULT_PARTITION__, as everywhere; so is the empty text, as in Hive and Spark, which refuse
`lang=`. Readers give null for both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybatch.nearest import did_you_mean
from raybatch.rows import ID_COLUMNS, RowFailure, UnitRows
from raybatch.stages.base import error_rows

NULL = "__HIVE_DEFAULT_PARTITION__"
STAGE = "sink"  # names the error rows
TOO_LONG = "PartitionTooLong"

# POSIX allows 255 bytes for a name, S3 1,024 for a key, of which the sink's path and the file's name are part
MAX_FOLDER_BYTES = 255
MAX_PATH_BYTES = 512

# Names with a leading '_' or '.' are hidden from Spark and pyarrow
_COLUMN = re.compile(r"[^\W_][\w.-]{0,63}")
_TYPES = "text, integers, booleans and dates"


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The rows of one partition, in the order they had, without the columns that its path tells."""

    path: str
    table: pa.Table


def check_columns(names: Sequence[str]) -> None:
    """Raise `ValueError` for columns that cannot be partitioned by, whatever they hold."""
    for position, name in enumerate(names):
        if name in ID_COLUMNS:
            raise ValueError(f"'{name}' stays in the files: it is part of each row's id")
        if name in names[:position]:
            raise ValueError(f"the column '{name}' is there twice")
        if not _COLUMN.fullmatch(name):
            raise ValueError(
                f"'{name}' cannot name a folder: letters, digits, '_', '-' and '.', at most 64, with a letter"
                " or digit first (readers skip what starts with '_' or '.')"
            )


def check_type(field: pa.Field) -> None:
    """Raise `ValueError` for a column of a type whose values have no one spelling."""
    kind, is_ = field.type, pa.types
    text = is_.is_string(kind) or is_.is_large_string(kind) or is_.is_null(kind)
    if not (text or is_.is_integer(kind) or is_.is_boolean(kind) or is_.is_date(kind)):
        raise ValueError(
            f"partition_by: the column '{field.name}' is {kind}, and partitions are made of {_TYPES} only:"
            " have a stage make such a column of it"
        )


def columns_of(path: str) -> list[str]:
    """The columns that a partition's path names."""
    return [folder.partition("=")[0] for folder in path.split("/")] if path else []


def escape(value: str) -> str:
    """A value as it stands in a folder's name; see the module's docstring."""
    return "".join(c if c in _PLAIN or not c.isascii() else f"%{ord(c):02X}" for c in value) or NULL


def split(rows: UnitRows, columns: Sequence[str]) -> tuple[UnitRows, list[Slice]]:
    """The rows of `rows.table` by partition, in order of path; and `rows`, in which those that no folder can
    hold have become error rows. `table` is that of `raybatch.sinks.schemas.normalise`.

    Raises `ValueError` that names a column which is missing or of another type than `check_type` allows.
    """
    table = rows.table
    if not len(table):  # and may lack any column
        return rows, []
    paths = _paths(table, columns)
    lost = np.flatnonzero(paths.is_null().to_numpy(zero_copy_only=False))
    if len(lost):
        failures = [_too_long(table, columns, int(index)) for index in lost]
        errors = pa.concat_tables([rows.errors, error_rows(table, failures, STAGE)])
        held = paths.is_valid()
        table, paths = table.filter(held), paths.filter(held)
        rows = replace(rows, table=table, errors=errors)
    return rows, list(_slices(table.drop_columns(list(columns)), paths))


def _slices(table: pa.Table, paths: pa.Array) -> Iterator[Slice]:
    encoded = paths.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    if len(names) == 1:
        yield Slice(path=names[0], table=table)
        return
    rank = np.empty(len(names), dtype=np.int64)
    rank[order] = np.arange(len(names))
    ranks = rank[encoded.indices.to_numpy(zero_copy_only=False)]
    by_rank = table.take(pa.array(np.argsort(ranks, kind="stable")))
    edges = np.searchsorted(np.sort(ranks), np.arange(len(names) + 1)).tolist()
    for position, (start, end) in zip(order, pairwise(edges), strict=True):
        yield Slice(path=names[position], table=by_rank.slice(start, end - start))


def _paths(table: pa.Table, columns: Sequence[str]) -> pa.Array:
    """The partition of each row; null where a folder's name, or all of them, would be too long."""
    folders = [_folders(_column(table, column), column) for column in columns]
    joined = pc.binary_join_element_wise(*folders, "/")
    return pc.if_else(pc.less_equal(pc.binary_length(joined), MAX_PATH_BYTES), joined, None)


def _folders(values: pa.Array, column: str) -> pa.Array:
    encoded = values.dictionary_encode(null_encoding="encode")
    names = pa.array([_folder(column, v) for v in encoded.dictionary.to_pylist()], pa.string())
    return names.take(encoded.indices)


def _folder(column: str, value: Any) -> str | None:
    name = f"{column}={NULL if value is None else escape(_spelled(value))}"
    return name if len(name.encode()) <= MAX_FOLDER_BYTES else None


def _spelled(value: Any) -> str:
    """As Spark, DuckDB and pyarrow spell it: true, 1, 2026-11-01."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _column(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        there = [column for column in table.column_names if column not in ID_COLUMNS]
        near = did_you_mean(name, there)
        raise ValueError(
            f"partition_by names the column '{name}', which its rows lack{near}; they have:"
            f" {', '.join(there) or 'none'}"
        )
    check_type(table.schema.field(name))
    column = table[name]
    # date64 counts milliseconds, and is a date all the same
    return (column.cast(pa.date32()) if pa.types.is_date64(column.type) else column).combine_chunks()


def _too_long(table: pa.Table, columns: Sequence[str], index: int) -> RowFailure:
    sizes = {column: len(escape(_spelled(table[column][index].as_py())).encode()) for column in columns}
    longest = max(sizes, key=sizes.__getitem__)
    return RowFailure(
        index=index,
        type=TOO_LONG,
        message=(
            f"the partition column '{longest}' is {sizes[longest]} bytes as a folder's name, which can have"
            f" {MAX_FOLDER_BYTES}, and those of all partition columns {MAX_PATH_BYTES}"
        ),
    )


_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
