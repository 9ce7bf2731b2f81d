"""CSV as RFC 4180 and pyarrow's reader have it: quotes as needed, line ends inside them, empty rows skipped.

Types are inferred from the sampled rows, and only where nothing is lost: a column with a number like `007`
or one beyond 64 bits stays string. In a column of another type an empty value, `NA` or `null` is null; in a
string column it is that text.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybatch.errors import SourceError
from raybatch.sources.base import JSON, UnitSpec
from raybatch.sources.file import File
from raybatch.sources.formats.base import Decoded, FormatPlan, Ids, Options, choose_columns, for_each
from raybatch.sources.formats.decode import Failure, decode, failure
from raybatch.sources.formats.json_types import shown
from raybatch.sources.formats.lines import (
    BOM,
    CR,
    LF,
    SAMPLE_ROWS,
    Head,
    Spans,
    read_head,
    read_heads,
    read_ordinals,
)
from raybatch.sources.formats.ordinals import CsvScanner, ordinal_units

_HEADER_BYTES = 64 << 10
_SCANNED_BYTES = 1 << 20  # at a time: twice as fast as all at once
_BLOCK_BYTES = 1 << 20  # what pyarrow parses in parallel; each row has to fit in one

# Without leading zeros and plus signs, which a number would lose; of at most 18 digits, which int64 holds.
_INT = r"^-?(0|[1-9]\d{0,17})$"
_FLOAT = r"^-?(0|[1-9]\d{0,14})(\.\d+)?([eE][-+]?\d{1,2})?$"
_BOOL = r"^(true|false|True|False|TRUE|FALSE)$"
_WIDTH = re.compile(r"Expected \d+ columns, got \d+")  # as pyarrow says it
_NULLS = ("", "NA", "N/A", "null", "NULL", "NaN", "nan")


class Csv:
    """See `raybatch.sources.formats.base.Format`."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def plan(self, files: Sequence[File], *, before: pa.Schema | None) -> FormatPlan:
        names = self._common_names(files)
        heads = read_heads(files, max_row_bytes=self._options.max_row_bytes)
        share = max(1, SAMPLE_ROWS // len(heads))
        samples = [self._sample(head, len(names), max_rows=share) for head in heads]
        sampled_bytes = sum(size for _, size in samples)
        if not sampled_bytes and len(heads) == len(files) and all(head.whole for head in heads):
            return FormatPlan()  # nothing but headers
        table = pa.concat_tables([table for table, _ in samples])
        found = pa.schema([(name, _infer(values)) for name, values in zip(names, table.columns, strict=True)])
        schema = choose_columns(found, self._options, before=before, available=names)
        self._check_convertible(schema)
        row_bytes = max(1.0, sampled_bytes / max(1, len(table)))

        def units_of(file: File) -> tuple[list[UnitSpec], list[str]]:
            scanner = CsvScanner(delimiter=self._delimiter(file))
            header = self._options.header is True
            return ordinal_units(file, scanner, options=self._options, row_bytes=row_bytes, header=header)

        planned = for_each(files, units_of)
        missing = [name for name in schema.names if name not in names]
        notes = [f"column '{name}' is not in the new files: its values are null" for name in missing]
        notes += [note for _, some in planned for note in some]
        units = [unit for some, _ in planned for unit in some]
        return FormatPlan(schema=schema, units=units, notes=notes, row_bytes=row_bytes)

    def read(self, file: File, at: JSON, *, schema: pa.Schema) -> Decoded:
        spans, open_quote = self._spans(file, at)
        names, _ = self._names(file)
        decoder = _Fields(
            spans, names=names, schema=schema, delimiter=self._delimiter(file), open_quote=open_quote
        )
        return decode(spans, decoder, schema=schema, max_row_bytes=self._options.max_row_bytes)

    def _delimiter(self, file: File) -> str:
        return self._options.delimiter or ("\t" if ".tsv" in file.path.lower()[-9:] else ",")

    def _common_names(self, files: Sequence[File]) -> list[str]:
        """The column names, which all files must agree on."""
        found = for_each(files, lambda file: self._names(file)[0])
        names = found[0]
        for file, other in zip(files, found, strict=True):
            if other != names:
                raise SourceError(
                    f"{file.path}: its header ({', '.join(other)}) differs from that of {files[0].path}"
                    f" ({', '.join(names)}). One run needs one header: read the files by separate pipelines,"
                    " or rewrite them"
                )
        wanted = names if self._options.columns is None else self._options.columns
        for name in wanted:
            if name == "" or names.count(name) > 1:
                what = f"column '{name}' more than once" if name else "a column without a name"
                raise SourceError(
                    f"{files[0].path}: the header has {what}: rename it, or select source.columns"
                )
        return names

    def _names(self, file: File) -> tuple[list[str], int]:
        """The column names of `file`, and where in its head (see `Head`) the data begins."""
        head = read_head(file, size=_HEADER_BYTES, max_row_bytes=self._options.max_row_bytes)
        scanner = CsvScanner(delimiter=self._delimiter(file))
        ends = scanner.feed(head.data)
        if len(ends):
            end = int(ends[0])
        elif head.whole and scanner.finish():
            end = len(head.data)
        else:
            why = (
                "has only empty rows"
                if head.whole
                else "is longer than source.max_row_bytes, or has an open quote"
            )
            raise SourceError(f"{file.path}: no header: the file {why}")
        first = self._parse_header(file, head.data[:end])
        given = self._options.header
        if given is True:
            return first, end
        names = [f"f{i}" for i in range(len(first))] if given is False else list(given)
        if len(names) != len(first):
            raise SourceError(
                f"{file.path}: source.header names {len(names)} columns ({', '.join(names)}), but the first"
                f" row has {len(first)}"
            )
        return names, 0

    def _parse_header(self, file: File, row: bytes) -> list[str]:
        try:
            text = row.decode().strip("\r\n")
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{file.path}: the first row is not UTF-8 ({error}); convert the file"
            ) from error
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=self._delimiter(file)))

    def _sample(self, head: Head, width: int, *, max_rows: int) -> tuple[pa.Table, int]:
        """The first rows of a file as strings, without those of a wrong length, and their size in bytes."""
        _, begin = self._names(head.file)
        delimiter = self._delimiter(head.file)
        ends = begin + CsvScanner(delimiter=delimiter).feed(head.data[begin:])
        if head.whole:
            ends = np.append(ends, len(head.data))
        ends = ends[:max_rows]
        data = head.data[begin : ends[-1]] if len(ends) else b""
        strings = pa.schema([(f"{i}", pa.string()) for i in range(width)])
        if not data.strip():
            return strings.empty_table(), 0
        text = data.decode(errors="replace").encode()
        table = _read(text, strings.names, strings, delimiter, max(len(text), _BLOCK_BYTES), skip_bad=True)
        return table, len(data)

    @staticmethod
    def _check_convertible(schema: pa.Schema) -> None:
        for column in schema:
            try:
                _read(b'""\n', [column.name], pa.schema([column]), ",", _BLOCK_BYTES)
            except pa.ArrowInvalid:
                continue  # an empty value is not one of this type; but the type can be read
            except pa.ArrowNotImplementedError as error:
                raise SourceError(
                    f"source.schema: {column.name}: {column.type} cannot be read from CSV"
                ) from error

    def _spans(self, file: File, at: JSON) -> tuple[Spans, bool]:
        """The rows of a unit, and whether the last one has a quote that is not closed."""
        data = read_ordinals(file, at, max_row_bytes=self._options.max_row_bytes)
        begin = 0
        if "bytes" not in at:
            mark = len(BOM) if bytes(data[:3]) == BOM else 0
            begin = mark + self._names(file)[1]
        found, open_quote = _row_ends(data[begin:], delimiter=self._delimiter(file))
        ends = begin + found
        starts = np.concatenate(([begin], ends))[:-1]
        starts, stops = _without_terminators(data, starts, ends)
        ids = at["row"] + np.arange(len(ends))
        spans = Spans(path=file.path, counted="row", data=data, starts=starts, ends=stops, ids=ids)
        return spans, open_quote


