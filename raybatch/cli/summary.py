"""What `raybatch run` says at its end, to a person and as JSON."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raybatch.cli.meter import Meter
from raybatch.cli.picture import duration, short_path, speed
from raybatch.errors import InterruptedRunError, RaybatchError
from raybatch.runtime.progress import RunReport, Snapshot

UNEXPECTED = 1
LABEL_WIDTH = 7
# Seconds on the wall; any others in a report are those of stages
WALL = {
    "total": "total",
    "model_load": "model load",
    "first_published": "until the first unit",
    "finalise": "finalising",
}


def print_success(console: Console, report: RunReport, meter: Meter, *, log: Path) -> None:
    """The table at the end of a run that committed, or that found nothing to do."""
    if not report.units["planned"]:
        complete = (
            f"epoch {report.epoch} is complete, no new input" if report.committed else "there is no input"
        )
        complete = complete if report.retry is None else "no error row to retry"
        console.print(Text.assemble((report.pipeline, "bold"), "  ", ("nothing to do: " + complete, "green")))
    else:
        took = f"complete in {duration(report.seconds['total'])}"
        which = (
            f"epoch {report.epoch}" if report.epochs == 1 else f"{report.epochs} epochs, up to {report.epoch}"
        )
        console.print(
            Text.assemble((report.pipeline, "bold"), f"  {which}  ", (took, "green")),
            Text(f" run {report.run_id}", style="dim"),
        )
        if report.units["resumed"] == report.units["planned"]:
            console.print(_labelled("", "nothing was redone: every unit was published already"))
        console.print(_numbers(report), *_times(report, meter), sep="\n")
        if report.latency_s is not None:
            late = ", ".join(f"{seconds:,.1f} s ({share})" for share, seconds in report.latency_s.items())
            console.print(_labelled("latency", f"{late} from produced to visible"))
        if report.retry is not None:
            console.print(_labelled("retry", _retried(report.retry)), soft_wrap=True)
        if report.errors:
            where = f"; the rows are in {report.output.rstrip('/')}/errors"
            console.print(_labelled("errors", _counts(report.errors) + where, style="yellow"), soft_wrap=True)
    console.print(_labelled("output", report.output), soft_wrap=True)
    if report.rows["ok"] or not report.units["planned"]:
        console.print(_labelled("query", data_query(report.output)), soft_wrap=True)
    _print_log(console, log)


def print_failure(console: Console, error: BaseException, meter: Meter, *, pipeline: str, log: Path) -> None:
    """The error's own words, whether and where the same command goes on, and where to read more."""
    seen = meter.latest
    interrupted = isinstance(error, InterruptedRunError)
    what = "interrupted" if interrupted else "failed"
    head = Text.assemble((pipeline, "bold"), "  ", (what, "yellow" if interrupted else "bold red"))
    if seen is not None:
        head.append(f" after {duration(seen.elapsed_s)}, while {seen.phase}")
        head.append(f"  run {seen.run_id}", style="dim")
    console.print(head, soft_wrap=True)
    begun = seen is not None and bool(seen.units.get("planned"))
    if not (interrupted and begun):
        console.print(Text(_words(error)), soft_wrap=True)
    if seen is not None and seen.errors:
        console.print(_labelled("errors", _counts(seen.errors), style="yellow"), soft_wrap=True)
    if seen is not None and begun:
        console.print(Text(_progress(seen, exit_code(error))), soft_wrap=True)
    _print_log(console, log)


def failure_json(
    error: BaseException, meter: Meter, *, pipeline: str, output: str, log: Path
) -> dict[str, Any]:
    """The document of `--json` for a run that failed: the error, and how far it came."""
    known: dict[str, Any] = {"pipeline": pipeline, "output": output, "log": str(log)}
    seen = meter.latest
    if seen is not None:
        known |= {
            "run_id": seen.run_id,
            "epoch": seen.epoch,
            "epochs": seen.epochs,
            "phase": seen.phase,
            "units": dict(seen.units),
            "rows": dict(seen.rows),
            "errors": dict(seen.errors),
            "tokens": dict(seen.tokens),
            "seconds": {"total": round(seen.elapsed_s, 3)},
        }
    return error_json(error) | known


