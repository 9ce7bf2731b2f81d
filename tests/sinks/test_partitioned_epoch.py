"""Units by partition, from the rows to the files and their audit."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybatch.errors import LedgerError, SinkError, StageError, TooManyPartitionsError
from raybatch.ledger import keys
from raybatch.ledger.audit import audit
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Commit, DataFile, Layout, Partition, Plan, UnitRecord
from raybatch.rows import UnitRows
from raybatch.sinks.partitions import escape
from raybatch.sources.base import UnitSpec
from raybatch.store import LocalStore, open_store
from raybatch.store.memory import MemoryStore, Outcome
from servers.s3 import S3Bucket
from small_run import PIPELINE, make_plan, make_sink, ok_table

Unit = list[tuple[Any, ...]]  # rows: the partition column's value, and the text


class Epoch:
    """A plan by partition, and its units as they are published."""

    def __init__(
        self, *units: Unit, store: Any = None, layout: Layout | None = None, number: int = 0
    ) -> None:
        self.store = MemoryStore() if store is None else store
        self.ledger = Ledger(self.store, PIPELINE)
        self.units = units
        self.sink = make_sink(partition_by=["lang"])
        plan = make_plan(epoch=number, units=0, start={"next": number} if number else None)
        specs = tuple(UnitSpec(range={"n": n}, rows=len(unit)) for n, unit in enumerate(units))
        layout = layout or self.sink.layout()
        self.plan: Plan = self.ledger.create_plan(replace(plan, units=specs, layout=layout, plan_id=""))
        self.records: list[UnitRecord] = []

    def publish(self, unit: int, *, attempt: str = "a0", **options: Any) -> UnitRecord:
        rows = self.units[unit]
        ids = [(f"f{self.plan.epoch}-{unit}", n, None) for n in range(len(rows))]
        table = ok_table(ids, [text for _, text in rows], pa.string())
        table = table.add_column(0, "lang", pa.array([lang for lang, _ in rows]))
        return make_sink(**{"partition_by": ["lang"], **options}).write(
            UnitRows(unit=self.plan.unit_key(unit), rows_in=len(rows), table=table),
            plan=self.plan.reference(),
            attempt=attempt,
            ledger=self.ledger,
        )

    def publish_all(self, **options: Any) -> Epoch:
        self.records = [self.publish(unit, **options) for unit in range(len(self.units))]
        return self

    def finalise(self, **options: Any) -> list[DataFile]:
        sink = make_sink(**{"partition_by": ["lang"], **options})
        return sink.finalise(self.plan, self.records, ledger=self.ledger)

    def commit(self) -> Epoch:
        commit = Commit.of(self.plan, self.records, self.finalise(), run_id="run-1")
        self.ledger.commit(self.plan, commit)
        return self

    def seen(self) -> Counter[tuple[str, str, int]]:
        """(folder, source, row) of all rows below data/, by pyarrow and the file's name alone."""
        found: Counter[tuple[str, str, int]] = Counter()
        for entry in self.store.list("data/"):
            for row in self.table(entry.key).to_pylist():
                found[entry.key.split("/")[-2], row["_source"], row["_row"]] += 1
        return found

    def expected(self) -> Counter[tuple[str, str, int]]:
        source = f"f{self.plan.epoch}-"
        rows = [
            (lang, f"{source}{u}", n) for u, unit in enumerate(self.units) for n, (lang, _) in enumerate(unit)
        ]
        return Counter((f"lang={lang}", where, row) for lang, where, row in rows)

    def table(self, key: str) -> pa.Table:
        return pq.read_table(io.BytesIO(self.store.read(key)))


def _mixed(rows: int = 9, size: int = 10) -> Unit:
    return [(("de", "en", "fr")[n % 3], os.urandom(size).hex()) for n in range(rows)]


