"""Text: each line is a row of one string column, blank lines too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from raybatch.sources.base import JSON
from raybatch.sources.file import File
from raybatch.sources.formats.base import Decoded, FormatPlan, Options
from raybatch.sources.formats.decode import Failure, decode
from raybatch.sources.formats.lines import Spans, line_bytes, read_heads, read_lines
from raybatch.sources.formats.ordinals import line_units


class Text:
    """See `raybatch.sources.formats.base.Format`."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def plan(self, files: Sequence[File], *, before: pa.Schema | None) -> FormatPlan:
        heads = read_heads(files, max_row_bytes=self._options.max_row_bytes)
        row_bytes = line_bytes([line for head in heads for line in head.lines()])
        units, notes = line_units(files, options=self._options, row_bytes=row_bytes, blanks=True)
        schema = pa.schema([(self._options.text_column, pa.string())])
        return FormatPlan(schema=schema, units=units, notes=notes, row_bytes=row_bytes)

    def read(self, file: File, at: JSON, *, schema: pa.Schema) -> Decoded:
        limit = self._options.max_row_bytes
        spans = read_lines(file, at, max_row_bytes=limit, blanks=True)
        return decode(spans, _Strings(spans, schema), schema=schema, max_row_bytes=limit)


class _Strings:
    """Every line that is UTF-8 decodes."""

    def __init__(self, spans: Spans, schema: pa.Schema) -> None:
        self._spans = spans
        self._schema = schema

    def batch(self, low: int, high: int) -> pa.Table:
        starts, ends = self._spans.starts[low:high], self._spans.ends[low:high]
        base = starts[0]
        data = np.frombuffer(self._spans.data[base : ends[-1]], np.uint8)
        kept = np.ones(len(data), bool)
        # Between two lines is LF, or CR LF: the first and the last byte of the gap.
        kept[ends[:-1] - base] = False
        kept[starts[1:] - 1 - base] = False
        offsets = np.concatenate(([0], np.cumsum(ends - starts))).astype(np.int32)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data[kept])]
        return pa.table([pa.Array.from_buffers(pa.string(), high - low, buffers)], schema=self._schema)

    def one(self, i: int) -> pa.Table | Failure:
        return self.batch(i, i + 1)
