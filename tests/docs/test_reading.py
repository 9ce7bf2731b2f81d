"""The recipes of docs/reading.md, taken from the page and run on real output."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Commit, Retry
from raybatch.ledger.retries import Choice, find, rows_of, units_of
from raybatch.rows import DROPPED_SCHEMA, ID_COLUMNS, UnitRows, source_errors
from raybatch.sources.base import UnitSpec
from raybatch.store import LocalStore, Store, open_store
from servers.s3 import S3Bucket
from small_run import PIPELINE, make_plan, make_sink, ok_table

PAGE = Path(__file__).parents[2] / "docs" / "reading.md"

# The page's outputs have two committed epochs and one whose files are there and whose commit is not. Each has
# two units of two results, one of them "en", and an error row.
EPOCHS, COMMITTED = 3, 2
OK, ERRORS = 4, 2  # rows per epoch

EXPECTED = {
    ("Everything", "DuckDB"): EPOCHS * OK,
    ("Everything", "pandas"): EPOCHS * OK,
    ("Everything", "pyarrow"): EPOCHS * OK,
    ("Everything", "Ray Data"): EPOCHS * OK,
    ("Whole epochs only", "DuckDB"): COMMITTED * OK,
    ("Whole epochs only", "pandas"): COMMITTED * OK,
    ("Whole epochs only", "pyarrow"): OK,  # as of epoch 0
    ("Whole epochs only", "Ray Data"): COMMITTED * OK,
    ("One epoch at a time", "DuckDB"): COMMITTED * OK,
    ("One epoch at a time", "Any other"): OK,  # after epoch 0
    ("Errors", "DuckDB"): EPOCHS * ERRORS,
    ("Errors", "pandas"): EPOCHS * ERRORS,
    ("Errors that are left", "Any"): COMMITTED * ERRORS,
    ("Errors that are left", "DuckDB"): COMMITTED * ERRORS,
    ("Partitions", "DuckDB"): EPOCHS * OK // 2,
    ("Partitions", "pandas"): EPOCHS * OK // 2,
    ("Partitions", "pyarrow"): COMMITTED * OK // 2,
    ("Partitions", "Ray Data"): EPOCHS * OK // 2,
    ("Object stores", "pyarrow"): COMMITTED * OK,
    ("Object stores", "pandas"): COMMITTED * OK,
    ("Object stores", "Ray Data"): COMMITTED * OK,
}


def _recipes() -> dict[tuple[str, str], str]:
    """The Python on the page, by section and reader."""
    found, section, reader = {}, "", ""
    for match in re.finditer(
        r"^## ([^\n]+)$|^### ([^\n]+)$|^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S
    ):
        section, reader = match[1] or section, match[2] or reader
        if match[3]:
            found[section, reader] = match[3]
    return found


RECIPES = _recipes()


def _write(store: Store, *, partition_by: tuple[str, ...] = ()) -> None:
    sink = make_sink(partition_by=partition_by)
    ledger = Ledger(store, PIPELINE)
    for epoch in range(EPOCHS):
        plan = make_plan(epoch=epoch, units=0, start={"next": epoch} if epoch else None)
        units = tuple(UnitSpec(range={"n": n}, rows=3) for n in range(2))
        plan = ledger.create_plan(replace(plan, units=units, layout=sink.layout(), plan_id=""))
        records = [
            sink.write(
                _unit(epoch, unit, key=plan.unit_key(unit)),
                plan=plan.reference(),
                attempt="a0",
                ledger=ledger,
            )
            for unit in range(2)
        ]
        files = sink.finalise(plan, records, ledger=ledger)
        if epoch < COMMITTED:
            ledger.commit(plan, Commit.of(plan, records, files, run_id="run-1"))


def _unit(epoch: int, unit: int, *, key: str) -> UnitRows:
    source, first = f"in-{epoch}.jsonl", 3 * unit
    ids = [(source, first, None), (source, first + 1, None)]
    table = ok_table(ids, ["short", "shorter"]).rename_columns(["summary", "_source", "_row", "_child"])
    table = table.add_column(0, "lang", pa.array(["en", "de" if unit else None]))
    table = table.add_column(0, "id", pa.array([100 * epoch + first, 100 * epoch + first + 1]))
    failed = {"_source": source, "_row": first + 2, "stage": "summarise", "type": "PromptTooLong"}
    errors = source_errors([failed | {"message": "too long", "row": '{"id": 7, "body": "words"}'}])
    return UnitRows(unit=key, rows_in=3, table=table, errors=errors)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page calls /data."""
    root = tmp_path_factory.mktemp("data")
    _write(LocalStore(str(root / "summaries")))
    _write(LocalStore(str(root / "by-lang")), partition_by=("lang",))
    return root


