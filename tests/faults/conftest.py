"""A project per test, of which nothing is left running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from family import Family

from pipelines import Project


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path)
    yield made
    made.close()


@pytest.fixture
def family(project: Project) -> Family:
    """Everyone whom the project's commands bring into the world."""
    found = Family()
    project.env = {**project.env, **found.env}
    return found
