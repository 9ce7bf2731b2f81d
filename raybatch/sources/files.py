"""The files source: files, folders and globs on local disks and in object stores, in four formats.

The plan pins each file's size and modification time, or the store's ETag; what is read is that version, or an
`InputChangedError`. A later plan takes only files that earlier ones have not taken.

Row ids: `_source` is the file's absolute path, or its URL with scheme and bucket as the config spells them.
`_row` is, in uncompressed jsonl and text, the byte at which the row's line starts; in Parquet, CSV and compressed
files the row's ordinal, from 0 (blank lines of jsonl, empty rows of CSV and a CSV header are no rows). `_child` is
null.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from raybatch.config import Config, PathOrUrl
from raybatch.errors import CorruptInputError, RaybatchError, SourceError, StoreError
from raybatch.rows import ID_COLUMNS, ID_FIELDS, UnitRows, source_errors
from raybatch.sources.base import JSON, NO_LIMIT, Limit, Progress, SourcePlan, UnitSpec, no_progress
from raybatch.sources.file import File, describe_change
from raybatch.sources.formats import make_format
from raybatch.sources.formats.base import (
    Format,
    FormatName,
    FormatPlan,
    Options,
    compression_of,
    for_each,
    format_of,
    within,
)
from raybatch.sources.formats.json_types import JSON_TEXT, declared_type
from raybatch.sources.listing import list_files
from raybatch.sources.opening import check_unchanged, is_pinned, open_stream
from raybatch.sources.position import Taken, spell, unspell
from raybatch.store.remote import StorageOptions

# An offset of Arrow's string type is 32 bits: a unit and one row more have to stay below 2 GiB.
_MAX_UNIT_BYTES = 1 << 30
_NAMED_CHANGES = 5
_FIRST_FILES = 16  # that are planned at once, where a limit says how many are taken
_EMPTY_COMPRESSED_BYTES = 512  # gzip's header holds a file name, of up to 255 bytes


class FilesConfig(Config):
    """Rows from files. See the module's docstring for row ids."""

    continuous: ClassVar[bool] = True
    decides_nothing: ClassVar[tuple[str, ...]] = ("storage",)

    type: Literal["files"]
    path: PathOrUrl | list[PathOrUrl]
    """A file, a folder (all files below it), a glob (`*`, `?`, `[a-z]`, `**` for any depth), or a list of
    these. Names that start with `.` or `_` are left out of folders and wildcards."""
    format: FormatName | None = None
    """`jsonl`, `parquet`, `csv` or `text`; by default what the suffixes say (`.jsonl`, `.ndjson`, `.json`,
    `.parquet`, `.csv`, `.tsv`, `.txt`, all but Parquet also with `.gz` or `.zst`)."""
    columns: list[str] | None = None
    """The columns to read; all by default. Other fields of a row are then ignored."""
    column_types: dict[str, str] = Field(default_factory=dict, alias="schema")
    """jsonl and csv: types of columns by Arrow's names (`int64`, `string`, `timestamp[us]`, `list<string>`,
    …, or `json`: any value of a jsonl field, as text). The others are inferred from a sample."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """csv: by default a comma, and a tab for `.tsv`."""
    header: bool | list[str] = True
    """csv: whether the first row names the columns; without, they are `f0`, `f1`, … A list of names says that
    there is no header row, and what the columns are called."""
    text_column: str = "text"
    """text: the name of the one column."""
    max_row_bytes: int = Field(default=16 << 20, ge=1, le=1 << 29)
    """A longer row becomes an error row, of which the first 64 KiB are kept (jsonl, csv and text)."""

    storage: StorageOptions | None = None
    """s3://, gs://, az:// and abfss://: how the store is reached; by default as the environment says."""

    @field_validator("path")
    @classmethod
    def _some_path(cls, path: str | list[str]) -> str | list[str]:
        if not path or (isinstance(path, list) and not all(path)):
            raise ValueError("names no file")
        return path

    @field_validator("columns")
    @classmethod
    def _distinct_columns(cls, columns: list[str] | None) -> list[str] | None:
        if columns is not None and (not columns or len(set(columns)) < len(columns)):
            raise ValueError("has to name at least one column, and each only once")
        return columns

    @field_validator("column_types")
    @classmethod
    def _known_types(cls, types: dict[str, str]) -> dict[str, str]:
        for name, text in types.items():
            try:
                declared_type(text)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return types

    @model_validator(mode="after")
    def _options_fit(self) -> FilesConfig:
        for name in [*(self.columns or []), *self.column_types, self.text_column]:
            if name in ID_COLUMNS:
                raise ValueError(f"'{name}' is the name of a row id, which every row gets anyway")
        for name in self.column_types:
            if self.columns is not None and name not in self.columns:
                raise ValueError(f"schema declares '{name}', which columns leaves out")
        known = self.known_format()
        uses = {
            "delimiter": ["csv"],
            "header": ["csv"],
            "column_types": ["jsonl", "csv"],
            "text_column": ["text"],
        }
        for name, formats in uses.items():
            if known is not None and known not in formats and name in self.model_fields_set:
                shown = "schema" if name == "column_types" else name
                raise ValueError(f"{shown} is an option of {' and '.join(formats)}; this input is {known}")
        if known == "csv" and JSON_TEXT in self.column_types.values():
            raise ValueError("schema: json is a type of jsonl columns; a csv column can be string")
        if known == "text" and self.columns not in (None, [self.text_column]):
            raise ValueError(f"columns: text has one column, '{self.text_column}'")
        return self

    def paths(self) -> list[str]:
        """`path` as a list."""
        return self.path if isinstance(self.path, list) else [self.path]

    def known_format(self) -> FormatName | None:
        """The format, as far as the config alone tells it."""
        if self.format is not None:
            return self.format
        found = {format_of(path) for path in self.paths()}
        return found.pop() if len(found) == 1 else None

    def build(self, *, max_rows: int, max_bytes: int) -> FilesSource:
        """The source, with units of about `max_rows` rows and `max_bytes` (decompressed) bytes at most."""
        return FilesSource(config=self, max_rows=max_rows, max_bytes=min(max_bytes, _MAX_UNIT_BYTES))


