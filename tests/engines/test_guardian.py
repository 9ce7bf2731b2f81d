"""Nothing of an engine outlives it: processes, shared memory, its scratch folder."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from raybatch.engines.guardian import end_group, members

# A parent and a child, each with shared memory: one keeps it mapped, one has closed it and only its name is left.
FAMILY = """
import multiprocessing, sys, time
from multiprocessing.shared_memory import SharedMemory

def child(names):
    mine = SharedMemory(create=True, size=64)
    names.put(mine.name)
    time.sleep(600)

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    names = multiprocessing.Queue()
    closed = SharedMemory(create=True, size=64)
    closed.close()
    multiprocessing.Process(target=child, args=(names,), daemon=True).start()
    print(closed.name, names.get(), flush=True)
    time.sleep(600)
"""


def wait_until(condition: Callable[[], object], *, deadline_s: float = 30) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


class Family:
    def __init__(self, folder: pathlib.Path) -> None:
        script = folder / "family.py"
        script.write_text(FAMILY)
        command = [sys.executable, str(script)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert self.process.stdout is not None
        self.segments = [f"/dev/shm/{name}" for name in self.process.stdout.readline().split()]
        assert len(self.segments) == 2

    @property
    def group(self) -> int:
        return self.process.pid


@pytest.fixture
def family(tmp_path: pathlib.Path) -> Family:
    return Family(tmp_path)


@pytest.mark.parametrize("stopped", [False, True])
def test_ending_a_group_leaves_no_process_and_no_shared_memory(family: Family, stopped: bool) -> None:
    if stopped:
        os.killpg(family.group, signal.SIGSTOP)
    assert all(os.path.exists(path) for path in family.segments)
    end_group(family.group)
    family.process.wait(timeout=30)
    assert members(family.group) == []
    assert [path for path in family.segments if os.path.exists(path)] == []


def test_ending_a_group_that_is_gone_is_no_error(family: Family) -> None:
    end_group(family.group)
    family.process.wait(timeout=30)
    end_group(family.group)


def test_the_guardian_ends_the_group_when_its_owner_is_killed(family: Family, tmp_path: pathlib.Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "raybatch.engines.guardian", str(family.group), str(scratch)]
    guardian = subprocess.Popen(command, stdin=subprocess.PIPE)
    os.kill(family.process.pid, signal.SIGKILL)  # of the owner alone; its child does not notice
    family.process.wait(timeout=30)
    assert guardian.stdin is not None
    guardian.stdin.close()  # as the kernel does when the owner is the only one to hold it
    guardian.wait(timeout=30)  # it has left a child behind, which Ray does not know
    wait_until(lambda: members(family.group) == [])
    wait_until(lambda: not any(os.path.exists(path) for path in family.segments))
    wait_until(lambda: not scratch.exists())
