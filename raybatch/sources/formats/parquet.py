"""Parquet: units of whole row groups where they are small enough, of parts of one where they are not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raybatch.errors import SourceError
from raybatch.rows import ID_COLUMNS
from raybatch.sources.base import JSON, UnitSpec
from raybatch.sources.file import File
from raybatch.sources.formats.base import (
    RAW_BYTES,
    Decoded,
    FormatPlan,
    Options,
    choose_columns,
    for_each,
    unit,
)
from raybatch.sources.opening import open_stream

_BATCH_ROWS = 64 << 10
_NOTED_PARTS = 16  # a row group cut in more parts than this deserves a word


@dataclass(frozen=True, kw_only=True)
class _Footer:
    """What the plan needs of a file's footer. `groups`: rows and uncompressed bytes of each row group."""

    file: File
    schema: pa.Schema
    groups: Sequence[tuple[int, int]]


class Parquet:
    """See `raybatch.sources.formats.base.Format`."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def plan(self, files: Sequence[File], *, before: pa.Schema | None) -> FormatPlan:
        footers = for_each(files, _footer)
        notes: list[str] = []
        found = self._common_schema(footers, before, notes)
        available = dict.fromkeys(name for f in footers for name in f.schema.names if name not in ID_COLUMNS)
        schema = choose_columns(found, self._options, before=before, available=list(available))
        for footer in footers:
            parts = max((self._parts(*group) for group in footer.groups), default=1)
            if parts > _NOTED_PARTS:
                notes.append(
                    f"{footer.file.path}: row groups of up to {max(rows for rows, _ in footer.groups)} rows"
                    f" are cut into up to {parts} units, each of which decodes its row group up to its place;"
                    " smaller row groups would avoid that"
                )
        units = [u for footer in footers for u in self._units(footer)]
        return FormatPlan(schema=schema, units=units, notes=notes)

    def _common_schema(
        self, footers: Sequence[_Footer], before: pa.Schema | None, notes: list[str]
    ) -> pa.Schema:
        """The selected columns of all files together; adds what a person should know to `notes`."""
        wanted = self._options.columns
        found: dict[str, tuple[pa.DataType, str]] = {f.name: (f.type, "earlier runs") for f in before or []}
        reserved: set[str] = set()
        for footer in footers:
            reserved.update(name for name in footer.schema.names if name in ID_COLUMNS)
            for column in footer.schema:
                if column.name in ID_COLUMNS or (wanted is not None and column.name not in wanted):
                    continue
                kind, where = found.setdefault(column.name, (column.type, footer.file.path))
                common = _common_type(kind, column.type)
                if common is None or (before and column.name in before.names and common != kind):
                    raise SourceError(
                        f"column '{column.name}' is {kind} in {where}, but {column.type} in"
                        f" {footer.file.path}: read the files by separate pipelines, rewrite them, or select"
                        " source.columns without it"
                    )
                found[column.name] = (common, where if common == kind else footer.file.path)
        if reserved:
            notes.append(
                f"columns {', '.join(sorted(reserved))} are not read: this run's own row ids replace them"
            )
        for name in found:
            without = [footer.file.path for footer in footers if name not in footer.schema.names]
            if without and (wanted is None or name in wanted):
                notes.append(
                    f"column '{name}' is not in {len(without)} of {len(footers)} files (first: {without[0]}):"
                    " null there"
                )
        types = {name: pa.string() if pa.types.is_null(kind) else kind for name, (kind, _) in found.items()}
        return pa.schema(list(types.items()))

    def _parts(self, rows: int, size: int) -> int:
        by_size = max(-(-rows // self._options.max_rows), -(-size // self._options.max_bytes))
        return max(1, min(rows, by_size))

    def _units(self, footer: _Footer) -> Iterator[UnitSpec]:
        """Runs of row groups as long as they fit together; a group too large by itself in equal parts."""
        start = rows = size = 0
        for group_rows, group_size in [*footer.groups, (0, 0)]:
            fits = (
                rows + group_rows <= self._options.max_rows and size + group_size <= self._options.max_bytes
            )
            if group_rows and fits:
                rows, size = rows + group_rows, size + group_size
                continue
            yield from self._pieces(footer.file, start, rows, size)
            start, rows, size = start + rows, group_rows, group_size

    def _pieces(self, file: File, start: int, rows: int, size: int) -> Iterator[UnitSpec]:
        parts = self._parts(rows, size) if rows else 0
        for part in range(parts):
            low, high = start + rows * part // parts, start + rows * (part + 1) // parts
            yield unit(file, {"rows": [low, high]}, rows=high - low, size=size // parts)

    def read(self, file: File, at: JSON, *, schema: pa.Schema) -> Decoded:
        low, high = at["rows"]
        with open_stream(file, compression=None) as stream:
            parts = [_conform(part, schema) for part in _batches(stream, low, high, schema.names)]
        table = pa.concat_tables(parts) if parts else schema.empty_table()
        if len(table) != high - low:
            raise pa.ArrowInvalid(f"{len(table)} rows where the footer promises {high - low}")
        return _without_bad_strings(table, first=low, path=file.path)


def _footer(file: File) -> _Footer:
    from pyarrow import parquet

    with open_stream(file, compression=None) as stream:
        opened = parquet.ParquetFile(stream)
        schema, metadata = opened.schema_arrow, opened.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    twice = {name for name in schema.names if schema.names.count(name) > 1}
    if twice:
        raise SourceError(f"{file.path}: has column '{min(twice)}' more than once")
    plain = pa.schema([(column.name, _plain_type(column.type)) for column in schema])
    return _Footer(file=file, schema=plain, groups=[(g.num_rows, g.total_byte_size) for g in groups])


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """`kind` without dictionary encoding and extension: the former varies between files, and the latter is
    only there in processes that registered it."""
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type)
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds values of both exactly, None if there is none."""
    if one == other:
        return one
    if pa.types.is_integer(one) != pa.types.is_integer(other) and not (
        pa.types.is_null(one) or pa.types.is_null(other)
    ):
        return None  # Arrow would make floats of integers
    try:
        merged = pa.unify_schemas(
            [pa.schema([("", one)]), pa.schema([("", other)])], promote_options="permissive"
        )
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return None
    common = merged.field(0).type
    return None if pa.types.is_floating(common) and pa.types.is_integer(one) else common


