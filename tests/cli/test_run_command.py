"""`raybatch run` as a process: what goes where, how it ends, what a terminal shows.

The runtime is a stand-in that tells and prints what the test says: what is tested is all around it.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import textwrap
from pathlib import Path
from typing import Any

import pytest

from raybatch.cli import logs

PIPELINE = """
name: tickets
source: {type: files, path: in.jsonl}
stages: []
sink: {type: parquet, path: out}
"""

# Runs the command line with BODY in the place of `raybatch.runtime.run.run`
DRIVER = """
import ctypes, logging, os, subprocess, sys, time, types, warnings
from raybatch import errors
from raybatch.runtime.progress import RunReport, Snapshot

ROWS = {"in": 2048, "ok": 2045, "error": 3, "dropped": 0}
UNITS = {"planned": 4, "published": 2, "resumed": 1}

def snapshot(phase="running", elapsed_s=5.0):
    return Snapshot(
        run_id="r-1", pipeline="tickets", epoch=0, phase=phase, elapsed_s=elapsed_s, units=UNITS, rows=ROWS,
        rows_resumed=1024, rows_expected=4096, errors={"InvalidJSON": 3},
        tokens={"prompt": 0, "cached": 0, "generated": 0}, engines=[],
    )

def report():
    return RunReport(
        run_id="r-1", pipeline="tickets", epoch=0, epochs=1, committed=True, units=UNITS, rows=ROWS,
        errors={"InvalidJSON": 3}, tokens={"prompt": 0, "cached": 0, "generated": 0},
        seconds={"total": 5.0}, engines=[], output="/data/out",
    )

def wait_for_go():
    deadline = time.monotonic() + 30
    while not os.path.exists(os.environ["GO_ON"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)

def run(pipeline, *, allow_drift, reporter):
BODY

runtime = types.ModuleType("raybatch.runtime.run")
runtime.run = run
sys.modules["raybatch.runtime.run"] = runtime
from raybatch.cli.main import main
main()
"""

CHATTER = """
    print("python-out")
    print("python-err", file=sys.stderr)
    os.write(1, b"fd-out\\n")
    os.write(2, b"fd-err\\n")
    ctypes.CDLL(None).printf(b"c-out\\n")
    sys.__stdout__.write("original-out\\n")
    subprocess.run(["sh", "-c", "echo child-out; echo child-err >&2"])
    logging.getLogger("some.library").info("log-record")
    warnings.warn("a-warning")
"""
CHATTERERS = [
    "python-out",
    "python-err",
    "fd-out",
    "fd-err",
    "c-out",
    "original-out",
    "child-out",
    "child-err",
    "log-record",
    "a-warning",
]


class Command:
    """`raybatch run` on a pipeline file in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        (folder / "tickets.yaml").write_text(PIPELINE)
        self.go_on = folder / "go-on"
        self.env = os.environ | {
            "GO_ON": str(self.go_on),
            "RAYBATCH_LOG_DIR": str(self.logs),
            "TERM": "xterm-256color",
        }
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PYTHONUNBUFFERED"):
            self.env.pop(name, None)

    def line(self, body: str, *args: str) -> list[str]:
        indented = textwrap.indent(textwrap.dedent(body).strip(), "    ")
        (self.folder / "driver.py").write_text(DRIVER.replace("BODY", indented))
        return [
            sys.executable,
            str(self.folder / "driver.py"),
            "run",
            str(self.folder / "tickets.yaml"),
            *args,
        ]

    def __call__(self, body: str, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.line(body, *args),
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def log(self) -> str:
        (path,) = self.logs.iterdir()
        return path.read_text()


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


# -- where things are written --------------------------------------------------------------------------------


def test_chatter_of_every_kind_goes_to_the_log_file_alone(command: Command) -> None:
    done = command(CHATTER + "    return report()")
    written, log = done.stdout + done.stderr, command.log()
    assert [word for word in CHATTERERS if word in written] == []
    assert [word for word in CHATTERERS if word not in log] == []


def test_json_is_the_one_document_on_stdout(command: Command) -> None:
    done = command(CHATTER + "    reporter.update(snapshot())\n    return report()", "--json")
    document = json.loads(done.stdout)
    assert {"run_id", "epoch", "units", "rows", "tokens", "seconds", "output"} <= set(document)
    assert document["units"] == {"planned": 4, "published": 2, "resumed": 1}


def test_without_json_nothing_is_on_stdout(command: Command) -> None:
    assert command("return report()").stdout == ""


def test_the_log_file_is_named_for_pipeline_time_and_process_and_said_on_stderr(command: Command) -> None:
    done = command("return report()")
    (path,) = command.logs.iterdir()
    assert re.fullmatch(r"tickets-\d{8}T\d{6}-\d+\.log", path.name)
    assert f"log     {path}" in done.stderr


def test_what_is_printed_after_the_run_is_on_the_terminal_again(command: Command) -> None:
    hook = "import atexit; atexit.register(lambda: (print('late-out'), os.system('echo late-err >&2')))\n"
    done = command(hook + "return report()")
    assert done.stdout == "late-out\n"
    assert done.stderr.endswith("late-err\n")


def test_closed_standard_streams_do_not_disturb_the_run(command: Command) -> None:
    arguments = command.line(CHATTER + "    return report()", "--json")
    script = 'exec "$@" <&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *arguments], env=command.env, stdout=subprocess.PIPE, timeout=60
    )
    assert (done.returncode, json.loads(done.stdout)["run_id"]) == (0, "r-1")
    assert "fd-out" in command.log()


def test_a_reader_of_stderr_that_leaves_does_not_end_the_run(command: Command) -> None:
    body = 'reporter.note("leave now")\nwait_for_go()\nreporter.update(snapshot())\nreturn report()'
    process = subprocess.Popen(
        command.line(body, "--json"),
        env=command.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stderr
    assert "leave now" in process.stderr.readline()
    process.stderr.close()
    command.go_on.touch()
    document = json.loads(process.stdout.read())
    assert (process.wait(60), document["run_id"]) == (0, "r-1")


# -- how it ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        ("errors.EngineLoadError('no such model')", 1),
        ("errors.SourceError('no file matches')", 2),
        ("errors.LostRaceError('another run won')", 4),
        ("errors.TooManyErrorsError('3 of 9 rows')", 5),
        ("errors.InterruptedRunError('stopped')", 130),
        ("ZeroDivisionError('a fault')", 1),
        ("SystemExit('a library gave up')", 1),
    ],
)
def test_the_exit_code_and_the_document_say_how_a_run_failed(
    command: Command, raised: str, code: int
) -> None:
    done = command(f"reporter.update(snapshot())\nraise {raised}", "--json")
    document = json.loads(done.stdout)
    name, message = re.fullmatch(r"(?:errors\.)?(\w+)\('(.+)'\)", raised).groups()  # type: ignore[union-attr]
    assert done.returncode == code
    assert document["error"] == {"type": name, "message": message, "exit_code": code}
    assert document["units"] == {"planned": 4, "published": 2, "resumed": 1}


