"""`raybatch validate`, on the components that raybatch comes with."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from raybatch.cli.main import run

PIPELINE = textwrap.dedent(
    """\
    name: ticket-summaries
    source:
      type: files
      path: tickets/*.jsonl
      columns: [id, body]
    stages:
      - type: generate
        name: summarise
        model: Qwen/Qwen3-8B
        engine: {tensor_parallel_size: 2, max_model_len: 8192}
        prompt: |
          Summarise this ticket:
          {{ body }}
        sampling: {temperature: 0, max_tokens: 256}
        output: summary
      - type: python
        name: text
        function: cleaning:plain
      - type: embed
        model: ./models/minilm
        input: text
        output: vector
    sink:
      type: parquet
      path: out/tickets
    """
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], text: str, *options: str) -> tuple[int, str, str]:
    Path("tickets.yaml").write_text(text, encoding="utf-8")
    code = run(["validate", "tickets.yaml", *options])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.usefixtures("folder")
def test_a_good_pipeline_is_summarised_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, PIPELINE)
    assert (code, out) == (0, "")
    lines = [line.split() for line in err.splitlines()]
    assert lines[0] == ["tickets.yaml", "is", "valid"]
    assert ["name", "ticket-summaries"] in lines
    assert ["stages", "summarise", "(generate)", "Qwen/Qwen3-8B", "body", "->", "summary"] in lines


def test_json_tells_the_same_as_one_document(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, out, err = said(capsys, PIPELINE, "--json")
    document = json.loads(out)
    assert (code, err, document["valid"]) == (0, "", True)
    assert document["sink"] == {"type": "parquet", "path": str(folder / "out/tickets")}
    assert [(s["name"], s["type"], s["model"]) for s in document["stages"]] == [
        ("summarise", "generate", "Qwen/Qwen3-8B"),
        ("text", "python", None),
        ("embed", "embed", str(folder / "models/minilm")),
    ]


@pytest.mark.usefixtures("folder")
def test_findings_go_to_stderr_and_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, PIPELINE.replace("output: vector", "outptu: vector"))
    assert (code, out) == (2, "")
    assert "tickets.yaml:22: stages[2].outptu: unknown key (did you mean 'output'?); valid keys: " in err


@pytest.mark.usefixtures("folder")
def test_findings_are_in_the_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    text = PIPELINE.replace("columns:", "colums:").replace("temperature: 0", "temprature: 0")
    code, out, _ = said(capsys, text, "--json")
    document = json.loads(out)
    assert (code, document["valid"], document["error"]["exit_code"]) == (2, False, 2)
    assert [finding.split(":")[1] for finding in document["findings"]] == ["5", "14"]


@pytest.mark.usefixtures("folder")
def test_a_prompt_with_a_column_that_nothing_writes_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = said(capsys, PIPELINE.replace("{{ body }}", "{{ bdy }}"))
    assert code == 2
    finding = (
        "stages[0] 'summarise' reads 'bdy', which nothing writes (did you mean 'body'?); available: id, body"
    )
    assert f"tickets.yaml:11: {finding}" in err


@pytest.mark.usefixtures("folder")
def test_profile_and_set_take_part(capsys: pytest.CaptureFixture[str]) -> None:
    Path("configs").mkdir()
    Path("configs/big.yaml").write_text("run: {idle_exit_s: 60}\n", encoding="utf-8")
    code, _, err = said(capsys, PIPELINE, "--profile", "big")
    assert code == 2
    assert "configs/big.yaml:1: run: idle_exit_s: only with `mode: continuous`" in err
    code, _, err = said(capsys, PIPELINE, "--profile", "big", "--set", "run.mode=continuous")
    assert (code, err.splitlines()[0]) == (0, "tickets.yaml is valid")


@pytest.mark.usefixtures("folder")
def test_a_file_that_does_not_exist_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "nothing.yaml"]) == 2
    assert capsys.readouterr().err == "raybatch: nothing.yaml: no such file\n"
