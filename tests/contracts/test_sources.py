"""What every source promises, asked of every source.

To add a source, write a case (a class with the three methods of `Case`) and put it into `CASES`.
"""

from __future__ import annotations

import gzip
import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import fsspec
import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from object_stores import storage
from raybatch.rows import ID_COLUMNS, ID_SCHEMA, UnitRows
from raybatch.sources.base import Limit, Source, SourcePlan, UnitSpec
from raybatch.sources.files import FilesConfig
from raybatch.sources.kafka.config import KafkaConfig
from servers.kafka import KafkaCluster
from servers.s3 import S3Bucket


class Case(Protocol):
    """Some input of its own, and the source that reads it, in units of at most 7 rows or so."""

    def source(self) -> Source:
        """A new instance, as each process has its own."""

    def add(self, texts: list[str]) -> None:
        """Put rows with these values of the column `text` into the input, after those that are there."""

    def add_bad(self) -> bool:
        """Add one row that becomes an error row; False where the input can hold none."""


def _jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def _csv(texts: list[str]) -> bytes:
    return ("text,n\n" + "".join(f'"{text}",{i}\n' for i, text in enumerate(texts))).encode()


def _text(texts: list[str]) -> bytes:
    return "".join(text + "\n" for text in texts).encode()


def _parquet(texts: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({"text": texts}), sink, row_group_size=10)
    return sink.getvalue().to_pybytes()


def _gzipped(encode: Callable[[list[str]], bytes]) -> Callable[[list[str]], bytes]:
    return lambda texts: gzip.compress(encode(texts))


Encode = Callable[[list[str]], bytes]


class Files:
    """A folder that gets one more file at each call of `add`, which `put` writes."""

    def __init__(
        self,
        put: Callable[[str, bytes], object],
        config: FilesConfig,
        *,
        suffix: str,
        encode: Encode,
        bad: bytes,
    ) -> None:
        self._put, self._config = put, config
        self._suffix, self._encode, self._bad = suffix, encode, bad
        self._files = 0

    def source(self) -> Source:
        return self._config.build(max_rows=7, max_bytes=300)

    def add(self, texts: list[str]) -> None:
        self._write(self._encode(texts))

    def add_bad(self) -> bool:
        if self._bad:
            self._write(self._bad)
        return bool(self._bad)

    def _write(self, data: bytes) -> None:
        self._files += 1
        self._put(f"{self._files:03}{self._suffix}", data)


Make = Callable[[pytest.FixtureRequest], Case]


def _files(suffix: str, encode: Encode, bad: bytes = b"") -> Make:
    def make(request: pytest.FixtureRequest) -> Case:
        folder: Path = request.getfixturevalue("tmp_path") / "in"
        folder.mkdir()
        config = FilesConfig(type="files", path=str(folder))
        put = lambda name, data: (folder / name).write_bytes(data)  # noqa: E731
        return Files(put, config, suffix=suffix, encode=encode, bad=bad)

    return make


def _memory(request: pytest.FixtureRequest) -> Case:
    url = f"memory://{request.getfixturevalue('tmp_path')}"
    fs, folder = fsspec.core.url_to_fs(url)
    put = lambda name, data: fs.pipe(f"{folder}/{name}", data)  # noqa: E731
    config = FilesConfig(type="files", path=url)
    return Files(put, config, suffix=".jsonl", encode=_jsonl, bad=b"nonsense\n")


def _s3(suffix: str, encode: Encode, bad: bytes = b"") -> Make:
    def make(request: pytest.FixtureRequest) -> Case:
        bucket: S3Bucket = request.getfixturevalue("s3_bucket")
        config = FilesConfig(type="files", path=f"{bucket.url}/in/*", storage=storage(bucket))
        put = lambda name, data: bucket.put(f"in/{name}", data)  # noqa: E731
        return Files(put, config, suffix=suffix, encode=encode, bad=bad)

    return make


class Kafka:
    """A topic of one partition."""

    def __init__(self, kafka: KafkaCluster) -> None:
        self._topic = kafka.topic()
        said = {"type": "kafka", "brokers": kafka.addresses, "topics": [self._topic.name]}
        self._config = KafkaConfig.model_validate(said)

    def source(self) -> Source:
        return self._config.build(max_rows=7, max_bytes=300)

    def add(self, texts: list[str]) -> None:
        self._topic.produce({"text": text} for text in texts)

    def add_bad(self) -> bool:
        self._topic.produce([b"nonsense"])
        return True


