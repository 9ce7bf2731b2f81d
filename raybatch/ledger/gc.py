"""Removes what nothing references and nothing ever will, also while runs are at work.

No clock decides about rows. A unit's record is created once, so the parts of any other attempt at that unit can
never be named: they are garbage for ever, whether that attempt is dead, asleep or about to be told so. Parts of a
unit without a record may be those of an attempt at work: they stay. So does what cannot be explained: an audit
names it, and a person decides.

Only temporary objects of cut-off writes, which hold no row that counts, go by age, and that by the clock of the
store which wrote their times.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from raybatch.errors import LedgerError, SinkError
from raybatch.ledger import keys
from raybatch.ledger.records import Commit, UnitRecord
from raybatch.store.ahead import map_ahead
from raybatch.store.base import Entry, Store

# A write takes seconds, at worst minutes. One that wakes up later than this fails, and is done again.
LEFTOVER_AGE_S = 24 * 3600.0

_TEMPORARY = ("_tmp/", "_probe/")


@dataclass(frozen=True, kw_only=True)
class GarbageReport:
    """What was removed, or would be. `parts` are of attempts that lost, `leftovers` of writes that were cut off.

    `notes` tell what was left alone though nothing names it, and why.
    """

    path: str
    dry_run: bool
    parts: int
    leftovers: int
    bytes: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: what `raybatch gc --json` prints."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"notes": list(self.notes)}


def collect_garbage(store: Store, *, dry_run: bool = False) -> GarbageReport:
    """Remove the garbage of the output in `store`; with `dry_run` only say what it is.

    Raises `SinkError` when there is no such output, `StoreError` when the store fails: what is removed by then
    stays so, and the rest is removed the next time.
    """
    return _Collector(store, dry_run=dry_run).run()


@dataclass(frozen=True, kw_only=True)
class _Contested:
    """A unit with parts of several attempts. `committed` is the attempt that a commit names, if one does."""

    epoch: int
    unit: int
    parts: Sequence[tuple[str, Entry]]  # with the attempt of each
    committed: str | None


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    """On the parts of one unit: those that can go; or why none does."""

    garbage: Sequence[Entry] = ()
    waiting: bool = False
    unclear: str | None = None


class _Collector:
    def __init__(self, store: Store, *, dry_run: bool) -> None:
        self._store = store
        self._dry_run = dry_run
        self._parts = self._leftovers = self._bytes = 0
        self._notes: list[str] = []

    def run(self) -> GarbageReport:
        if next(iter(self._store.list(keys.PLANS)), None) is None:
            raise SinkError(
                f"{self._store.url} holds no output of raybatch: there is no plan below {keys.PLANS}"
            )
        self._remove_parts()
        self._remove_leftovers()
        return GarbageReport(
            path=self._store.url,
            dry_run=self._dry_run,
            parts=self._parts,
            leftovers=self._leftovers,
            bytes=self._bytes,
            notes=tuple(self._notes),
        )

    def _remove_parts(self) -> None:
        waiting = 0
        for verdict in map_ahead(self._judge_and_remove, self._contested()):
            self._parts += len(verdict.garbage)
            self._bytes += sum(entry.size for entry in verdict.garbage)
            waiting += verdict.waiting
            if verdict.unclear is not None:
                self._notes.append(verdict.unclear)
        if waiting:
            self._notes.append(
                f"{waiting} units have parts of several attempts and no record yet: left alone, as one of them"
                " may be at work"
            )

    def _contested(self) -> Iterator[_Contested]:
        """The units with parts of more than one attempt.

        A unit with those of one attempt only has no garbage: an attempt that is published has parts whenever
        another attempt at the same rows has some. So most units cost nothing but their lines of the listing.
        """
        strange, commits = 0, _Commits(self._store)
        named = ((keys.part_of(entry.key), entry) for entry in self._store.list(keys.PARTS))
        for place, group in groupby(named, key=lambda pair: _unit(pair[0])):
            parts = [(name[2], entry) for name, entry in group if name]
            if place is None:
                strange += 1
            elif len({attempt for attempt, _ in parts}) > 1:
                try:
                    committed = commits.attempt(*place)
                except LedgerError as error:
                    self._notes.append(
                        f"the parts of unit {place[1]} of epoch {place[0]} are left alone: {error}"
                    )
                    continue
                yield _Contested(epoch=place[0], unit=place[1], parts=parts, committed=committed)
        if strange:
            self._notes.append(f"what is below {keys.PARTS} and named like no part is left alone")

    def _judge_and_remove(self, contested: _Contested) -> _Verdict:
        # The record is read after the parts were listed, and right before they are deleted
        verdict = self._judge(contested)
        if not self._dry_run:
            for entry in verdict.garbage:
                self._store.delete(entry.key)
        return verdict

    def _judge(self, contested: _Contested) -> _Verdict:
        alone = f"the parts of unit {contested.unit} of epoch {contested.epoch} are left alone"
        try:
            record = self._record(contested)
        except LedgerError as error:
            return _Verdict(unclear=f"{alone}: {error}")
        if record is None:
            if contested.committed is None:
                return _Verdict(waiting=True)
            return _Verdict(unclear=f"{alone}: its epoch is committed, and its record is missing")
        if contested.committed not in (None, record.attempt):
            return _Verdict(
                unclear=f"{alone}: its record and the commit of its epoch name different attempts"
            )
        named = {part.key for part in record.parts.values()}
        lost = [entry for attempt, entry in contested.parts if attempt != record.attempt]
        return _Verdict(garbage=[entry for entry in lost if entry.key not in named])

    def _record(self, contested: _Contested) -> UnitRecord | None:
        key = keys.unit_key(contested.epoch, contested.unit)
        try:
            record = UnitRecord.from_json(self._store.read(key), where=key)
        except KeyError:
            return None
        if (record.epoch, record.unit) != (contested.epoch, contested.unit):
            raise LedgerError(f"{key} is of unit {record.unit} of epoch {record.epoch}")
        return record

    def _remove_leftovers(self) -> None:
        found = [entry for folder in _TEMPORARY for entry in self._store.list(folder)]
        if not found:
            return
        now = self._store_time()
        if now is None:
            self._notes.append(f"{len(found)} temporary objects are left alone: this store tells no times")
            return
        for entry in found:
            if entry.modified is not None and now - entry.modified > LEFTOVER_AGE_S:
                self._leftovers += 1
                self._bytes += entry.size
                if not self._dry_run:
                    self._store.delete(entry.key)
        young = len(found) - self._leftovers
        if young:
            hours = LEFTOVER_AGE_S / 3600
            self._notes.append(f"{young} temporary objects are younger than {hours:.0f} hours: left alone")

    def _store_time(self) -> float | None:
        """The time by the clock that dates what is stored; our own may be another machine's."""
        mark = f"_probe/{uuid.uuid4().hex}"
        self._store.create(mark, b"")
        try:
            return next((e.modified for e in self._store.list("_probe/") if e.key == mark), None)
        finally:
            self._store.delete(mark)


def _unit(part: tuple[int, int, str] | None) -> tuple[int, int] | None:
    return part[:2] if part is not None else None


class _Commits:
    """Which attempt a commit names; holds the last commit that was asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._epoch: int | None = None
        self._commit: Commit | None = None

    def attempt(self, epoch: int, unit: int) -> str | None:
        """None while the epoch is not committed, and for a unit that the commit does not name."""
        if epoch != self._epoch:
            self._epoch, self._commit = epoch, None
            key = keys.commit_key(epoch)
            try:
                self._commit = Commit.from_json(self._store.read(key), where=key)
            except KeyError:
                return None
            except LedgerError:
                self._epoch = None
                raise
        units = self._commit.units if self._commit is not None else ()
        return units[unit].attempt if unit < len(units) else None
