"""The part of an audit that looks at one published unit: its record, and the parts that the record names.

Units are checked many at a time, each with findings of its own. What is kept of a unit is small: an epoch may
have a million.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raybatch.errors import LedgerError
from raybatch.ledger import keys
from raybatch.ledger.audit_objects import (
    Groups,
    check_footer,
    digest_ids,
    id_batches,
    joined,
    open_again,
    open_checked,
    read_ids,
)
from raybatch.ledger.audit_retry import check_retried
from raybatch.ledger.findings import Findings
from raybatch.ledger.records import PART_KINDS, Commit, Counts, Plan, Retry, UnitRecord
from raybatch.ledger.retries import Choice
from raybatch.ledger.row_ids import Hashes, first_twice, hash_rows, input_rows
from raybatch.rows import ID_SCHEMA
from raybatch.store.base import Store


@dataclass(frozen=True, slots=True)
class Piece:
    """What a unit gives to one file: how many rows, and the digest of their ids (empty if they are damaged)."""

    rows: int
    ids: bytes


@dataclass(frozen=True, slots=True)
class Published:
    """What the audit of an epoch's files needs to know of a unit. `pieces` by kind and by partition, whose path
    is empty where there are none; `sha256` of the parts that have one piece only, by kind."""

    attempt: str
    pieces: Mapping[tuple[str, str], Piece]
    sha256: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of checking a unit. `unit` is None, and so is the rest, where its record is none of the plan's.

    `input_rows` are the hashes of its input rows, each once; None where they cannot be had.
    """

    findings: Findings
    unit: int | None = None
    published: Published | None = None
    counts: Counts | None = None
    input_rows: Hashes | None = None


