"""JSON lines: one object per line."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from raybatch.errors import SourceError
from raybatch.sources.base import JSON
from raybatch.sources.file import File
from raybatch.sources.formats.base import Decoded, FormatPlan, Options, choose_columns
from raybatch.sources.formats.json_objects import check_readable, decode_objects, infer_columns, note_fields
from raybatch.sources.formats.json_types import Seen, shown
from raybatch.sources.formats.lines import SAMPLE_ROWS, line_bytes, read_heads, read_lines
from raybatch.sources.formats.ordinals import line_units


class JsonLines:
    """See `raybatch.sources.formats.base.Format`."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def plan(self, files: Sequence[File], *, before: pa.Schema | None) -> FormatPlan:
        heads = read_heads(files, max_row_bytes=self._options.max_row_bytes)
        sampled = [(head.file.path, [line for line in head.lines() if line.strip()]) for head in heads]
        lines = [line for _, some in sampled for line in some]
        if not lines and len(heads) == len(files) and all(head.whole for head in heads):
            return FormatPlan()  # nothing but blank lines
        seen = self._sample(sampled)
        found, notes = infer_columns(seen, self._options)
        rare = ". If only rows that were not sampled have it, declare its type under source.schema"
        schema = choose_columns(found, self._options, before=before, available=list(seen), hint=rare)
        check_readable(schema)
        row_bytes = line_bytes(lines)
        units, more = line_units(files, options=self._options, row_bytes=row_bytes, blanks=False)
        return FormatPlan(schema=schema, units=units, notes=[*notes, *more], row_bytes=row_bytes)

    def _sample(self, sampled: Sequence[tuple[str, Sequence[bytes]]]) -> dict[str, Seen]:
        """The values of each field in the sampled lines of some files."""
        share = max(1, SAMPLE_ROWS // max(1, len(sampled)))
        seen: dict[str, Seen] = {}
        taken, bad = 0, []
        for path, lines in sampled:
            some = lines[:share]
            taken += len(some)
            bad += [
                f"{path}: {shown(line[:80].decode(errors='replace'))}" for line in note_fields(some, seen)
            ]
        if bad and len(bad) == taken:
            raise SourceError(
                f"none of {len(bad)} sampled lines is a JSON object, as jsonl needs one per line; first in"
                f" {bad[0]}. A file that is one JSON array can be rewritten by `jq -c '.[]'`"
            )
        return seen

    def read(self, file: File, at: JSON, *, schema: pa.Schema) -> Decoded:
        spans = read_lines(file, at, max_row_bytes=self._options.max_row_bytes, blanks=False)
        return decode_objects(spans, options=self._options, schema=schema)
