"""A disk without room for the output, or for what Ray keeps while it works: the run says where, and with room again
the next one finishes.

A disk that is full for real needs the right to mount one; where there is none, a limit on files stands in for it.
"""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from oracle import Output, input_ids, wrong
from pipelines import Done, Project

pytestmark = pytest.mark.ray

LIMIT = """
    import os, resource

    def limit(row):
        if os.path.exists(__file__ + ".full"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))
        return row
"""

Free = Callable[[], None]
"""Makes room."""
Full = Callable[[Project, Path], AbstractContextManager[Free]]


@contextmanager
def small_tmpfs(folder: Path) -> Iterator[Free]:
    """A filesystem of 2 MiB on `folder`, of which a file takes all but 150 kB."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        ballast = folder / "ballast"
        ballast.write_bytes(bytes((2 << 20) - 150_000))
        yield ballast.unlink
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as name:
        try:
            with small_tmpfs(Path(name)):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


@contextmanager
def full_output(project: Project, folder: Path) -> Iterator[Free]:
    with small_tmpfs(folder) as free:
        yield free


@contextmanager
def limited_workers(project: Project, folder: Path) -> Iterator[Free]:
    full = project.folder / "functions.py.full"
    full.touch()
    yield full.unlink


FULL = [pytest.param(limited_workers, "ulimit -f", id="limit on files")]
FULL += [pytest.param(full_output, "no space left", id="full tmpfs")] if can_mount() else []


def refused(done: Done, kind: str) -> str:
    assert (done.code, done.error["type"]) == (1, kind), str(done)
    assert "run it again to resume" in done.err
    return done.error["message"]


@pytest.mark.parametrize(("disk", "reason"), FULL)
def test_an_output_without_room_is_named_and_finished_once_there_is_some(
    project: Project, disk: Full, reason: str
) -> None:
    project.functions(LIMIT)
    # The units of the first file fit, a unit of the second takes 200 kB
    project.rows(20)
    project.lines([{"id": str(i), "text": os.urandom(20_000).hex()} for i in range(20)], file="b.jsonl")
    project.write({"type": "python", "function": "functions:limit"})
    with disk(project, project.output) as free:
        message = refused(project.run(), "StoreError")
        assert f"cannot write {project.output}" in message
        assert reason in message
        output = Output(project.output)
        assert (output.data(), output.commits()) == ([], [])

        free()
        project.complete()
        assert wrong(project.output, input_ids(project.input.glob("*.jsonl"))) == []
        assert not list(project.output.rglob("_tmp/*"))


def no_room_for_files() -> None:
    """In the driver and all that it starts."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, resource.RLIM_INFINITY))


def test_a_temporary_folder_without_room_is_a_failure_and_not_a_hang(project: Project) -> None:
    project.rows(20)
    project.write()
    done = project.run(before=no_room_for_files)
    assert done.code == 1, str(done)
    assert Output(project.output).commits() == []
    project.complete()
    assert wrong(project.output, input_ids(project.input.glob("*.jsonl"))) == []
