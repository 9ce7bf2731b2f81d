"""Rows that are too large, and rows of which a model makes nonsense: error rows, and the rate is enforced."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from oracle import Output, input_ids, wrong
from pipelines import Project

pytestmark = pytest.mark.ray

MB = 1_000_000


def test_a_message_of_a_hundred_megabytes_is_an_error_row(project: Project) -> None:
    good = [json.dumps({"id": i, "text": f"row {i}"}).encode() for i in range(4)]
    large = json.dumps({"id": "large", "text": "x" * (100 * MB)}).encode()
    (project.input / "a.jsonl").write_bytes(b"\n".join([*good[:2], large, *good[2:]]) + b"\n")
    project.write(run={"max_error_rate": 0.5})
    done = project.complete()
    assert done.document["rows"] == {"in": 5, "ok": 4, "error": 1, "dropped": 0}
    (row,) = Output(project.output).errors()
    assert (row["type"], row["raw"]) == ("RowTooLarge", large[: 64 << 10])
    assert wrong(project.output, input_ids([project.input / "a.jsonl"])) == []


def model_that_has_no_number_for(word: str, *, of: str, at: Path) -> None:
    """A copy of a model's folder in which the vector of one token is not a number."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    shutil.copytree(of, at)
    (token,) = AutoTokenizer.from_pretrained(of).encode(word, add_special_tokens=False)
    weights = load_file(at / "model.safetensors")
    (name,) = [name for name in weights if name.endswith("word_embeddings.weight")]
    weights[name][token] = float("nan")
    save_file(weights, at / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.embedding
@pytest.mark.timeout(1200)
def test_vectors_that_are_not_numbers_are_error_rows_and_too_many_end_the_run(
    project: Project, minilm: str
) -> None:
    model_that_has_no_number_for("whale", of=minilm, at=project.folder / "model")
    words: list[dict[str, Any]] = [
        {"text": text}
        for text in ["a cat", "a whale", "a dog", "", "two dogs", "one whale", "a bird", "a cow"]
    ]
    project.lines(words)
    embed = {"type": "embed", "model": "./model", "input": "text", "output": "vector"}
    project.write(embed, run={"max_error_rate": 0.1, "unit": {"max_rows": 100}})
    done = project.run()
    assert (done.code, done.error["type"]) == (5, "TooManyErrorsError"), str(done)
    assert Output(project.output).commits() == []

    project.complete("--set", "run.max_error_rate=0.5")
    types = Counter(row["type"] for row in Output(project.output).errors())
    assert types == {"NonFiniteVector": 2, "EmptyText": 1}
    assert wrong(project.output, input_ids([project.input / "a.jsonl"])) == []
