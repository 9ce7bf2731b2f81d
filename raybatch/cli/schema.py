"""`raybatch schema`: the JSON Schema of pipeline files."""

from __future__ import annotations

import json

import click


@click.command()
def schema() -> None:
    """Print the JSON Schema of pipeline files.

    With it, an editor completes keys, explains them and marks mistakes. For the YAML extension of VS Code
    and others, write it to a file and name that in the first line of the pipeline:

    \b
        raybatch schema > .raybatch-schema.json
        # yaml-language-server: $schema=.raybatch-schema.json
    """
    from raybatch.spec.schema import pipeline_schema

    click.echo(json.dumps(pipeline_schema(), indent=2))