def _kafka(request: pytest.FixtureRequest) -> Case:
    return Kafka(request.getfixturevalue("kafka"))


CASES: dict[str, Make] = {
    "files-jsonl": _files(".jsonl", _jsonl, b"nonsense\n"),
    "files-jsonl-gz": _files(".jsonl.gz", _gzipped(_jsonl), gzip.compress(b"nonsense\n")),
    "files-jsonl-zst": _files(".jsonl.zst", lambda texts: zstandard.compress(_jsonl(texts))),
    "files-csv": _files(".csv", _csv, b"text,n\none field\n"),
    "files-csv-gz": _files(".csv.gz", _gzipped(_csv)),
    "files-text": _files(".txt", _text, b"\xff\n"),
    "files-text-gz": _files(".txt.gz", _gzipped(_text), gzip.compress(b"\xff\n")),
    "files-parquet": _files(".parquet", _parquet),
    "files-memory-jsonl": _memory,
    "files-s3-jsonl": _s3(".jsonl", _jsonl, b"nonsense\n"),
    "files-s3-csv-gz": _s3(".csv.gz", _gzipped(_csv)),
    "files-s3-parquet": _s3(".parquet", _parquet),
    "kafka": _kafka,
}

FIRST = [f"first {i}" for i in range(50)]
SECOND = [f"second {i}" for i in range(20)]


def _marked(name: str) -> object:
    marks = [mark for part, mark in (("-s3-", pytest.mark.s3), ("kafka", pytest.mark.kafka)) if part in name]
    return pytest.param(name, marks=marks)


