from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raybatch.errors import LedgerError
from raybatch.ledger.dataset import committed_files, read_commits
from raybatch.ledger.ledger import Ledger
from raybatch.store import LocalStore
from small_run import PIPELINE, make_plan, make_sink, publish, run


def test_commits_come_in_order_with_what_they_count(tmp_path: Path) -> None:
    run(LocalStore(str(tmp_path)), run_id="run-1", epochs=3, units=2)
    commits = read_commits(str(tmp_path))
    assert [(c.epoch, c.totals.rows_in, c.totals.ok) for c in commits] == [
        (0, 12, 10),
        (1, 12, 10),
        (2, 12, 10),
    ]


def test_an_output_without_commits_has_none(tmp_path: Path) -> None:
    assert (read_commits(str(tmp_path)), committed_files(str(tmp_path))) == ([], [])


def test_files_of_an_epoch_that_is_not_committed_are_not_listed(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    run(store, run_id="run-1")
    ledger = Ledger(store, PIPELINE)
    plan = ledger.create_plan(make_plan(epoch=1, start={"next": 1}))
    records = [publish(ledger, plan, unit) for unit in range(5)]
    make_sink().finalise(plan, records, ledger=ledger)
    files = committed_files(str(tmp_path))
    assert [Path(f).name for f in files] == [f"00000000-0000{n}.parquet" for n in range(3)]
    assert sum(pq.read_metadata(f).num_rows for f in files) == 25
    assert len(list((tmp_path / "data").iterdir())) == 6


def test_a_missing_commit_is_an_error_and_not_a_shorter_dataset(tmp_path: Path) -> None:
    run(LocalStore(str(tmp_path)), run_id="run-1", epochs=2, units=1)
    (tmp_path / "_raybatch/commit/00000000.json").unlink()
    with pytest.raises(LedgerError, match=r"commit/00000000\.json is missing"):
        read_commits(str(tmp_path))
