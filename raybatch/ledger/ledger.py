"""The exactly-once core: one pipeline's plans, published units and commits, on conditional creates.

A ledger holds no state but its store, so any number of them, in any processes, may work on one output: each
plan, unit and commit is created once, and whoever comes second is given what stands.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from functools import partial
from itertools import chain

from raybatch.errors import LedgerError, LostRaceError, SinkError, StoreError
from raybatch.ledger import keys
from raybatch.ledger.failpoints import failpoint
from raybatch.ledger.records import JSON, Commit, DataFile, Plan, UnitRecord
from raybatch.store.ahead import map_ahead
from raybatch.store.base import Store

RECORDS_PER_ERRAND = 16


class Ledger:
    """The records below `store` of the pipeline called `pipeline`. Picklable; workers publish through it.

    Errors: `StoreError` from every method; `LedgerError` where what is stored contradicts itself.
    """

    def __init__(self, store: Store, pipeline: str) -> None:
        self.store = store
        self.pipeline = pipeline

    def open(self) -> None:
        """Check, before any work, that the output is ours to write. Called once, on the driver.

        Raises `SinkError` when it belongs to another pipeline, holds data of another origin, or cannot be
        written with the condition that the ledger needs.
        """
        try:
            self._check_owner()
            self.store.probe()
        except StoreError as error:
            raise SinkError(f"sink.path {self.store.url} cannot be used: {error}") from error

    def last_commit(self) -> Commit | None:
        """The commit of the latest epoch. Raises `LedgerError` if one before it is missing."""
        found = [entry.key for entry in self.store.list(keys.COMMITS)]
        for epoch, key in enumerate(found):
            if key != keys.commit_key(epoch):
                raise LedgerError(
                    f"{self._at(keys.commit_key(epoch))} is missing, but {key} exists: a commit was deleted."
                    " Restore it; without it nobody knows which input is done"
                )
        return self.committed(len(found) - 1) if found else None

    def committed(self, epoch: int) -> Commit | None:
        """The commit of `epoch`."""
        key = keys.commit_key(epoch)
        text = self._read(key)
        if text is None:
            return None
        commit = Commit.from_json(text, where=self._at(key))
        self._check_identity(key, commit, epoch=epoch)
        return commit

    def position(self) -> tuple[int, JSON | None]:
        """The next epoch to finish, and the position it starts at (None: the very beginning)."""
        last = self.last_commit()
        return (0, None) if last is None else (last.epoch + 1, last.end)

    def plan(self, epoch: int) -> Plan | None:
        """The plan of `epoch`, by whichever run it was made."""
        key = keys.plan_key(epoch)
        text = self._read(key)
        return None if text is None else self._parse_plan(key, text, epoch=epoch)

    def create_plan(self, plan: Plan) -> Plan:
        """Make `plan` durable; gives the plan that stands, which may be another run's (compare `plan_id`)."""
        key = keys.plan_key(plan.epoch)
        failpoint("before-plan")
        text = self._settle(key, plan.to_json())
        failpoint("after-plan")
        return self._parse_plan(key, text, epoch=plan.epoch)

    def published(self, plan: Plan) -> set[int]:
        """The units of `plan` that are published. A listing per thousand units, some at a time."""
        folders = keys.unit_folders(plan.epoch, units=len(plan.units))
        return set(chain.from_iterable(map_ahead(partial(self._published_in, plan), folders)))

    def _published_in(self, plan: Plan, folder: str) -> list[int]:
        found = []
        for entry in self.store.list(folder):
            unit = keys.unit_of(entry.key)
            if unit is None or unit >= len(plan.units):
                raise LedgerError(
                    f"{self._at(entry.key)} is no unit of the plan of epoch {plan.epoch}, which has"
                    f" {len(plan.units)} units"
                )
            found.append(unit)
        return found

    def record(self, plan: Plan, unit: int) -> UnitRecord:
        """The record of a published unit. Raises `LedgerError` if there is none."""
        key = keys.unit_key(plan.epoch, unit)
        text = self._read(key)
        if text is None:
            raise LedgerError(f"{self._at(key)} is missing: unit {unit} is not published, or was deleted")
        return self._parse_record(key, text, plan_id=plan.plan_id, epoch=plan.epoch, unit=unit)

    def records(self, plan: Plan, units: Iterable[int]) -> Generator[UnitRecord]:
        """As `record`, in the order of `units`, some read ahead."""
        return map_ahead(partial(self.record, plan), units, batch=RECORDS_PER_ERRAND)

    def publish(self, record: UnitRecord) -> UnitRecord:
        """Publish a unit whose parts are durable; gives the record that stands.

        The first published attempt is the unit: if the record's `attempt` is another, the caller's parts are
        named by nobody and may be deleted. After a `StoreError` they must not be: the outcome is unknown.
        """
        key = keys.unit_key(record.epoch, record.unit)
        if not record.counts.balanced:
            raise LedgerError(f"unit {record.unit} of epoch {record.epoch} does not add up: {record.counts}")
        failpoint("before-unit")
        text = self._settle(key, record.to_json())
        failpoint("after-unit")
        return self._parse_record(key, text, plan_id=record.plan_id, epoch=record.epoch, unit=record.unit)

    def commit(self, plan: Plan, commit: Commit) -> Commit:
        """Make an epoch visible, once all of its units and files are there; gives the commit.

        Raises `LostRaceError` when another run has committed the epoch, whose work then stands, and
        `LedgerError` when `commit` does not add up to `plan`, or is not the next one.
        """
        self._check_complete(plan, commit)
        self._check_order(commit)
        key = keys.commit_key(plan.epoch)
        failpoint("before-commit")
        text = self._settle(key, commit.to_json())
        failpoint("after-commit")
        standing = Commit.from_json(text, where=self._at(key))
        if standing.run_id != commit.run_id:
            raise LostRaceError(
                f"run {standing.run_id} committed epoch {plan.epoch} first, at {standing.created_at};"
                f" its work stands, and nothing of run {commit.run_id} is needed"
            )
        return standing

    def _settle(self, key: str, text: str) -> bytes:
        """Create `key`, or learn what it holds already: the bytes that stand.

        An unknown outcome is not a failure: after an error, what is stored decides.
        """
        data = text.encode()
        try:
            if self.store.create(key, data):
                return data
        except StoreError:
            standing = self._read(key)
            if standing is None:
                raise
            return standing
        return self.store.read(key)

    def _check_owner(self) -> None:
        # Plans last: a run that starts beside this one makes its plan before anything else
        record = self._first(keys.COMMITS) or self._first(keys.UNITS)
        file = self._first(keys.DATA) or self._first(keys.ERRORS)
        plan = self._first(keys.PLANS)
        if plan is not None:
            epoch = keys.epoch_of(plan)
            if epoch is None:
                raise LedgerError(f"{self._at(plan)} is no plan: remove it")
            self.plan(epoch)  # raises if it is another pipeline's
        elif record is not None:
            raise LedgerError(f"{self._at(record)} exists, but no plan does: restore the plans")
        elif file is not None:
            raise SinkError(
                f"sink.path {self.store.url} holds {file}, which no run of raybatch has written: choose"
                " another sink.path, or move that folder's files away"
            )

    def _first(self, prefix: str) -> str | None:
        return next((entry.key for entry in self.store.list(prefix)), None)

    def _check_complete(self, plan: Plan, commit: Commit) -> None:
        where = f"the commit of epoch {plan.epoch}"
        missing = set(range(len(plan.units))) - self.published(plan)
        if missing or len(commit.units) != len(plan.units):
            raise LedgerError(
                f"{where} names {len(commit.units)} of {len(plan.units)} units, and {len(missing)} of them"
                f" are not published (first: {min(missing, default='none')})"
            )
        said = (commit.plan_id, commit.start, commit.end, commit.retry)
        if said != (plan.plan_id, plan.start, plan.end, plan.retry):
            raise LedgerError(f"{where} is not of this plan, {plan.plan_id}")
        _check_files(where, commit.data, rows=commit.totals.ok, what="ok")
        _check_files(where, commit.errors, rows=commit.totals.error, what="error")
        if not commit.totals.balanced:
            raise LedgerError(f"{where} does not add up: {commit.totals}")

    def _check_order(self, commit: Commit) -> None:
        """An epoch may be planned and worked on before the one before is committed, but not committed itself."""
        before = self.committed(commit.epoch - 1) if commit.epoch else None
        if (before is None and commit.epoch) or (before.end if before else None) != commit.start:
            raise LedgerError(
                f"the commit of epoch {commit.epoch} does not follow the one before, which"
                f" {'ends elsewhere' if before else 'is not there'}"
            )

    def _parse_plan(self, key: str, text: bytes, *, epoch: int) -> Plan:
        plan = Plan.from_json(text, where=self._at(key))
        self._check_identity(key, plan, epoch=epoch)
        return plan

    def _parse_record(self, key: str, text: bytes, *, plan_id: str, epoch: int, unit: int) -> UnitRecord:
        record = UnitRecord.from_json(text, where=self._at(key))
        if (record.epoch, record.unit) != (epoch, unit):
            raise LedgerError(f"{self._at(key)} holds unit {record.unit} of epoch {record.epoch}")
        if record.plan_id != plan_id:
            raise LedgerError(f"{self._at(key)} is of plan {record.plan_id}, not of {plan_id}, which stands")
        return record

    def _check_identity(self, key: str, record: Plan | Commit, *, epoch: int) -> None:
        if record.epoch != epoch:
            raise LedgerError(f"{self._at(key)} holds epoch {record.epoch}")
        if record.pipeline != self.pipeline:
            raise SinkError(
                f"sink.path {self.store.url} belongs to the pipeline '{record.pipeline}', and this is"
                f" '{self.pipeline}': give this pipeline a sink.path of its own, or the name"
                f" '{record.pipeline}' if it is the same one"
            )

    def _read(self, key: str) -> bytes | None:
        try:
            return self.store.read(key)
        except KeyError:
            return None

    def _at(self, key: str) -> str:
        return f"{self.store.url}/{key}"


def _check_files(where: str, files: Iterable[DataFile], *, rows: int, what: str) -> None:
    held = sum(file.rows for file in files)
    if held != rows:
        raise LedgerError(f"{where}: its files hold {held} {what} rows, its units {rows}")
