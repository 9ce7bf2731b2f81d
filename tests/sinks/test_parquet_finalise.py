"""What the driver makes of an epoch's published units."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybatch.errors import LedgerError, StoreError
from raybatch.ledger import keys
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Commit, DataFile, Layout, UnitRecord
from raybatch.rows import ID_SCHEMA, UnitRows, source_errors
from raybatch.sinks import files as sink_files
from raybatch.sinks.budget import Budget
from raybatch.sources.base import UnitSpec
from raybatch.store import LocalStore
from raybatch.store.memory import MemoryStore, Outcome
from small_run import (
    LAYOUT,
    PIPELINE,
    Oracle,
    in_child,
    make_plan,
    make_sink,
    ok_table,
    outcome_of,
    publish,
)

DATA = [f"data/00000000-0000{n}.parquet" for n in range(3)]
ERRORS = "errors/00000000-00000.parquet"


class Epoch:
    """A plan with some published units, about to be finalised."""

    def __init__(self, store: Any = None, *, number: int = 0, layout: Layout = LAYOUT) -> None:
        self.store = store if store is not None else MemoryStore()
        self.ledger = Ledger(self.store, PIPELINE)
        start = {"next": number} if number else None
        self.plan = self.ledger.create_plan(make_plan(epoch=number, start=start, layout=layout))
        self.records: list[UnitRecord] = []

    def publish_all(self) -> Epoch:
        self.records = [publish(self.ledger, self.plan, unit) for unit in range(5)]
        return self

    def publish_columns(self, *values: pa.Array) -> Epoch:
        """One unit for each array, as the column `text`; the plan is made to fit."""
        self._replan([len(column) for column in values])
        for unit, column in enumerate(values):
            ids = [(f"f{self.plan.epoch}-{unit}", row, None) for row in range(len(column))]
            table = ok_table(ids, column.to_pylist(), column.type)
            rows = UnitRows(unit=self.plan.unit_key(unit), rows_in=len(column), table=table)
            self._write(rows, f"attempt-{unit}")
        return self

    def publish_failures(self, rows: int) -> Epoch:
        """One unit whose rows all failed, and whose results have no column."""
        self._replan([rows])
        failed = [
            {"_source": f"f{self.plan.epoch}", "_row": row, "type": "Bad", "message": ""}
            for row in range(rows)
        ]
        held = UnitRows(
            unit=self.plan.unit_key(0),
            rows_in=rows,
            table=ID_SCHEMA.empty_table(),
            errors=source_errors(failed),
        )
        self._write(held, "attempt-0")
        return self

    def _replan(self, rows: list[int]) -> None:
        plan = replace(self.plan, units=tuple(UnitSpec(range={}, rows=n) for n in rows), plan_id="")
        self.store.delete(keys.plan_key(plan.epoch))
        self.plan = self.ledger.create_plan(plan)

    def _write(self, rows: UnitRows, attempt: str) -> None:
        made = make_sink().write(rows, plan=self.plan.reference(), attempt=attempt, ledger=self.ledger)
        self.records.append(made)

    def finalise(self, **options: Any) -> list[DataFile]:
        return make_sink(**options).finalise(self.plan, self.records, ledger=self.ledger)

    def commit(self, files: list[DataFile]) -> None:
        self.ledger.commit(self.plan, Commit.of(self.plan, self.records, files, run_id="run-1"))

    def table(self, key: str) -> pa.Table:
        return pq.read_table(io.BytesIO(self.store.read(key)))


def test_small_units_are_merged_in_order_and_a_large_one_is_a_file() -> None:
    files = Epoch().publish_all().finalise()
    assert [(f.key, f.units) for f in files] == [
        (DATA[0], (0, 1)),
        (DATA[1], (2,)),
        (DATA[2], (3, 4)),
        (ERRORS, (0, 1, 2, 3, 4)),
    ]


def test_readers_see_every_row_of_every_unit_once() -> None:
    epoch = Epoch().publish_all()
    epoch.commit(epoch.finalise())
    Oracle(epoch.store.objects).check_complete()


def test_files_are_accounted_for_with_rows_size_and_digest() -> None:
    epoch = Epoch().publish_all()
    for file in epoch.finalise():
        data = epoch.store.read(file.key)
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert file.rows == pq.read_metadata(io.BytesIO(data)).num_rows


def test_a_large_unit_is_linked_and_not_copied(tmp_path: Path) -> None:
    epoch = Epoch(LocalStore(str(tmp_path))).publish_all()
    epoch.finalise()
    part = epoch.records[2].parts["ok"].key
    assert os.path.samefile(tmp_path / part, tmp_path / DATA[1])


def test_a_merged_file_says_where_its_rows_come_from() -> None:
    epoch = Epoch().publish_all()
    epoch.finalise()
    said = pq.read_metadata(io.BytesIO(epoch.store.read(DATA[0]))).metadata
    units = [[record.unit, record.attempt] for record in epoch.records[:2]]
    assert json.loads(said[b"raybatch.units"]) == units
    assert said[b"raybatch.plan"] == epoch.plan.plan_id.encode()


def test_models_of_all_units_are_named_in_a_merged_file() -> None:
    epoch = Epoch(layout=Layout(target_bytes=1 << 20, small_bytes=1 << 20))
    epoch.plan = epoch.ledger.create_plan(epoch.plan)
    for unit, model in enumerate(["old", "new", "new", "old", "new"]):
        rows = UnitRows(unit=epoch.plan.unit_key(unit), rows_in=6, table=_six_rows(unit))
        reference, metadata = epoch.plan.reference(), {"models": model}
        epoch.records.append(
            make_sink().write(
                rows, plan=reference, attempt=f"a{unit}", ledger=epoch.ledger, metadata=metadata
            )
        )
    epoch.finalise()
    assert pq.read_metadata(io.BytesIO(epoch.store.read(DATA[0]))).metadata[b"raybatch.models"] == b"old, new"


def _six_rows(unit: int) -> pa.Table:
    return ok_table([("f", unit * 6 + row, None) for row in range(6)], ["text"] * 6)


def test_row_groups_of_small_units_are_gathered_up_to_the_limit() -> None:
    layout = Layout(target_bytes=1 << 20, small_bytes=1 << 20)
    epoch = Epoch(layout=layout).publish_columns(*[pa.array(range(10))] * 5)
    epoch.finalise(row_group_rows=25)
    metadata = pq.read_metadata(io.BytesIO(epoch.store.read(DATA[0])))
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [20, 20, 10]


def test_a_column_that_is_null_in_one_unit_and_whole_in_another_is_of_one_type() -> None:
    epoch = Epoch().publish_columns(pa.nulls(2), pa.array([1, 2]), pa.array([0.5]))
    assert [f.key for f in epoch.finalise()] == [DATA[0]]
    assert epoch.table(DATA[0])["text"].to_pylist() == [None, None, 1.0, 2.0, 0.5]


def test_a_large_unit_of_another_schema_is_rewritten() -> None:
    layout = Layout(target_bytes=10, small_bytes=1)
    epoch = Epoch(layout=layout).publish_columns(pa.array([1]), pa.array([0.5]), pa.array([2]))
    epoch.finalise()
    assert [epoch.table(key).schema.field("text").type for key in DATA] == [pa.float64()] * 3


def test_units_that_cannot_be_reconciled_are_named_and_nothing_appears() -> None:
    epoch = Epoch().publish_columns(pa.array([1]), pa.array(["a"]))
    with pytest.raises(LedgerError, match="the column 'text' is int64 in unit 0 and string in unit 1"):
        epoch.finalise()
    assert list(epoch.store.list("data/")) == []


def test_an_epoch_without_an_ok_row_has_one_file_for_its_schema() -> None:
    epoch = Epoch().publish_columns(pa.array([], pa.float32()), pa.array([], pa.float32()))
    assert [(f.key, f.rows, f.units) for f in epoch.finalise()] == [(DATA[0], 0, ())]
    assert epoch.table(DATA[0]).schema.field("text").type == pa.float32()


def test_an_epoch_without_units_has_no_files() -> None:
    epoch = Epoch().publish_columns()
    assert epoch.finalise() == []


def test_the_next_epoch_keeps_the_types_of_the_first() -> None:
    first = Epoch().publish_columns(pa.array([0.5]))
    first.commit(first.finalise())
    second = Epoch(first.store, number=1).publish_columns(pa.array([1]), pa.nulls(1))
    second.finalise()
    assert second.table("data/00000001-00000.parquet").schema.field("text").type == pa.float64()


def test_an_epoch_without_results_does_not_make_the_next_one_forget_types() -> None:
    first = Epoch().publish_columns(pa.array([0.5]))
    first.commit(first.finalise())
    # Neither one that has no file at all, nor one whose rows all failed before the column was made
    second = Epoch(first.store, number=1).publish_columns()
    second.commit(second.finalise())
    third = Epoch(first.store, number=2).publish_failures(3)
    third.commit(third.finalise())
    assert third.table("data/00000002-00000.parquet").schema.field("text").type == pa.float64()
    fourth = Epoch(first.store, number=3).publish_columns(pa.array([1]))
    fourth.finalise()
    assert fourth.table("data/00000003-00000.parquet").schema.field("text").type == pa.float64()


def test_where_no_epoch_had_results_the_types_of_the_last_file_are_kept() -> None:
    first = Epoch().publish_columns(pa.array([], pa.float64()))
    first.commit(first.finalise())
    second = Epoch(first.store, number=1).publish_columns(pa.array([1]))
    second.finalise()
    assert second.table("data/00000001-00000.parquet").schema.field("text").type == pa.float64()


def test_finalising_again_gives_the_same_files_and_writes_none() -> None:
    epoch = Epoch().publish_all()
    files = epoch.finalise()
    before = dict(epoch.store.objects)
    # Other options: what stands is taken all the same
    assert epoch.finalise(compression="none", row_group_rows=1) == files
    assert epoch.store.objects == before


def test_files_that_a_crashed_finalise_left_are_taken_and_the_others_made() -> None:
    epoch = Epoch().publish_all()
    files = epoch.finalise()
    for missing in (DATA[0], DATA[1], ERRORS):
        kept = {key: data for key, data in epoch.store.objects.items() if key != missing}
        epoch.store.objects.clear()
        epoch.store.objects.update(kept)
        again = epoch.finalise()
        assert [(f.key, f.rows, f.units) for f in again] == [(f.key, f.rows, f.units) for f in files]


@pytest.mark.parametrize("key", [*DATA, ERRORS])
@pytest.mark.parametrize("operation", ["create", "link"])
def test_a_file_whose_answer_was_lost_is_found_to_be_there(key: str, operation: str) -> None:
    epoch = Epoch().publish_all()
    epoch.store.hook = lambda op, k: Outcome.UNSURE if (op, k) == (operation, key) else Outcome.DONE
    epoch.commit(epoch.finalise())
    Oracle(epoch.store.objects).check_complete()


def test_a_file_that_could_not_be_made_is_an_error() -> None:
    epoch = Epoch().publish_all()
    epoch.store.hook = lambda op, key: Outcome.LOST if (op, key) == ("create", DATA[0]) else Outcome.DONE
    with pytest.raises(StoreError, match="injected"):
        epoch.finalise()


@pytest.mark.parametrize("kind", ["ok", "errors", "dropped"])
@pytest.mark.parametrize("unit", [0, 2])
def test_a_damaged_part_is_named_before_readers_see_a_row_and_its_unit_can_be_redone(
    unit: int, kind: str
) -> None:
    epoch = Epoch().publish_all()
    key = epoch.records[unit].parts[kind].key
    epoch.store.objects[key] = epoch.store.objects[key][:-1] + b"?"
    with pytest.raises(LedgerError) as caught:
        epoch.finalise()
    for expected in (key, f"unit {unit} of epoch 0", "was damaged", f"delete {keys.unit_key(0, unit)}"):
        assert expected in str(caught.value)
    assert list(epoch.store.list("data/")) == []
    # As it says
    epoch.store.delete(keys.unit_key(0, unit))
    epoch.records[unit] = publish(epoch.ledger, epoch.plan, unit)
    epoch.commit(epoch.finalise())
    Oracle(epoch.store.objects).check_complete()


def test_a_missing_part_is_named() -> None:
    epoch = Epoch().publish_all()
    epoch.store.delete(epoch.records[3].parts["ok"].key)
    with pytest.raises(
        LedgerError, match=r"00000003-.*\.ok\.parquet, a part of unit 3 of epoch 0, is missing"
    ):
        epoch.finalise()


@pytest.mark.parametrize("key", ["data/00000000-00003.parquet", "errors/00000000-00001.parquet"])
def test_a_file_of_the_epoch_that_the_layout_does_not_name_is_refused(key: str) -> None:
    epoch = Epoch().publish_all()
    epoch.store.create(key, b"")
    with pytest.raises(LedgerError, match=f"{key} is no file of this epoch.*No commit names it: delete it"):
        epoch.finalise()
    assert [entry.key for entry in epoch.store.list("data/") if entry.key != key] == []


def test_a_file_of_another_epoch_is_no_matter() -> None:
    epoch = Epoch().publish_all()
    epoch.store.create("data/00000007-00000.parquet", b"")
    assert len(epoch.finalise()) == 4


Change = Callable[[Epoch], bytes]
OTHERS: list[tuple[str, Change, str]] = [
    (DATA[0], lambda e: e.store.read(DATA[2]), "holds other units than the plan"),
    (DATA[1], lambda e: e.store.read(DATA[0]), "holds other units than the plan"),
    (DATA[0], lambda e: b"no parquet", "is not a readable Parquet file"),
    (
        DATA[0],
        lambda e: _rewritten(e, lambda t: t.slice(1)),
        r"holds 9 rows, or other columns, instead of 10",
    ),
    (DATA[0], lambda e: _rewritten(e, lambda t: t.drop_columns(["text"])), "holds 10 rows, or other columns"),
    (DATA[1], lambda e: _rewritten(e, lambda t: t, DATA[1]), "differs from the part that it is a link to"),
]


def _rewritten(epoch: Epoch, change: Callable[[pa.Table], pa.Table], key: str = DATA[0]) -> bytes:
    footer = pq.read_metadata(io.BytesIO(epoch.store.read(key))).metadata
    said = {name: value for name, value in footer.items() if name.startswith(b"raybatch.")}
    sink = io.BytesIO()
    pq.write_table(change(epoch.table(key)).replace_schema_metadata(said), sink)
    return sink.getvalue()


@pytest.mark.parametrize(("key", "other", "says"), OTHERS)
def test_a_standing_file_that_is_another_is_refused(key: str, other: Change, says: str) -> None:
    epoch = Epoch().publish_all()
    epoch.finalise()
    epoch.store.objects[key] = other(epoch)
    with pytest.raises(LedgerError, match=says) as caught:
        epoch.finalise()
    assert key in str(caught.value)


def test_once_the_epoch_is_committed_the_advice_is_to_restore_and_never_to_delete() -> None:
    epoch = Epoch().publish_all()
    epoch.commit(epoch.finalise())
    epoch.store.objects[DATA[0]] = epoch.store.objects[DATA[2]]
    with pytest.raises(LedgerError, match="The commit of epoch 0 exists: restore"):
        epoch.finalise()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda e: e.records.pop(), "has 5 units, and finalise was given 4 records"),
        (lambda e: e.records.append(e.records[0]), "has 5 units, and finalise was given 6 records"),
        (lambda e: e.records.__setitem__(1, replace(e.records[1], plan_id="x")), "of unit 1 is of plan x"),
    ],
)
def test_records_that_are_not_those_of_the_plan_are_refused(
    change: Callable[[Epoch], object], says: str
) -> None:
    epoch = Epoch().publish_all()
    change(epoch)
    with pytest.raises(LedgerError, match=says):
        epoch.finalise()


def test_a_unit_with_other_rows_than_planned_is_refused() -> None:
    epoch = Epoch()
    epoch.store.delete(keys.plan_key(0))
    specs = tuple(replace(spec, rows=7 if unit == 3 else 6) for unit, spec in enumerate(epoch.plan.units))
    epoch.plan = epoch.ledger.create_plan(replace(epoch.plan, units=specs, plan_id=""))
    with pytest.raises(
        LedgerError, match="unit 3 of epoch 0 was planned with 7 rows, and its record accounts for 6"
    ):
        epoch.publish_all().finalise()


def test_jobs_can_be_done_in_other_processes(tmp_path: Path) -> None:
    def elsewhere(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """As Ray does: function, arguments and results travel by pickle."""
        sent = [pickle.loads(pickle.dumps((function, item))) for item in items]
        return [pickle.loads(pickle.dumps(f(item))) for f, item in sent]

    epoch = Epoch(LocalStore(str(tmp_path))).publish_all()
    files = make_sink().finalise(epoch.plan, epoch.records, ledger=epoch.ledger, parallel_map=elsewhere)
    epoch.commit(files)
    Oracle.of_folder(tmp_path).check_complete()


def test_a_merge_holds_a_row_group_and_the_file_and_not_all_of_the_parts(tmp_path: Path) -> None:
    # 24 MiB that do not compress, in 24 parts; merged to files of 2 MiB
    layout = Layout(target_bytes=2 << 20, small_bytes=2 << 20)

    def merge() -> None:
        pa.set_memory_pool(pa.system_memory_pool())
        blocks = [pa.array([os.urandom(1 << 16) for _ in range(16)]) for _ in range(24)]
        held = pa.total_allocated_bytes()
        epoch = Epoch(LocalStore(str(tmp_path)), layout=layout).publish_columns(*blocks)
        epoch.finalise(row_group_bytes=1 << 20)
        (tmp_path / "after").write_text(str(pa.default_memory_pool().max_memory() - held))

    assert outcome_of(in_child(merge)) == 0
    assert int((tmp_path / "after").read_text()) < 12 << 20


def test_merges_at_the_same_time_share_the_memory_that_there_is(tmp_path: Path) -> None:
    # As above, but eight merges at a time ask for 4 MiB each, of 4 MiB
    layout = Layout(target_bytes=2 << 20, small_bytes=2 << 20)

    def merge() -> None:
        pa.set_memory_pool(pa.system_memory_pool())
        sink_files._MERGES = Budget(4 << 20)
        blocks = [pa.array([os.urandom(1 << 16) for _ in range(16)]) for _ in range(24)]
        held = pa.total_allocated_bytes()
        epoch = Epoch(LocalStore(str(tmp_path)), layout=layout).publish_columns(*blocks)
        sink = make_sink(row_group_bytes=1 << 20)
        with ThreadPoolExecutor(8) as threads:
            sink.finalise(epoch.plan, epoch.records, ledger=epoch.ledger, parallel_map=threads.map)
        (tmp_path / "after").write_text(str(pa.default_memory_pool().max_memory() - held))

    assert outcome_of(in_child(merge)) == 0
    assert int((tmp_path / "after").read_text()) < 12 << 20


def test_a_thousand_small_units_become_one_file_of_one_row_group() -> None:
    epoch = Epoch(layout=make_sink().layout())
    epoch.publish_columns(*[pa.array([f"unit {unit} " * 300, f"row {unit}"]) for unit in range(1000)])
    [file] = epoch.finalise()
    assert (file.key, file.rows, file.units) == (DATA[0], 2000, tuple(range(1000)))
    assert pq.read_metadata(io.BytesIO(epoch.store.read(file.key))).num_row_groups == 1
    rows = epoch.table(file.key)
    assert rows["_source"].to_pylist() == [f"f0-{unit}" for unit in range(1000) for _ in range(2)]
