"""Two `raybatch run` of one pipeline on an object store, started one soon after the other."""

from __future__ import annotations

import random
import time
from pathlib import Path

from oracle import Output, twice, wrong
from pipelines import Done
from servers.project import S3Project

ROWS, UNIT = 60, 10
# From both at the same moment to the second one while the first commits
LONGEST_WAIT_S = 4.0

KEEP = """
    def keep(row):
        return row
"""


def write(project: S3Project) -> None:
    """Input, functions and pipeline file."""
    project.functions(KEEP)
    project.rows(ROWS)
    project.write({"type": "python", "function": "functions:keep"}, run={"unit": {"max_rows": UNIT}})


def race(project: S3Project, choose: random.Random) -> list[Done]:
    """Start both, and wait for both."""
    first = project.start()
    time.sleep(choose.choice([0.0, choose.uniform(0, LONGEST_WAIT_S)]))
    return [command.wait() for command in (first, project.start())]


def faults(project: S3Project, done: list[Done]) -> list[str]:
    """What contradicts one plan, one commit, exit codes 0 and 4 (or 0 and 0), and every row once."""
    path = project.fetched()
    output = Output(path)
    found = wrong(path, project.ids())
    found += [f"there twice: {row}" for row in twice(path)]
    codes = sorted(one.code for one in done)
    if codes not in ([0, 4], [0, 0]):
        found.append(f"exit codes {codes}:\n" + "\n".join(map(str, done)))
    if len(output.plans()) != 1 or len(output.commits()) != 1:
        found.append(f"{len(output.plans())} plans and {len(output.commits())} commits")
    found += [
        f"it lost without saying to whom: {one}" for one in done if one.code == 4 and not _told(one, path)
    ]
    return found


def _told(lost: Done, path: Path) -> bool:
    winners = [commit["run_id"] for commit in Output(path).commits()]
    return lost.error["type"] == "LostRaceError" and all(
        winner in lost.error["message"] for winner in winners
    )
