"""`raybatch validate`: everything about a pipeline file that can be checked without I/O."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from raybatch.cli.options import json_option, pipeline_options
from raybatch.errors import SpecError

if TYPE_CHECKING:
    from raybatch.spec.pipeline import Pipeline


@click.command()
@pipeline_options
@json_option
def validate(pipeline: str, profile: str | None, sets: tuple[str, ...], as_json: bool) -> None:
    """Check the file PIPELINE, and show what it says.

    Unknown keys, wrong values, prompts, schemas, and columns that a stage reads and nothing writes are
    found, each with its file and line. No input is read, no model is loaded, nothing is started. Exits with
    0 if the pipeline can be run, with 2 if not.
    """
    from raybatch.spec.load import load_pipeline

    try:
        summary = _summary(load_pipeline(pipeline, profile=profile, sets=sets))
    except SpecError as error:
        if as_json:
            click.echo(json.dumps(_failure(pipeline, error), indent=2))
        raise
    if as_json:
        click.echo(json.dumps({"valid": True, **summary}, indent=2))
    else:
        click.echo(f"{pipeline} is valid\n\n{_table(summary)}", err=True)


def _failure(file: str, error: SpecError) -> dict[str, Any]:
    from raybatch.cli.summary import error_json

    return {"valid": False, "file": file, **error_json(error), "findings": str(error).splitlines()}


def _summary(pipeline: Pipeline) -> dict[str, Any]:
    from raybatch.spec.columns import check_columns

    return {
        "name": pipeline.name,
        "file": pipeline.file,
        "mode": pipeline.run.mode,
        "source": {"type": pipeline.source.type, "path": getattr(pipeline.source, "path", None)},
        "stages": [
            {
                "name": stage.name,
                "type": stage.type,
                "model": getattr(stage, "model", None),
                "function": getattr(stage, "function", None),
                "reads": stage.reads(),
                "output": getattr(stage, "output", None),
            }
            for stage in pipeline.stages
        ],
        "sink": {"type": pipeline.sink.type, "path": pipeline.sink.path},
        "columns": check_columns(pipeline),
    }


def _table(summary: dict[str, Any]) -> str:
    """Name, source, stages and sink in four columns: key, what, with what, columns read and written."""
    source, sink = summary["source"], summary["sink"]
    path = source["path"]
    rows = [
        ("name", summary["name"], "", ""),
        ("source", source["type"], ", ".join(path) if isinstance(path, list) else str(path or ""), ""),
        *(_stage_row(stage, first=stage is summary["stages"][0]) for stage in summary["stages"]),
        ("sink", sink["type"], sink["path"], ""),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ("  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() for row in rows)
    return "\n".join(f"  {line}" for line in lines)


def _stage_row(stage: dict[str, Any], *, first: bool) -> tuple[str, str, str, str]:
    name, kind = stage["name"], stage["type"]
    columns = ", ".join(stage["reads"] or ())
    if stage["output"]:
        columns = f"{columns} -> {stage['output']}"
    what = name if name == kind else f"{name} ({kind})"
    return "stages" if first else "", what, stage["model"] or stage["function"] or "", columns
