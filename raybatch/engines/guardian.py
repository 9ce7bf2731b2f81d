"""Ends everything that an engine left on a node: processes, shared memory, sockets.

    python -m raybatch.engines.guardian GROUP SCRATCH

runs beside each engine actor, outside its process group, and waits for the end of its standard input, which
the actor holds open: the actor is gone, however it went. vLLM's engine core, a child of the actor, would not
notice for itself. Imports nothing heavy: there is one of these for each replica.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time

TIDYING_S = 5.0  # resource trackers take milliseconds
_SHARED_MEMORY = "/dev/shm/"
_RAYS_OWN = ("plasma", "ray")  # its object store, which other processes use


def end_group(group: int, scratch: str | None = None) -> None:
    """End every process of the group, on this node, and remove the shared memory that it had and `scratch`.

    SIGKILL, which works on stopped processes too, to all but Python's resource trackers: these unlink what
    the killed ones had in /dev/shm, and end by themselves. No error for what is gone already.
    """
    segments: set[str] = set()
    deadline = time.monotonic() + TIDYING_S
    # Again and again, for what was just forked; not for ever, for what the kernel does not let go
    while (victims := [p for p in members(group) if not _is_tracker(p)]) and time.monotonic() < deadline:
        for pid in victims:
            segments |= _mapped(pid)
            _signal(pid, signal.SIGKILL)
        time.sleep(0.01)
    for pid in members(group):
        _signal(pid, signal.SIGCONT)
    deadline = time.monotonic() + TIDYING_S
    while members(group) and time.monotonic() < deadline:
        time.sleep(0.01)
    for pid in members(group):
        _signal(pid, signal.SIGKILL)
    for path in segments:
        with contextlib.suppress(OSError):
            os.unlink(path)
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)


def members(group: int) -> list[int]:
    """The processes of `group` on this node, those that nobody has waited for yet (zombies) left out."""
    return [pid for pid in _pids() if _group_of(pid) == group]


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _is_tracker(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"resource_tracker" in file.read()
    except OSError:
        return False


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _group_of(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # "pid (name) state ppid pgrp": a name may hold anything, so count from its last parenthesis
            state, _, group = file.read().rpartition(b")")[2].split()[:3]
    except (OSError, ValueError):
        return None
    return None if state == b"Z" else int(group)


def _mapped(pid: int) -> set[str]:
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
            paths = {line.split(maxsplit=5)[5].strip() for line in file if _SHARED_MEMORY in line}
    except OSError:
        return set()
    names = {path.removeprefix(_SHARED_MEMORY): path for path in paths if path.startswith(_SHARED_MEMORY)}
    return {path for name, path in names.items() if not name.startswith(_RAYS_OWN)}


def main() -> None:
    group, scratch = int(sys.argv[1]), sys.argv[2]
    # Ctrl-C reaches every process of a terminal; this one has to outlive the others
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_group(group, scratch)


if __name__ == "__main__":
    main()
