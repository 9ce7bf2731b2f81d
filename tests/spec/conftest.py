"""A folder of its own as each test's current directory, and a plugin with the types `toy` and `opaque`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raybatch.errors import SpecError
from raybatch.spec.load import load_pipeline
from raybatch.spec.pipeline import Pipeline

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(HERE / "plugin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Callable[..., str]:
    """write(text, file) -> file, relative to the current directory."""

    def written(text: str, file: str = "pipelines/news.yaml") -> str:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return file

    return written


@pytest.fixture
def load(write: Callable[..., str]) -> Callable[..., Pipeline]:
    """load(text, **options): the pipeline in pipelines/news.yaml."""

    def loaded(text: str, **options: Any) -> Pipeline:
        return load_pipeline(write(text), **{"env": {}, **options})

    return loaded


@pytest.fixture
def refused(load: Callable[..., Pipeline]) -> Callable[..., list[str]]:
    """refused(text, **options): the lines of the error that loading it raises."""

    def lines(text: str, **options: Any) -> list[str]:
        with pytest.raises(SpecError) as caught:
            load(text, **options)
        return str(caught.value).splitlines()

    return lines