def _at(outputs: Path, key: tuple[str, str], *, warehouse: Path | None = None) -> str:
    """A recipe for what is below `outputs`."""
    recipe = RECIPES[key].replace("/data/warehouse", f"{warehouse or outputs}/warehouse")
    return re.sub("/data/(?=summaries|by-lang)", f"{outputs}/", recipe)


def _run(recipe: str) -> Any:
    found: dict[str, Any] = {}
    exec(compile(recipe, str(PAGE), "exec"), found)
    return found["rows"]


def _count(rows: Any) -> int:
    return rows if isinstance(rows, int) else rows.count() if hasattr(rows, "take_all") else len(rows)


def test_every_recipe_is_run_but_for_those_of_spark() -> None:
    assert {key for key in RECIPES if key[1] != "Spark"} == EXPECTED.keys()


LOCAL = [key for key in EXPECTED if key[0] != "Object stores"]


@pytest.mark.parametrize("key", [k for k in LOCAL if k[1] != "Ray Data"], ids="/".join)
def test_a_recipe_reads_what_the_page_says(key: tuple[str, str], outputs: Path) -> None:
    assert _count(_run(_at(outputs, key))) == EXPECTED[key]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("key", [k for k in LOCAL if k[1] == "Ray Data"], ids="/".join)
def test_ray_data_reads_what_the_page_says(key: tuple[str, str], outputs: Path) -> None:
    assert _count(_run(_at(outputs, key))) == EXPECTED[key]


def test_taking_epochs_again_takes_none_twice(outputs: Path, tmp_path: Path) -> None:
    recipe = _at(outputs, ("One epoch at a time", "DuckDB"), warehouse=tmp_path)
    assert len(_run(recipe)) == COMMITTED * OK
    rows = _run(recipe)
    assert len(rows) == len(set(rows)) == COMMITTED * OK


def test_the_row_of_an_error_is_there_again(outputs: Path) -> None:
    by_duckdb = _run(_at(outputs, ("Errors", "DuckDB"))).fetchall()
    by_pandas = _run(_at(outputs, ("Errors", "pandas")))
    assert set(by_duckdb) == {("PromptTooLong", "too long", "7", "words")}
    assert by_pandas.drop_duplicates().to_dict("records") == [{"id": 7, "body": "words"}]


