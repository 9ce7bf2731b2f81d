"""`raybatch run`: run a pipeline here, show how it goes, and say how it ended."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

import click

from raybatch.cli.options import json_option, pipeline_options
from raybatch.errors import InterruptedRunError, RaybatchError

if TYPE_CHECKING:
    from raybatch.cli.live import View
    from raybatch.cli.logs import Streams
    from raybatch.runtime.progress import RunReport
    from raybatch.spec.pipeline import Pipeline

logger = logging.getLogger(__name__)

Work = Callable[["Pipeline", "View"], "RunReport"]


@click.command()
@pipeline_options
@json_option
@click.option(
    "--allow-drift",
    is_flag=True,
    help="Finish the epoch that an earlier run left although the pipeline or a model has changed since: "
    "published units stay as they are, the others come from the pipeline as it is now.",
)
@click.pass_context
def run(
    ctx: click.Context,
    pipeline: str,
    profile: str | None,
    sets: tuple[str, ...],
    as_json: bool,
    allow_drift: bool,
) -> None:
    """Run the file PIPELINE, on a Ray that lives as long as the run, or on the cluster in RAY_ADDRESS.

    What an earlier run of it left unfinished is finished; else the input that has appeared since is taken.
    Progress goes to stderr, what libraries print to a log file that the progress names.

    \b
    Exit codes:
      0    complete
      1    failed; the same command resumes
      2    the command line or the file is wrong; nothing was started
      4    another run won
      5    more error rows than run.max_error_rate
      130  interrupted; the same command resumes
    """

    def work(loaded: Pipeline, seen: View) -> RunReport:
        from raybatch.runtime.run import run as run_pipeline

        return run_pipeline(loaded, allow_drift=allow_drift, reporter=seen)

    loaded = load(pipeline, profile=profile, sets=sets, as_json=as_json)
    ctx.exit(run_and_tell(loaded, work, as_json=as_json))


def load(path: str, *, profile: str | None, sets: tuple[str, ...], as_json: bool) -> Pipeline:
    """The pipeline. Raises what is wrong with it, after printing it as JSON if that was asked for."""
    from raybatch.spec.load import load_pipeline

    try:
        return load_pipeline(path, profile=profile, sets=sets)
    except RaybatchError as error:
        if as_json:
            from raybatch.cli.summary import error_json

            click.echo(json.dumps(error_json(error), indent=2))
        raise


def run_and_tell(pipeline: Pipeline, work: Work, *, as_json: bool) -> int:
    """Do the work, show how it goes and how it ended; gives the exit code."""
    from raybatch.cli.logs import chatter_to_log

    with chatter_to_log(pipeline.name) as streams, _terminable():
        return _run_and_tell(pipeline, streams, work, as_json=as_json)


def _run_and_tell(pipeline: Pipeline, streams: Streams, work: Work, *, as_json: bool) -> int:
    from raybatch.cli.live import Terminal, view
    from raybatch.cli.summary import exit_code, failure_json, print_failure, print_success

    log, name = streams.log, pipeline.name
    with view(streams.err, pipeline=name, log=log, interval_s=pipeline.run.report_interval_s) as seen:
        outcome = _outcome(pipeline, seen, work)
    console = Terminal(file=streams.err, highlight=False)
    document: dict[str, Any]
    with suppress(OSError):  # nobody reads stderr any more; stdout and the exit code still count
        if isinstance(outcome, BaseException):
            print_failure(console, outcome, seen.meter, pipeline=name, log=log)
        else:
            print_success(console, outcome, seen.meter, log=log)
    if isinstance(outcome, BaseException):
        code = exit_code(outcome)
        document = failure_json(outcome, seen.meter, pipeline=name, output=pipeline.sink.path, log=log)
    else:
        code, document = 0, {**outcome.to_json(), "log": str(log)}
    if as_json:
        _print_json(document, streams.out)
    return code


def _outcome(pipeline: Pipeline, seen: View, work: Work) -> RunReport | BaseException:
    """The report of the run, or what ended it, whose traceback is in the log."""
    try:
        return work(pipeline, seen)
    except RaybatchError as error:
        logger.error("the run failed", exc_info=error)
        return error
    except KeyboardInterrupt:
        return _interrupted()
    # A library that calls sys.exit must not end the process without a word
    except (Exception, SystemExit) as error:
        # ray.init takes SIGTERM over, and answers it with this
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
            return _interrupted()
        logger.exception("the run failed")
        return error


def _interrupted() -> InterruptedRunError:
    logger.exception("interrupted")
    return InterruptedRunError("interrupted; run it again to resume")


@contextmanager
def _terminable() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, also where the runtime does not yet, or no longer, watch for it."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_json(document: dict[str, Any], out: TextIO) -> None:
    out.write(json.dumps(document, indent=2, default=str) + "\n")
    out.flush()
