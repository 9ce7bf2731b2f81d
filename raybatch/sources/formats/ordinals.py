"""Units of what cannot be split by bytes: CSV, whose quotes hide line ends, and compressed files.

A unit is a range of row ordinals, with the range of (decompressed) bytes that holds them. A small file is one
unit, unread; a larger one is read through once, by a scanner that finds where rows end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from raybatch.sources.base import UnitSpec
from raybatch.sources.file import File
from raybatch.sources.formats.base import Ids, Options, compression_of, for_each, unit
from raybatch.sources.formats.lines import BOM, CR, LF, SPACE, byte_range_units
from raybatch.sources.opening import open_stream

# Text shrinks to a third or an eighth under gzip and zstd; assume the most, so that a unit is rarely larger
# than asked for.
_COMPRESSION_RATIO = 8
_CHUNK_BYTES = 8 << 20
_QUOTE = 34
_NOTED_PASSES = 16  # re-reading a compressed file more often than this deserves a word


class RowScanner(Protocol):
    """Finds row ends in a stream that comes in chunks."""

    def feed(self, chunk: bytes) -> Ids:
        """Where rows that are not blank end (after their terminator), from the start of `chunk`."""

    def finish(self) -> bool:
        """After the last chunk: whether a row without a terminator is left."""


def ordinal_units(
    file: File, scanner: RowScanner, *, options: Options, row_bytes: float, header: bool = False
) -> tuple[list[UnitSpec], list[str]]:
    """Units of `file`, and notes. `row_bytes` estimates a row's decompressed size; a `header` is no row."""
    compressed = compression_of(file.path) is not None
    size = file.size * (_COMPRESSION_RATIO if compressed else 1)
    if size <= options.max_bytes and size <= options.max_rows * row_bytes:
        return [unit(file, {"row": 0}, rows=None, size=size)], []
    units = [
        unit(file, {"row": row, "rows": rows, "bytes": [start, stop]}, rows=rows, size=stop - start)
        for row, rows, start, stop in _cut(file, scanner, options=options, header=header)
    ]
    if not compressed or len(units) <= _NOTED_PASSES:
        return units, []
    note = (
        f"{file.path}: {len(units)} units, each of which decompresses the file up to its place; smaller"
        " files, Parquet, or no compression would avoid that"
    )
    return units, [note]


def line_units(
    files: Sequence[File], *, options: Options, row_bytes: float, blanks: bool
) -> tuple[list[UnitSpec], list[str]]:
    """Units of files of lines: by byte ranges, or where a file is compressed, by ordinals."""

    unit_bytes = min(options.max_bytes, int(options.max_rows * row_bytes))

    def units_of(file: File) -> tuple[list[UnitSpec], list[str]]:
        return ordinal_units(file, LineScanner(blanks=blanks), options=options, row_bytes=row_bytes)

    compressed = [file for file in files if compression_of(file.path) is not None]
    found = iter(for_each(compressed, units_of))  # the others are not read, and there may be a million
    units: list[UnitSpec] = []
    notes: list[str] = []
    for file in files:
        if compression_of(file.path) is None:
            units += byte_range_units(file, unit_bytes=unit_bytes)
        else:
            some, said = next(found)
            units += some
            notes += said
    return units, notes


def _cut(
    file: File, scanner: RowScanner, *, options: Options, header: bool
) -> Iterator[tuple[int, int, int, int]]:
    """(first row, rows, first byte, end) of units of at most max_rows rows, and max_bytes unless one row is
    larger."""
    pending: Ids = np.zeros(0, np.int64)
    row, start, in_header = 0, 0, header
    for ends in _row_ends(file, scanner):
        pending = np.concatenate((pending, ends))
        if in_header and len(pending):
            start, pending, in_header = int(pending[0]), pending[1:], False
        while True:
            by_bytes = int(np.searchsorted(pending, start + options.max_bytes, "right"))
            count = max(1, min(options.max_rows, by_bytes))
            if count >= len(pending):
                break
            stop = int(pending[count - 1])
            yield row, count, start, stop
            row, start, pending = row + count, stop, pending[count:]
    if len(pending):
        yield row, len(pending), start, int(pending[-1])


def _row_ends(file: File, scanner: RowScanner) -> Iterator[Ids]:
    offset = 0
    with open_stream(file, compression=compression_of(file.path)) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            mark = len(BOM) if offset == 0 and chunk.startswith(BOM) else 0
            yield offset + mark + scanner.feed(chunk[mark:])
            offset += len(chunk)
    if scanner.finish():
        yield np.array([offset])