def _row_ends(data: memoryview, *, delimiter: str) -> tuple[Ids, bool]:
    """Where rows end, and whether the last one has a quote that is not closed."""
    scanner = CsvScanner(delimiter=delimiter)
    steps = range(0, len(data), _SCANNED_BYTES)
    ends = [at + scanner.feed(bytes(data[at : at + _SCANNED_BYTES])) for at in steps]
    if scanner.finish():
        ends.append(np.array([len(data)]))
    return np.concatenate([*ends, np.zeros(0, np.int64)]), scanner.in_quotes()


def _without_terminators(data: memoryview, starts: Ids, ends: Ids) -> tuple[Ids, Ids]:
    """Rows without their terminators, and without empty rows in front of them."""
    array = np.frombuffer(data, np.uint8)
    begins, stops = starts.copy(), ends.copy()
    if not len(starts):
        return begins, stops
    stops -= array[stops - 1] == LF
    stops -= array[stops - 1] == CR
    for i in np.flatnonzero((array[begins] == LF) | (array[begins] == CR)).tolist():
        row = bytes(data[starts[i] : ends[i]])
        begins[i] += len(row) - len(row.lstrip(b"\r\n"))
    return begins, stops


def _infer(values: pa.ChunkedArray) -> pa.DataType:
    told = values.filter(pc.invert(pc.is_in(values, value_set=pa.array(_NULLS, pa.string()))))
    if not len(told):
        return pa.string()
    for pattern, kind in ((_INT, pa.int64()), (_FLOAT, pa.float64()), (_BOOL, pa.bool_())):
        if pc.all(pc.match_substring_regex(told, pattern)).as_py():
            return kind
    return pa.string()


