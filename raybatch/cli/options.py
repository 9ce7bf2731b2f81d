"""Arguments and options that several commands share, with one wording each."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from raybatch.spec.pipeline import Pipeline
    from raybatch.store.base import Store

_Function = TypeVar("_Function", bound=Callable[..., Any])


def pipeline_options(function: _Function) -> _Function:
    """PIPELINE, `--profile` and `--set`: the parameters `pipeline: str`, `profile: str | None` and
    `sets: tuple[str, ...]`, as `load_pipeline` takes them."""
    for decorate in (
        click.option(
            "--set",
            "sets",
            multiple=True,
            metavar="KEY.PATH=VALUE",
            help="Set one value, above the file and the profile; list items by number, as in "
            "stages.0.sampling.temperature=0. May be given several times.",
        ),
        click.option(
            "--profile",
            metavar="NAME|FILE",
            help="Defaults for this environment: a YAML file, or the name of one in configs/. "
            "What the pipeline says itself wins.",
        ),
        click.argument("pipeline"),
    ):
        function = decorate(function)
    return function


def json_option(function: _Function) -> _Function:
    """`--json`: the parameter `as_json: bool`."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print one JSON document to stdout; everything else goes to stderr.",
    )(function)


def output_named(argument: str, *, profile: str | None, sets: tuple[str, ...]) -> Store:
    """The output that PIPELINE names: itself, as a folder or URL, or by the pipeline file that it is."""
    return output_and_pipeline(argument, profile=profile, sets=sets)[0]


def output_and_pipeline(
    argument: str, *, profile: str | None, sets: tuple[str, ...]
) -> tuple[Store, Pipeline | None]:
    """As `output_named`; and the pipeline, if PIPELINE is a file."""
    from raybatch.config import is_url
    from raybatch.sinks.base import open_output
    from raybatch.spec.load import load_pipeline
    from raybatch.store import open_store

    if is_url(argument) or os.path.isdir(argument):
        return open_store(argument), None
    pipeline = load_pipeline(argument, profile=profile, sets=sets)
    return open_output(pipeline.sink), pipeline
