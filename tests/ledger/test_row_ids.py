from __future__ import annotations

import hashlib
import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybatch.ledger.audit import audit
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Commit
from raybatch.ledger.row_ids import HashSpool, IdReader, first_twice, hash_rows, input_rows
from raybatch.rows import ID_SCHEMA, UnitRows
from raybatch.sources.base import UnitSpec
from raybatch.store.memory import MemoryStore
from small_run import PIPELINE, make_plan, make_sink, ok_table

Id = tuple[str, int, str | None]


def _ids(ids: list[Id]) -> pa.Table:
    columns = zip(*ids, strict=True) if ids else [[], [], []]
    return pa.table([list(c) for c in columns], schema=ID_SCHEMA)


def _rows(count: int, *, sources: int) -> pa.Table:
    pairs = itertools.product([f"s3://bucket/part-{s}" for s in range(sources)], range(count))
    return input_rows(_ids([(source, row, None) for source, row in pairs]))


def test_different_rows_have_different_hashes() -> None:
    assert len(np.unique(hash_rows(_rows(20_000, sources=10)))) == 200_000


def test_hashes_of_rows_that_follow_each_other_spread_over_all_partitions() -> None:
    counts = np.bincount((hash_rows(_rows(64_000, sources=1)) >> np.uint64(58)).astype(int), minlength=64)
    # 1,000 expected in each; five standard deviations of a fair throw are 160
    assert counts.min() > 840
    assert counts.max() < 1160


def test_a_row_has_one_hash_whatever_its_company() -> None:
    alone = hash_rows(input_rows(_ids([("b", 7, None)])))
    among = hash_rows(input_rows(_ids([("a", 7, None), ("b", 7, "0"), ("b", 7, "1")])))
    assert alone[0] in among


@pytest.mark.parametrize("memory_hashes", [1_000_000, 100, 1])
@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=50), max_size=8), st.data())
def test_the_spool_finds_what_came_twice_in_memory_and_on_disk(
    memory_hashes: int, batches: list[list[int]], data: st.DataObject
) -> None:
    flat = [h for batch in batches for h in batch]
    again = data.draw(st.lists(st.sampled_from(flat), max_size=5)) if flat else []
    with HashSpool(memory_hashes=memory_hashes) as spool:
        for batch in [*batches, again]:
            spool.add(np.array(batch, dtype=np.uint64))
        found = [int(h) for hashes in spool.twice() for h in hashes]
    every = flat + again
    assert sorted(found) == sorted({h for h in every if every.count(h) > 1})


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([("a", 0, None), ("a", 1, None), ("b", 0, None)], None),
        ([("a", 0, "0"), ("a", 0, "1"), ("a", 0, "1.0")], None),
        ([("a", 0, None), ("a", 0, None)], "a row 0"),
        ([("a", 3, "0.1"), ("a", 3, "0.1")], "a row 3 child 0.1"),
        ([("a", 0, None), ("a", 0, "0")], "a row 0"),
        ([], None),
    ],
)
def test_an_id_that_is_there_twice_is_named(ids: list[Id], said: str | None) -> None:
    assert first_twice(_ids(ids)) == said


def test_ids_are_read_a_few_at_a_time_across_row_groups() -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(_ids([("a", n, None) for n in range(10)]), sink, row_group_size=3)
    with pq.ParquetFile(pa.BufferReader(sink.getvalue())) as parquet:
        reader = IdReader(parquet)
        taken = [reader.take(count)["_row"].to_pylist() for count in (4, 0, 5, 5, 1)]
    assert taken == [[0, 1, 2, 3], [], [4, 5, 6, 7, 8], [9], []]


def test_two_rows_that_share_a_hash_are_no_violation_and_are_told_apart() -> None:
    # Solve hash(a) + row_a * golden == hash(b) + row_b * golden (mod 2**64) for row_a, given row_b = 0
    golden = 0x9E3779B97F4A7C15
    names = (f"source-{n}" for n in itertools.count())
    other = next(names)
    start = _of_source(other)
    same = ((name, (start - _of_source(name)) * pow(golden, -1, 2**64) % 2**64) for name in names)
    name, row = next((name, row) for name, row in same if row < 2**63)
    rows = input_rows(_ids([(other, 0, None), (name, row, None)]))
    assert len(np.unique(hash_rows(rows))) == 1

    store = MemoryStore()
    ledger = Ledger(store, PIPELINE)
    specs = (UnitSpec(range={}, rows=1), UnitSpec(range={}, rows=1))
    plan = ledger.create_plan(replace(make_plan(), units=specs, plan_id=""))
    records = []
    for unit, row_id in enumerate([(other, 0, None), (name, row, None)]):
        held = UnitRows(unit=plan.unit_key(unit), rows_in=1, table=ok_table([row_id], ["text"]))
        records.append(make_sink().write(held, plan=plan.reference(), attempt=f"a{unit}", ledger=ledger))
    files = make_sink().finalise(plan, records, ledger=ledger)
    ledger.commit(plan, Commit.of(plan, records, files, run_id="run-1"))
    assert audit(store).ok


def _of_source(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def test_the_spool_holds_no_more_in_memory_than_it_is_allowed() -> None:
    batch = np.random.default_rng(0).integers(0, 2**63, 50_000).astype(np.uint64)
    with HashSpool(memory_hashes=50_000) as spool:
        tracemalloc.start()
        for number in range(40):  # 16 MB in all
            spool.add(batch + np.uint64(number))
        found = sum(len(hashes) for hashes in spool.twice())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert found == 0
    assert peak < 4_000_000
