"""The part of an audit that looks into one epoch: its unit records, their parts, its files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from raybatch.errors import LedgerError
from raybatch.ledger import keys
from raybatch.ledger.footers import PREFIX, open_parquet, read_footer
from raybatch.ledger.records import PART_KINDS, Commit, Counts, DataFile, Part, Plan, UnitRecord
from raybatch.ledger.row_ids import (
    HashSpool,
    IdReader,
    first_difference,
    first_twice,
    hash_rows,
    input_rows,
)
from raybatch.rows import ID_COLUMNS, ID_SCHEMA
from raybatch.store.base import Store
from raybatch.store.objects import sha256_of, size_of


class Findings:
    """What an audit has looked at and found so far. Keeps the first violation of each invariant."""

    def __init__(self) -> None:
        self.failed: dict[str, list[str]] = {}
        self.violations: Counter[str] = Counter()
        self.notes: list[str] = []
        self._counted: dict[str, Counter[str]] = {}

    def fail(self, invariant: str, what: str) -> None:
        self.failed.setdefault(invariant, [what])
        self.violations[invariant] += 1

    def note(self, what: str) -> None:
        self.notes.append(what)

    def count(self, invariant: str, things: str, number: int) -> None:
        self._counted.setdefault(invariant, Counter())[things] += number

    def checked(self, invariant: str) -> str:
        """Such as "3 plans, 2 commits"."""
        counted = self._counted.get(invariant, Counter()).items()
        return ", ".join(f"{n:,} {things if n != 1 else things[:-1]}" for things, n in counted)


class EpochAudit:
    """Checks I3 to I6 and I8 within an epoch; `commit` is None while it is open."""

    def __init__(self, store: Store, findings: Findings, plan: Plan, commit: Commit | None) -> None:
        self.store = store
        self.findings = findings
        self.plan = plan
        self.commit = commit
        self.records: dict[int, UnitRecord] = {}

    def run(self, spool: HashSpool) -> None:
        """Check everything; add the hashes of committed input rows to `spool`."""
        self._read_records()
        for record in self.records.values():
            self._check_counts(record)
            ids = self._check_parts(record)
            if ids is not None:
                rows = self._check_ids(record, ids)
                if self.commit is not None:
                    spool.add(hash_rows(rows))
        if self.commit is None:
            self.findings.note(
                f"epoch {self.plan.epoch} is open: {len(self.records)} of {len(self.plan.units)} units are"
                " published, none is committed"
            )
        else:
            self._check_commit(self.commit)
        self._note_garbage()

    def unit_ids(self) -> Iterator[tuple[str, pa.Table]]:
        """The ids of each published unit, with the unit's name; checks as it goes."""
        self._read_records()
        for record in self.records.values():
            ids = self._check_parts(record)
            if ids is not None:
                yield self._name(record.unit), ids

    def _read_records(self) -> None:
        for entry in self.store.list(keys.units_prefix(self.plan.epoch)):
            unit = keys.unit_of(entry.key)
            if unit is None or unit >= len(self.plan.units):
                self.findings.fail("I3", f"{entry.key} is no unit of the plan of epoch {self.plan.epoch}")
                continue
            try:
                record = UnitRecord.from_json(self.store.read(entry.key), where=entry.key)
            except LedgerError as error:
                self.findings.fail("I3", str(error))
                continue
            said = (record.epoch, record.unit, record.plan_id)
            if said != (self.plan.epoch, unit, self.plan.plan_id):
                self.findings.fail(
                    "I3", f"{entry.key} says that it is unit {said[1]} of epoch {said[0]}, plan {said[2]}"
                )
                continue
            self.records[unit] = record
        self.findings.count("I3", "units", len(self.records))

    def _check_counts(self, record: UnitRecord) -> None:
        counts, name = record.counts, self._name(record.unit)
        held = {kind: record.parts[kind].rows if kind in record.parts else 0 for kind in PART_KINDS}
        self.findings.count("I5", "rows", counts.rows_in)
        if not counts.balanced:
            self.findings.fail("I5", f"{name} does not add up: {counts}")
        if held != {"ok": counts.ok, "errors": counts.error, "dropped": counts.dropped}:
            self.findings.fail("I5", f"{name} counts {counts}, and its parts hold {held}")
        if sum(record.error_types.values()) != counts.error:
            self.findings.fail("I5", f"{name} counts {counts.error} errors, and by type {record.error_types}")
        planned = self.plan.units[record.unit].rows
        if planned is not None and planned != counts.rows_in:
            self.findings.fail(
                "I5", f"{name} was planned with {planned} rows, and accounts for {counts.rows_in}"
            )

    def _check_parts(self, record: UnitRecord) -> pa.Table | None:
        """The ids of a unit; None if they cannot be had."""
        found = [self._check_part(record, record.parts[kind]) for kind in PART_KINDS if kind in record.parts]
        whole = [ids for ids in found if ids is not None]
        return pa.concat_tables([ID_SCHEMA.empty_table(), *whole]) if len(whole) == len(found) else None

    def _check_part(self, record: UnitRecord, part: Part) -> pa.Table | None:
        name = self._name(record.unit)
        self.findings.count("I8", "objects", 1)
        self.findings.count("I4", "objects", 1)
        if not self._check_bytes(part, f"named by {name}"):
            return None
        try:
            with self._open(part.key) as parquet:
                self._check_footer(part.key, parquet, [[record.unit, record.attempt]])
                rows = parquet.metadata.num_rows
                ids = parquet.read(columns=list(ID_COLUMNS)).select(list(ID_COLUMNS)).cast(ID_SCHEMA)
        except LedgerError as error:
            self.findings.fail("I4", str(error))
            return None
        if rows != part.rows:
            self.findings.fail("I5", f"{part.key} holds {rows} rows, and {name} records {part.rows}")
        return ids

    def _check_bytes(self, named: Part | DataFile, by: str) -> bool:
        try:
            digest, size = sha256_of(self.store, named.key), size_of(self.store, named.key)
        except KeyError:
            for invariant in ("I4", "I8"):
                self.findings.fail(invariant, f"{named.key}, {by}, is missing")
            return False
        if (digest, size) != (named.sha256, named.size):
            self.findings.fail(
                "I4",
                f"{named.key}, {by}, has {size} bytes with SHA-256 {digest[:12]}…, and not"
                f" {named.size} bytes with {named.sha256[:12]}…",
            )
            return False
        return True

    def _check_footer(self, key: str, parquet: Any, units: list[list[object]]) -> None:
        said = read_footer(parquet.metadata)
        expected = {"plan": self.plan.plan_id, "epoch": str(self.plan.epoch), "units": json.dumps(units)}
        for name, value in expected.items():
            if said.get(PREFIX + name) != value:
                self.findings.fail(
                    "I3", f"the footer of {key} says {name} {said.get(PREFIX + name)}, not {value}"
                )

    def _check_ids(self, record: UnitRecord, ids: pa.Table) -> pa.Table:
        """Gives the unit's input rows."""
        name, rows = self._name(record.unit), input_rows(ids)
        self.findings.count("I6", "rows", len(ids))
        twice = first_twice(ids)
        if twice is not None:
            self.findings.fail("I6", f"{twice} is more than once in {name}")
        if len(rows) != record.counts.rows_in:
            self.findings.fail(
                "I6", f"{name} took {record.counts.rows_in} rows in, and has ids of {len(rows)} input rows"
            )
        return rows

    def _check_commit(self, commit: Commit) -> None:
        where = f"the commit of epoch {commit.epoch}"
        self.findings.count("I4", "units", len(commit.units))
        if len(commit.units) != len(self.plan.units):
            self.findings.fail("I4", f"{where} names {len(commit.units)} units of {len(self.plan.units)}")
        for unit, said in enumerate(commit.units):
            record = self.records.get(unit)
            if record is None:
                for invariant in ("I4", "I8"):
                    self.findings.fail(
                        invariant, f"{keys.unit_key(commit.epoch, unit)}, named by {where}, is missing"
                    )
            elif (record.attempt, record.checksum) != (said.attempt, said.checksum):
                self.findings.fail(
                    "I4",
                    f"{where} names attempt {said.attempt} of unit {unit}, and another record stands, of"
                    f" attempt {record.attempt}",
                )
        total = sum((record.counts for record in self.records.values()), Counts())
        if total != commit.totals:
            self.findings.fail("I5", f"{where} totals {commit.totals}, and its units {total}")
        self._check_files(where, commit.data, "ok")
        self._check_files(where, commit.errors, "errors")

    def _check_files(self, where: str, files: tuple[DataFile, ...], kind: str) -> None:
        """Each unit's rows of `kind` are in one of the files, once, and nothing else is."""
        named = Counter(unit for file in files for unit in file.units)
        for unit in sorted(named.keys() | self.records.keys()):
            record = self.records.get(unit)
            wanted = 1 if record is not None and kind in record.parts else 0
            if named[unit] != wanted:
                self.findings.fail(
                    "I6", f"{where}: {named[unit]} files hold the {kind} rows of unit {unit}, not {wanted}"
                )
        for file in files:
            self.findings.count("I8", "objects", 1)
            self.findings.count("I4", "objects", 1)
            if self._check_bytes(file, f"named by {where}"):
                self._check_file(file, kind)

    def _check_file(self, file: DataFile, kind: str) -> None:
        records = [self.records[unit] for unit in file.units if unit in self.records]
        units: list[list[object]] = [[record.unit, record.attempt] for record in records]
        try:
            with self._open(file.key) as parquet:
                self._check_footer(file.key, parquet, units)
                if parquet.metadata.num_rows != file.rows:
                    rows = parquet.metadata.num_rows
                    self.findings.fail(
                        "I5", f"{file.key} holds {rows} rows, and its commit records {file.rows}"
                    )
                if [r.parts[kind].sha256 for r in records if kind in r.parts] == [file.sha256]:
                    return  # a link to the part
                reader = IdReader(parquet)
                for record in records:
                    self._compare(file, record, kind, reader)
                beyond = reader.take(1)
        except LedgerError as error:
            self.findings.fail("I4", str(error))
            return
        if len(beyond):
            self.findings.fail("I6", f"{file.key} {first_difference(ID_SCHEMA.empty_table(), beyond)}")

    def _compare(self, file: DataFile, record: UnitRecord, kind: str, reader: IdReader) -> None:
        part = record.parts.get(kind)
        if part is None:
            return  # reported as a unit that is named and has no such rows
        try:
            with self._open(part.key) as parquet:
                expected = parquet.read(columns=list(ID_COLUMNS)).select(list(ID_COLUMNS)).cast(ID_SCHEMA)
        except LedgerError:
            reader.take(part.rows)
            return  # reported with the part
        difference = first_difference(expected, reader.take(len(expected)))
        if difference is not None:
            self.findings.fail("I6", f"{file.key} {difference} ({self._name(record.unit)})")

    def _note_garbage(self) -> None:
        named = {part.key for record in self.records.values() for part in record.parts.values()}
        lost = [e for e in self.store.list(keys.parts_prefix(self.plan.epoch)) if e.key not in named]
        if lost:
            self.findings.note(
                f"epoch {self.plan.epoch}: {len(lost)} parts ({sum(e.size for e in lost):,} bytes) of"
                f" attempts that were not published, such as {lost[0].key}"
                + (": garbage" if self.commit else "; some may be of attempts that are still at work")
            )

    def _open(self, key: str) -> Any:
        try:
            return open_parquet(self.store.open(key), where=key)
        except KeyError:
            raise LedgerError(f"{key} is missing") from None

    def _name(self, unit: int) -> str:
        return f"unit {unit} of epoch {self.plan.epoch}"
