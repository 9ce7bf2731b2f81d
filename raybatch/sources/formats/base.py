"""The contract of a file format: plan the units of a set of files, read one unit of one file.

Formats are stateless apart from their `Options`, and one is made for each plan and each read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from math import inf
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from raybatch.errors import InputChangedError, SourceError
from raybatch.nearest import did_you_mean
from raybatch.rows import ID_COLUMNS
from raybatch.sources.base import JSON, Limit, UnitSpec
from raybatch.sources.file import File
from raybatch.sources.formats.json_types import declared_type
from raybatch.store.ahead import map_ahead

FormatName = Literal["jsonl", "parquet", "csv", "text"]
Ids = np.ndarray[Any, np.dtype[np.int64]]

RAW_BYTES = 64 * 1024  # how much of a row that could not be decoded is kept with its error

_FORMATS: dict[str, FormatName] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".text": "text",
}
_COMPRESSIONS = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}

_THREADS = 16

Out = TypeVar("Out")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may say about the files, and the size of a unit. See `FilesConfig` for each."""

    max_rows: int
    max_bytes: int
    max_row_bytes: int
    columns: Sequence[str] | None = None
    types: Mapping[str, str] = field(default_factory=dict)
    delimiter: str | None = None
    header: bool | Sequence[str] = True
    text_column: str = "text"


@dataclass(frozen=True, kw_only=True)
class FormatPlan:
    """Units in order of file and place. A unit's `range` is `{"path", "version", "at"}`; `at` is the format's
    own. Without units, the schema says nothing. `row_bytes` is about what a row takes of `UnitSpec.bytes`, for
    units that do not know their rows."""

    schema: pa.Schema | None = None
    units: Sequence[UnitSpec] = ()
    notes: Sequence[str] = ()
    row_bytes: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The rows of one unit: `table` has the plan's schema, `ids[i]` is the `_row` of its row i.

    A failure has `_row`, `type`, `message`, and `row` (JSON) or `raw` (bytes, at most RAW_BYTES).
    """

    table: pa.Table
    ids: Ids
    failures: Sequence[Mapping[str, Any]] = ()


class Format(Protocol):
    """See the module's docstring."""

    def plan(self, files: Sequence[File], *, before: pa.Schema | None) -> FormatPlan:
        """Plan `files`, none of them empty (0 bytes). `before` is the schema of earlier epochs: its columns
        keep their types. Raises `SourceError`."""

    def read(self, file: File, at: JSON, *, schema: pa.Schema) -> Decoded:
        """Read the unit `at` of `file`. What the libraries below raise on broken bytes passes through."""


def format_of(path: str) -> FormatName | None:
    """The format that the suffix of `path` (a file, or a glob) tells, its compression aside."""
    stem, suffix = os.path.splitext(path.lower())
    return _FORMATS.get(os.path.splitext(stem)[1] if suffix in _COMPRESSIONS else suffix)


def compression_of(path: str) -> str | None:
    """ "gzip", "zstd" or None, by the suffix."""
    return _COMPRESSIONS.get(os.path.splitext(path.lower())[1])


def unit(file: File, at: JSON, *, rows: int | None, size: int) -> UnitSpec:
    """The unit `at` of `file`."""
    return UnitSpec(range={"path": file.path, "version": file.version, "at": at}, rows=rows, bytes=size)


def within(plan: FormatPlan, limit: Limit) -> FormatPlan:
    """The same plan with its first files only: as many as `limit` allows, each whole, and one at least."""
    taken: list[UnitSpec] = []
    rows, size = 0.0, 0
    for _, units in groupby(plan.units, key=lambda unit: unit.range["path"]):
        file = list(units)
        rows += sum(unit.bytes / plan.row_bytes if unit.rows is None else unit.rows for unit in file)
        size += sum(unit.bytes for unit in file)
        if taken and (round(rows) > (limit.max_rows or inf) or size > (limit.max_bytes or inf)):
            return replace(plan, units=taken)
        taken += file
    return plan


def for_each(files: Sequence[File], work: Callable[[File], Out]) -> list[Out]:
    """`work` on each file in order; several at once, since opening remote files is mostly waiting."""

    def guarded(file: File) -> Out:
        with planning(file):
            return work(file)

    return list(map_ahead(guarded, files, threads=_THREADS))


@contextmanager
def planning(file: File) -> Iterator[None]:
    """Turn what reading `file` raises while planning into a `SourceError` that names it."""
    try:
        yield
    except SourceError:
        raise
    except InputChangedError as error:
        raise SourceError(f"{file.path}: changed or deleted while it was being planned: run again") from error
    except Exception as error:  # pyarrow, codecs and each filesystem package have exceptions of their own
        raise SourceError(
            f"{file.path}: cannot be read: {error}. Replace the file, or leave it out of source.path"
        ) from error


def choose_columns(
    found: pa.Schema, options: Options, *, before: pa.Schema | None, available: Sequence[str], hint: str = ""
) -> pa.Schema:
    """The plan's schema: columns `found` in the input, those of earlier epochs, and those declared.

    A declared type wins over an earlier epoch's, and that over a found one, so that the output keeps one type
    per column over all epochs. `available` names every column of the input, and `hint` adds a choice, in the
    message about one that is not there.
    """
    types = {f.name: f.type for f in [*found, *(before or [])]}
    types.update((name, declared_type(text)) for name, text in options.types.items())
    order = [*(before.names if before else []), *found.names, *options.types]
    wanted = list(dict.fromkeys(order)) if options.columns is None else list(options.columns)
    for name in wanted:
        if name in ID_COLUMNS:
            raise SourceError(
                f"the input has a column '{name}', a name that row ids need: rename it, or select"
                " source.columns without it"
            )
        if name not in types:
            raise SourceError(
                f"source.columns: '{name}' is not in the input{did_you_mean(name, available)}."
                f" Available: {', '.join(available)}{hint}"
            )
    if not wanted:
        raise SourceError("the input has no columns: its rows are empty objects")
    return pa.schema([pa.field(name, types[name]) for name in wanted])
