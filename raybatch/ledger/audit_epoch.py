"""The part of an audit that looks into one epoch: its units, its files, and what lies beside them.

Units and files are checked some at a time on threads; what they find is put together in their order, so the
first violation is the same each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa

from raybatch.errors import LedgerError
from raybatch.ledger import keys
from raybatch.ledger.audit_objects import THREADS, IdDigest, check_footer, id_batches, open_checked
from raybatch.ledger.audit_unit import Piece, Published, UnitAudit
from raybatch.ledger.findings import Findings
from raybatch.ledger.records import Commit, Counts, DataFile, Plan
from raybatch.ledger.row_ids import Hashes, IdReader, first_difference
from raybatch.rows import ID_SCHEMA
from raybatch.store.ahead import map_ahead
from raybatch.store.base import Store

Account = Callable[[Hashes], object]
"""Called for each unit of an epoch, in order, with the hashes of its input rows."""

_UNITS_PER_ERRAND = 8


class EpochAudit:
    """Checks I3 to I6 and I8 within an epoch; `commit` is None while it is open."""

    def __init__(self, store: Store, findings: Findings, plan: Plan, commit: Commit | None) -> None:
        self.store = store
        self.findings = findings
        self.plan = plan
        self.commit = commit
        self._unit = UnitAudit(store=store, plan=plan, commit=commit)
        self._units: dict[int, Published] = {}

    def run(self, account: Account) -> None:
        """Check everything; `account` is told of the input rows if the epoch is committed."""
        total = Counts()
        for outcome in map_ahead(
            self._unit.check, self._unit_keys(), threads=THREADS, batch=_UNITS_PER_ERRAND
        ):
            self.findings.add(outcome.findings)
            if outcome.unit is None or outcome.published is None:
                continue
            self._units[outcome.unit] = outcome.published
            total += outcome.counts or Counts()
            if self.commit is not None and outcome.input_rows is not None:
                account(outcome.input_rows)
        if self.commit is None:
            self.findings.note(
                f"epoch {self.plan.epoch} is open: {len(self._units)} of {len(self.plan.units)} units are"
                " published, none is committed"
            )
        else:
            self._check_commit(self.commit, total)
        self._note_garbage()

    def rows_among(self, wanted: Hashes) -> Iterator[tuple[str, dict[str, Any]]]:
        """The ids whose input row's hash is among `wanted`, with the name of their unit."""
        look = partial(self._rows_of_unit, wanted=wanted)
        for name, rows in map_ahead(look, self._unit_keys(), threads=THREADS, batch=_UNITS_PER_ERRAND):
            yield from ((name, row) for row in rows)

    def _rows_of_unit(self, key: str, *, wanted: Hashes) -> tuple[str, list[dict[str, Any]]]:
        record = self._unit.read(key, Findings())
        if record is None:
            return key, []
        return self._unit.name(record.unit), list(self._unit.rows_among(record, wanted))

    def _unit_keys(self) -> Iterator[str]:
        return (entry.key for entry in self.store.list(keys.units_prefix(self.plan.epoch)))

    def _check_commit(self, commit: Commit, total: Counts) -> None:
        where = f"the commit of epoch {commit.epoch}"
        self.findings.count("I4", "units", len(commit.units))
        if len(commit.units) != len(self.plan.units):
            self.findings.fail("I4", f"{where} names {len(commit.units)} units of {len(self.plan.units)}")
        for unit in range(len(commit.units)):
            if unit not in self._units:
                for invariant in ("I4", "I8"):
                    self.findings.fail(
                        invariant, f"{keys.unit_key(commit.epoch, unit)}, named by {where}, is missing"
                    )
        if total != commit.totals:
            self.findings.fail("I5", f"{where} totals {commit.totals}, and its units {total}")
        self._check_files(where, commit.data, "ok")
        self._check_files(where, commit.errors, "errors")

    def _check_files(self, where: str, files: tuple[DataFile, ...], kind: str) -> None:
        """Each unit's rows of `kind`, or of each of its partitions, are in one of the files, once, and nothing
        else is."""
        named = Counter((unit, keys.partition_of(file.key)) for file in files for unit in file.units)
        for unit, published in self._units.items():
            named.subtract((unit, path) for of, path in published.pieces if of == kind)
        for unit, path in sorted(place for place, difference in named.items() if difference):
            which = f"{kind} rows of unit {unit}" + (f" in {path}" if path else "")
            right = 1 if unit in self._units and (kind, path) in self._units[unit].pieces else 0
            self.findings.fail(
                "I6", f"{where}: {named[unit, path] + right} files hold the {which}, not {right}"
            )
        check = partial(self._check_file, where=where, kind=kind)
        for findings in map_ahead(check, files, threads=THREADS):
            self.findings.add(findings)

    def _check_file(self, file: DataFile, *, where: str, kind: str) -> Findings:
        findings = Findings()
        parquet = open_checked(self.store, file, findings, by=f"named by {where}")
        if parquet is None:
            return findings
        held = [(unit, self._units[unit]) for unit in file.units if unit in self._units]
        with parquet:
            linked = len(held) == 1 and held[0][1].sha256.get(kind) == file.sha256.encode()
            partition = keys.partition_of(file.key)
            units: list[list[object]] = [[unit, published.attempt] for unit, published in held]
            # A link to a part has the part's footer
            footer_partition = "" if linked else partition
            check_footer(self.plan, file.key, parquet, units, findings, partition=footer_partition)
            rows = parquet.metadata.num_rows
            if rows != file.rows:
                findings.fail("I5", f"{file.key} holds {rows} rows, and its commit records {file.rows}")
            if not linked:
                pieces = [(unit, published.pieces.get((kind, partition))) for unit, published in held]
                self._compare(file, kind, parquet, [(u, p) for u, p in pieces if p is not None], findings)
        return findings

    def _compare(
        self, file: DataFile, kind: str, parquet: Any, pieces: list[tuple[int, Piece]], findings: Findings
    ) -> None:
        """The file's ids are those of its units' parts, in the same order, and no more."""
        digests = _digests(parquet, [piece.rows for _, piece in pieces])
        before = 0
        for unit, piece in pieces:
            found = next(digests)
            if piece.ids not in (b"", found):  # empty: reported with the part
                what = self._difference(file, kind, unit, before, piece.rows)
                findings.fail("I6", f"{file.key} {what} ({self._unit.name(unit)})")
                return  # what follows is shifted, and says nothing more
            before += piece.rows
        beyond = _skip(parquet, before).take(1)
        if len(beyond):
            findings.fail("I6", f"{file.key} {first_difference(ID_SCHEMA.empty_table(), beyond)}")

    def _difference(self, file: DataFile, kind: str, unit: int, before: int, rows: int) -> str:
        """In words, how a unit's rows in a file, after `before` others, differ from those of its part."""
        where = f"has other rows than {self._unit.name(unit)}"
        record = self._unit.read(keys.unit_key(self.plan.epoch, unit), Findings())
        if record is None:
            return where
        try:
            expected = self._unit.piece_ids(record, kind, keys.partition_of(file.key))
            reopened = open_checked(self.store, file, Findings(), by="")
        except LedgerError:
            return where
        if reopened is None:
            return where
        with reopened:
            found = _skip(reopened, before).take(rows)
        return first_difference(expected, found) or where

    def _note_garbage(self) -> None:
        lost, size, first = 0, 0, ""
        for entry in self.store.list(keys.parts_prefix(self.plan.epoch)):
            part = keys.part_of(entry.key)
            published = self._units.get(part[1]) if part else None
            if part is None or published is None or published.attempt != part[2]:
                lost, size, first = lost + 1, size + entry.size, first or entry.key
        if lost:
            self.findings.note(
                f"epoch {self.plan.epoch}: {lost} parts ({size:,} bytes) of attempts that were not published,"
                f" such as {first}"
                + (": garbage" if self.commit else "; some may be of attempts that are still at work")
            )


def _digests(parquet: Any, counts: list[int]) -> Iterator[bytes]:
    """The digest of the first `counts[0]` ids, of the next `counts[1]`, and so on; of fewer at the end."""
    batches = id_batches(parquet)
    rest: pa.Table = next(batches, ID_SCHEMA.empty_table())
    for count in counts:
        digest = IdDigest()
        while digest.rows < count:
            taken = rest.slice(0, count - digest.rows)
            digest.update(taken)
            rest = rest.slice(len(taken))
            if not len(rest):
                more = next(batches, None)
                if more is None:
                    break
                rest = more
        yield digest.value()


def _skip(parquet: Any, rows: int) -> IdReader:
    reader = IdReader(parquet)
    reader.skip(rows)
    return reader
