"""What a disk or a careless hand does to stored parts, records and files: found by checksum, never committed."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oracle import Output, input_ids, wrong
from pipelines import Done, Project

pytestmark = pytest.mark.ray

Damage = Callable[[bytes], bytes]


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def with_a_corrupt_footer(data: bytes) -> bytes:
    """A Parquet file ends with its footer, the footer's length in four bytes, and PAR1."""
    length = int.from_bytes(data[-8:-4], "little")
    return data[: -8 - length] + bytes(length) + data[-8:]


def with_one_flipped_bit(data: bytes) -> bytes:
    """Amid the first column's values, where readers would not notice."""
    return data[:40] + bytes([data[40] ^ 1]) + data[41:]


def emptied(data: bytes) -> bytes:
    return b""


DAMAGES: list[Damage] = [truncated, with_a_corrupt_footer, with_one_flipped_bit, emptied]

# Of three rows, one is dropped and one fails
FUNCTIONS = """
    def sort(row):
        if row["n"] % 3 == 1:
            raise ValueError("unwanted")
        return None if row["n"] % 3 == 0 else row
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Every unit is published, and the driver dead before it has verified them."""
    project = Project(tmp_path_factory.mktemp("damaged"))
    project.functions(FUNCTIONS)
    project.rows(30, n=lambda i: i)
    run = {"unit": {"max_rows": 10}, "max_error_rate": 1}
    project.write({"type": "python", "function": "functions:sort"}, run=run)
    done = project.run(env={"RAYBATCH_FAILPOINT": "before-verify"})
    assert done.code == -signal.SIGKILL, str(done)
    yield project
    project.close()


class Copy:
    """A copy of that output, to be damaged."""

    def __init__(self, project: Project, path: Path) -> None:
        self.project, self.path = project, path
        shutil.copytree(project.output, path)

    def run(self, command: str = "run") -> Done:
        return self.project.run("--set", f"sink.path={self.path}", command=command)

    def one(self, pattern: str) -> Path:
        return sorted(self.path.rglob(pattern))[0]

    def damage(self, pattern: str, damage: Damage) -> Path:
        """Damage the first file that matches, which is not linked anywhere else."""
        file = self.one(pattern)
        whole = file.read_bytes()
        assert damage(whole) != whole
        file.unlink()
        file.write_bytes(damage(whole))
        return file


@pytest.fixture
def copy(published: Project, tmp_path: Path) -> Copy:
    return Copy(published, tmp_path / "out")


def refused(done: Done, copy: Copy) -> str:
    """The run's message: it has failed for what is stored, and nothing is committed or to be seen."""
    assert (done.code, done.error["type"]) == (1, "LedgerError"), str(done)
    output = Output(copy.path)
    assert (output.commits(), output.data(), output.errors()) == ([], [], [])
    return done.error["message"]


@pytest.mark.parametrize("kind", ["ok", "errors", "dropped"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_found_before_the_commit(copy: Copy, damage: Damage, kind: str) -> None:
    part = copy.damage(f"*.{kind}.parquet", damage)
    message = refused(copy.run(), copy)
    assert str(part) in message
    assert "was damaged: its SHA-256 is not the recorded one" in message


def test_a_unit_whose_part_was_damaged_is_done_again_as_the_message_says(copy: Copy) -> None:
    copy.damage("*.ok.parquet", with_one_flipped_bit)
    message = refused(copy.run(), copy)
    record = copy.one("units/**/*.json")
    assert f"delete {record.relative_to(copy.path)}" in message
    record.unlink()
    done = copy.run()
    assert done.code == 0, str(done)
    assert done.document["units"] == {"planned": 3, "published": 3, "resumed": 2}
    assert wrong(copy.path, input_ids([copy.project.input / "a.jsonl"])) == []


@pytest.mark.parametrize("damage", [truncated, emptied])
def test_a_damaged_unit_record_is_named_and_nothing_is_committed(copy: Copy, damage: Damage) -> None:
    record = copy.damage("units/**/*.json", damage)
    assert str(record) in refused(copy.run(), copy)


@pytest.mark.parametrize("damage", [truncated, emptied])
def test_a_damaged_plan_is_named_and_nothing_is_committed(copy: Copy, damage: Damage) -> None:
    plan = copy.damage("plan/*.json", damage)
    assert str(plan) in refused(copy.run(), copy)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_damaged_after_the_commit_is_found_by_the_audit(copy: Copy, damage: Damage) -> None:
    assert copy.run().code == 0
    assert copy.run("audit").code == 0
    file = copy.damage("data/*.parquet", damage)
    done = copy.run("audit")
    assert done.code == 1, str(done)
    failed = {check["invariant"]: check["first"] for check in done.document["checks"] if check["first"]}
    assert str(file.relative_to(copy.path)) in failed["I4"]
