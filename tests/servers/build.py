"""The programs of the servers: Go modules at pinned versions, built once and kept below `.cache/servers`.

    python tests/servers/build.py      # build what is missing; `make test` does this first

The environment variable RAYBATCH_CACHE names another folder than `.cache` of this checkout, so that several
checkouts can share one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

NO_GO = (
    "the tests build their S3 servers with Go, and there is no `go` on PATH: install Go 1.25 or newer"
    " (https://go.dev/dl, or Debian's golang-go)"
)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A command of a Go module. `version` is the only place where it is pinned."""

    name: str
    package: str
    version: str


VERSITYGW = Program(name="versitygw", package="github.com/versity/versitygw/cmd/versitygw", version="v1.8.0")
# Its releases are no Go versions: this is the last commit of its repository
MINIO = Program(name="minio", package="github.com/minio/minio", version="v0.0.0-20260212201848-7aac2a2c5b7c")
PROGRAMS = (VERSITYGW, MINIO)


class BuildError(Exception):
    """A program that cannot be built; the message says what to do."""


def folder() -> Path:
    """Where the programs are kept."""
    return Path(os.environ.get("RAYBATCH_CACHE") or ROOT / ".cache").resolve() / "servers"


def built(program: Program) -> Path:
    """The path of `program`, built first if this version never was; others who want it meanwhile wait.

    Raises `BuildError`. Some minutes the first time, on two cores.
    """
    kept = folder() / f"{program.name}-{program.version}"
    if kept.exists():
        return kept
    folder().mkdir(parents=True, exist_ok=True)
    with _locked(folder() / f"{program.name}.lock"):
        if not kept.exists():
            _build(program, kept)
    return kept


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(program: Program, kept: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise BuildError(NO_GO)
    with tempfile.TemporaryDirectory(dir=kept.parent) as unfinished:
        # Without C: the same program on every distribution. Without symbols: half the size
        command = [go, "install", "-trimpath", "-ldflags=-s -w", f"{program.package}@{program.version}"]
        env = os.environ | {"GOBIN": unfinished, "CGO_ENABLED": "0"}
        done = subprocess.run(command, cwd=unfinished, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"`{' '.join(command)}` failed:\n{done.stderr.strip()[-2000:]}")
        (Path(unfinished) / program.name).rename(kept)


def main() -> int:
    for program in PROGRAMS:
        started = time.monotonic()
        fresh = not (folder() / f"{program.name}-{program.version}").exists()
        if fresh:
            sys.stderr.write(f"  building {program.name} {program.version} for the tests\n")
        try:
            built(program)
        except BuildError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        if fresh:
            sys.stderr.write(f"  built in {time.monotonic() - started:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
