"""JSON objects as rows, wherever they come from: their columns inferred from a sample, many decoded at once.

Decoded by pyarrow's reader under the plan's schema. Where that has a choice, ours is: `NaN` and `Infinity`,
which Python's json writes, are floats; of a key that is given twice the last one counts; strings that look
like dates stay strings unless a schema declares otherwise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from raybatch.errors import SourceError
from raybatch.sources.formats.base import Decoded, Options
from raybatch.sources.formats.decode import Failure, decode, failure
from raybatch.sources.formats.json_types import (
    JSON_TEXT,
    EmptyStructError,
    Seen,
    shown,
    unknown_field,
    violation,
)
from raybatch.sources.formats.lines import Spans

_OPEN, _CLOSE = ord("{"), ord("}")
# pyarrow parses blocks in parallel, a few large ones faster than many small ones; each row has to fit in one.
_BLOCK_BYTES, _BLOCKS = 1 << 20, 8


def note_fields(texts: Iterable[bytes], seen: dict[str, Seen]) -> list[bytes]:
    """Add the fields of those of `texts` that are JSON objects to `seen`; gives the others."""
    bad = []
    for text in texts:
        row = _loads(text)
        if not isinstance(row, dict):
            bad.append(text)
            continue
        for key, value in row.items():
            with suppress(RecursionError):
                seen.setdefault(key, Seen()).add(value)
    return bad


def infer_columns(seen: Mapping[str, Seen], options: Options) -> tuple[pa.Schema, list[str]]:
    """The types of the columns to read, declared ones left out, and notes. Raises `SourceError`."""
    notes: list[str] = []
    fields = []
    for name, values in seen.items():
        if name in options.types or (options.columns is not None and name not in options.columns):
            continue
        try:
            fields.append((name, values.resolve(name, notes, column=name)))
        except EmptyStructError as error:
            raise SourceError(
                f"column '{error.args[0]}' holds only empty objects in the sample, so it has no type:"
                f" declare `{name}: json` under source.schema, or select source.columns without it"
            ) from error
    return pa.schema(fields), notes


def check_readable(schema: pa.Schema) -> None:
    """Raise `SourceError` for a declared type that JSON cannot be read as."""
    for column in schema:
        try:
            _read(b"{}", pa.schema([column]), "error", _BLOCK_BYTES)
        except (pa.ArrowNotImplementedError, pa.ArrowTypeError, pa.ArrowInvalid) as error:
            raise SourceError(
                f"source.schema: {column.name}: {column.type} cannot be read from JSON"
            ) from error


def decode_objects(spans: Spans, *, options: Options, schema: pa.Schema) -> Decoded:
    """Each of `spans`, one object each, as a row of `schema` or a failure.

    A field that the schema does not have fails its row, unless `options.columns` says which ones are wanted.
    """
    texts = [name for name in schema.names if options.types.get(name) == JSON_TEXT]
    decoder = _Objects(
        _quote_columns(spans, texts, max_row_bytes=options.max_row_bytes) if texts else spans,
        original=spans,
        schema=schema,
        unexpected="error" if options.columns is None else "ignore",
    )
    return decode(spans, decoder, schema=schema, max_row_bytes=options.max_row_bytes)


def _read(data: memoryview | bytes, schema: pa.Schema, unexpected: str, block_bytes: int) -> pa.Table:
    from pyarrow import json as arrow_json

    # pyarrow's JSON reader takes dates and times from numbers only; its cast takes ISO strings.
    parsed = pa.schema([(f.name, pa.string() if _is_day_or_time(f.type) else f.type) for f in schema])
    options = arrow_json.ParseOptions(explicit_schema=parsed, unexpected_field_behavior=unexpected)
    blocks = arrow_json.ReadOptions(block_size=block_bytes, use_threads=len(data) > block_bytes)
    table = arrow_json.read_json(pa.BufferReader(pa.py_buffer(data)), blocks, options)
    return table.select(schema.names).cast(schema)


def _is_day_or_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_date(kind) or pa.types.is_time(kind))


def _loads(line: bytes) -> object:
    """The value, or a string where it is not JSON."""
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError):
        return ""


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too big for a 64-bit float")
    return value


def _quote_columns(spans: Spans, names: Sequence[str], *, max_row_bytes: int) -> Spans:
    """The same rows with the values of columns `names` replaced by their JSON text. Bad rows stay as is."""
    lines = []
    for i in range(len(spans)):
        small = spans.ends[i] - spans.starts[i] <= max_row_bytes
        line = spans.row(i) if small else b""  # an oversized row is an error before anybody looks into it
        row = _loads(line)
        if isinstance(row, dict):
            with suppress(RecursionError):
                texts = {n: json.dumps(row[n], ensure_ascii=False) for n in names if row.get(n) is not None}
                line = json.dumps(row | texts).encode()
        lines.append(line)
    ends = np.cumsum([len(line) + 1 for line in lines], dtype=np.int64) - 1
    starts = ends - np.array([len(line) for line in lines], np.int64)
    return replace(spans, data=memoryview(b"\n".join(lines)), starts=starts, ends=ends)


class _Objects:
    """Decodes `spans`, whose rows stand for those of `original`."""

    def __init__(self, spans: Spans, *, original: Spans, schema: pa.Schema, unexpected: str) -> None:
        self._spans = spans
        self._original = original
        self._schema = schema
        self._unexpected = unexpected

    def batch(self, low: int, high: int) -> pa.Table | None:
        spans = self._spans
        starts, ends = spans.starts[low:high], spans.ends[low:high]
        bytes_ = np.frombuffer(spans.data, np.uint8)
        # pyarrow does not care about lines. If each begins with { and ends with }, then each line end between
        # them is one between rows (within a row, } is never followed by {), and as many rows as spans is one each.
        if not (ends > starts).all():
            return None
        if not ((bytes_[starts] == _OPEN).all() and (bytes_[ends - 1] == _CLOSE).all()):
            return None
        longest = int((ends - starts).max())
        try:
            table = self._parse(spans.data[starts[0] : ends[-1]], longest=longest)
        except pa.ArrowInvalid:
            return None
        return table if len(table) == high - low else None

    def _parse(self, data: memoryview | bytes, *, longest: int) -> pa.Table:
        block = max(_BLOCK_BYTES, 2 * longest, len(data) // _BLOCKS)
        return _read(data, self._schema, self._unexpected, block)

    def one(self, i: int) -> pa.Table | Failure:
        line = self._spans.row(i)
        raw = self._original.row(i)
        try:
            row = json.loads(line.decode(), parse_float=_float)
            if not isinstance(row, dict):
                return self._failure(i, "InvalidJSON", f"not an object but {shown(row)}", raw=raw)
            # Written anew, a key that was given twice is there once.
            again = json.dumps(row, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            what = error.msg.removesuffix(" at")  # some of Python's messages end so
            why = f"not JSON: {what} at character {error.pos} of the row, near {_near(error)}"
            return self._failure(i, "InvalidJSON", why, raw=raw)
        except UnicodeEncodeError:
            return self._failure(i, "InvalidJSON", "half of a surrogate pair without the other half", raw=raw)
        except (ValueError, RecursionError) as error:
            return self._failure(i, "InvalidJSON", f"not readable as JSON: {error}", raw=raw)
        try:
            return self._parse(again, longest=len(again))
        except pa.ArrowInvalid as error:
            why = self._violation(row) or str(error)
            return self._failure(i, "SchemaViolation", why, row=raw.decode())

    def _violation(self, row: dict[str, Any]) -> str | None:
        for name, value in row.items():
            index = self._schema.get_field_index(name)
            if index < 0:
                if self._unexpected == "error":
                    return unknown_field(name, column=name)
                continue
            why = violation(value, self._schema.field(index).type, name, column=name)
            if why:
                return why
        return None

    def _failure(self, i: int, kind: str, message: str, **kept: Any) -> Failure:
        return failure(self._original, i, kind, message, **kept)


def _near(error: json.JSONDecodeError) -> str:
    return shown(error.doc[max(0, error.pos - 20) : error.pos + 20])