@dataclass(frozen=True, kw_only=True)
class FilesSource:
    """See `raybatch.sources.base.Source` and this module's docstring.

    A file that gives no unit (without a byte, or with a header only) is not taken: it may be filled later. For
    positions see `raybatch.sources.position`.
    """

    config: FilesConfig
    max_rows: int
    max_bytes: int

    def columns(self) -> list[str] | None:
        config, known = self.config, self.config.known_format()
        if config.columns is not None:
            return config.columns
        if known == "text":
            return [config.text_column]
        return config.header if known == "csv" and isinstance(config.header, list) else None

    def plan(
        self,
        *,
        after: JSON | None,
        history: Iterable[UnitSpec] = (),
        progress: Progress = no_progress,
        limit: Limit = NO_LIMIT,
    ) -> SourcePlan:
        taken = Taken.of(after, history)
        before = taken.schema
        listed = list_files(
            self.config.paths(),
            taken=taken.versions if after is not None else None,
            storage=self.config.storage,
            progress=progress,
        )
        _check_taken(listed, taken.versions)
        new = [file for file in listed if file.path not in taken.versions]
        empty = _empty(new)
        full = [file for file in new if file.path not in empty]
        notes = _notes(listed, taken.versions, empty=sorted(empty))
        planned, left = self._plan_first(full, before=before, limit=limit)
        if not planned.units and not taken.versions:
            notes.append("the input is empty: no file has any rows")
        kept = planned.schema if planned.units else before
        end = taken.plus(planned.units).position(kept) if planned.units or after is None else after
        schema = kept if kept is not None else self._declared()
        notes += [*_new_columns(schema, before), *planned.notes]
        return SourcePlan(units=planned.units, end=end, schema=schema, full=left, notes=notes)

    def read(self, unit: UnitSpec, *, key: str, schema: pa.Schema) -> UnitRows:
        file = File(path=unit.range["path"], version=unit.range["version"], storage=self.config.storage)
        at = unit.range["at"]
        pinned = is_pinned(file)
        try:
            if not pinned:
                check_unchanged(file)
            decoded = self._format([file]).read(file, at, schema=schema)
            if not pinned:
                check_unchanged(file)
        except RaybatchError:
            raise
        except Exception as error:
            raise _failure(file, f"{file.path}, unit {key} ({_describe(at)})", error) from error
        table = decoded.table
        ids = [pa.repeat(file.path, len(table)), pa.array(decoded.ids), pa.nulls(len(table), pa.string())]
        for column, values in zip(ID_FIELDS, ids, strict=True):
            table = table.append_column(column, values)
        failures = [{"_source": file.path, **failure} for failure in decoded.failures]
        return UnitRows(
            unit=key, rows_in=len(table) + len(failures), table=table, errors=source_errors(failures)
        )

    def acknowledge(self, end: JSON) -> None:
        """Nothing: nobody outside waits for files to be taken."""

    def acknowledged(self, end: JSON) -> None:
        """Nothing, then."""

    def _plan_first(
        self, files: Sequence[File], *, before: pa.Schema | None, limit: Limit
    ) -> tuple[FormatPlan, bool]:
        """The plan of the first of `files`, as many as `limit` allows; and whether that leaves any.

        What a file holds is known once it is planned: twice as many are planned each time until it is enough.
        """
        if limit == NO_LIMIT:
            return self._format(files).plan(files, before=before) if files else FormatPlan(), False
        planned, count = FormatPlan(), 0
        while count < len(files):
            count = min(len(files), max(2 * count, _FIRST_FILES))
            planned = self._format(files[:count]).plan(files[:count], before=before)
            some = within(planned, limit)
            if len(some.units) < len(planned.units):
                return some, True
        return planned, False

    def _declared(self) -> pa.Schema:
        names = self.columns() or list(self.config.column_types)
        types = self.config.column_types
        return pa.schema([(name, declared_type(types.get(name, "string"))) for name in names])

    def _format(self, files: Sequence[File]) -> Format:
        config = self.config
        options = Options(
            max_rows=self.max_rows,
            max_bytes=self.max_bytes,
            max_row_bytes=config.max_row_bytes,
            columns=config.columns,
            types=config.column_types,
            delimiter=config.delimiter,
            header=config.header,
            text_column=config.text_column,
        )
        return make_format(config.format or _common_format(files), options)


