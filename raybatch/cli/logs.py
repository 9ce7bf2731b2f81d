"""Where the chatter goes: while a run lasts, everything that libraries print ends up in a log file.

vLLM, Ray and what they load write to file descriptors 1 and 2, from Python, from C and from processes that
they start. `chatter_to_log` points both descriptors at the log file and hands out streams to where they went
before, on which only the command itself writes.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from raybatch.errors import UsageError

KEEP = 50
# <pipeline>-<timestamp>-<pid>.log: only what looks so is ever deleted, for the folder may be the user's own
_LOG_NAME = re.compile(r".+-\d{8}T\d{6}-\d+\.log")


@dataclass(frozen=True, kw_only=True)
class Streams:
    """What the command writes on while the chatter is led away: the real stdout and stderr."""

    out: TextIO
    err: TextIO
    log: Path  # absolute


@contextmanager
def chatter_to_log(pipeline: str) -> Iterator[Streams]:
    """Point stdout and stderr, as descriptors and as Python streams, at a new log file named for `pipeline`.

    Enter it before anything heavy is imported. Logging from INFO up goes to the file too. Everything is as
    before at the end, however that comes. Not thread-safe: it changes the process.
    """
    _fill_standard_descriptors()
    log, path = _open_log(pipeline)
    old = sys.stdout, sys.stderr
    _flush()
    with contextlib.ExitStack() as undo:
        out = undo.enter_context(_real(sys.stdout, 1))
        err = undo.enter_context(_real(sys.stderr, 2))
        for fd in (1, 2):
            saved = os.dup(fd)
            undo.callback(os.close, saved)
            undo.callback(os.dup2, saved, fd)
            os.dup2(log.fileno(), fd)
        undo.enter_context(_logging_to(log))
        sys.stdout = sys.stderr = log
        try:
            yield Streams(out=out, err=err, log=path)
        finally:
            # What is still buffered belongs to the log, also in C: at exit it would land on the real stdout
            _flush()
            sys.stdout, sys.stderr = old


def log_folder() -> Path:
    """Where log files go: $RAYBATCH_LOG_DIR, or raybatch/logs in the user's cache folder."""
    given = os.environ.get("RAYBATCH_LOG_DIR")
    if given:
        return Path(given).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "raybatch" / "logs"


def _open_log(pipeline: str) -> tuple[TextIO, Path]:
    name = f"{pipeline}-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.log"
    try:
        path = _made_room(log_folder()) / name
        log = _open(path)
    # RuntimeError: there is no home folder
    except (OSError, RuntimeError) as error:
        try:
            path = Path(tempfile.mkdtemp(prefix="raybatch-logs-")) / name
            log = _open(path)
        except OSError:
            raise UsageError(
                f"no log file can be written ({error}); set RAYBATCH_LOG_DIR to a folder"
            ) from None
    # Libraries keep the stream beyond the run (logging handlers, atexit hooks), so it closes with the process
    atexit.register(log.close)
    return log, path


def _open(path: Path) -> TextIO:
    return open(path, "a", buffering=1, encoding="utf-8", errors="backslashreplace")


def _made_room(folder: Path) -> Path:
    """`folder`, made if need be, with the oldest of more than KEEP - 1 log files removed."""
    folder.mkdir(parents=True, exist_ok=True)
    logs = [entry for entry in os.scandir(folder) if _LOG_NAME.fullmatch(entry.name)]
    with contextlib.suppress(FileNotFoundError):  # another run makes room at the same time
        for entry in sorted(logs, key=lambda e: e.stat().st_mtime, reverse=True)[KEEP - 1 :]:
            os.unlink(entry.path)
    return folder


def _fill_standard_descriptors() -> None:
    """Open what of 0, 1 and 2 is closed: else the next file that anything opens becomes stdout."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


@contextmanager
def _real(stream: TextIO | None, fd: int) -> Iterator[TextIO]:
    """A stream to where `stream` leads now, for as long as `fd` is pointed elsewhere.

    A stream that is not on `fd` (of a test, of a notebook) is its own; None, for a closed one, leads nowhere.
    """
    if stream is None:
        with open(os.devnull, "w") as nowhere:
            yield nowhere
        return
    try:
        on_fd = stream.fileno() == fd
    except (OSError, AttributeError):
        on_fd = False
    if not on_fd:
        yield stream
        return
    real = os.fdopen(os.dup(fd), "w", buffering=1, encoding=stream.encoding, errors="backslashreplace")
    try:
        yield real
    finally:
        with contextlib.suppress(OSError):  # whoever read it is gone
            real.close()


@contextmanager
def _logging_to(log: TextIO) -> Iterator[None]:
    root = logging.getLogger()
    handler = logging.StreamHandler(log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    ctypes.CDLL(None).fflush(None)
