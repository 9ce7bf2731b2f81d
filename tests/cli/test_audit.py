"""`raybatch audit`, on outputs of a run in miniature."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from raybatch.cli.main import run
from raybatch.store import LocalStore
from small_run import run as run_small

PIPELINE = textwrap.dedent(
    """\
    name: small
    source: {type: files, path: in/*.jsonl}
    stages:
      - {type: python, function: "cleaning:plain"}
    sink: {type: parquet, path: out}
    """
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline, and its output of two epochs."""
    monkeypatch.chdir(tmp_path)
    run_small(LocalStore("out"), run_id="run-1", epochs=2, units=2)
    Path("small.yaml").write_text(PIPELINE, encoding="utf-8")
    return tmp_path


def _damage(folder: Path) -> str:
    file = next((folder / "out/data").iterdir())
    file.write_bytes(file.read_bytes()[:-1])
    return f"data/{file.name}"


@pytest.mark.parametrize("argument", ["small.yaml", "out", "{folder}/out", "file://{folder}/out"])
def test_an_output_is_named_by_its_pipeline_its_folder_or_its_url(
    folder: Path, capsys: pytest.CaptureFixture[str], argument: str
) -> None:
    assert run(["audit", argument.format(folder=folder)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{folder}/out: pipeline 'small', 2 committed epochs" in err
    assert err.rstrip().endswith("every invariant holds")


def test_the_table_has_a_line_for_each_invariant(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["audit", "out"])
    lines = [line.split() for line in capsys.readouterr().err.splitlines() if line.startswith("  I")]
    assert [line[0] for line in lines] == [f"I{n}" for n in range(1, 9)]
    assert [line[0] for line in lines if "ok" in line] == ["I1", "I2", "I3", "I4", "I5", "I6", "I8"]


def test_a_violation_is_named_and_ends_with_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = _damage(folder)
    assert run(["audit", "small.yaml"]) == 1
    err = capsys.readouterr().err
    assert f"      {damaged}, named by the commit of epoch " in err
    assert err.rstrip().endswith("violated: I4")


@pytest.mark.parametrize("whole", [True, False])
def test_json_is_one_document_on_stdout(
    folder: Path, capsys: pytest.CaptureFixture[str], whole: bool
) -> None:
    damaged = None if whole else _damage(folder)
    assert run(["audit", "out", "--json"]) == (0 if whole else 1)
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["pipeline"], report["epochs"]) == (whole, "small", 2)
    firsts = [check["first"] for check in report["checks"] if check["status"] == "failed"]
    assert [first.split(",")[0] for first in firsts] == ([] if whole else [damaged])


def test_set_chooses_the_output_as_it_does_for_a_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "out").rename(folder / "moved")
    assert run(["audit", "small.yaml", "--set", "sink.path=moved"]) == 0
    assert f"{folder}/moved: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("empty", "holds no output of raybatch"),
        ("hdfs://node/out", "no store for 'hdfs://'"),
        ("missing.yaml", "missing.yaml"),
    ],
)
def test_what_is_no_output_ends_with_2(
    folder: Path, capsys: pytest.CaptureFixture[str], argument: str, says: str
) -> None:
    (folder / "empty").mkdir()
    assert run(["audit", argument]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
