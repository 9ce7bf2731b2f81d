"""Follows the columns from the source through the stages, so that a typo costs no GPU."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raybatch.errors import SpecError
from raybatch.nearest import did_you_mean
from raybatch.rows import ID_COLUMNS
from raybatch.spec.pipeline import Pipeline


def check_columns(pipeline: Pipeline, *, source_columns: Sequence[str] | None = None) -> list[str] | None:
    """The columns that reach the sink; None when only running tells.

    `source_columns`: those of the plan's schema, once it is known; by default what the source's config tells.
    Nothing is said of columns that are unknown. Raises `SpecError` with one line for each stage that reads
    what nothing writes, or writes what is there already.
    """
    given = source_columns
    if given is None:
        # Limits do not matter: a source is built without I/O, and asked for its columns only
        given = pipeline.source.build(max_rows=1, max_bytes=1).columns()
    seen = _Seen(writers=dict.fromkeys(given or (), "the source"), complete=given is not None)
    findings = [
        f"{_where(pipeline, 'source')}: source gives a column '{c}', a name that raybatch keeps for itself"
        for c in seen.writers
        if c in ID_COLUMNS
    ]
    for index, stage in enumerate(pipeline.stages):
        label = f"stages[{index}] '{stage.name}'"
        after = stage.writes(list(seen.writers) if seen.complete else None)
        certain = after if after is not None else stage.writes(list(seen.writers))
        said = (f"stages[{index}]", pipeline.raw["stages"][index])
        findings += _unwritten(pipeline, label=label, reads=stage.reads(), said=said, seen=seen)
        findings += _taken(pipeline, index, label, written=certain or [], seen=seen)
        writers = {c: seen.writers.get(c, label) for c in certain or ()}
        seen = _Seen(writers=writers, complete=after is not None)
    findings += _unwritten(
        pipeline, label="sink", reads=pipeline.sink.reads(), said=("sink", pipeline.raw["sink"]), seen=seen
    )
    if findings:
        raise SpecError("\n".join(findings))
    return list(seen.writers) if seen.complete else None


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """Columns before a stage, with who writes each: all if `complete`, else only those that are certain."""

    writers: dict[str, str]
    complete: bool


def keeps_columns(pipeline: Pipeline) -> bool:
    """Whether each column of the source reaches the sink as it is: no stage replaces its rows."""
    probe = "\0"  # a name that no stage can know of
    return all(probe in (stage.writes([probe]) or ()) for stage in pipeline.stages)


def _unwritten(
    pipeline: Pipeline, *, label: str, reads: list[str] | None, said: tuple[str, Any], seen: _Seen
) -> Iterator[str]:
    """`said`: the key of what reads, and the tree below it."""
    if not seen.complete:
        return
    for column in reads or ():
        if column not in seen.writers:
            where = _where_said(pipeline, said, column)
            near = did_you_mean(column, seen.writers)
            there = ", ".join(seen.writers) or "none"
            yield f"{where}: {label} reads '{column}', which nothing writes{near}; available: {there}"


def _taken(pipeline: Pipeline, index: int, label: str, *, written: list[str], seen: _Seen) -> Iterator[str]:
    """Columns that a stage's own `output` would hide, or that are reserved."""
    said = (f"stages[{index}]", pipeline.raw["stages"][index])
    output = getattr(pipeline.stages[index], "output", None)
    own = [output] if isinstance(output, str) else []
    for column in dict.fromkeys([*own, *(c for c in written if written.count(c) > 1)]):
        if column in seen.writers:
            where = _where_said(pipeline, said, column, key="output")
            first = seen.writers[column]
            yield f"{where}: {label} writes '{column}', which {first} writes too; choose another name"
    for column in dict.fromkeys([*own, *written]):
        if column in ID_COLUMNS and column not in seen.writers:
            where = _where_said(pipeline, said, column, key="output")
            yield f"{where}: {label} writes '{column}', a name that raybatch keeps for itself; choose another"


def _where(pipeline: Pipeline, key: str) -> str:
    return pipeline.where.get(key, pipeline.file)


def _where_said(pipeline: Pipeline, said: tuple[str, Any], column: str, *, key: str | None = None) -> str:
    """Where a stage or the sink says `column`: at `key` if it is there, else where its text first holds it."""
    root, tree = said
    texts = dict(_texts(tree, root))
    if key and texts.get(f"{root}.{key}") == column:
        return _where(pipeline, f"{root}.{key}")
    word = re.compile(rf"(?<!\w){re.escape(column)}(?!\w)")
    texts = {p: t for p, t in texts.items() if p not in (f"{root}.name", f"{root}.type")}
    exact = [path for path, text in texts.items() if text == column]
    within = [path for path, text in texts.items() if word.search(text)]
    return _where(pipeline, next(iter([*exact, *within]), root))


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from _texts(child, f"{path}.{key}")
    elif isinstance(value, list):
        for i, child in enumerate(value):
            yield from _texts(child, f"{path}[{i}]")