def _read(
    data: memoryview | bytes,
    names: Sequence[str],
    schema: pa.Schema,
    delimiter: str,
    block_bytes: int,
    *,
    skip_bad: bool = False,
) -> pa.Table:
    from pyarrow import csv as arrow_csv

    table = arrow_csv.read_csv(
        pa.BufferReader(pa.py_buffer(data)),
        arrow_csv.ReadOptions(
            column_names=list(names), block_size=block_bytes, use_threads=len(data) > block_bytes
        ),
        arrow_csv.ParseOptions(
            delimiter=delimiter,
            newlines_in_values=True,
            invalid_row_handler=(lambda _: "skip") if skip_bad else None,
        ),
        arrow_csv.ConvertOptions(
            column_types=schema,
            include_columns=schema.names,
            include_missing_columns=True,
            null_values=list(_NULLS),
            true_values=["true", "True", "TRUE", "1"],
            false_values=["false", "False", "FALSE", "0"],
            check_utf8=False,  # all of the bytes have been checked
        ),
    )
    return table.cast(schema)


class _Fields:
    """Decodes rows of `spans`, whose fields are `names`. `open_quote`: the last one's quote is not closed."""

    def __init__(
        self, spans: Spans, *, names: Sequence[str], schema: pa.Schema, delimiter: str, open_quote: bool
    ) -> None:
        self._spans = spans
        self._names = names
        self._schema = schema
        self._delimiter = delimiter
        self._sound = len(spans) - open_quote  # pyarrow would take the last row as it is

    def batch(self, low: int, high: int) -> pa.Table | None:
        spans = self._spans
        if high > self._sound:
            return None
        longest = int((spans.ends[low:high] - spans.starts[low:high]).max())
        try:
            table = self._read(low, high, self._schema, block_bytes=max(_BLOCK_BYTES, 2 * longest))
        except pa.ArrowInvalid:
            return None
        return table if len(table) == high - low else None

    def _read(self, low: int, high: int, schema: pa.Schema, *, block_bytes: int) -> pa.Table:
        data = self._spans.data[self._spans.starts[low] : self._spans.ends[high - 1]]
        return _read(data, self._names, schema, self._delimiter, block_bytes)

    def one(self, i: int) -> pa.Table | Failure:
        raw = self._spans.row(i)
        if i >= self._sound:
            return failure(self._spans, i, "InvalidCSV", "a quote is not closed", raw=raw)
        block = max(_BLOCK_BYTES, 2 * len(raw))
        strings = pa.schema([(name, pa.string()) for name in dict.fromkeys(self._names)])
        try:
            text = self._read(i, i + 1, strings, block_bytes=block)
        except pa.ArrowInvalid as error:
            width = _WIDTH.search(str(error))
            what = width[0] if width else str(error)  # the row itself follows: it is in `raw`
            return failure(self._spans, i, "InvalidCSV", f"not a row of this file: {what}", raw=raw)
        row = text.to_pylist()[0]
        for column in self._schema:
            try:
                self._read(i, i + 1, pa.schema([column]), block_bytes=block)
            except pa.ArrowInvalid:
                value = shown(row.get(column.name))
                why = f"column '{column.name}' should be {column.type}, but holds {value}"
                return failure(
                    self._spans, i, "SchemaViolation", why, row=json.dumps(row, ensure_ascii=False)
                )
        return failure(self._spans, i, "InvalidCSV", "the row cannot be told from its neighbours", raw=raw)
