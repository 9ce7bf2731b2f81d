"""Which published parts become which files."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Layout, Part, Plan, UnitRecord, schema_to_text
from raybatch.rows import ID_FIELDS
from raybatch.sinks.files import lay_out
from raybatch.store.memory import MemoryStore
from small_run import (
    PIPELINE,
    make_plan,
    publish,
)


def _record(unit: int, size: int) -> UnitRecord:
    part = Part(key=f"part-{unit}", size=size, sha256="", rows=1)
    record = publish(Ledger(MemoryStore(), PIPELINE), make_plan(), 0)
    return replace(record, unit=unit, attempt=f"a{unit}", parts={"ok": part} if size else {})


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([10, 10, 10], [([0, 1, 2], False)]),
        ([60, 60, 10], [([0], True), ([1, 2], False)]),
        ([60, 60, 60], [([0], True), ([1], True), ([2], True)]),
        ([10, 85, 10, 90, 10], [([0, 2, 4], False), ([1], True), ([3], True)]),
        ([80, 10, 80], [([0], True), ([1], True), ([2], True)]),
        ([0, 10, 0, 10], [([1, 3], False)]),
        ([0, 0], [([], False)]),
        ([70, 40, 70, 40, 70], [([0], True), ([1, 3], False), ([2], True), ([4], True)]),
    ],
)
def test_the_layout_follows_from_sizes_alone(
    sizes: list[int], expected: list[tuple[list[int], bool]]
) -> None:
    plan: Plan = make_plan(layout=Layout(target_bytes=100, small_bytes=70 if 70 in sizes else 80))
    schema = pa.schema([("text", pa.string()), *ID_FIELDS])
    records = [replace(_record(u, s), schema=schema_to_text(schema)) for u, s in enumerate(sizes)]
    jobs = lay_out(plan, records, schema)
    assert [([p.unit for p in job.pieces], job.linked) for job in jobs] == expected
    assert [job.key for job in jobs] == [f"data/00000000-{n:05d}.parquet" for n in range(len(jobs))]