@dataclass(frozen=True, kw_only=True)
class UnitAudit:
    """Checks I3, I4, I5, I6 and I8 of single units of `plan`. Safe to call from many threads."""

    store: Store
    plan: Plan
    commit: Commit | None

    def check(self, key: str) -> Outcome:
        """Check the unit whose record is `key`."""
        findings = Findings()
        record = self.read(key, findings)
        if record is None:
            return Outcome(findings=findings)
        self._check_committed(record, findings)
        self._check_counts(record, findings)
        pieces: dict[tuple[str, str], Piece] = {}
        hashes: list[Hashes] | None = []
        for kind in PART_KINDS:
            if kind in record.parts:
                found = self._check_part(record, kind, pieces, findings)
                hashes = hashes + found if hashes is not None and found is not None else None
        rows = self._check_ids(record, joined(hashes), findings) if hashes is not None else None
        whole = {k: part for k, part in record.parts.items() if k != "ok" or len(record.partitions) < 2}
        published = Published(record.attempt, pieces, {k: part.sha256.encode() for k, part in whole.items()})
        return Outcome(findings, record.unit, published, record.counts, rows)

    def read(self, key: str, findings: Findings) -> UnitRecord | None:
        """The record that is `key`, if it is one of the plan's."""
        unit = keys.unit_of(key)
        if unit is None or unit >= len(self.plan.units):
            findings.fail("I3", f"{key} is no unit of the plan of epoch {self.plan.epoch}")
            return None
        try:
            record = UnitRecord.from_json(self.store.read(key), where=key)
        except LedgerError as error:
            findings.fail("I3", str(error))
            return None
        said = (record.epoch, record.unit, record.plan_id)
        if said != (self.plan.epoch, unit, self.plan.plan_id):
            findings.fail("I3", f"{key} says that it is unit {said[1]} of epoch {said[0]}, plan {said[2]}")
            return None
        findings.count("I3", "units", 1)
        return record

    def rows_among(self, record: UnitRecord, wanted: Hashes) -> Iterator[dict[str, Any]]:
        """The ids of the unit whose input row's hash is among `wanted`. Parts that cannot be read have none."""
        for part in record.parts.values():
            try:
                with open_again(self.store, part.key) as parquet:
                    for ids in id_batches(parquet):
                        found = ids.filter(pa.array(np.isin(hash_rows(ids), wanted)))
                        yield from found.to_pylist()
            except LedgerError:
                continue  # told where the part is checked

    def piece_ids(self, record: UnitRecord, kind: str, partition: str) -> pa.Table:
        """The ids of what a unit gives to a file. Raises `LedgerError`."""
        with open_again(self.store, record.parts[kind].key) as parquet:
            return read_ids(parquet, record.row_groups.get(partition) if kind == "ok" else None)

    def name(self, unit: int) -> str:
        return f"unit {unit} of epoch {self.plan.epoch}"

    def _check_committed(self, record: UnitRecord, findings: Findings) -> None:
        if self.commit is None or record.unit >= len(self.commit.units):
            return
        said = self.commit.units[record.unit]
        if (record.attempt, record.checksum) != (said.attempt, said.checksum):
            findings.fail(
                "I4",
                f"the commit of epoch {self.plan.epoch} names attempt {said.attempt} of unit {record.unit}, and"
                f" another record stands, of attempt {record.attempt}",
            )

    def _check_counts(self, record: UnitRecord, findings: Findings) -> None:
        counts, name = record.counts, self.name(record.unit)
        held = {kind: record.parts[kind].rows if kind in record.parts else 0 for kind in PART_KINDS}
        findings.count("I5", "rows", counts.rows_in)
        if not counts.balanced:
            findings.fail("I5", f"{name} does not add up: {counts}")
        if held != {"ok": counts.ok, "errors": counts.error, "dropped": counts.dropped}:
            findings.fail("I5", f"{name} counts {counts}, and its parts hold {held}")
        if sum(record.error_types.values()) != counts.error:
            findings.fail("I5", f"{name} counts {counts.error} errors, and by type {record.error_types}")
        apart = sum(one.rows for one in record.partitions)
        if apart != (counts.ok if self.plan.layout.partition_by else 0):
            findings.fail("I5", f"{name} counts {counts.ok} ok rows, and {apart} of them by partition")
        planned = self.plan.units.rows[record.unit]
        if planned is not None and planned != counts.rows_in:
            findings.fail("I5", f"{name} was planned with {planned} rows, and accounts for {counts.rows_in}")

    def _check_part(
        self, record: UnitRecord, kind: str, pieces: dict[tuple[str, str], Piece], findings: Findings
    ) -> list[Hashes] | None:
        """Adds the part's pieces, and gives the hash of each id's input row; None where they cannot be had."""
        part, name = record.parts[kind], self.name(record.unit)
        apart = _groups(record, kind)
        rows = {one.path: one.rows for one in record.partitions} if kind == "ok" else {}
        for path in apart:
            pieces[kind, path] = Piece(rows.get(path, part.rows), b"")
        parquet = open_checked(self.store, part, findings, by=f"named by {name}")
        if parquet is None:
            return None
        hashes: list[Hashes] = []
        with parquet:
            check_footer(self.plan, part.key, parquet, [[record.unit, record.attempt]], findings)
            if parquet.metadata.num_rows != part.rows:
                findings.fail(
                    "I5", f"{part.key} holds {parquet.metadata.num_rows} rows, and {name} records {part.rows}"
                )
            try:
                for path, groups in apart.items():
                    ids, found = digest_ids(parquet, groups)
                    pieces[kind, path] = Piece(sum(map(len, found)), ids)
                    hashes += found
            except (pa.ArrowException, OSError, IndexError) as error:
                findings.fail("I4", f"{part.key} is not a readable Parquet file: {error}")
                return None
        return hashes

    def _check_ids(self, record: UnitRecord, hashes: Hashes, findings: Findings) -> Hashes | None:
        """The unit's input rows, each once; None for a retry, whose rows are no new input."""
        name = self.name(record.unit)
        findings.count("I6", "rows", len(hashes))
        if self.plan.retry is not None:
            self._check_retried(self.plan.retry, record, findings)
            return None
        hashes.sort()
        rows, count = hashes, len(hashes)
        if np.any(
            hashes[1:] == hashes[:-1]
        ):  # rows that were made from one row; or a row that is there twice
            try:
                ids = self._all_ids(record)
            except LedgerError as error:
                findings.fail("I4", str(error))
                return hashes
            twice, of_input = first_twice(ids), input_rows(ids)
            if twice is not None:
                findings.fail("I6", f"{twice} is more than once in {name}")
            rows, count = hash_rows(of_input), len(of_input)
        if count != record.counts.rows_in:
            findings.fail(
                "I6", f"{name} took {record.counts.rows_in} rows in, and has ids of {count} input rows"
            )
        return rows

    def _check_retried(self, retry: Retry, record: UnitRecord, findings: Findings) -> None:
        range_, choice = self.plan.units[record.unit].range, Choice.of(retry).to_json()
        name = self.name(record.unit)
        try:
            ids = self._all_ids(record)
            check_retried(self.store, range_, choice, ids, name=name, findings=findings)
        except LedgerError as error:
            findings.fail("I4", str(error))

    def _all_ids(self, record: UnitRecord) -> pa.Table:
        found = [ID_SCHEMA.empty_table()]
        for part in record.parts.values():
            with open_again(self.store, part.key) as parquet:
                found.append(read_ids(parquet))
        return pa.concat_tables(found)


def _groups(record: UnitRecord, kind: str) -> Mapping[str, Groups]:
    """The row groups of a part by partition."""
    apart: Mapping[str, Groups] = record.row_groups if kind == "ok" else {}
    return apart or {"": None}
