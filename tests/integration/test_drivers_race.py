"""Two runs of one pipeline at the same time: one plan, one commit, every row once."""

from __future__ import annotations

import pytest

from oracle import Output, input_ids, wrong
from pipelines import Project, turn

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("attempt", range(3))
def test_of_two_drivers_one_commits_and_the_other_says_who_won(project: Project, attempt: int) -> None:
    project.rows(80)
    project.write(turn(engine={"seconds_per_row": 0.2}))
    done = [command.wait() for command in (project.start(), project.start())]
    codes = sorted(one.code for one in done)
    # 0 and 0: the second came when the first had committed
    assert codes in ([0, 4], [0, 0]), "\n".join(map(str, done))
    assert len(Output(project.output).plans()) == 1
    (commit,) = Output(project.output).commits()
    for one in done:
        if one.code == 4:
            assert one.error["type"] == "LostRaceError"
            assert commit["run_id"] in one.error["message"]
    assert wrong(project.output, input_ids(project.input.glob("*.jsonl"))) == []