def test_a_failure_shows_the_cause_how_to_resume_and_the_log(command: Command) -> None:
    done = command("reporter.update(snapshot())\nraise errors.EngineLoadError('no such\\n  model')")
    (path,) = command.logs.iterdir()
    assert "no such\n  model\n" in done.stderr
    assert "run it again to resume: 2 of 4 units are published\n" in done.stderr
    assert f"log     {path}\n" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "raised", ["errors.EngineLoadError('no such model')", "ZeroDivisionError('a fault')"]
)
def test_the_traceback_of_a_failure_is_in_the_log(command: Command, raised: str) -> None:
    command(f"raise {raised}")
    assert "Traceback (most recent call last)" in command.log()
    assert f"raise {raised}" in command.log()


def test_an_unexpected_exception_shows_its_type_and_message(command: Command) -> None:
    done = command("raise ZeroDivisionError('a fault')")
    assert "ZeroDivisionError: a fault\n" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_an_interruption(command: Command, number: signal.Signals) -> None:
    body = 'reporter.update(snapshot())\nreporter.note("started")\ntime.sleep(60)'
    process = subprocess.Popen(
        command.line(body, "--json"),
        env=command.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stderr
    while "started" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == json.loads(out)["error"]["exit_code"] == 130
    assert "interrupted" in err
    assert "run it again to resume: 2 of 4 units are published\n" in err


def test_a_library_that_took_sigterm_over_does_not_make_it_a_failure(command: Command) -> None:
    done = command("""
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(signal.SIGTERM))
    signal.raise_signal(signal.SIGTERM)
    """)
    assert done.returncode == 130
    assert "interrupted" in done.stderr


def test_a_wrong_pipeline_file_starts_nothing_and_leaves_no_log(command: Command) -> None:
    (command.folder / "tickets.yaml").write_text(PIPELINE + "stagse: []\n")
    done = command("raise AssertionError", "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["type"], error["exit_code"]) == (2, "SpecError", 2)
    assert "stagse" in error["message"]
    assert "stagse" in done.stderr
    assert not command.logs.exists()


def test_allow_drift_reaches_the_runtime(command: Command) -> None:
    done = command("assert allow_drift\nreturn report()", "--allow-drift")
    assert done.returncode == 0


# -- a terminal ----------------------------------------------------------------------------------------------


def on_terminal(command: Command, body: str, *, columns: int, awaited: bytes) -> str:
    """All that is written on a terminal of so many columns, on which is stderr alone.

    What `body` waits for comes as soon as `awaited` is shown.
    """
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        command.line(body),
        env=command.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=follower,
    )
    os.close(follower)
    written = b""
    while select.select([leader], [], [], 60)[0]:
        try:
            written += os.read(leader, 65536)
        except OSError:  # EIO: no writer is left
            break
        if awaited in written:
            command.go_on.touch()
    os.close(leader)
    assert process.wait(60) == 0
    return written.decode()


@pytest.fixture
def terminal(command: Command) -> str:
    body = (
        CHATTER
        + """
    reporter.update(snapshot("starting"))
    reporter.note("a note")
    reporter.update(snapshot())
    wait_for_go()
    return report()
    """
    )
    return on_terminal(command, body, columns=100, awaited=b"running")


def test_a_terminal_shows_the_view_then_the_table_and_no_chatter(terminal: str) -> None:
    assert "50%" in terminal
    assert terminal.rindex("complete in 0:05") > terminal.rindex("50%")
    assert [word for word in CHATTERERS if word in terminal] == []


def test_a_terminal_is_used_in_its_whole_width_though_stdin_is_none(terminal: str) -> None:
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal)
    headlines = [text for text in re.split(r"[\r\n]+", plain) if re.search("tickets  running", text)]
    assert {len(text) for text in headlines} == {100}