class Written:
    """An output written epoch by epoch, by hand."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger(LocalStore(str(folder)), PIPELINE)
        self.epoch = 0

    def epoch_of(
        self, *, commit: bool = True, retry: bool = False, **ids: Sequence[tuple[int, str | None]]
    ) -> None:
        """One unit with these rows, by (_row, _child): `ok`, `errors` (of the type "A"), `dropped`."""
        ok, errors, dropped = (
            [("in", *at) for at in ids.get(kind, ())] for kind in ("ok", "errors", "dropped")
        )
        sink, rows = make_sink(), len(ok) + len(errors) + len(dropped)
        start = {"next": self.epoch} if self.epoch else None
        plan = make_plan(epoch=self.epoch, units=0, start=start)
        units: tuple[UnitSpec, ...] = (UnitSpec(range={}, rows=rows),)
        taken = None
        if retry:
            found = list(find(self.ledger.store, Choice()))
            units = tuple(units_of(found, choice=Choice(), max_rows=100, max_bytes=1 << 20))
            taken = Retry(types=(), stages=(), epochs=(), rows=rows_of(found))
        plan = self.ledger.create_plan(replace(plan, units=units, retry=taken, plan_id=""))
        held = UnitRows(
            unit=plan.unit_key(0),
            rows_in=units[0].rows or 0,
            table=ok_table(ok, [7] * len(ok), pa.int64()).rename_columns(["type", *ID_COLUMNS]),
            errors=source_errors([dict(zip(ID_COLUMNS, at, strict=True)) | FAILED for at in errors]),
            dropped=pa.Table.from_pylist(
                [dict(zip(ID_COLUMNS, at, strict=True)) | {"stage": "filter"} for at in dropped],
                DROPPED_SCHEMA,
            ),
            made=rows - (units[0].rows or 0),
        )
        record = sink.write(held, plan=plan.reference(), attempt="a0", ledger=self.ledger)
        files = sink.finalise(plan, [record], ledger=self.ledger)
        if commit:
            self.ledger.commit(plan, Commit.of(plan, [record], files, run_id="run-1"))
        self.epoch += 1


FAILED = {"type": "A", "message": "why"}


@pytest.fixture
def retried(tmp_path: Path) -> Path:
    """What the page calls /data, with two retries in it, of which one is not committed."""
    written = Written(tmp_path / "summaries")
    # Row 10 was made into several, of which the pieces 1 and 12 failed
    written.epoch_of(
        ok=[(0, None), (10, "0")], errors=[(n, None) for n in range(1, 6)] + [(10, "1"), (10, "12")]
    )
    written.epoch_of(
        retry=True,
        ok=[(1, None), (2, "0"), (2, "1"), (10, "1.0")],
        errors=[(3, None), (10, "12")],
        dropped=[(4, None), (5, "0")],
    )
    written.epoch_of(retry=True, commit=False, ok=[(3, None)], dropped=[(10, "12")])
    return tmp_path


@pytest.mark.parametrize("reader", ["Any", "DuckDB"])
def test_error_rows_that_a_committed_retry_took_are_not_left(retried: Path, reader: str) -> None:
    rows = _run(_at(retried, ("Errors that are left", reader)))
    table = rows if isinstance(rows, pa.Table) else rows.to_arrow_table()
    left = [(row["_row"], row["_child"], row["epoch"]) for row in table.to_pylist()]
    assert sorted(left) == [(3, None, 1), (10, "12", 1)]


@pytest.fixture
def bucket(s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> S3Bucket:
    """With what the page calls s3://bucket in it."""
    for name, value in s3_bucket.env.items():
        monkeypatch.setenv(name, value)
    _write(open_store(f"{s3_bucket.url}/summaries"))
    return s3_bucket


def _on(bucket: S3Bucket, reader: str) -> str:
    # As the page says for servers other than AWS's
    server = f'endpoint_override="{bucket.endpoint.removeprefix("http://")}", scheme="http"'
    recipe = RECIPES["Object stores", reader].replace("S3FileSystem()", f"S3FileSystem({server})")
    return recipe.replace("s3://bucket/", f"{bucket.url}/")


@pytest.mark.s3
@pytest.mark.parametrize("reader", ["pyarrow", "pandas"])
def test_a_recipe_reads_an_object_store(bucket: S3Bucket, reader: str) -> None:
    assert _count(_run(_on(bucket, reader))) == EXPECTED["Object stores", reader]


@pytest.mark.s3
@pytest.mark.ray
def test_ray_data_reads_an_object_store(bucket: S3Bucket) -> None:
    # A Ray of its own, whose workers have the credentials in their environment
    program = f"import ray\nray.init(num_cpus=1, log_to_driver=False)\n{_on(bucket, 'Ray Data')}\nprint(rows.count())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **bucket.env, "RAY_ADDRESS": "local"},
    )
    assert done.stdout.split()[-1:] == [str(EXPECTED["Object stores", "Ray Data"])], done.stderr