def test_a_unit_is_one_part_whose_row_groups_are_of_one_partition_each() -> None:
    epoch = Epoch(_mixed()).publish_all(row_group_rows=2)
    [record] = epoch.records
    parquet = pq.ParquetFile(io.BytesIO(epoch.store.read(record.parts["ok"].key)))
    groups = [parquet.read_row_group(i)["_row"].to_pylist() for i in range(parquet.num_row_groups)]
    assert groups == [[0, 3], [6], [1, 4], [7], [2, 5], [8]]
    assert [(p.path, p.rows, p.row_groups) for p in record.partitions] == [
        ("lang=de", 3, 2),
        ("lang=en", 3, 2),
        ("lang=fr", 3, 2),
    ]


def test_the_sizes_of_partitions_are_those_of_their_row_groups() -> None:
    epoch = Epoch([("de", "x" * 10), ("en", os.urandom(50_000).hex())]).publish_all()
    [record] = epoch.records
    small, large = (one.size for one in record.partitions)
    assert small < 2_000
    assert 50_000 < large < record.parts["ok"].size < 60_000


def test_each_file_has_the_rows_of_one_partition() -> None:
    epoch = Epoch(_mixed(), _mixed(), [("en", "x")]).publish_all().commit()
    assert [file.key for file in epoch.ledger.committed(0).data] == [  # type: ignore[union-attr]
        "data/lang=de/00000000-00000.parquet",
        "data/lang=en/00000000-00001.parquet",
        "data/lang=fr/00000000-00002.parquet",
    ]
    assert epoch.seen() == epoch.expected()


def test_the_columns_of_the_path_are_not_in_the_files() -> None:
    epoch = Epoch(_mixed()).publish_all().commit()
    for entry in epoch.store.list("data/"):
        assert epoch.table(entry.key).column_names == ["text", "_source", "_row", "_child"]


def test_a_file_says_which_partition_and_units_it_holds() -> None:
    epoch = Epoch(_mixed(), [("en", "x")]).publish_all()
    epoch.finalise()
    said = pq.read_metadata(io.BytesIO(epoch.store.read("data/lang=en/00000000-00001.parquet"))).metadata
    assert said[b"raybatch.partition"] == b"lang=en"
    assert json.loads(said[b"raybatch.units"]) == [[0, "a0"], [1, "a0"]]


def test_each_partition_is_laid_out_by_the_rules_of_all_files() -> None:
    # en has 3 x 30 kB, merged two by two; de is small; the last unit is large, of one partition, and linked
    units: list[Unit] = [[("de", "x"), ("en", os.urandom(15_000).hex())] for _ in range(3)]
    units.append([("fr", os.urandom(60_000).hex())])
    epoch = Epoch(*units, layout=Layout(target_bytes=40_000, small_bytes=30_000, partition_by=("lang",)))
    files = epoch.publish_all().finalise()
    assert [(f.key.split("/")[1], f.units) for f in files] == [
        ("lang=de", (0, 1, 2)),
        ("lang=en", (0, 1)),
        ("lang=en", (2,)),
        ("lang=fr", (3,)),
    ]
    assert files[3].sha256 == epoch.records[3].parts["ok"].sha256


def test_a_small_unit_of_one_partition_alone_is_linked(tmp_path: Path) -> None:
    epoch = Epoch([("en", "x")], [("de", "y"), ("fr", "z")], store=LocalStore(str(tmp_path))).publish_all()
    epoch.finalise()
    part = tmp_path / epoch.records[0].parts["ok"].key
    assert os.path.samefile(part, tmp_path / "data/lang=en/00000000-00001.parquet")


def test_finalising_again_or_beside_another_driver_gives_the_same_files() -> None:
    epoch = Epoch(_mixed(), _mixed(), [("en", "x")]).publish_all()
    files = epoch.finalise()
    before = dict(epoch.store.objects)
    assert epoch.finalise(compression="none", row_group_rows=1) == files
    assert epoch.store.objects == before


