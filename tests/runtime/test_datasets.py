"""More units than one Ray Data dataset is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made import pipeline

import raybatch
from oracle import input_ids, wrong
from raybatch.runtime import execute

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_units_that_one_dataset_does_not_take_are_done_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "UNITS_PER_DATASET", 2)
    lines = "".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(50))
    (tmp_path / "in.jsonl").write_text(lines)
    report = raybatch.run(pipeline(tmp_path, run={"unit": {"max_rows": 10}}))
    assert report.units == {"planned": 5, "published": 5, "resumed": 0}
    assert wrong(tmp_path / "out", input_ids([tmp_path / "in.jsonl"])) == []