class LineScanner:
    """Rows are lines; without `blanks`, those that hold more than JSON's white space."""

    def __init__(self, *, blanks: bool) -> None:
        self._blanks = blanks
        self._open = False  # the line so far is a row

    def feed(self, chunk: bytes) -> Ids:
        array = np.frombuffer(chunk, np.uint8)
        feeds = np.flatnonzero(array == LF)
        starts = np.concatenate(([0], feeds + 1))
        ends = np.append(feeds, len(array))
        kept = ends > starts
        if self._blanks:
            kept[:-1] = True
        else:
            full = np.flatnonzero(kept)
            for i in full[array[starts[full]] <= SPACE].tolist():
                kept[i] = bool(chunk[starts[i] : ends[i]].strip(b" \t\r"))
        kept[0] |= self._open
        self._open = bool(kept[-1])
        return feeds[kept[:-1]] + 1

    def finish(self) -> bool:
        return self._open


class CsvScanner:
    """Rows as pyarrow's CSV parser sees them: LF, CR and CRLF end a row outside quotes; a quote opens a field
    only at its start, and two inside it stand for one; empty rows are no rows."""

    def __init__(self, *, delimiter: str) -> None:
        self._delimiter = ord(delimiter)
        self._special = re.compile(b'["\r\n' + re.escape(delimiter.encode()) + b"]")
        self._state = "start"  # of a field: start, plain, quoted, closed (just after a closing quote)
        self._length = 0  # bytes of the row so far
        self._returned = False  # the last byte was a CR that may be half of a CRLF

    def feed(self, chunk: bytes) -> Ids:
        # A CR at the very end waits for the next chunk, which tells whether an LF belongs to it.
        data: bytes = (b"\r" if self._returned else b"") + chunk
        shift = len(data) - len(chunk)
        self._returned = data.endswith(b"\r")
        if self._returned:
            data = data[:-1]
        if not data:
            return np.zeros(0, np.int64)
        ends = self._ends(data)
        lengths = np.diff(ends, prepend=-self._length)
        terminators = 1 + self._crlf(data, ends)
        self._length = len(data) - int(ends[-1]) if len(ends) else self._length + len(data)
        kept: Ids = ends[lengths > terminators] - shift
        return kept

    def finish(self) -> bool:
        return self._length > 0

    def in_quotes(self) -> bool:
        """Whether a quote is open. After the last chunk that makes the row that is left no row."""
        return self._state == "quoted"

    @staticmethod
    def _crlf(data: bytes, ends: Ids) -> Ids:
        array = np.frombuffer(data, np.uint8)
        two: Ids = (ends > 1) & (array[ends - 1] == LF) & (array[np.maximum(ends - 2, 0)] == CR)
        return two

    def _ends(self, data: bytes) -> Ids:
        array = np.frombuffer(data, np.uint8)
        feeds = array == LF
        returns = array == CR
        if returns.any():
            returns[:-1] &= ~feeds[1:]
            feeds |= returns
        breaks = np.flatnonzero(feeds)
        quotes = np.flatnonzero(array == _QUOTE)
        quoted = int(self._state == "quoted")
        opening = quotes[quoted::2]
        if not self._opens_fields(array, opening):
            return self._slow_ends(data)
        inside = (np.searchsorted(quotes, breaks) + quoted) % 2
        self._state = self._state_after(int(array[-1]), quoted=(len(quotes) + quoted) % 2 == 1)
        ends: Ids = breaks[inside == 0] + 1
        return ends

    def _opens_fields(self, array: np.ndarray[tuple[int], np.dtype[np.uint8]], opening: Ids) -> bool:
        """Whether each quote that parity calls opening is at a field's start, or the second of two."""
        if len(opening) and opening[0] == 0:
            if self._state == "plain":
                return False
            opening = opening[1:]
        before = array[opening - 1]
        known = (before == self._delimiter) | (before == LF) | (before == CR) | (before == _QUOTE)
        return bool(known.all())

    def _state_after(self, last: int, *, quoted: bool) -> str:
        if quoted:
            return "quoted"
        if last in (self._delimiter, LF, CR):
            return "start"
        return "closed" if last == _QUOTE else "plain"

    def _slow_ends(self, data: bytes) -> Ids:
        """The same, one special byte at a time; for data with a quote in the middle of an unquoted field."""
        ends: list[int] = []
        state, after = self._state, 0  # `after` the last special byte
        for match in self._special.finditer(data):
            at = match.start()
            byte = data[at]
            if at > after and state in ("start", "closed"):
                state = "plain"
            if byte == _QUOTE:
                state = {"start": "quoted", "closed": "quoted", "quoted": "closed", "plain": "plain"}[state]
            elif state != "quoted":
                state = "start"
                if byte == LF or (byte == CR and data[at + 1 : at + 2] != b"\n"):
                    ends.append(at + 1)
            after = at + 1
        if len(data) > after and state in ("start", "closed"):
            state = "plain"
        self._state = state
        return np.array(ends, np.int64)
