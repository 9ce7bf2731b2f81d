"""What the tests of sources share: plan and read everything that a path names."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raybatch.sources.base import SourcePlan, UnitSpec
from raybatch.sources.files import FilesConfig


@dataclass(frozen=True, kw_only=True)
class Read:
    """All rows of a plan, in order, with their id columns; and their errors. `history`: the units of this plan
    and of those before it."""

    plan: SourcePlan
    history: list[UnitSpec]
    rows: list[dict[str, Any]]
    errors: list[dict[str, Any]]

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows]

    def error_types(self) -> list[str]:
        return [error["type"] for error in self.errors]


def _read_files(
    path: object, *, max_rows: int = 1000, max_bytes: int = 1 << 20, after: Read | None = None, **config: Any
) -> Read:
    paths = [str(p) for p in path] if isinstance(path, list) else str(path)
    parsed = FilesConfig.model_validate({"type": "files", "path": paths, **config})
    source = parsed.build(max_rows=max_rows, max_bytes=max_bytes)
    before = after.history if after else []
    plan = source.plan(after=after.plan.end if after else None, history=before)
    units = [source.read(unit, key=str(i), schema=plan.schema) for i, unit in enumerate(plan.units)]
    for unit in units:
        assert unit.table.schema.names[: len(plan.schema)] == plan.schema.names
    return Read(
        plan=plan,
        history=[*before, *plan.units],
        rows=[row for unit in units for row in unit.table.to_pylist()],
        errors=[row for unit in units for row in unit.errors.to_pylist()],
    )


@pytest.fixture
def read_files() -> Callable[..., Read]:
    """`read_files(path, max_rows=, max_bytes=, after=, **config)`: plan `path` and read every unit; `after` is
    what an earlier call gave."""
    return _read_files


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody can reach (pytest's own are private to their owner)."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)
        for path in Path(name).rglob("*"):
            os.chmod(path, 0o755)