def _batches(stream: Any, low: int, high: int, names: Sequence[str]) -> Iterator[pa.Table]:
    """Rows low .. high - 1 of a file, of those columns of `names` that it has."""
    from pyarrow import parquet

    opened = parquet.ParquetFile(stream, pre_buffer=True)
    metadata, present = opened.metadata, opened.schema_arrow.names
    columns = [name for name in names if name in present]
    counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    bounds = np.concatenate(([0], np.cumsum(counts)))
    groups = [i for i in range(len(counts)) if bounds[i] < high and bounds[i + 1] > low]
    at = int(bounds[groups[0]]) if groups else high
    if not columns:  # none of the selected ones: the rows still count
        yield pa.table({"": pa.nulls(high - low)})
        return
    for batch in opened.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups, columns=columns):
        begin, end = max(low - at, 0), min(high - at, len(batch))
        if begin < end:
            yield pa.Table.from_batches([batch]).slice(begin, end - begin)
        at += len(batch)
        if at >= high:
            return


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for column in schema:
        if column.name not in table.column_names:
            columns.append(pa.nulls(len(table), column.type))
            continue
        values = table[column.name]
        if isinstance(values.type, pa.BaseExtensionType):
            values = pa.chunked_array([chunk.storage for chunk in values.chunks], values.type.storage_type)
        columns.append(values.cast(column.type))
    return pa.table(columns, schema=schema)


def _without_bad_strings(table: pa.Table, *, first: int, path: str) -> Decoded:
    """All rows, those with a string that is not UTF-8 (which Parquet does not check) as failures."""
    ids = np.arange(first, first + len(table))
    bad: dict[int, dict[str, Any]] = {}
    for name in table.column_names:
        for i, value in _bad_strings(table[name]):
            message = f"{path}, row {first + i}: column '{name}' holds bytes that are not UTF-8"
            bad[i] = {"_row": first + i, "type": "InvalidUTF8", "message": message, "raw": value}
    if not bad:
        return Decoded(table=table, ids=ids)
    good = np.setdiff1d(np.arange(len(table)), list(bad))
    return Decoded(table=table.take(pa.array(good)), ids=ids[good], failures=[bad[i] for i in sorted(bad)])


def _bad_strings(values: pa.ChunkedArray) -> Iterator[tuple[int, bytes | None]]:
    """Index and bytes (of a plain string column) of each value that is not valid."""
    try:
        values.validate(full=True)
        return
    except pa.ArrowInvalid:
        pass
    plain = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    for i in range(len(values)):
        one = values.slice(i, 1)
        try:
            one.validate(full=True)
        except pa.ArrowInvalid:
            raw = one.cast(pa.large_binary())[0].as_py() if plain else None
            yield i, raw[:RAW_BYTES] if raw is not None else None
