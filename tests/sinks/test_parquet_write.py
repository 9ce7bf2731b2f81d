"""What a worker stores of one attempt."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybatch.errors import SinkError, StageError, StoreError
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Plan, UnitRecord, schema_from_text
from raybatch.rows import UnitRows
from raybatch.store.memory import MemoryStore, Outcome
from raybatch.version import __version__
from small_run import PIPELINE, make_plan, make_sink, ok_table, unit_rows


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(MemoryStore(), PIPELINE)


@pytest.fixture
def plan(ledger: Ledger) -> Plan:
    return ledger.create_plan(make_plan())


def _write(ledger: Ledger, plan: Plan, rows: UnitRows, *, attempt: str = "a1", **options: Any) -> UnitRecord:
    sink, metadata = make_sink(**options), {"models": "org/model@main"}
    return sink.write(rows, plan=plan.reference(), attempt=attempt, ledger=ledger, metadata=metadata)


def _user_rows(plan: Plan, table: pa.Table) -> UnitRows:
    """A unit of these user columns and nothing else."""
    ids = ok_table([("f", row, None) for row in range(len(table))], [None] * len(table)).drop_columns(
        ["text"]
    )
    for field in ids.schema:
        table = table.append_column(field, ids[field.name])
    return UnitRows(unit=plan.unit_key(0), rows_in=len(table), table=table)


def _part(ledger: Ledger, record: UnitRecord, kind: str = "ok") -> Any:
    return pq.ParquetFile(io.BytesIO(ledger.store.read(record.parts[kind].key)))


def test_the_record_counts_what_became_of_the_rows(ledger: Ledger, plan: Plan) -> None:
    record = _write(ledger, plan, unit_rows(plan, 1, "a1"))
    assert json.loads(record.to_json())["counts"] == {"in": 6, "made": 1, "ok": 5, "error": 1, "dropped": 1}
    assert (record.unit, record.attempt, record.error_types) == (1, "a1", {"TooLong": 1})
    assert record.stats == {"generated_tokens": 10}


def test_each_kind_of_rows_is_a_part_with_its_size_digest_and_rows(ledger: Ledger, plan: Plan) -> None:
    record = _write(ledger, plan, unit_rows(plan, 1, "a1"))
    for kind, rows in (("ok", 5), ("errors", 1), ("dropped", 1)):
        part, data = record.parts[kind], ledger.store.read(record.parts[kind].key)
        assert part.key == f"_raybatch/parts/00000000/00000/00000001-a1.{kind}.parquet"
        assert (part.size, part.sha256, part.rows) == (len(data), hashlib.sha256(data).hexdigest(), rows)


def test_a_kind_without_rows_has_no_part_but_the_schema_is_recorded(ledger: Ledger, plan: Plan) -> None:
    record = _write(ledger, plan, _user_rows(plan, pa.table({"v": pa.array([], pa.float32())})))
    assert record.parts == {}
    assert schema_from_text(record.schema).field("v").type == pa.float32()


def test_footers_name_version_pipeline_plan_unit_attempt_and_models(ledger: Ledger, plan: Plan) -> None:
    record = _write(ledger, plan, unit_rows(plan, 1, "a1"))
    for kind in record.parts:
        said = _part(ledger, record, kind).metadata.metadata
        assert {k: v for k, v in said.items() if k.startswith(b"raybatch.")} == {
            b"raybatch.version": __version__.encode(),
            b"raybatch.pipeline": b"small",
            b"raybatch.plan": plan.plan_id.encode(),
            b"raybatch.epoch": b"0",
            b"raybatch.units": b'[[1, "a1"]]',
            b"raybatch.models": b"org/model@main",
        }


def test_rows_come_back_as_they_were(ledger: Ledger, plan: Plan) -> None:
    table = pa.table(
        {
            "text": ["a", None, "ü"],
            "vector": pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
            "half": pa.array(np.array([[1.5], [2.5], [3.5]], np.float16).tolist(), pa.list_(pa.float16(), 1)),
            "answer": [{"tokens": 1, "parsed": {"x": [1]}}, None, {"tokens": 2, "parsed": None}],
            "pairs": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
        }
    )
    record = _write(ledger, plan, _user_rows(plan, table))
    assert _part(ledger, record).read(columns=table.column_names).equals(table)


def test_vectors_are_split_by_bytes_and_ids_are_packed(ledger: Ledger, plan: Plan) -> None:
    table = pa.table(
        {
            "v": pa.array(np.ones((4, 2)).tolist(), pa.list_(pa.float32(), 2)),
            "h": pa.array(np.ones((4, 2), np.float16).tolist(), pa.list_(pa.float16(), 2)),
            "t": ["a"] * 4,
        }
    )
    parquet = _part(ledger, _write(ledger, plan, _user_rows(plan, table)))
    group = parquet.metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    dictionary = {path for path, column in columns.items() if column.has_dictionary_page}
    assert dictionary == {"t", "_source", "_child"}
    assert "BYTE_STREAM_SPLIT" in columns["v.list.element"].encodings
    assert "BYTE_STREAM_SPLIT" not in columns["h.list.element"].encodings  # DuckDB could not read it
    assert "DELTA_BINARY_PACKED" in columns["_row"].encodings
    assert {c.compression for c in columns.values()} == {"ZSTD"}
    assert [path for path, column in columns.items() if not column.is_stats_set] == [
        "v.list.element",
        "h.list.element",
    ]


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"row_group_rows": 40}, [40, 40, 20]),
        ({"row_group_rows": 1000}, [100]),
        ({"row_group_rows": 1}, [1] * 100),
        # A row is 800 bytes of vector, 5 of source, 8 of number, 4 of child, and some bits
        ({"row_group_bytes": 33_000}, [40, 40, 20]),
        ({"row_group_bytes": 1}, [1] * 100),
    ],
)
def test_row_groups_end_at_the_limit_that_comes_first(
    ledger: Ledger, plan: Plan, options: dict[str, int], sizes: list[int]
) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(20_000, np.float32)), 200)
    record = _write(ledger, plan, _user_rows(plan, pa.table({"v": vectors})), **options)
    metadata = _part(ledger, record).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == sizes


def test_numbers_that_json_lacks_do_not_cost_a_unit(ledger: Ledger, plan: Plan) -> None:
    rows = replace(unit_rows(plan, 0, "a1"), stats={"seconds": 1.5, "loss": math.nan, "rate": math.inf})
    assert _write(ledger, plan, rows).stats == {"seconds": 1.5}


def test_the_second_attempt_is_given_the_first_and_leaves_nothing(ledger: Ledger, plan: Plan) -> None:
    first = _write(ledger, plan, unit_rows(plan, 0, "a1"), attempt="a1")
    before = list(ledger.store.list(""))
    assert _write(ledger, plan, unit_rows(plan, 0, "a2"), attempt="a2") == first
    assert list(ledger.store.list("")) == before


@pytest.mark.parametrize("kind", ["ok", "errors", "dropped"])
def test_a_part_whose_answer_was_lost_is_found_to_be_there(ledger: Ledger, plan: Plan, kind: str) -> None:
    unsure = f"_raybatch/parts/00000000/00000/00000000-a1.{kind}.parquet"
    assert isinstance(ledger.store, MemoryStore)
    ledger.store.hook = lambda op, key: Outcome.UNSURE if (op, key) == ("put", unsure) else Outcome.DONE
    record = _write(ledger, plan, unit_rows(plan, 0, "a1"))
    assert record.parts[kind].key == unsure


@pytest.mark.parametrize("look", [1, 2])
def test_a_part_that_gc_removes_while_it_is_looked_for_is_a_failed_write_at_most(
    ledger: Ledger, plan: Plan, look: int
) -> None:
    """Another attempt has published the unit: this one may lose, and may not meet what cannot be."""
    unsure = "_raybatch/parts/00000000/00000/00000000-a1.ok.parquet"
    store, looks = ledger.store, 0
    assert isinstance(store, MemoryStore)

    def hook(operation: str, key: str) -> Outcome:
        nonlocal looks
        looks += (operation, key) == ("open", unsure)
        if looks == look:
            store.objects.pop(key, None)
        return Outcome.UNSURE if (operation, key) == ("put", unsure) else Outcome.DONE

    store.hook = hook
    with contextlib.suppress(StoreError):
        _write(ledger, plan, unit_rows(plan, 0, "a1"))
    assert looks > 0


def test_parts_are_not_deleted_while_it_is_unknown_whether_the_unit_is_published(
    ledger: Ledger, plan: Plan
) -> None:
    assert isinstance(ledger.store, MemoryStore)
    unit = "_raybatch/units/00000000/00000/00000000.json"
    # The record lands, its answer is lost, and so is the answer to the question whether it did
    outcomes = {("create", unit): Outcome.UNSURE, ("read", unit): Outcome.LOST}
    ledger.store.hook = lambda op, key: outcomes.get((op, key), Outcome.DONE)
    with pytest.raises(StoreError):
        _write(ledger, plan, unit_rows(plan, 0, "a1"))
    ledger.store.hook = lambda op, key: Outcome.DONE
    record = ledger.record(plan, 0)
    assert {entry.key for entry in ledger.store.list("_raybatch/parts/")} == {
        part.key for part in record.parts.values()
    }


def test_a_column_that_parquet_cannot_hold_is_a_stage_error_that_names_it(ledger: Ledger, plan: Plan) -> None:
    with pytest.raises(
        StageError, match=r"unit 00000000/00000000: the column 'x' \(struct<>\) cannot be stored"
    ):
        _write(ledger, plan, _user_rows(plan, pa.table({"x": [{}]})))
    assert ledger.published(plan) == set()


def test_such_a_column_is_refused_before_work_where_the_schema_is_known() -> None:
    with pytest.raises(SinkError, match=r"the column 'x' \(struct<>\) cannot be stored as Parquet"):
        make_sink().check(pa.schema([("a", pa.int64()), ("x", pa.struct([]))]), kept=True)
    make_sink().check(pa.schema([("a", pa.int64())]), kept=True)
