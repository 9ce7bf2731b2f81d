"""`raybatch retry`: take error rows through the pipeline again, as a new epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from raybatch.cli.options import json_option, pipeline_options
from raybatch.cli.run import load, run_and_tell

if TYPE_CHECKING:
    from raybatch.cli.live import View
    from raybatch.runtime.progress import RunReport
    from raybatch.spec.pipeline import Pipeline


@click.command()
@pipeline_options
@json_option
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="TYPE",
    help="Only error rows of this type, such as EngineKilled. May be given several times.",
)
@click.option(
    "--stage",
    "stages",
    multiple=True,
    metavar="NAME",
    help="Only error rows of this stage, or of `source`. May be given several times.",
)
@click.option(
    "--epoch",
    "epochs",
    multiple=True,
    type=click.IntRange(min=0),
    help="Only error rows of this epoch. May be given several times.",
)
@click.option(
    "--allow-drift",
    is_flag=True,
    help="Finish the epoch that an earlier run left although the pipeline has changed since, and read error rows "
    "again although the source's options have.",
)
@click.pass_context
def retry(
    ctx: click.Context,
    pipeline: str,
    profile: str | None,
    sets: tuple[str, ...],
    as_json: bool,
    types: tuple[str, ...],
    stages: tuple[str, ...],
    epochs: tuple[int, ...],
    allow_drift: bool,
) -> None:
    """Take the error rows of the file PIPELINE through it again, as a new epoch.

    Their input rows are read from the source once more. Rows that succeed now are in the results, once; rows
    that fail again are error rows of the new epoch. Files of earlier epochs stay as they are, and what is not
    asked for stays an error row.

    An epoch that a run left unfinished, also for too many error rows, is finished first. A retry that was cut
    off is resumed by the same command, and by `raybatch run`.

    \b
    Exit codes:
      0    complete, or nothing to retry
      1    failed; the same command resumes
      2    the command line or the file is wrong; nothing was started
      4    another run won
      5    complete, and of the rows concerned more than run.max_error_rate still are error rows
      130  interrupted; the same command resumes
    """

    def work(loaded: Pipeline, seen: View) -> RunReport:
        from raybatch.runtime.retry import retry as retry_pipeline

        return retry_pipeline(
            loaded, types=types, stages=stages, epochs=epochs, allow_drift=allow_drift, reporter=seen
        )

    loaded = load(pipeline, profile=profile, sets=sets, as_json=as_json)
    ctx.exit(run_and_tell(loaded, work, as_json=as_json))