def error_json(error: BaseException) -> dict[str, Any]:
    """`{"error": {"type", "message", "exit_code"}}`."""
    described = {"type": type(error).__name__, "message": str(error), "exit_code": exit_code(error)}
    return {"error": described}


def exit_code(error: BaseException) -> int:
    """What the process exits with when `error` ended its run."""
    return error.exit_code if isinstance(error, RaybatchError) else UNEXPECTED


def data_query(output: str) -> str:
    """SQL that shows a few rows of a finished dataset, for DuckDB."""
    quoted = glob.escape(output.rstrip("/")).replace("'", "''")
    return f"SELECT * FROM '{quoted}/data/*.parquet' LIMIT 10;"


def _numbers(report: RunReport) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", width=LABEL_WIDTH, no_wrap=True)
    for _ in report.rows:
        table.add_column(justify="right", no_wrap=True)
        table.add_column(style="dim", no_wrap=True)
    counted = {"rows": report.rows, "units": report.units, "tokens": report.tokens}
    for label, counts in counted.items():
        if any(counts.values()):
            table.add_row(label, *(cell for name, count in counts.items() for cell in (f"{count:,}", name)))
    return table


def _times(report: RunReport, meter: Meter) -> Iterator[Text]:
    wall = [
        f"{report.seconds[name]:,.1f} {words}" for name, words in WALL.items() if report.seconds.get(name)
    ]
    yield _labelled("seconds", ", ".join(wall))
    stages = [f"{n.removeprefix('stage.')} {s:,.1f} s" for n, s in report.seconds.items() if n not in WALL]
    if stages:
        yield _labelled("stages", ", ".join(stages) + " (summed over units)")
    if speeds := ", ".join(_speeds(report, meter)):
        yield _labelled("speed", speeds)


def _speeds(report: RunReport, meter: Meter) -> Iterator[str]:
    """Of this run alone: what it did, over the time that engines were up, and over all of it."""
    rows = report.rows["in"] - meter.rows_resumed
    working, total = meter.running_s, report.seconds["total"]
    if working and rows:
        yield f"{speed(rows / working)} rows/s while running"
    if working and report.tokens.get("generated"):
        yield f"{speed(report.tokens['generated'] / working)} tokens/s"
    if total and rows:
        yield f"{speed(rows / total)} rows/s overall"


def _retried(retry: Mapping[str, Any]) -> str:
    became = {"now ok": retry["ok"], "failed again": retry["error"], "dropped": retry["dropped"]}
    said = ", ".join(f"{count:,} {words}" for words, count in became.items() if count)
    kinds = f" ({_counts(retry['left_by_type'])})" if retry["left"] else ""
    return f"{retry['taken']:,} taken: {said}; error rows that are left: {retry['left']:,}{kinds}"


def _counts(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count:,}" for kind, count in Counter(errors).most_common())


def _labelled(label: str, what: str, *, style: str = "") -> Text:
    return Text.assemble((label.ljust(LABEL_WIDTH + 1), "dim"), (what, style))


def _print_log(console: Console, log: Path) -> None:
    # ~ is for people; what a pipe or a cluster log keeps is read elsewhere
    path = short_path(log) if console.is_terminal else str(log)
    console.print(_labelled("log", path), soft_wrap=True)


def _words(error: BaseException) -> str:
    if isinstance(error, RaybatchError):
        return str(error)
    return f"{type(error).__name__}: {error}\nThis is a fault in raybatch; the traceback is in the log."


def _progress(seen: Snapshot, code: int) -> str:
    published = f"{seen.units['published']:,} of {seen.units['planned']:,} units are published"
    if seen.epochs:
        published = f"{seen.epochs:,} epochs are committed by this run; of epoch {seen.epoch}, {published}"
    resumable = code in (UNEXPECTED, InterruptedRunError.exit_code)
    return f"run it again to resume: {published}" if resumable else published
