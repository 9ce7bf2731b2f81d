"""Lines as spans of bytes: cutting them out of a byte range or a stream, and sampling the head of files.

A byte range owns the lines that start in it, as in Hadoop: the reader of [start, stop) skips the line that
began before `start`, and reads the last one to its end beyond `stop`. Any set of ranges that covers a file so
gives each line once. A line ends at a line feed; one carriage return before it belongs to the terminator. A
byte order mark at the start of a file belongs to no line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from raybatch.sources.base import JSON, UnitSpec
from raybatch.sources.file import File
from raybatch.sources.formats.base import Ids, compression_of, for_each, unit
from raybatch.sources.opening import open_stream, read_range

LF, CR, SPACE = 10, 13, 32
BOM = b"\xef\xbb\xbf"
SAMPLE_FILES, SAMPLE_ROWS, SAMPLE_BYTES = 16, 10_000, 8 << 20
_SKIP_BYTES = 4 << 20  # read at a time where bytes are only counted or passed over
_PIECE = 256 << 10
_OVERREAD_BYTES = 64 << 10  # beyond a range's end, so that its last line rarely needs a second read


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Row i is `data[starts[i]:ends[i]]`, without its terminator; `ids[i]` is its `_row`.

    `path` and `counted` ("byte" or "row") say in messages where a row is.
    """

    path: str
    counted: str
    data: memoryview
    starts: Ids
    ends: Ids
    ids: Ids

    def __len__(self) -> int:
        return len(self.starts)

    def place(self, i: int) -> str:
        """Where row i is, for a message."""
        return f"{self.path}, {self.counted} {self.ids[i]}"

    def row(self, i: int) -> bytes:
        """The bytes of row i."""
        return bytes(self.data[self.starts[i] : self.ends[i]])

    def select(self, kept: np.ndarray[Any, Any]) -> Spans:
        """The rows at `kept`, a mask or indices in ascending order."""
        return Spans(
            path=self.path,
            counted=self.counted,
            data=self.data,
            starts=self.starts[kept],
            ends=self.ends[kept],
            ids=self.ids[kept],
        )


def line_spans(data: memoryview) -> tuple[Ids, Ids]:
    """Starts and ends of the lines in `data`, without terminators. What follows the last one is a line."""
    array = np.frombuffer(data, np.uint8)
    # in pieces that stay in the cache: twice as fast as one comparison of 64 MiB
    pieces = [np.flatnonzero(array[i : i + _PIECE] == LF) + i for i in range(0, len(array), _PIECE)]
    feeds = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
    starts = np.concatenate(([0], feeds + 1))
    ends = np.append(feeds, len(array))
    if starts[-1] == len(array):
        starts, ends = starts[:-1], ends[:-1]
    if len(array):
        ends = ends - ((ends > starts) & (array[np.maximum(ends - 1, 0)] == CR))
    return starts, ends


def strip_blanks(data: memoryview, starts: Ids, ends: Ids) -> tuple[Ids, Ids, np.ndarray[Any, Any]]:
    """Trim JSON's white space around each row; also the mask of the rows that are more than that."""
    array = np.frombuffer(data, np.uint8)
    kept = ends > starts
    full = np.flatnonzero(kept)
    trimmed_starts, trimmed_ends = starts.copy(), ends.copy()
    spaced = full[(array[starts[full]] <= SPACE) | (array[ends[full] - 1] <= SPACE)]
    for i in spaced.tolist():
        line = bytes(data[starts[i] : ends[i]])
        right = line.rstrip(b" \t\r\n")
        kept[i] = bool(right)
        trimmed_ends[i] = starts[i] + len(right)
        trimmed_starts[i] = trimmed_ends[i] - len(right.lstrip(b" \t\r\n"))
    return trimmed_starts, trimmed_ends, kept


def read_lines(file: File, at: JSON, *, max_row_bytes: int, blanks: bool) -> Spans:
    """The lines of unit `at`; without `blanks`, those that are not blank, white space trimmed.

    `at` is `{"bytes": [start, stop]}` of an uncompressed file, whose lines are counted by the byte they start
    at, or what `ordinal_units` made, whose lines (blank ones only with `blanks`) are counted from 0.
    The last line may be cut short where it is over `max_row_bytes` anyway.
    """
    by_offset = "row" not in at
    start, stop = at.get("bytes", (0, sys.maxsize))
    base = (
        max(start - 1, 0) if by_offset else start
    )  # a line feed before `start` means that a line starts there
    if by_offset:
        data = _owned(file, base, stop, max_row_bytes=max_row_bytes)
    else:
        data = read_ordinals(file, at, max_row_bytes=max_row_bytes)
    mark = len(BOM) if base == 0 and bytes(data[:3]) == BOM else 0
    starts, ends = line_spans(data[mark:])
    starts, ends = starts + mark, ends + mark
    ids = base + starts
    ids[:1] -= mark
    kept = (ids >= start) & (ids < stop)
    if not blanks:
        starts, ends, full = strip_blanks(data, starts, ends)
        kept &= full
    starts, ends = starts[kept], ends[kept]
    ids = ids[kept] if by_offset else at["row"] + np.arange(len(starts))
    counted = "byte" if by_offset else "row"
    return Spans(path=file.path, counted=counted, data=data, starts=starts, ends=ends, ids=ids)


