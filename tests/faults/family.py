"""The processes that a run has brought into the world, so that a test can say that none is left."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from pipelines import Command, wait_until

# When their node dies, these try for a minute to tell the head, which has died too; then they go
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
_SHARED = re.compile(r"/dev/shm/(\S+)")


class Family:
    """All that descends from a command, also what has another parent by now: they inherit a mark.

    Some are known by the mark in their environment only, some (who overwrite it with their title) by descent
    only, so `look` while the run is still alive.
    """

    VARIABLE = "RAYBATCH_TEST_FAMILY"

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.env = {self.VARIABLE: self.mark}
        self.members: set[psutil.Process] = set()
        self.shared_memory: set[str] = set()

    def look(self, command: Command) -> set[psutil.Process]:
        """Take in everyone there is now, and the shared memory that they have."""
        try:
            driver = psutil.Process(command.process.pid)
            self.members |= {driver, *driver.children(recursive=True)}
        except psutil.NoSuchProcess:
            pass
        self.members |= set(self._marked())
        for member in self.members:
            self.shared_memory |= _shared_memory(member.pid)
        return self.alive()

    def alive(self) -> set[psutil.Process]:
        """Who still runs, of those known and those marked."""
        self.members |= set(self._marked())
        return {member for member in self.members if _runs(member)}

    def named(self, name: str) -> list[psutil.Process]:
        """Who still runs with `name` in the command line."""
        return [member for member in self.alive() if name in _title(member)]

    def wait_until_gone(self, *, but: Sequence[str] = ()) -> None:
        """Nobody is left, save those whose title is in `but`, and no name in shared memory that one had."""

        def left() -> list[str]:
            titles = map(_title, self.alive())
            return sorted(title[:100] for title in titles if not title.startswith(tuple(but)))

        wait_until(lambda: not left(), what=_Lazy(lambda: f"these are gone: {left()}"))
        wait_until(lambda: not self.left_in_memory(), what=_Lazy(lambda: f"gone: {self.left_in_memory()}"))

    def left_in_memory(self) -> list[str]:
        """Names in /dev/shm that were theirs, and are still there."""
        return sorted(name for name in self.shared_memory if Path("/dev/shm", name).exists())

    def _marked(self) -> Iterator[psutil.Process]:
        wanted = f"{self.VARIABLE}={self.mark}".encode()
        for process in psutil.process_iter():
            try:
                if wanted in Path(f"/proc/{process.pid}/environ").read_bytes():
                    yield process
            except OSError:
                continue  # gone, or another user's


class _Lazy:
    """A text that is made when it is shown."""

    def __init__(self, make: object) -> None:
        self._make = make

    def __str__(self) -> str:
        return self._make()  # type: ignore[operator]


def _runs(process: psutil.Process) -> bool:
    try:
        # A zombie holds nothing; who reaps it is up to the machine's init
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _shared_memory(pid: int) -> set[str]:
    """The names below /dev/shm that a process has mapped or open, and that are still names."""
    found: set[str] = set()
    try:
        found |= set(_SHARED.findall(Path(f"/proc/{pid}/maps").read_text()))
        for handle in os.listdir(f"/proc/{pid}/fd"):
            found |= set(_SHARED.findall(os.readlink(f"/proc/{pid}/fd/{handle}")))
    except OSError:
        pass
    return {name for name in found if Path("/dev/shm", name).exists()}