@pytest.fixture(params=[_marked(name) for name in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    """A case with the rows FIRST."""
    made = CASES[request.param](request)
    made.add(FIRST)
    return made


def read(source: Source, plan: SourcePlan) -> list[UnitRows]:
    return [source.read(unit, key=f"unit {i}", schema=plan.schema) for i, unit in enumerate(plan.units)]


def stored(*plans: SourcePlan) -> list[UnitSpec]:
    """The units of plans as the ledger gives them back."""
    units = [unit for plan in plans for unit in plan.units]
    return [UnitSpec(range=json.loads(json.dumps(unit.range)), rows=unit.rows) for unit in units]


def texts(units: list[UnitRows]) -> list[str]:
    return [text for unit in units for text in unit.table["text"].to_pylist()]


def ids(units: list[UnitRows]) -> list[tuple[Any, ...]]:
    tables = [table.select(list(ID_COLUMNS)) for unit in units for table in (unit.table, unit.errors)]
    return [tuple(row.values()) for table in tables for row in table.to_pylist()]


def test_every_row_comes_once(case: Case) -> None:
    source = case.source()
    plan = source.plan(after=None)
    assert len(plan.units) > 1
    assert texts(read(source, plan)) == FIRST


def test_row_ids_are_distinct_and_the_same_at_each_reading(case: Case) -> None:
    source = case.source()
    plan = source.plan(after=None)
    found = ids(read(source, plan))
    assert len(set(found)) == len(found) == len(FIRST)
    assert ids(read(case.source(), plan)) == found


def test_a_table_has_the_planned_schema_and_the_row_ids(case: Case) -> None:
    source = case.source()
    plan = source.plan(after=None)
    for unit in read(source, plan):
        assert unit.table.select(plan.schema.names).schema == plan.schema
        assert unit.table.select(ID_SCHEMA.names).schema == ID_SCHEMA
        assert unit.table.num_columns == len(plan.schema) + len(ID_SCHEMA)


def test_a_unit_carries_the_name_it_is_given_and_counts_its_rows(case: Case) -> None:
    source = case.source()
    plan = source.plan(after=None)
    for i, (spec, unit) in enumerate(zip(plan.units, read(source, plan), strict=True)):
        assert unit.unit == f"unit {i}"
        assert spec.rows in (None, unit.rows_in)


def test_the_same_input_gives_the_same_plan(case: Case) -> None:
    assert case.source().plan(after=None) == case.source().plan(after=None)


def test_a_plan_survives_the_ledger_and_a_source_the_way_to_a_worker(case: Case) -> None:
    plan = case.source().plan(after=None)
    worker = pickle.loads(pickle.dumps(case.source()))
    schema = pa.ipc.read_schema(plan.schema.serialize())
    found = [worker.read(unit, key="u", schema=schema) for unit in stored(plan)]
    assert texts(found) == FIRST


def test_units_can_be_read_in_any_order_and_again(case: Case) -> None:
    source = case.source()
    plan = source.plan(after=None)
    once = read(source, plan)
    backwards = [source.read(unit, key="u", schema=plan.schema) for unit in reversed(plan.units)]
    assert texts(backwards[::-1]) == texts(once)


def test_after_its_end_there_is_nothing_new(case: Case) -> None:
    source = case.source()
    first = source.plan(after=None)
    end = json.loads(json.dumps(first.end))
    again = source.plan(after=end, history=stored(first))
    assert len(again.units) == 0
    assert again.end == end


def test_a_later_plan_has_what_came_since_and_nothing_else(case: Case) -> None:
    source = case.source()
    first = source.plan(after=None)
    before = ids(read(source, first))
    case.add(SECOND)
    second = case.source().plan(after=first.end, history=stored(first))
    found = read(source, second)
    assert texts(found) == SECOND
    assert not set(ids(found)) & set(before)
    assert second.end != first.end
    third = case.source().plan(after=second.end, history=stored(second, first))
    assert len(third.units) == 0


def test_a_position_does_not_grow_with_the_epochs(case: Case) -> None:
    plans = [case.source().plan(after=None)]
    for _ in range(5):
        case.add(SECOND)
        plans.append(case.source().plan(after=plans[-1].end, history=stored(*plans)))
    assert len({json.dumps(plan.end, sort_keys=True) for plan in plans}) == len(plans)
    sizes = [len(json.dumps(plan.end)) for plan in plans]
    assert sizes[-1] <= sizes[0] + 8  # digits of numbers


def test_what_comes_after_a_plan_does_not_change_it(case: Case) -> None:
    source = case.source()
    plan = source.plan(after=None)
    case.add(SECOND)
    assert texts(read(source, plan)) == FIRST


def test_limits_leave_input_to_later_plans_and_lose_none_of_it(case: Case) -> None:
    case.add(SECOND)
    case.add(SECOND)
    source, plans, found = case.source(), list[SourcePlan](), list[UnitRows]()
    while not plans or plans[-1].full:
        after = plans[-1].end if plans else None
        plans.append(source.plan(after=after, history=stored(*plans), limit=Limit(max_rows=30)))
        found += read(source, plans[-1])
    assert len(plans) == 3
    assert Counter(texts(found)) == Counter([*FIRST, *SECOND, *SECOND])
    assert len(set(ids(found))) == len(FIRST) + 2 * len(SECOND)
    assert not source.plan(after=plans[-1].end, history=stored(*plans)).units


def test_there_is_something_in_a_plan_however_small_its_limit(case: Case) -> None:
    case.add(SECOND)
    first = case.source().plan(after=None, limit=Limit(max_bytes=1))
    assert first.units
    assert first.full
    assert case.source().plan(after=None, limit=Limit(max_bytes=1)) == first


def test_a_plan_that_its_limit_does_not_touch_is_as_without_one(case: Case) -> None:
    limit = Limit(max_rows=1_000_000, max_bytes=1 << 30)
    plan = case.source().plan(after=None, limit=limit)
    assert plan == case.source().plan(after=None)
    assert not plan.full


def test_a_bad_row_is_an_error_row_with_an_id_of_its_own(case: Case) -> None:
    bad = case.add_bad()
    source = case.source()
    found = read(source, source.plan(after=None))
    assert texts(found) == FIRST
    errors = [error for unit in found for error in unit.errors.to_pylist()]
    assert len(errors) == int(bad)
    assert all(error["stage"] == "source" and error["type"] and error["message"] for error in errors)
    assert sum(unit.rows_in for unit in found) == len(FIRST) + bad == len(set(ids(found)))
