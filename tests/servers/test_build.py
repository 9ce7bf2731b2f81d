"""Building the servers' programs: once, by whoever comes first, and a clear word when there is no Go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from servers import build

SCRIPT = Path(build.__file__)
# Instead of Go: counts its calls, and leaves the program where `go install` would
GO = """#!/bin/sh
echo "$@" >> "{calls}"
sleep 0.2
touch "$GOBIN/versitygw" "$GOBIN/minio"
"""


def start(cache: Path, path: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "RAYBATCH_CACHE": str(cache), "PATH": f"{path}:/usr/bin:/bin"}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """What the `go` in bin/ was asked for, a line each."""
    (tmp_path / "bin").mkdir()
    go = tmp_path / "bin" / "go"
    go.write_text(GO.format(calls=tmp_path / "calls"))
    go.chmod(0o755)
    return tmp_path / "calls"


def test_without_go_one_line_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    env = {**os.environ, "RAYBATCH_CACHE": str(tmp_path), "PATH": str(tmp_path / "bin")}
    done = subprocess.run([sys.executable, str(SCRIPT)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == build.NO_GO
    assert "install Go" in build.NO_GO


def test_of_several_who_need_a_program_one_builds_it_at_its_pinned_version(
    tmp_path: Path, calls: Path
) -> None:
    started = [start(tmp_path / "cache", tmp_path / "bin") for _ in range(3)]
    ended = [process.communicate(timeout=60)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], ended
    asked = [line.split()[-1] for line in calls.read_text().splitlines()]
    assert sorted(asked) == sorted(f"{program.package}@{program.version}" for program in build.PROGRAMS)
    kept = {path.name for path in (tmp_path / "cache" / "servers").iterdir() if path.suffix != ".lock"}
    assert kept == {f"{program.name}-{program.version}" for program in build.PROGRAMS}


def test_what_is_built_is_not_built_again(tmp_path: Path, calls: Path) -> None:
    for _ in range(2):
        assert start(tmp_path / "cache", tmp_path / "bin").wait(60) == 0
    assert len(calls.read_text().splitlines()) == len(build.PROGRAMS)


def test_a_build_that_fails_says_so_in_gos_own_words_and_leaves_nothing(tmp_path: Path, calls: Path) -> None:
    go = tmp_path / "bin" / "go"
    go.write_text("#!/bin/sh\necho 'module not found' >&2\nexit 1\n")
    process = start(tmp_path / "cache", tmp_path / "bin")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "module not found" in err
    assert not [path for path in (tmp_path / "cache" / "servers").iterdir() if path.suffix != ".lock"]