def _common_format(files: Sequence[File]) -> FormatName:
    first: tuple[str, FormatName] | None = None
    for file in files:
        found = format_of(file.path)
        if found is None:
            raise SourceError(
                f"{file.path}: no format known by its suffix: set source.format, or leave the file out of"
                " source.path"
            )
        if first is not None and found != first[1]:
            raise SourceError(
                f"{file.path} is {found}, but {first[0]} is {first[1]}: one source reads one format; name the"
                " files by a glob such as *.jsonl"
            )
        first = first or (file.path, found)
    if first is None:
        raise AssertionError("no file to tell the format")
    return first[1]


def _check_taken(listed: Sequence[File], taken: Mapping[str, str]) -> None:
    changed = [
        describe_change(file.path, unspell(taken[file.path]), file.version)
        for file in listed
        if file.path in taken and taken[file.path] != spell(file.version)
    ]
    if changed:
        more = f" and {len(changed) - _NAMED_CHANGES} more" if len(changed) > _NAMED_CHANGES else ""
        raise SourceError(
            f"changed after an earlier run took it: {', '.join(changed[:_NAMED_CHANGES])}{more}. Its rows are"
            " in the output as they were. Restore the file; or give the new one a new name, and it is taken"
            " as new rows; or write to another output (sink.path), which takes all of the input anew"
        )


def _empty(files: Sequence[File]) -> set[str]:
    """The paths of those without bytes, compression undone (an empty file then has a header and little more)."""
    unsure = [f for f in files if compression_of(f.path) and f.size <= _EMPTY_COMPRESSED_BYTES]
    found = {file.path for file in files if not file.size}
    found.update(
        file.path for file, empty in zip(unsure, for_each(unsure, _gives_nothing), strict=True) if empty
    )
    return found


def _gives_nothing(file: File) -> bool:
    if not file.size:
        return True
    with open_stream(file, compression=compression_of(file.path)) as stream:
        return not stream.read(1)


def _notes(listed: Sequence[File], taken: Mapping[str, str], *, empty: Sequence[str]) -> list[str]:
    notes = []
    paths = {file.path for file in listed}
    gone = sorted(path for path in taken if path not in paths)
    if gone:
        notes.append(f"{len(gone)} files that earlier runs took are gone (first: {gone[0]}); their rows stay")
    if empty:
        notes.append(f"{len(empty)} empty files are not taken (first: {empty[0]})")
    return notes


def _new_columns(schema: pa.Schema, before: pa.Schema | None) -> list[str]:
    new = [name for name in schema.names if before is not None and name not in before.names]
    if not new:
        return []
    return [
        f"new since the last epoch: columns {', '.join(new)}; source.columns would keep to those you name"
    ]


def _failure(file: File, where: str, error: Exception) -> RaybatchError:
    """What to raise when reading failed. A file that changed meanwhile is the better explanation."""
    try:
        check_unchanged(file)
    except RaybatchError as better:
        return better
    except Exception as other:  # the check fails as the reading did; the first failure says more
        error.add_note(f"and then: {other}")
    if _is_corruption(error):
        return CorruptInputError(
            f"{where}: cannot be read: {error}. Nothing of this epoch is committed yet. Restore a good copy of"
            " the file (same size and modification time) and run again; or repair it or leave it out of"
            " source.path, and write to another output (sink.path)"
        )
    number = error.errno if isinstance(error, OSError) else None
    why = os.strerror(number) if number else f"{type(error).__name__}: {error}"
    return StoreError(
        f"{where}: cannot be read: {why}. What is published stays; once the file can be read, run again"
    )


def _is_corruption(error: Exception) -> bool:
    # pyarrow raises what is wrong with the bytes as ArrowInvalid, or as an OSError that no system call made;
    # an OSError with a number is the disk's or the network's, and may pass.
    if isinstance(error, MemoryError):
        return False
    return isinstance(error, pa.ArrowException) or (isinstance(error, OSError) and error.errno is None)


def _describe(at: Mapping[str, Any]) -> str:
    return ", ".join(f"{what} {value}" for what, value in at.items())