def test_what_a_crashed_finalise_left_is_taken_and_the_rest_is_made() -> None:
    epoch = Epoch(_mixed(), _mixed(), [("en", "x")]).publish_all()
    names = [(file.key, file.rows, file.units) for file in epoch.finalise()]
    for count in range(len(names) + 1):
        for key, _, _ in names[count:]:
            epoch.store.delete(key)
        assert [(f.key, f.rows, f.units) for f in epoch.finalise()] == names
    assert epoch.seen() == epoch.expected()


@pytest.mark.parametrize("operation", ["create", "link"])
def test_a_file_whose_answer_was_lost_is_found_to_be_there(operation: str) -> None:
    epoch = Epoch(_mixed(), [("zh", "x")]).publish_all()
    epoch.store.hook = lambda op, key: (
        Outcome.UNSURE if op == operation and key.startswith("data/") else Outcome.DONE
    )
    epoch.commit()
    assert epoch.seen() == epoch.expected()


def test_rows_are_seen_once_at_every_moment_of_finalising() -> None:
    epoch = Epoch(_mixed(), _mixed(), [("en", "x")]).publish_all()
    moments: list[int] = []

    def look(operation: str, key: str) -> Outcome:
        if operation in ("create", "link"):
            objects = MemoryStore(epoch.store.objects)
            watched = Epoch.__new__(Epoch)
            watched.store = objects
            assert max(watched.seen().values(), default=1) == 1
            moments.append(1)
        return Outcome.DONE

    epoch.store.hook = look
    epoch.finalise()
    assert len(moments) == 3


def test_an_audit_finds_a_partitioned_epoch_in_order() -> None:
    epoch = Epoch(_mixed(), _mixed(), [("en", "x")], [("zh", "y")], []).publish_all().commit()
    report = audit(epoch.store)
    assert [check for check in report.checks if check.status == "failed"] == []
    assert report.ok


def _swap(epoch: Epoch, one: str, other: str) -> None:
    objects = epoch.store.objects
    objects[one], objects[other] = objects[other], objects[one]


def _edit_commit(epoch: Epoch, change: Any) -> None:
    key = keys.commit_key(0)
    commit = Commit.from_json(epoch.store.read(key))
    epoch.store.objects[key] = replace(commit, data=change(commit.data)).to_json().encode()


