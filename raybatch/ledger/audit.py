"""Checks the invariants of the ledger on what is stored, and on nothing else: no pipeline, no source, no Ray. Only
what a source has told the outside world (I7) has to be asked of whoever knows it.

Reads every stored byte once or twice, writes nothing. Memory is bounded by half a kilobyte per unit of the
largest epoch, 8 bytes per row of the largest units, and a table of hashes that spills to temporary files (8 bytes
per input row).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from raybatch.errors import LedgerError, SinkError
from raybatch.ledger import keys
from raybatch.ledger.audit_epoch import EpochAudit
from raybatch.ledger.audit_retry import RetryAudit
from raybatch.ledger.findings import Findings
from raybatch.ledger.records import Commit, Plan
from raybatch.ledger.row_ids import Hashes, HashSpool, spell
from raybatch.sources.base import JSON, Acknowledged
from raybatch.store.ahead import map_ahead
from raybatch.store.base import Store
from raybatch.store.objects import exists

INVARIANTS: Mapping[str, str] = {
    "I1": "one plan and one commit per epoch, without gaps",
    "I2": "each epoch starts where the one before it ended",
    "I3": "each published unit is of its plan, and its files say so",
    "I4": "every unit and file is stored with the recorded checksum",
    "I5": "rows in + made = ok + errors + dropped, for each unit",
    "I6": "each input row is there exactly once: ok, error or dropped",
    "I7": "committed group offsets do not pass the last commit",
    "I8": "nothing that a plan, unit or commit names was deleted",
}

# What a source's `acknowledged` gives for an end
Ask = Callable[[JSON], Acknowledged | None]

_MAX_SUSPECTS = 10_000
_EPOCHS_AHEAD = 2  # a plan of a million units is 60 MB

R = TypeVar("R", Plan, Commit)


@dataclass(frozen=True, kw_only=True)
class Check:
    """The verdict on one invariant. `first` says which object or row violates it first, and how."""

    invariant: str
    claim: str
    status: str  # "ok", "failed", "not applicable" or "not checked"
    checked: str  # what was looked at, or why nothing was
    violations: int = 0
    first: str | None = None


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What an audit found. `notes` tell of what is no violation: open epochs, garbage of lost attempts."""

    path: str
    pipeline: str | None
    epochs: int  # committed
    checks: tuple[Check, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return all(check.status != "failed" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: what `raybatch audit --json` prints."""
        plain = {"path": self.path, "pipeline": self.pipeline, "epochs": self.epochs, "ok": self.ok}
        return plain | {"checks": [vars(check) for check in self.checks], "notes": list(self.notes)}


def audit(store: Store, *, acknowledged: Ask | None = None) -> AuditReport:
    """Check I1 to I8 of the output in `store`; `acknowledged` is asked for I7.

    Raises `SinkError` when there is no such output, `StoreError` when it cannot be read.
    """
    return _Audit(store, acknowledged).run()


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """The records of an epoch; in place of one that cannot be read, why."""

    epoch: int
    plan: Plan | LedgerError | None
    commit: Commit | LedgerError | None


class _Audit:
    def __init__(self, store: Store, acknowledged: Ask | None) -> None:
        self.store = store
        self.acknowledged = acknowledged
        self.unchecked: dict[str, tuple[str, str]] = {}  # invariant: status and why
        self.findings = Findings()
        self.pipeline: str | None = None
        self.named: set[str] = set()  # files that commits name
        self.committed: list[int] = []
        self.last: Commit | None = None
        self.retries = RetryAudit(store)

    def run(self) -> AuditReport:
        planned = self._epochs(keys.PLANS)
        committed = self._epochs(keys.COMMITS)
        if not planned and not committed:
            raise SinkError(
                f"{self.store.url} holds no output of raybatch: there is no plan below {keys.PLANS}"
            )
        self._check_gaps(planned, committed)
        with HashSpool() as spool:
            before: Plan | Commit | None = None
            for stored in map_ahead(self._load_epoch, planned, threads=_EPOCHS_AHEAD):
                before = self._check_epoch(stored, before=before, spool=spool) or before
            self._check_twice(spool)
        self._check_acknowledged()
        self._check_strangers(planned)
        return self._report()

    def _epochs(self, prefix: str) -> list[int]:
        """The epochs that have a record below `prefix`, in order."""
        found = []
        for entry in self.store.list(prefix):
            epoch = keys.epoch_of(entry.key)
            if epoch is None:
                self.findings.fail("I1", f"{entry.key} is named like no record")
            else:
                found.append(epoch)
        return found

    def _check_gaps(self, planned: list[int], committed: list[int]) -> None:
        last = max(committed, default=-1)
        for what, epochs, end in (("commit", committed, last), ("plan", planned, max(planned, default=-1))):
            self.findings.count("I1", f"{what}s", len(epochs))
            missing = sorted(set(range(end + 1)) - set(epochs))
            for epoch in missing:
                self.findings.fail("I1", f"the {what} of epoch {epoch} is missing, and later ones exist")
        for epoch in planned:
            if epoch > last + 2:  # one is being committed, the next one worked on
                self.findings.fail("I1", f"epoch {epoch} is planned, and epoch {epoch - 2} is not committed")
        for epoch in sorted(set(committed) - set(planned)):
            self.findings.fail("I1", f"epoch {epoch} is committed, and has no plan")

    def _load_epoch(self, epoch: int) -> _Stored:
        plan, commit = self._load(Plan, keys.plan_key(epoch)), self._load(Commit, keys.commit_key(epoch))
        return _Stored(epoch=epoch, plan=plan, commit=commit)

    def _load(self, cls: type[R], key: str) -> R | LedgerError | None:
        try:
            return cls.from_json(self.store.read(key), where=key)
        except KeyError:
            return None
        except LedgerError as error:
            return error

    def _check_epoch(
        self, stored: _Stored, *, before: Plan | Commit | None, spool: HashSpool
    ) -> Plan | Commit | None:
        """Check what an epoch has of its own and between it and the one before; gives the record that tells
        where it ends: its commit, or as long as there is none, its plan."""
        plan, commit = self._readable(stored.plan), self._readable(stored.commit)
        if plan is None:
            return commit
        for record in (plan, commit):
            self._check_identity(record, stored.epoch)
        self._check_chain(plan, commit, before)
        if commit is not None:
            self.last = commit
            self.committed.append(stored.epoch)
            self.named.update(file.key for file in (*commit.data, *commit.errors))
        self.retries.follow(plan, commit, self.findings)
        EpochAudit(self.store, self.findings, plan, commit).run(spool.add)
        return commit or plan

    def _readable(self, record: R | LedgerError | None) -> R | None:
        if isinstance(record, LedgerError):
            self.findings.fail("I1", str(record))
            return None
        return record

    def _check_identity(self, record: Plan | Commit | None, epoch: int) -> None:
        if record is None:
            return
        what = type(record).__name__.lower()
        if record.epoch != epoch:
            self.findings.fail("I1", f"the {what} of epoch {epoch} says that it is of epoch {record.epoch}")
        self.pipeline = self.pipeline or record.pipeline
        if record.pipeline != self.pipeline:
            self.findings.fail(
                "I1", f"the {what} of epoch {epoch} is of pipeline '{record.pipeline}', not '{self.pipeline}'"
            )

    def _check_chain(self, plan: Plan, commit: Commit | None, before: Plan | Commit | None) -> None:
        self.findings.count("I2", "epochs", 1)
        start = before.end if before is not None else None
        expected = (
            before is None or before.epoch == plan.epoch - 1
        )  # else a record is missing, and that is said
        if expected and plan.start != start:
            self.findings.fail(
                "I2", f"epoch {plan.epoch} starts at {plan.start}, and the one before it ended at {start}"
            )
        if commit is None:
            return
        if commit.plan_id != plan.plan_id:
            self.findings.fail(
                "I1", f"the commit of epoch {plan.epoch} names plan {commit.plan_id}, not {plan.plan_id}"
            )
        if (commit.start, commit.end) != (plan.start, plan.end):
            self.findings.fail(
                "I2", f"the commit of epoch {plan.epoch} has another start or end than its plan"
            )

    def _check_twice(self, spool: HashSpool) -> None:
        """No input row is in two units, whatever their epochs."""
        suspects: list[Any] = []
        for hashes in spool.twice():
            suspects.extend(hashes.tolist())
        if not suspects:
            return
        seen: dict[tuple[str, int], str] = {}
        # Equal hashes are no proof: at a billion rows, two different ones share a hash in 1 audit of 40
        for where, row in self._rows_among(np.array(suspects[:_MAX_SUSPECTS], dtype=np.uint64)):
            other = seen.setdefault((row["_source"], row["_row"]), where)
            if other != where:
                self.findings.fail("I6", f"{spell(row)} is in {other} and in {where}")

    def _rows_among(self, hashes: Hashes) -> Iterator[tuple[str, dict[str, Any]]]:
        """Input rows of committed units whose hash is among `hashes`, each with its unit, once for each unit."""
        for epoch in self.committed:
            plan = self._load(Plan, keys.plan_key(epoch))
            if not isinstance(plan, Plan) or plan.retry is not None:
                continue
            told: set[tuple[str, str, int]] = set()
            for where, row in EpochAudit(self.store, Findings(), plan, None).rows_among(hashes):
                place = (where, row["_source"], row["_row"])
                if place not in told:  # not for each row that was made from it
                    told.add(place)
                    yield where, {"_source": row["_source"], "_row": row["_row"]}

    def _check_acknowledged(self) -> None:
        """Nobody was told that more is committed than is."""
        if self.acknowledged is None:
            self.unchecked["I7"] = (
                "not checked",
                "an output does not tell its source; name the pipeline file",
            )
        elif self.last is None:
            self.unchecked["I7"] = ("not applicable", "nothing is committed yet")
        else:
            try:
                told = self._told(self.acknowledged, self.last)
            # Whatever a source's outside world can fail with, what is stored can be judged without
            except Exception as error:
                self.unchecked["I7"] = ("not checked", str(error) or type(error).__name__)
                return
            self._judge(told)

    def _told(self, ask: Ask, last: Commit) -> Acknowledged | None:
        """What was told, beside the commit that was the last one when it was asked."""
        while True:
            told = ask(last.end)
            epochs = [keys.epoch_of(entry.key) for entry in self.store.list(keys.COMMITS)]
            newest = max(epoch for epoch in epochs if epoch is not None)
            found = self._load(Commit, keys.commit_key(newest)) if newest > last.epoch else None
            if not isinstance(found, Commit):
                return told
            last = found  # a run goes on beside the audit

    def _judge(self, told: Acknowledged | None) -> None:
        if told is None:
            self.unchecked["I7"] = ("not applicable", "only sources with group offsets (Kafka) have any")
            return
        self.findings.count("I7", "group offsets", told.compared)
        for what in told.ahead:
            self.findings.fail("I7", what)
        for what in told.behind:
            self.findings.note(f"{what}; the next run sets it")

    def _check_strangers(self, planned: list[int]) -> None:
        """What is there and named by nobody."""
        folders = {keys.units_prefix(epoch) for epoch in planned}
        for entry in self.store.list(keys.UNITS):
            folder = entry.key.removeprefix(keys.UNITS).partition("/")[0]
            if f"{keys.UNITS}{folder}/" not in folders:
                self.findings.fail("I3", f"{entry.key} is of no epoch that has a plan")
                break
        last = max(self.committed, default=-1)
        for folder in (keys.DATA, keys.ERRORS):
            for entry in self.store.list(folder):
                epoch = keys.epoch_of(entry.key)
                if entry.key in self.named:
                    continue
                if epoch is not None and epoch > last and exists(self.store, keys.plan_key(epoch)):
                    self.findings.note(f"{entry.key} waits for the commit of epoch {epoch}")
                else:
                    self.findings.fail("I6", f"{entry.key} is named by no commit, and readers see its rows")
        for entry in self.store.list("_tmp/"):
            self.findings.note(f"{entry.key} ({entry.size} bytes) is left of a write that was cut off")

    def _report(self) -> AuditReport:
        return AuditReport(
            path=self.store.url,
            pipeline=self.pipeline,
            epochs=len(self.committed),
            checks=tuple(self._check(invariant) for invariant in INVARIANTS),
            notes=tuple(self.findings.notes),
        )

    def _check(self, invariant: str) -> Check:
        claim, first = INVARIANTS[invariant], self.findings.failed.get(invariant)
        if invariant in self.unchecked:
            status, why = self.unchecked[invariant]
            return Check(invariant=invariant, claim=claim, status=status, checked=why)
        return Check(
            invariant=invariant,
            claim=claim,
            status="ok" if first is None else "failed",
            checked=self.findings.checked(invariant),
            violations=self.findings.violations[invariant],
            first=first,
        )