def _owned(file: File, base: int, stop: int, *, max_row_bytes: int) -> memoryview:
    """The bytes from `base` to the end of the line that byte `stop` - 1 is in, and perhaps some more."""
    data = read_range(file, base, min(stop + _OVERREAD_BYTES, file.size))
    end = stop - base
    if base + len(data) >= file.size or b"\n" in bytes(data[end - 1 :]):
        return data
    tail = bytes(data)
    last = tail.rfind(b"\n", 0, end) + 1
    if base and not last:
        return data  # all inside one line that an earlier range owns
    # + 2: a line feed or carriage return more would still be a row of max_row_bytes
    while b"\n" not in tail[end:] and base + len(tail) < file.size and len(tail) - last <= max_row_bytes + 2:
        more = read_range(file, base + len(tail), min(base + len(tail) + _SKIP_BYTES, file.size))
        if not more:
            break  # the file shrank: its identity is checked after reading
        end, tail = len(tail), tail + bytes(more)
    return memoryview(tail)


def read_ordinals(file: File, at: JSON, *, max_row_bytes: int) -> memoryview:
    """The decompressed bytes of a unit that `ordinal_units` made: all of the file, or `bytes` of it.

    Of a unit that is one row over `max_row_bytes` (an open quote makes one of the rest of a file), the first
    part is enough.
    """
    if "bytes" not in at:
        return _decompressed_range(file, 0, None)
    start, stop = at["bytes"]
    if at["rows"] == 1 and stop - start > max_row_bytes:
        data = _decompressed_range(file, start, min(stop, start + max_row_bytes + _OVERREAD_BYTES))
        if (
            len(bytes(data).lstrip(b" \t\r\n")) > max_row_bytes
        ):  # or else, what is large is blanks before the row
            return data
    return _decompressed_range(file, start, stop)


def _decompressed_range(file: File, start: int, stop: int | None) -> memoryview:
    """Up to the file's end if `stop` is None."""
    compression = compression_of(file.path)
    if compression is None:
        return read_range(file, start, file.size if stop is None else stop)
    with open_stream(file, compression=compression) as stream:
        left = start
        while left:
            skipped = len(stream.read(min(left, _SKIP_BYTES)))
            if not skipped:
                raise pa.ArrowInvalid(f"the stream ends {left} bytes before byte {start}")
            left -= skipped
        return memoryview(stream.read_buffer(None if stop is None else stop - start))


def byte_range_units(file: File, *, unit_bytes: int) -> list[UnitSpec]:
    """Units of about `unit_bytes` each, of equal size."""
    count = -(-file.size // max(unit_bytes, 1))
    bounds = [file.size * i // count for i in range(count + 1)]
    return [
        unit(file, {"bytes": [start, stop]}, rows=None, size=stop - start) for start, stop in pairwise(bounds)
    ]


@dataclass(frozen=True, kw_only=True)
class Head:
    """The first bytes of a file, decompressed, without a byte order mark. `whole`: that is all of it."""

    file: File
    data: bytes
    whole: bool

    def lines(self) -> list[bytes]:
        """The complete lines, blank ones included."""
        data = self.data if self.whole else self.data[: self.data.rfind(b"\n") + 1]
        starts, ends = line_spans(memoryview(data))
        return [data[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def read_heads(files: Sequence[File], *, max_row_bytes: int) -> list[Head]:
    """The heads of at most SAMPLE_FILES of `files`, evenly spread, together about SAMPLE_BYTES."""
    count = min(len(files), SAMPLE_FILES)
    spread = [files[i * len(files) // count] for i in range(count)]
    size = SAMPLE_BYTES // max(count, 1)
    return for_each(spread, lambda file: read_head(file, size=size, max_row_bytes=max_row_bytes))


def read_head(file: File, *, size: int, max_row_bytes: int) -> Head:
    """About `size` bytes of `file`; more if its first line is longer, up to `max_row_bytes`."""
    with open_stream(file, compression=compression_of(file.path)) as stream:
        data = stream.read(size)
        while data and b"\n" not in data and len(data) <= max_row_bytes:
            more = stream.read(_SKIP_BYTES)
            if not more:
                break
            data += more
        whole = not stream.read(1) if compression_of(file.path) else len(data) >= file.size
    return Head(file=file, data=data.removeprefix(BOM), whole=whole)


def line_bytes(lines: Sequence[bytes]) -> float:
    """Bytes per line, its terminator included, on average; 1 at least."""
    return sum(len(line) + 1 for line in lines) / max(1, len(lines)) or 1.0
