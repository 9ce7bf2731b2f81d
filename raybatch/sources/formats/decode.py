"""Decode a unit's rows all at once, and where that fails, find the rows that do not decode.

The fast way and the slow way must agree on which rows are good. So there is one decoder, pyarrow's, and what
fails as a batch is tried again in smaller batches, down to single rows; only the words for a failure come
from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from raybatch.sources.formats.base import RAW_BYTES, Decoded
from raybatch.sources.formats.lines import Spans

# A failed batch is cut in this many. One bad row among n costs about one more pass and log(n) small ones.
_FAN_OUT = 16

Failure = Mapping[str, Any]


class Decoder(Protocol):
    """Decodes rows of one `Spans`. What is asked for is valid UTF-8 and within the size limit."""

    def batch(self, low: int, high: int) -> pa.Table | None:
        """Rows low .. high - 1, one each, in order; None if any of them does not decode."""

    def one(self, i: int) -> pa.Table | Failure:
        """Row i by itself, which `batch` could not decode: a table of one row, or what `failure` gives."""


def failure(
    spans: Spans, i: int, kind: str, message: str, *, row: str | None = None, raw: bytes | None = None
) -> Failure:
    """Why row i is an error row of type `kind`. `raw` is cut at RAW_BYTES."""
    return failure_at(spans.place(i), int(spans.ids[i]), kind, message, row=row, raw=raw)


def failure_at(
    place: str, row_id: int, kind: str, message: str, *, row: str | None = None, raw: bytes | None = None
) -> Failure:
    """As `failure`, of the row `row_id`, whose place is called so in the message."""
    return {
        "_row": row_id,
        "type": kind,
        "message": f"{place}: {message}",
        "row": row,
        "raw": None if raw is None else raw[:RAW_BYTES],
    }


def too_large(place: str, row_id: int, raw: bytes, *, max_row_bytes: int) -> Failure:
    """The failure of a row that is over the limit; `raw` is the start of it, RAW_BYTES at least."""
    why = f"the row is over {max_row_bytes} bytes long; source.max_row_bytes sets that limit"
    return failure_at(place, row_id, "RowTooLarge", why, raw=raw)


def decode(spans: Spans, decoder: Decoder, *, schema: pa.Schema, max_row_bytes: int) -> Decoded:
    """All rows of `spans`: those that decode as a table of `schema`, the others as failures."""
    tables: list[pa.Table] = []
    good: list[np.ndarray[Any, Any]] = []
    failures: list[Failure] = []
    todo = [(0, len(spans))]
    while todo:
        low, high = todo.pop()
        if low == high:
            continue
        table = decoder.batch(low, high) if _sound(spans, low, high, max_row_bytes) else None
        if table is None and high - low == 1:
            table = _one(spans, low, decoder, max_row_bytes)
            if not isinstance(table, pa.Table):
                failures.append(table)
                continue
        if table is None:
            count = min(_FAN_OUT, high - low)
            bounds = [low + (high - low) * k // count for k in range(count + 1)]
            todo.extend(reversed(list(pairwise(bounds))))
            continue
        tables.append(table)
        good.append(spans.ids[low:high])
    whole = (
        pa.concat_tables(tables).combine_chunks()
        if len(tables) > 1
        else (tables or [schema.empty_table()])[0]
    )
    return Decoded(table=whole, ids=np.concatenate([*good, np.zeros(0, np.int64)]), failures=failures)


def _one(spans: Spans, i: int, decoder: Decoder, max_row_bytes: int) -> pa.Table | Failure:
    size = int(spans.ends[i] - spans.starts[i])
    if size > max_row_bytes:
        raw = bytes(spans.data[spans.starts[i] : spans.starts[i] + RAW_BYTES])
        return too_large(spans.place(i), int(spans.ids[i]), raw, max_row_bytes=max_row_bytes)
    row = spans.row(i)
    try:
        row.decode()
    except UnicodeDecodeError as error:
        why = f"byte {error.start} of the row, {row[error.start]:#04x}, is not UTF-8"
        return failure(spans, i, "InvalidUTF8", why, raw=row)
    return decoder.one(i)


def _sound(spans: Spans, low: int, high: int, max_row_bytes: int) -> bool:
    """Whether each row is within the limit, and all of them are UTF-8."""
    if int((spans.ends[low:high] - spans.starts[low:high]).max()) > max_row_bytes:
        return False
    return is_utf8(spans.data[spans.starts[low] : spans.ends[high - 1]])


def is_utf8(data: memoryview) -> bool:
    """Whether `data` is valid UTF-8, without making a str of it."""
    offsets = pa.py_buffer(np.array([0, len(data)], np.int64))
    array = pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, pa.py_buffer(data)])
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
