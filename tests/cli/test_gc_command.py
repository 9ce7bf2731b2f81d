"""`raybatch gc`, on an output of a run in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raybatch.cli.main import run
from raybatch.store import LocalStore
from small_run import run as run_small

GARBAGE = "_raybatch/parts/00000001/00000/00000001-lost.ok.parquet"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output of two epochs, with a part of an attempt that lost."""
    monkeypatch.chdir(tmp_path)
    store = LocalStore("out")
    run_small(store, run_id="run-1", epochs=2, units=2)
    store.put(GARBAGE, b"12345")
    Path("small.yaml").write_text(
        "name: small\n"
        "source: {type: files, path: in/*.jsonl}\n"
        'stages: [{type: python, function: "cleaning:plain"}]\n'
        "sink: {type: parquet, path: out}\n",
        encoding="utf-8",
    )
    return tmp_path


@pytest.mark.parametrize("argument", ["small.yaml", "out"])
def test_it_says_what_it_removed_from_the_output_that_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], argument: str
) -> None:
    assert run(["gc", argument]) == 0
    said = f"{folder}/out: removed 1 part of an attempt that lost (5 bytes)\n"
    assert capsys.readouterr() == ("", said)
    assert not (folder / "out" / GARBAGE).exists()


def test_a_dry_run_removes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["gc", "out", "--dry-run"]) == 0
    assert "would remove 1 part of" in capsys.readouterr().err
    assert (folder / "out" / GARBAGE).exists()


def test_json_is_one_document_on_stdout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["gc", "out", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": f"{folder}/out",
        "dry_run": False,
        "parts": 1,
        "leftovers": 0,
        "bytes": 5,
        "notes": [],
    }


def test_a_clean_output_has_no_garbage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "out" / GARBAGE).unlink()
    assert run(["gc", "out"]) == 0
    assert capsys.readouterr().err == f"{folder}/out: no garbage\n"


def test_what_is_no_output_ends_with_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "empty").mkdir()
    assert run(["gc", "empty"]) == 2
    assert "holds no output of raybatch" in capsys.readouterr().err
