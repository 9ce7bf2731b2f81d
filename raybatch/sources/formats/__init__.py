"""The file formats that the files source reads."""

from __future__ import annotations

from raybatch.sources.formats.base import Format, FormatName, Options


def make_format(name: FormatName, options: Options) -> Format:
    """The reader of `name`. Imports only that one: pyarrow's csv, json and parquet each take time to load."""
    if name == "jsonl":
        from raybatch.sources.formats.jsonl import JsonLines

        return JsonLines(options)
    if name == "parquet":
        from raybatch.sources.formats.parquet import Parquet

        return Parquet(options)
    if name == "csv":
        from raybatch.sources.formats.csv import Csv

        return Csv(options)
    from raybatch.sources.formats.text import Text

    return Text(options)
