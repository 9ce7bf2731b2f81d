"""What has been taken is read from the plans of earlier epochs; the position tells whether those are all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from raybatch.errors import LedgerError
from raybatch.sources.base import SourcePlan, UnitSpec
from raybatch.sources.files import FilesConfig, FilesSource
from raybatch.sources.position import Taken


def source_of(folder: Path) -> FilesSource:
    return FilesConfig(type="files", path=str(folder)).build(max_rows=2, max_bytes=1000)


@pytest.fixture
def plans(tmp_path: Path) -> list[SourcePlan]:
    """Three epochs, each of two new files of three units."""
    made: list[SourcePlan] = []
    for epoch in range(3):
        for file in range(2):
            rows = "".join(json.dumps({"v": i}) + "\n" for i in range(5))
            (tmp_path / f"{epoch}-{file}.jsonl").write_text(rows)
        history = [unit for plan in made for unit in plan.units]
        made.append(source_of(tmp_path).plan(after=made[-1].end if made else None, history=history))
    return made


def units(*plans: SourcePlan) -> list[UnitSpec]:
    return [unit for plan in plans for unit in plan.units]


def test_the_order_of_earlier_epochs_does_not_matter(plans: list[SourcePlan], tmp_path: Path) -> None:
    again = source_of(tmp_path).plan(after=plans[-1].end, history=units(*reversed(plans)))
    assert (len(again.units), again.end) == (0, plans[-1].end)


def test_a_plan_that_is_missing_is_noticed_before_its_files_are_taken_again(
    plans: list[SourcePlan], tmp_path: Path
) -> None:
    with pytest.raises(LedgerError, match=r"name 4 files, and the last commit counts 6.*Restore the plans"):
        source_of(tmp_path).plan(after=plans[-1].end, history=units(plans[0], plans[2]))


def test_a_plan_that_was_exchanged_is_noticed(plans: list[SourcePlan], tmp_path: Path) -> None:
    first, *rest = units(*plans)
    other = UnitSpec(range={**first.range, "version": {"size": 1, "mtime_ns": 1}})
    with pytest.raises(LedgerError, match="6 files, and the last commit counts 6, or others"):
        source_of(tmp_path).plan(after=plans[-1].end, history=[other, *rest])


def test_positions_differ_where_what_was_taken_does(plans: list[SourcePlan]) -> None:
    versions = [{"size": 1, "etag": "a"}, {"size": 1, "etag": "b"}, {"size": 2, "etag": "a"}]
    taken = [Taken().plus([UnitSpec(range={"path": "s3://b/k", "version": version})]) for version in versions]
    assert len({one.position(None)["digest"] for one in taken}) == len(versions)


def test_before_the_first_epoch_nobody_reads_the_history(tmp_path: Path) -> None:
    def never() -> Iterator[UnitSpec]:
        raise AssertionError("there is none")
        yield

    (tmp_path / "a.jsonl").touch()
    first = source_of(tmp_path).plan(after=None, history=never())
    assert source_of(tmp_path).plan(after=first.end, history=never()).end == first.end
