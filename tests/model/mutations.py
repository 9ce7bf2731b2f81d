"""Is the model able to see? Breaks the protocol on purpose, in one way at a time, and expects a violation.

    python tests/model/mutations.py [NAME...] [--seed N]

prints for each mutation after how many runs of the model it was found, and what the violation was; exits 1
when one was not.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path[:0] = [str(Path(__file__).parent)]

import story  # noqa: E402
import world  # noqa: E402
from hypothesis import Phase, Verbosity, seed  # noqa: E402
from hypothesis.stateful import run_state_machine_as_test  # noqa: E402
from machine import TwoRuns, how_many  # noqa: E402

from raybatch.errors import StoreError  # noqa: E402
from raybatch.ledger import gc, keys  # noqa: E402
from raybatch.ledger.ledger import Ledger  # noqa: E402
from raybatch.ledger.records import Commit, Plan, UnitRecord  # noqa: E402
from raybatch.sinks import files  # noqa: E402
from raybatch.sinks.parquet import ParquetSink  # noqa: E402
from raybatch.store.memory import MemoryStore  # noqa: E402

MOST_RUNS = 5000

Mutation = Callable[[], Any]
MUTATIONS: dict[str, Mutation] = {}


def mutation(make: Mutation) -> Mutation:
    """Register a function that gives a context manager; its name says what is broken."""
    MUTATIONS[make.__name__.replace("_", "-")] = make
    return make


# -- the store -----------------------------------------------------------------------------------------------


@mutation
def a_create_ignores_its_condition() -> Any:
    def create(self: MemoryStore, key: str, data: bytes) -> bool:
        self._write("create", key, lambda: bytes(data))
        self.objects[key] = bytes(data)
        return True

    return patch.object(MemoryStore, "create", create)


@mutation
def a_link_ignores_its_condition_and_takes_any_bytes() -> Any:
    def link(self: MemoryStore, existing: str, key: str) -> bool:
        made = self._write("link", key, lambda: self.objects[existing])
        self.objects[key] = self.objects[min(k for k in self.objects if k.startswith("_raybatch/parts/"))]
        return made

    return patch.object(MemoryStore, "link", link)


# -- whose record stands -------------------------------------------------------------------------------------


@mutation
def who_comes_second_believes_that_it_was_first() -> Any:
    real = Ledger.publish

    def publish(self: Ledger, record: UnitRecord) -> UnitRecord:
        real(self, record)
        return record

    def execute(ledger: Ledger, plan: Plan, *, attempts: story.Attempts, most: int | None = None) -> None:
        own.clear()
        for unit in set(range(len(plan.units))) - ledger.published(plan):
            name = attempts()
            rows = story.unit_rows(plan, unit, name)
            own[unit] = story.SINK.write(rows, plan=plan.reference(), attempt=name, ledger=ledger)

    def record(self: Ledger, plan: Plan, unit: int) -> UnitRecord:
        return own.pop(unit, None) or real_record(self, plan, unit)

    own: dict[int, UnitRecord] = {}
    real_record = Ledger.record
    return several(
        patch.object(Ledger, "publish", publish),
        patch.object(Ledger, "record", record),
        patch.object(story, "execute", execute),
    )


@mutation
def the_newer_record_wins() -> Any:
    """A decision by the clock."""

    def publish(self: Ledger, record: UnitRecord) -> UnitRecord:
        key = keys.unit_key(record.epoch, record.unit)
        standing = self._read(key)
        if standing is not None and UnitRecord.from_json(standing).created_at >= record.created_at:
            return UnitRecord.from_json(standing)
        self.store.put(key, record.to_json().encode())
        return record

    return patch.object(Ledger, "publish", publish)


@mutation
def the_loser_deletes_the_winners_parts() -> Any:
    real = ParquetSink.write

    def write(self: ParquetSink, rows: Any, *, attempt: str, ledger: Ledger, **options: Any) -> UnitRecord:
        standing = real(self, rows, attempt=attempt, ledger=ledger, **options)
        if standing.attempt != attempt:
            for part in standing.parts.values():
                ledger.store.delete(part.key)
        return standing

    return patch.object(ParquetSink, "write", write)


@mutation
def parts_are_deleted_when_the_outcome_of_publishing_is_unknown() -> Any:
    real = Ledger.publish

    def publish(self: Ledger, record: UnitRecord) -> UnitRecord:
        try:
            return real(self, record)
        except StoreError:
            for part in record.parts.values():
                self.store.delete(part.key)
            raise

    return patch.object(Ledger, "publish", publish)


@mutation
def a_create_that_failed_is_taken_for_done() -> Any:
    def settle(self: Ledger, key: str, text: str) -> bytes:
        try:
            self.store.create(key, text.encode())
        except StoreError:
            return text.encode()
        return self.store.read(key)

    return patch.object(Ledger, "_settle", settle)


@mutation
def parts_are_written_after_the_record_that_names_them() -> Any:
    real = ParquetSink.write

    class Late:
        """A store that keeps parts back."""

        def __init__(self, store: Any) -> None:
            self.store, self.kept = store, {}

        def __getattr__(self, name: str) -> Any:
            return getattr(self.store, name)

        def put(self, key: str, data: bytes) -> None:
            self.kept[key] = bytes(data)

    def write(self: ParquetSink, rows: Any, *, ledger: Ledger, **options: Any) -> UnitRecord:
        late = Late(ledger.store)
        standing = real(self, rows, ledger=Ledger(late, ledger.pipeline), **options)
        for key, data in late.kept.items():
            ledger.store.put(key, data)
        return standing

    return patch.object(ParquetSink, "write", write)


# -- plans and epochs ----------------------------------------------------------------------------------------


@mutation
def each_run_goes_by_its_own_plan() -> Any:
    real = Ledger.create_plan

    def create_plan(self: Ledger, plan: Plan) -> Plan:
        real(self, plan)
        return plan

    return patch.object(Ledger, "create_plan", create_plan)


@mutation
def an_epoch_begins_at_the_very_beginning() -> Any:
    real = Ledger.position
    return patch.object(Ledger, "position", lambda self: (real(self)[0], None))


@mutation
def an_epoch_begins_after_the_last_plan_instead_of_the_last_commit() -> Any:
    def position(self: Ledger) -> tuple[int, Any]:
        plans = sum(1 for _ in self.store.list(keys.PLANS))
        plan = self.plan(plans - 1) if plans else None
        return (plans, plan.end) if plan else (0, None)

    return patch.object(Ledger, "position", position)


@mutation
def an_epoch_that_is_planned_ahead_begins_where_the_last_commit_ends() -> Any:
    return patch.object(story, "next_place", lambda plan: (plan.epoch + 1, plan.start))


@mutation
def a_row_is_lost_between_two_epochs() -> Any:
    real = story.first_row
    return patch.object(story, "first_row", lambda position: real(position) + bool(position))


# -- commits -------------------------------------------------------------------------------------------------


@mutation
def an_epoch_is_committed_before_all_its_units() -> Any:
    def execute(ledger: Ledger, plan: Plan, *, attempts: story.Attempts, most: int | None = None) -> None:
        for unit in range(len(plan.units) - 1):
            story.attempt(ledger, plan, unit, attempts())

    def finish(ledger: Ledger, plan: Plan, *, run_id: str) -> Commit:
        records = [ledger.record(plan, unit) for unit in sorted(ledger.published(plan))]
        made = story.SINK.finalise(plan, records, ledger=ledger)
        return ledger.commit(plan, Commit.of(plan, records, made, run_id=run_id))

    return several(
        patch.object(story, "execute", execute),
        patch.object(story, "finish", finish),
        patch.object(Ledger, "_check_complete", lambda *_: None),
        patch("raybatch.sinks.parquet._complete", lambda _plan, records: list(records)),
    )


@mutation
def an_epoch_is_committed_before_the_one_that_it_follows() -> Any:
    real = story.finish

    def finish(ledger: Ledger, plan: Plan, *, run_id: str) -> Commit:
        ahead = ledger.plan(plan.epoch + 1)
        if ahead is not None and len(ledger.published(ahead)) == len(ahead.units):
            real(ledger, ahead, run_id=run_id)
        return real(ledger, plan, run_id=run_id)

    return several(
        patch.object(story, "finish", finish), patch.object(Ledger, "_check_order", lambda *_: None)
    )


@mutation
def the_commit_comes_before_the_files_it_names() -> Any:
    def finish(ledger: Ledger, plan: Plan, *, run_id: str) -> Commit:
        records = [ledger.record(plan, unit) for unit in range(len(plan.units))]
        beside = Ledger(MemoryStore(dict(ledger.store.objects)), story.PIPELINE)
        made = story.SINK.finalise(plan, records, ledger=beside)
        commit = ledger.commit(plan, Commit.of(plan, records, made, run_id=run_id))
        story.SINK.finalise(plan, records, ledger=ledger)
        return commit

    return patch.object(story, "finish", finish)


@mutation
def the_loser_of_a_commit_is_not_told() -> Any:
    real = Ledger.commit

    def commit(self: Ledger, plan: Plan, commit: Commit) -> Commit:
        try:
            return real(self, plan, commit)
        except world.LostRaceError:
            return commit

    return patch.object(Ledger, "commit", commit)


# -- files that readers read ---------------------------------------------------------------------------------


@mutation
def each_driver_names_its_files_itself() -> Any:
    numbers = iter(range(10_000, 99_999))

    def file_key(folder: str, epoch: int, number: int, *, partition: str = "") -> str:
        return real(folder, epoch, next(numbers), partition=partition)

    real = keys.file_key
    return several(
        patch.object(keys, "file_key", file_key), patch.object(files, "refuse_strangers", lambda *_: None)
    )


@mutation
def files_are_made_of_parts_that_nobody_verified() -> Any:
    """Together with a store that damages a part."""
    real = MemoryStore.put

    def put(self: MemoryStore, key: str, data: bytes) -> None:
        real(self, key, bytes(data)[:-1] + b"?" if key.endswith("2.errors.parquet") else data)

    return several(patch.object(MemoryStore, "put", put), patch.object(files, "verify_unit", lambda *_: None))


@mutation
def a_file_appears_as_soon_as_its_first_unit_is_published() -> Any:
    real = ParquetSink.write

    def write(self: ParquetSink, rows: Any, *, ledger: Ledger, **options: Any) -> UnitRecord:
        record = real(self, rows, ledger=ledger, **options)
        ok = record.parts.get("ok")
        if ok is not None:
            ledger.store.link(ok.key, keys.file_key(keys.DATA, record.epoch, record.unit + 50))
        return record

    return several(
        patch.object(ParquetSink, "write", write), patch.object(files, "refuse_strangers", lambda *_: None)
    )


@mutation
def a_unit_counts_a_row_that_it_does_not_hold() -> Any:
    real = story.unit_rows

    def unit_rows(plan: Plan, unit: int, name: str) -> Any:
        rows = real(plan, unit, name)
        if unit != 1:
            return rows
        # The first ok row there twice instead of the first error row: it adds up, and is wrong
        twice = story.pa.concat_tables([rows.table, rows.table.slice(0, len(rows.errors))])
        return replace(rows, table=twice, errors=rows.errors.slice(0, 0))

    return patch.object(story, "unit_rows", unit_rows)


# -- clean-up ------------------------------------------------------------------------------------------------


@mutation
def a_clean_up_removes_parts_of_units_without_a_record() -> Any:
    real = gc._Collector._judge

    def judge(self: Any, contested: Any) -> Any:
        verdict = real(self, contested)
        return gc._Verdict(garbage=[entry for _, entry in contested.parts]) if verdict.waiting else verdict

    return patch.object(gc._Collector, "_judge", judge)


@mutation
def a_clean_up_keeps_the_newest_attempt() -> Any:
    def judge(self: Any, contested: Any) -> Any:
        newest = max(attempt for attempt, _ in contested.parts)
        return gc._Verdict(garbage=[entry for attempt, entry in contested.parts if attempt != newest])

    return patch.object(gc._Collector, "_judge", judge)


@mutation
def a_clean_up_decides_before_it_lists() -> Any:
    """The records as they were when it began: a unit published since is taken for one that nobody did."""
    real = gc._Collector._contested

    def contested(self: Any) -> Any:
        self.known = dict(self._store.objects)
        return real(self)

    def judge(self: Any, found: Any) -> Any:
        key = keys.unit_key(found.epoch, found.unit)
        record = UnitRecord.from_json(self.known[key]) if key in self.known else None
        kept = record.attempt if record else min(attempt for attempt, _ in found.parts)
        return gc._Verdict(garbage=[entry for attempt, entry in found.parts if attempt != kept])

    return several(
        patch.object(gc._Collector, "_contested", contested), patch.object(gc._Collector, "_judge", judge)
    )


# -- how -----------------------------------------------------------------------------------------------------


@contextmanager
def several(*patches: Any) -> Iterator[None]:
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


@dataclass(frozen=True, kw_only=True)
class Found:
    """`runs` of the model until a violation; `what` it was, None if there was none."""

    runs: int
    what: str | None


def find(name: str, *, seed_of: int, most: int = MOST_RUNS) -> Found:
    """Run the model with that mutation until it finds a violation."""
    runs = 0

    class Counted(TwoRuns):
        def __init__(self) -> None:
            nonlocal runs
            runs += 1
            super().__init__()

    options = how_many(most, phases=[Phase.generate], verbosity=Verbosity.quiet, report_multiple_bugs=False)
    with MUTATIONS[name]():
        try:
            run_state_machine_as_test(seed(seed_of)(Counted), settings=options)
        except AssertionError as error:
            return Found(runs=runs, what=" ".join(f"{type(error).__name__}: {error}".split()))
    return Found(runs=runs, what=None)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MUTATIONS))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    missed = 0
    sys.stdout.write(f"seed {options.seed}\n")
    for name in options.names or MUTATIONS:
        found = find(name, seed_of=options.seed)
        missed += found.what is None
        verdict = f"run {found.runs:>4}: {found.what[:150]}" if found.what else f"MISSED in {found.runs} runs"
        sys.stdout.write(f"{name:<66} {verdict}\n")
        sys.stdout.flush()
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
