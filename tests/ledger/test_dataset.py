from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raybatch.errors import LedgerError, SinkError
from raybatch.ledger.dataset import committed_epochs, committed_files, read_commits
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


@pytest.fixture
def three(tmp_path: Path) -> str:
    """The path of an output with epochs 0, 1 and 2."""
    run(LocalStore(str(tmp_path)), run_id="run-1", epochs=3, units=2)
    return str(tmp_path)


def test_an_epoch_comes_with_its_files_and_no_others(three: str) -> None:
    epochs = list(committed_epochs(three))
    assert [epoch.epoch for epoch in epochs] == [0, 1, 2]
    for number, epoch in enumerate(epochs):
        for kind, files in (("data", epoch.data), ("errors", epoch.errors)):
            assert files == tuple(map(str, sorted(Path(three, kind).glob(f"{number:08d}-*.parquet"))))
        assert datetime.datetime.fromisoformat(epoch.committed_at).tzinfo is not None


@pytest.mark.parametrize(
    ("after", "as_of", "expected"),
    [
        (None, None, [0, 1, 2]),
        (-1, None, [0, 1, 2]),
        (0, None, [1, 2]),
        (2, None, []),
        (None, 0, [0]),
        (None, 2, [0, 1, 2]),
        (0, 1, [1]),
        (1, 1, []),
        (None, -1, []),
    ],
)
def test_epochs_are_chosen_by_the_last_one_taken_and_the_last_one_wanted(
    three: str, after: int | None, as_of: int | None, expected: list[int]
) -> None:
    epochs = list(committed_epochs(three, after=after, as_of=as_of))
    assert [epoch.epoch for epoch in epochs] == expected
    files = committed_files(three, after=after, as_of=as_of)
    assert files == [file for epoch in epochs for file in epoch.data]


@pytest.mark.parametrize("options", [{"after": 3}, {"as_of": 3}, {"after": 7, "as_of": 1}, {"as_of": -2}])
def test_an_epoch_that_is_not_committed_is_an_error_and_not_an_empty_list(
    three: str, options: dict[str, int]
) -> None:
    with pytest.raises(SinkError, match=r"epoch -?\d of .* is not committed: the last one is 2"):
        committed_files(three, **options)


def test_where_nothing_is_committed_no_epoch_can_have_been_taken(tmp_path: Path) -> None:
    assert committed_files(str(tmp_path), after=-1) == []
    with pytest.raises(SinkError, match=r"epoch 0 of .* is not committed: none is"):
        committed_files(str(tmp_path), after=0)


def test_only_the_commits_of_the_epochs_asked_for_are_read(three: str) -> None:
    Path(three, "_raybatch/commit/00000000.json").write_text("damaged")
    assert [epoch.epoch for epoch in committed_epochs(three, after=0)] == [1, 2]
