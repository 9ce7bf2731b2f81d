"""Row ids, many of them, in bounded memory: are they unique, and are two files' ids the same?"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybatch.rows import ID_COLUMNS, ID_SCHEMA

Hashes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint64]]"

_PARTITIONS = 64
_SORTED_TOGETHER = 1 << 20
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def input_rows(ids: pa.Table) -> pa.Table:
    """The input rows (`_source`, `_row`) behind a unit's ids, each once, with `ids`: how many ids it has, and
    `children`: how many of those name a child."""
    counted = ids.group_by(["_source", "_row"]).aggregate([([], "count_all"), ("_child", "count")])
    return counted.rename_columns({"count_all": "ids", "_child_count": "children"})


def first_twice(ids: pa.Table) -> str | None:
    """An id that `ids` has more than once, or that stands beside its own children; None if there is none."""
    counted = ids.group_by(list(ID_COLUMNS)).aggregate([([], "count_all")])
    twice = counted.filter(pc.field("count_all") > 1)
    if len(twice):
        return spell(twice.slice(0, 1).to_pylist()[0])
    rows = input_rows(ids)
    beside = rows.filter((pc.field("ids") > 1) & (pc.field("children") < pc.field("ids")))
    return spell(beside.slice(0, 1).to_pylist()[0]) if len(beside) else None


def spell(row: dict[str, Any]) -> str:
    """An id as a person reads it."""
    child = row.get("_child")
    return f"{row['_source']} row {row['_row']}" + (f" child {child}" if child is not None else "")


def hash_rows(rows: pa.Table) -> Hashes:
    """A 64-bit hash of each (`_source`, `_row`). Two rows of one source never share one."""
    return _mixed(_hash_texts(rows["_source"]) + rows["_row"].to_numpy().astype(np.uint64) * _GOLDEN)


def hash_ids(ids: pa.Table) -> Hashes:
    """A 64-bit hash of each whole id."""
    rows, children = hash_rows(ids), ids["_child"]
    return _mixed(rows if children.null_count == len(children) else rows ^ _hash_texts(children))


def _hash_texts(texts: pa.ChunkedArray) -> Hashes:
    """Of null it is 0."""
    coded = texts.combine_chunks()
    if not pa.types.is_dictionary(coded.type):
        coded = coded.dictionary_encode()
    digests = [
        hashlib.blake2b(text.encode(), digest_size=8).digest() for text in coded.dictionary.to_pylist()
    ]
    of_text = np.frombuffer(b"".join([*digests, bytes(8)]), dtype="<u8").astype(np.uint64)
    places = coded.indices.fill_null(len(digests)).to_numpy(zero_copy_only=False)
    hashes: Hashes = of_text[places]
    return hashes


def _mixed(x: Hashes) -> Hashes:
    """splitmix64's finaliser: a bijection, so what differs still differs, in all bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = x ^ (x >> np.uint64(31))
    return mixed


class HashSpool:
    """Collects hashes and tells which came twice. Keeps at most `memory_hashes` (8 bytes each) in memory, the
    others in temporary files; needs a 64th of all of them at a time to answer. A context manager."""

    def __init__(self, *, memory_hashes: int = 32_000_000) -> None:
        self._limit = memory_hashes
        self._folder = tempfile.TemporaryDirectory(prefix="raybatch-audit-")
        self._new: list[Hashes] = []
        self._new_count = 0
        self._held: list[list[Hashes]] = [[] for _ in range(_PARTITIONS)]
        self._count = 0

    def __enter__(self) -> HashSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def add(self, hashes: Hashes) -> None:
        """Add hashes, in any order. Keeps the array."""
        self._new.append(hashes)
        self._new_count += len(hashes)
        # Not one by one: 64 arrays of a unit's few rows each would weigh more than the hashes in them
        if self._new_count >= min(_SORTED_TOGETHER, self._limit):
            self._sort_in()

    def _sort_in(self) -> None:
        ordered = np.sort(np.concatenate([np.empty(0, dtype=np.uint64), *self._new]))
        # uint64 // 2**58 is the top six bits: which of the 64 partitions
        edges = np.searchsorted(ordered, np.arange(1, _PARTITIONS, dtype=np.uint64) << np.uint64(58))
        for held, piece in zip(self._held, np.split(ordered, edges), strict=True):
            if len(piece):
                held.append(piece)
        self._count += self._new_count
        self._new, self._new_count = [], 0
        if self._count > self._limit:
            self._spill()

    def twice(self) -> Iterator[Hashes]:
        """The hashes that were added more than once, by partition, sorted."""
        self._sort_in()
        for number, held in enumerate(self._held):
            pieces = [*held]
            if os.path.exists(self._path(number)):
                pieces.append(np.fromfile(self._path(number), dtype=np.uint64))
            if pieces:
                every = np.sort(np.concatenate(pieces))
                yield np.unique(every[1:][every[1:] == every[:-1]])

    def _spill(self) -> None:
        for number, held in enumerate(self._held):
            with open(self._path(number), "ab") as file:
                for piece in held:
                    piece.tofile(file)
            held.clear()
        self._count = 0

    def _path(self, number: int) -> str:
        return os.path.join(self._folder.name, f"{number:02d}")


class IdReader:
    """The ids of one Parquet file, in order, a few at a time."""

    def __init__(self, parquet: Any) -> None:
        self._batches = parquet.iter_batches(columns=list(ID_COLUMNS))
        self._held = ID_SCHEMA.empty_table()

    def take(self, count: int) -> pa.Table:
        """The next `count` ids; fewer at the end of the file."""
        while len(self._held) < count and self._read_on():
            continue
        taken, self._held = self._held.slice(0, count), self._held.slice(count)
        return taken

    def skip(self, count: int) -> None:
        """As `take`, and forget them."""
        left = count
        while left > len(self._held):
            left -= len(self._held)
            self._held = ID_SCHEMA.empty_table()
            if not self._read_on():
                return
        self._held = self._held.slice(left)

    def _read_on(self) -> bool:
        batch = next(self._batches, None)
        if batch is None:
            return False
        more = pa.Table.from_batches([batch]).select(list(ID_COLUMNS)).cast(ID_SCHEMA)
        self._held = pa.concat_tables([self._held, more])
        return True


def first_difference(expected: pa.Table, found: pa.Table) -> str | None:
    """How `found` differs from `expected`, both ids in order; None if it does not."""
    if expected.equals(found.cast(expected.schema)):
        return None
    for place, (a, b) in enumerate(zip(expected.to_pylist(), found.to_pylist(), strict=False)):
        if a != b:
            return f"has {spell(b)} where {spell(a)} belongs, at row {place} of the unit"
    longer, what = (
        (expected, "lacks") if len(expected) > len(found) else (found, "has, beyond the unit's rows,")
    )
    return f"{what} {spell(longer.slice(min(len(expected), len(found)), 1).to_pylist()[0])}"
