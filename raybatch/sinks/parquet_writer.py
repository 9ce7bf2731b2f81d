"""How rows become Parquet: codec, encodings per column, row groups of a size that readers want."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """A row group ends at whichever limit comes first. `row_group_bytes` is uncompressed, and approximate:
    rows of a table are taken to be of one size."""

    compression: str
    compression_level: int | None
    row_group_rows: int
    row_group_bytes: int


class RowGroupWriter:
    """Writes tables of one schema into one Parquet object in memory.

    Tables that are too small for a row group are gathered, those that are too large are cut. Holds one row
    group uncompressed and the object compressed, which for a merge is about a target file's size.
    """

    def __init__(
        self, schema: pa.Schema, *, options: WriteOptions, metadata: Mapping[str, str] | None = None
    ) -> None:
        import pyarrow.parquet as pq

        self._options = options
        self._schema = schema
        self._held: list[pa.Table] = []
        self._held_rows = 0
        self._held_bytes = 0
        self._row_groups = 0
        self._ends: list[int] = []  # the row groups before each end of a partition
        self._metadata: list[Any] = []  # pyarrow's FileMetaData, once it is closed
        self._sink = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(
            self._sink,
            schema.with_metadata(dict(metadata or {})),
            compression=options.compression,
            compression_level=options.compression_level,
            metadata_collector=self._metadata,
            **_encodings(schema),
        )

    def write(self, table: pa.Table) -> None:
        """Add rows, of the writer's schema."""
        rows = self._rows_per_group(table)
        for start in range(0, len(table), rows):
            piece = table.slice(start, rows)
            full = self._held_rows + len(piece) > self._options.row_group_rows
            if full or self._held_bytes + piece.nbytes > self._options.row_group_bytes:
                self._flush()
            self._held.append(piece)
            self._held_rows += len(piece)
            self._held_bytes += piece.nbytes

    def end_partition(self) -> None:
        """Rows that come from now on are in another row group than those before."""
        self._flush()
        self._ends.append(self._row_groups)

    def close(self, *, metadata: Mapping[str, str] | None = None) -> pa.Buffer:
        """The finished object. `metadata` goes into its footer beside what is there already."""
        self._flush()
        if metadata:
            self._writer.add_key_value_metadata(dict(metadata))
        self._writer.close()
        return self._sink.getvalue()

    def partition_sizes(self) -> list[tuple[int, int]]:
        """Compressed bytes and number of the row groups of each partition that was ended. Once it is closed."""
        groups = [self._metadata[0].row_group(i) for i in range(self._row_groups)]
        sizes = [sum(g.column(i).total_compressed_size for i in range(g.num_columns)) for g in groups]
        return [(sum(sizes[a:b]), b - a) for a, b in pairwise([0, *self._ends])]

    def _flush(self) -> None:
        if self._held_rows:
            self._row_groups += 1
            self._writer.write_table(pa.concat_tables(self._held), row_group_size=self._held_rows)
        self._held, self._held_rows, self._held_bytes = [], 0, 0

    def _rows_per_group(self, table: pa.Table) -> int:
        if not len(table):
            return 1
        by_bytes: int = self._options.row_group_bytes * len(table) // max(1, table.nbytes)
        return max(1, min(self._options.row_group_rows, by_bytes))


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    """Per-column arguments of `pyarrow.parquet.ParquetWriter`, for three kinds of columns; see below.

    Vectors (fixed-size lists of floats), 30,000 MiniLM embeddings of 384, zstd level 1, on one machine:

        float32, dictionary (the default)   43.9 MB   write 243 MB/s   read 414 MB/s
        float32, plain                      42.7 MB         335              509
        float32, BYTE_STREAM_SPLIT          38.9 MB         315              625      <- chosen
        float16, dictionary (the default)   21.7 MB          67              125
        float16, plain                      21.2 MB         101              341      <- chosen
        float16, BYTE_STREAM_SPLIT          19.6 MB         106              365      DuckDB 1.5 refuses it

    (zstd level 3 makes split float32 no smaller and a quarter slower to write.) Minima and maxima of vectors'
    elements prune nothing, so they have none.

    Row ids, 500,000 of them: `_source` repeats and stays in a dictionary; `_row` mostly counts upwards, so
    DELTA_BINARY_PACKED brings all three id columns from 1.44 MB to 0.02 MB (shuffled rows: 2.83 to 1.45 MB)
    and doubles the speed of writing.
    """
    plain: dict[str, str] = {"_row": "DELTA_BINARY_PACKED"} if "_row" in schema.names else {}
    dictionary, vectors = [], []
    for field in schema:
        for path, kind, vector in _leaves(field.type, field.name):
            if vector:
                vectors.append(path)
                plain[path] = "PLAIN" if pa.types.is_float16(kind) else "BYTE_STREAM_SPLIT"
            elif path not in plain:
                dictionary.append(path)
    return {
        "use_dictionary": dictionary,
        "column_encoding": plain,
        "write_statistics": [*dictionary, *(path for path in plain if path not in vectors)],
    }


def _leaves(kind: pa.DataType, path: str) -> Iterator[tuple[str, pa.DataType, bool]]:
    """Parquet's leaf columns of a field: path, type, and whether it is the element of a vector."""
    if isinstance(kind, pa.BaseExtensionType):
        yield from _leaves(kind.storage_type, path)
    elif pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(field.type, f"{path}.{field.name}")
    elif pa.types.is_map(kind):
        yield from _leaves(kind.key_type, f"{path}.key_value.key")
        yield from _leaves(kind.item_type, f"{path}.key_value.value")
    elif pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type):
        yield f"{path}.list.element", kind.value_type, True
    elif pa.types.is_nested(kind):
        yield from _leaves(kind.value_type, f"{path}.list.element")
    else:
        yield path, kind, False