def _with_bytes(epoch: Epoch, file: DataFile, data: bytes) -> DataFile:
    import hashlib

    epoch.store.objects[file.key] = data
    return replace(file, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _other_rows(epoch: Epoch, table: pa.Table, key: str) -> bytes:
    footer = pq.read_metadata(io.BytesIO(epoch.store.read(key))).metadata
    metadata = {name: value for name, value in footer.items() if name.startswith(b"raybatch.")}
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    return sink.getvalue()


def _lose_a_row(epoch: Epoch) -> None:
    def change(data: tuple[DataFile, ...]) -> tuple[DataFile, ...]:
        table = epoch.table(data[0].key)
        return (_with_bytes(epoch, data[0], _other_rows(epoch, table.slice(1), data[0].key)), *data[1:])

    _edit_commit(epoch, change)


def _repeat_a_row(epoch: Epoch) -> None:
    def change(data: tuple[DataFile, ...]) -> tuple[DataFile, ...]:
        table = epoch.table(data[0].key)
        twice = pa.concat_tables([table.slice(0, 1), table.slice(0, len(table) - 1)])
        return (_with_bytes(epoch, data[0], _other_rows(epoch, twice, data[0].key)), *data[1:])

    _edit_commit(epoch, change)


def _name_a_partition_of_nobody(epoch: Epoch) -> None:
    def change(data: tuple[DataFile, ...]) -> tuple[DataFile, ...]:
        moved = replace(data[0], key=data[0].key.replace("lang=de", "lang=xx"))
        epoch.store.objects[moved.key] = epoch.store.objects.pop(data[0].key)
        return (moved, *data[1:])

    _edit_commit(epoch, change)


def _forget_a_partition(epoch: Epoch) -> None:
    _edit_commit(epoch, lambda data: data[1:])


@pytest.mark.parametrize(
    ("damage", "invariant", "says"),
    [
        (lambda e: _swap(e, *(f.key for f in e.ledger.committed(0).data[:2])), "I4", "named by the commit"),
        (_lose_a_row, "I6", "f0-0 row 3 where f0-0 row 0 belongs"),
        (_repeat_a_row, "I6", "f0-0 row 0 where f0-0 row 3 belongs"),
        (_name_a_partition_of_nobody, "I6", "0 files hold the ok rows of unit 0 in lang=de, not 1"),
        (_forget_a_partition, "I6", "0 files hold the ok rows of unit 0 in lang=de, not 1"),
    ],
)
def test_an_audit_names_what_is_wrong_in_a_partition(damage: Any, invariant: str, says: str) -> None:
    epoch = Epoch(_mixed(), _mixed()).publish_all().commit()
    damage(epoch)
    found = {check.invariant: check for check in audit(epoch.store).checks}
    assert found[invariant].status == "failed"
    assert says in (found[invariant].first or "")


def test_error_rows_are_not_partitioned() -> None:
    epoch = Epoch([("en", "x"), ("y" * 300, "z")]).publish_all()
    files = epoch.commit().ledger.committed(0)
    assert files is not None
    assert [file.key for file in files.errors] == ["errors/00000000-00000.parquet"]
    [error] = epoch.table("errors/00000000-00000.parquet").to_pylist()
    assert (error["type"], error["_row"]) == ("PartitionTooLong", 1)
    assert (files.totals.ok, files.totals.error, files.error_types) == (1, 1, {"PartitionTooLong": 1})
    assert audit(epoch.store).ok


def test_an_epoch_without_an_ok_row_has_no_file_since_no_partition_would_be_right() -> None:
    epoch = Epoch([], []).publish_all().commit()
    assert list(epoch.store.list("data/")) == []
    assert audit(epoch.store).ok


def test_values_of_any_text_come_back_from_a_reader(tmp_path: Path) -> None:
    values = [
        "../../x",
        "a/b",
        "a=b",
        "ü",
        "日本",
        " ",
        "100%",
        "a+b",
        "..",
        "'",
        '"',
        "\n",
        "*?[]{}",
        "#",
        "😀",
    ]
    epoch = Epoch([(v, str(n)) for n, v in enumerate(values)], store=LocalStore(str(tmp_path)))
    epoch.publish_all().commit()
    query = f"select lang, text from read_parquet('{tmp_path}/data/*/*.parquet', hive_partitioning = true)"
    assert {int(n): lang for lang, n in duckdb.sql(query).fetchall()} == dict(enumerate(values))
    assert {path.parent.parent for path in tmp_path.rglob("*.parquet") if "=" in path.parent.name} == {
        tmp_path / "data"
    }
    assert audit(epoch.store).ok


def test_partitions_of_the_next_epoch_lie_beside_those_of_the_first(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    Epoch([("en", "0"), ("de", "1")], store=store).publish_all().commit()
    Epoch([("en", "2"), ("fr", "3")], store=store, number=1).publish_all().commit()
    query = f"select text, lang from read_parquet('{tmp_path}/data/*/*.parquet', hive_partitioning = true)"
    assert sorted(duckdb.sql(query).fetchall()) == [("0", "en"), ("1", "de"), ("2", "en"), ("3", "fr")]
    assert audit(store).ok


def test_a_unit_of_too_many_partitions_is_refused_when_it_is_written() -> None:
    epoch = Epoch([(str(n), "x") for n in range(5)])
    with pytest.raises(
        TooManyPartitionsError, match=r"5 partitions by lang, such as lang=0.*max_partitions is 4"
    ):
        epoch.publish(0, max_partitions=4)
    assert epoch.ledger.published(epoch.plan) == set()


def test_an_epoch_of_too_many_partitions_is_refused_before_readers_see_a_file_and_can_go_on_with_more() -> (
    None
):
    epoch = Epoch(*[[(str(n), "x")] for n in range(5)]).publish_all()
    with pytest.raises(
        TooManyPartitionsError, match=r"sink.max_partitions=\.\.\., and nothing is done twice"
    ):
        epoch.finalise(max_partitions=4)
    assert list(epoch.store.list("data/")) == []
    assert len(epoch.finalise(max_partitions=5)) == 5


def test_a_column_that_the_rows_lack_is_an_error_that_names_those_they_have() -> None:
    epoch = Epoch([("en", "x")])
    with pytest.raises(
        StageError, match=r"unit 00000000/00000000: partition_by names the column 'day'.*lang, text"
    ):
        epoch.publish(0, partition_by=["day"])
    assert list(epoch.store.list("_raybatch/parts/")) == []


def test_types_are_checked_before_the_run_where_they_are_known() -> None:
    sink = make_sink(partition_by=["score"])
    with pytest.raises(SinkError, match="the column 'score' is double, and partitions are made of"):
        sink.check(pa.schema([("score", pa.float64())]), kept=True)
    sink.check(pa.schema([("score", pa.float64())]), kept=False)  # a stage may make text of it
    sink.check(pa.schema([("score", pa.int32())]), kept=True)


@pytest.mark.parametrize(("now", "before"), [(["lang"], ()), ([], ("lang",)), (["a", "b"], ("b", "a"))])
def test_an_output_keeps_its_partitions(now: list[str], before: tuple[str, ...]) -> None:
    layout = Layout(target_bytes=1, small_bytes=1, partition_by=before)
    with pytest.raises(
        SinkError, match=r"sink\.partition_by is .*Choose another sink.path, or undo the change"
    ):
        make_sink(partition_by=now).check_beside(layout)
    make_sink(partition_by=list(before)).check_beside(layout)


@pytest.mark.parametrize(
    "partitions",
    [
        (),
        (Partition(path="lang=en", rows=2, size=1, row_groups=1),),
        (Partition(path="day=en", rows=1, size=1, row_groups=1),),
    ],
)
def test_a_unit_whose_partitions_are_not_those_of_the_plan_is_refused(
    partitions: tuple[Partition, ...],
) -> None:
    epoch = Epoch([("en", "x")]).publish_all()
    epoch.records = [replace(epoch.records[0], partitions=partitions)]
    with pytest.raises(LedgerError, match=r"unit 0 of epoch 0 has 1 ok rows.*partitions by \['lang'\]"):
        epoch.finalise()


def test_a_standing_file_of_another_partition_is_refused() -> None:
    epoch = Epoch(_mixed()).publish_all()
    files = epoch.finalise()
    for one, other in itertools.permutations([file.key for file in files], 2):
        kept = epoch.store.objects[one]
        epoch.store.objects[one] = epoch.store.objects[other]
        with pytest.raises(LedgerError, match="holds other units than the plan"):
            epoch.finalise()
        epoch.store.objects[one] = kept


def test_a_thousand_small_units_become_one_file_for_each_partition() -> None:
    epoch = Epoch(*[[("en", "x" * 1000), ("de", "y" * 1000)] for _ in range(1000)]).publish_all()
    files = epoch.finalise()
    assert [(f.key, f.rows) for f in files] == [
        ("data/lang=de/00000000-00000.parquet", 1000),
        ("data/lang=en/00000000-00001.parquet", 1000),
    ]
    groups = [pq.read_metadata(io.BytesIO(epoch.store.read(f.key))).num_row_groups for f in files]
    assert groups == [1, 1]


@pytest.mark.s3
def test_folders_of_any_text_are_keys_of_an_object_store(
    s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_bucket.env.items():
        monkeypatch.setenv(name, value)
    values = ["../../x", "a b", "100%", "ü", "a+b", "..", "#?", "😀"]
    store = open_store(f"{s3_bucket.url}/out")
    epoch = Epoch([(v, str(n)) for n, v in enumerate(values)], [("ü", "x")], store=store)
    epoch.publish_all().commit()
    folders = {key.split("/")[-2] for key in s3_bucket.sizes("out/data/")}
    assert folders == {f"lang={escape(value)}" for value in values}
    assert audit(store).ok
