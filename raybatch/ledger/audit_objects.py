"""How an audit reads: the bytes of a Parquet object once, then the row ids in it, a batch at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import pyarrow as pa

from raybatch.errors import LedgerError
from raybatch.ledger.findings import Findings
from raybatch.ledger.footers import PREFIX, open_parquet, read_footer
from raybatch.ledger.records import DataFile, Part, Plan
from raybatch.ledger.row_ids import Hashes, hash_ids, hash_rows
from raybatch.rows import ID_COLUMNS, ID_SCHEMA
from raybatch.store.base import Store
from raybatch.store.objects import sha256_of, size_of

THREADS = 8
# Read by one request and checked in memory; a larger one is read by ranges, twice. With 8 threads: 256 MiB.
_WHOLE_BYTES = 32 << 20
_BATCH_ROWS = 1 << 17

Groups: TypeAlias = "Sequence[int] | None"  # row groups; None: all


def open_checked(store: Store, named: Part | DataFile, findings: Findings, *, by: str) -> Any | None:
    """A `pyarrow.parquet.ParquetFile` of the object, if its bytes are those recorded; else None, and why is
    among the findings. `by` says who names it."""
    findings.count("I8", "objects", 1)
    findings.count("I4", "objects", 1)
    file: BinaryIO | pa.BufferReader
    try:
        if named.size <= _WHOLE_BYTES:
            data = store.read(named.key)
            digest, size, file = hashlib.sha256(data).hexdigest(), len(data), pa.BufferReader(data)
        else:
            digest, size = sha256_of(store, named.key), size_of(store, named.key)
            file = store.open(named.key)
    except KeyError:
        for invariant in ("I4", "I8"):
            findings.fail(invariant, f"{named.key}, {by}, is missing")
        return None
    if (digest, size) != (named.sha256, named.size):
        file.close()
        findings.fail(
            "I4",
            f"{named.key}, {by}, has {size} bytes with SHA-256 {digest[:12]}…, and not"
            f" {named.size} bytes with {named.sha256[:12]}…",
        )
        return None
    try:
        return _with_ids(open_parquet(file, where=named.key, dictionary=("_source",)), named.key)
    except LedgerError as error:
        findings.fail("I4", str(error))
        return None


def open_again(store: Store, key: str) -> Any:
    """A `pyarrow.parquet.ParquetFile` of an object that was checked. Raises `LedgerError`."""
    try:
        return _with_ids(open_parquet(store.open(key), where=key, dictionary=("_source",)), key)
    except KeyError:
        raise LedgerError(f"{key} is missing") from None


def _with_ids(parquet: Any, key: str) -> Any:
    if not set(ID_COLUMNS) <= set(parquet.schema_arrow.names):
        parquet.close()
        raise LedgerError(f"{key} has no row ids")
    return parquet


def check_footer(
    plan: Plan, key: str, parquet: Any, units: list[list[object]], findings: Findings, *, partition: str = ""
) -> None:
    """I3: the file says of which plan, units and partition it is."""
    said = read_footer(parquet.metadata)
    expected = {
        "plan": plan.plan_id,
        "epoch": str(plan.epoch),
        "units": json.dumps(units),
        "partition": partition or None,
    }
    for name, value in expected.items():
        if said.get(PREFIX + name) != value:
            findings.fail("I3", f"the footer of {key} says {name} {said.get(PREFIX + name)}, not {value}")


def id_batches(parquet: Any, groups: Groups = None) -> Iterator[pa.Table]:
    """The row ids, in order; `_source` by dictionary, which keeps a path of 100 bytes once and not per row."""
    there = list(range(parquet.num_row_groups) if groups is None else groups)
    batches = parquet.iter_batches(batch_size=_BATCH_ROWS, row_groups=there, columns=list(ID_COLUMNS))
    for batch in batches:
        yield pa.Table.from_batches([batch]).select(list(ID_COLUMNS))


def read_ids(parquet: Any, groups: Groups = None) -> pa.Table:
    """All of them at once."""
    return pa.concat_tables(
        [ID_SCHEMA.empty_table(), *(b.cast(ID_SCHEMA) for b in id_batches(parquet, groups))]
    )


class IdDigest:
    """A digest of row ids in their order, however they are cut into batches."""

    def __init__(self) -> None:
        self.rows = 0
        self._digest = hashlib.blake2b(digest_size=16)

    def update(self, ids: pa.Table) -> None:
        self.rows += len(ids)
        self._digest.update(hash_ids(ids).tobytes())

    def value(self) -> bytes:
        return self._digest.digest()


def digest_ids(parquet: Any, groups: Groups = None) -> tuple[bytes, list[Hashes]]:
    """The digest of the ids, and the hash of each one's input row."""
    digest, hashes = IdDigest(), []
    for ids in id_batches(parquet, groups):
        digest.update(ids)
        hashes.append(hash_rows(ids))
    return digest.value(), hashes


def joined(hashes: Sequence[Hashes]) -> Hashes:
    """All of them in one array."""
    return np.concatenate([np.empty(0, dtype=np.uint64), *hashes])
