"""The `raybatch` command itself: help, exit codes, and where messages go."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from raybatch import __version__
from raybatch.cli import main
from raybatch.errors import LostRaceError, SpecError, StoreError, TooManyErrorsError


def raising(error: BaseException) -> main.Command:
    """A sub-command that raises `error`, in a module of its own, as the others are."""

    @click.command()
    def command() -> None:
        raise error

    globals()["command"] = command
    sys.modules["raising_command"] = sys.modules[__name__]
    return main.Command("raising_command:command", "Raises.")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StoreError("the disk is gone"), 1),
        (SpecError("a.yaml:1: wrong"), 2),
        (LostRaceError("another run won"), 4),
        (TooManyErrorsError("too many"), 5),
    ],
)
def test_an_error_of_raybatch_is_a_message_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    monkeypatch.setitem(main.COMMANDS, "try", raising(error))
    assert main.run(["try"]) == code
    assert capsys.readouterr() == ("", f"raybatch: {error}\n")


def test_findings_stand_at_the_start_of_their_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(main.COMMANDS, "try", raising(SpecError("a.yaml:1: x\na.yaml:2: y")))
    main.run(["try"])
    assert capsys.readouterr().err.splitlines()[1:] == ["a.yaml:1: x", "a.yaml:2: y"]


def test_a_fault_names_the_file_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setitem(main.COMMANDS, "try", raising(ZeroDivisionError("by nothing")))
    assert main.run(["try"]) == 1
    said = capsys.readouterr().err
    found = re.search(r"ZeroDivisionError: by nothing\n.*the traceback is in (\S+)", said)
    assert found, said
    assert "raise error" in Path(found[1]).read_text(encoding="utf-8")


def test_an_interrupt_exits_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(main.COMMANDS, "try", raising(KeyboardInterrupt()))
    assert main.run(["try"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["valdiate"],
            "no such command 'valdiate' (did you mean 'validate'?); commands: run, retry, validate,",
        ),
        (["validate"], "Missing argument 'PIPELINE'"),
        (["validate", "--profil", "x", "a.yaml"], "No such option"),
        (["--nothing"], "No such option"),
    ],
)
def test_a_wrong_command_line_exits_with_2(
    capsys: pytest.CaptureFixture[str], args: list[str], said: str
) -> None:
    assert main.run(args) == 2
    assert said in capsys.readouterr().err


def test_help_lists_every_command_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--help"]) == 0
    listed = capsys.readouterr().out.partition("Commands:")[2]
    assert [line.split()[0] for line in listed.splitlines() if re.match(r"  \S", line)] == list(main.COMMANDS)


@pytest.mark.parametrize("command", list(main.COMMANDS))
def test_every_command_can_be_loaded_and_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: raybatch {command}")


def test_the_console_script_tells_the_version() -> None:
    script = Path(sys.executable).parent / "raybatch"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"raybatch {__version__}\n")
