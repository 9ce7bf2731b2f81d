"""A row that kills the process of whatever engine works on it: the engine dies a few times, the row is an error,
and every other row has its answer."""

from __future__ import annotations

import json
import math

import pytest

from oracle import Output, input_ids, wrong
from pipelines import Project, turn

pytestmark = pytest.mark.ray

UNIT = 128


@pytest.mark.timeout(1200)
def test_a_row_that_kills_its_engine_is_found_by_halving(project: Project) -> None:
    project.rows(UNIT + 40)
    project.write(
        turn(engine={"dies_on": "row 77 of a.jsonl"}),
        run={"unit": {"max_rows": UNIT}, "max_error_rate": 0.01},
    )
    done = project.complete()
    assert done.document["rows"] == {"in": UNIT + 40, "ok": UNIT + 39, "error": 1, "dropped": 0}
    (row,) = Output(project.output).errors()
    assert (row["type"], json.loads(row["row"])["id"]) == ("EngineKilled", "a.jsonl-77")
    assert 1 < done.document["engines"][0]["replaced"] <= math.log2(UNIT) + 3
    assert wrong(project.output, input_ids([project.input / "a.jsonl"])) == []