def test_a_terminal_has_its_cursor_back(terminal: str) -> None:
    assert terminal.rindex("\x1b[?25h") > terminal.rindex("\x1b[?25l")


# -- the folder of the log files -----------------------------------------------------------------------------


def test_log_files_go_to_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAYBATCH_LOG_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert logs.log_folder() == tmp_path / "raybatch" / "logs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert logs.log_folder() == tmp_path / ".cache" / "raybatch" / "logs"


def test_only_the_newest_fifty_log_files_are_kept_and_nothing_else_is_touched(command: Command) -> None:
    command.logs.mkdir()
    for i in range(60):
        path = command.logs / f"tickets-20260101T0000{i:02d}-1.log"
        path.touch()
        os.utime(path, (i, i))
    foreign = command.logs / "notes.log"
    foreign.touch()
    os.utime(foreign, (0, 0))
    command("return report()")
    kept = {path.name for path in command.logs.iterdir()} - {"notes.log"}
    assert foreign.exists()
    assert len(kept) == 50
    assert {name for name in kept if name.startswith("tickets-20260101T")} == {
        f"tickets-20260101T0000{i:02d}-1.log" for i in range(11, 60)
    }


def test_a_log_folder_that_cannot_be_written_is_replaced_by_a_temporary_one(
    command: Command, tmp_path: Path
) -> None:
    blocked = tmp_path / "a-file"
    blocked.touch()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command.env |= {"RAYBATCH_LOG_DIR": str(blocked / "logs"), "TMPDIR": str(temporary)}
    done = command(CHATTER + "    return report()")
    (path,) = temporary.glob("*/tickets-*.log")
    assert done.returncode == 0
    assert str(path) in done.stderr
    assert "fd-out" in path.read_text()


def test_streams_are_as_before_after_a_run_inside_a_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYBATCH_LOG_DIR", str(tmp_path))
    before: list[Any] = [sys.stdout, sys.stderr, *map(os.fstat, (1, 2))]

    def fail() -> None:
        with logs.chatter_to_log("tickets"):
            print("chatter")  # noqa: T201
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert [sys.stdout, sys.stderr, *map(os.fstat, (1, 2))] == before
    assert "chatter" not in capfd.readouterr().out
