"""One look at a run, drawn for a terminal and written as a line."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raybatch.cli.meter import Meter
from raybatch.engines.pool import PoolStatus

STATES = ("ready", "loading", "pending")
# An actor's process takes seconds to start; what is pending for longer waits for something
PENDING_S = 10.0
TOP_ERRORS = 3


def picture(meter: Meter, *, pipeline: str, log: Path, since_s: float = 0.0) -> RenderableType:
    """The live view: `since_s` seconds after the latest snapshot."""
    parts: list[RenderableType] = [_headline(meter, pipeline, since_s)]
    if meter.done is not None:
        parts += [_bar(meter), _counts(meter)]
    if meter.engines:
        parts.append(_engines(meter))
    return Group(*parts, _log(log))


def line(meter: Meter) -> str:
    """One line for all of it."""
    seen = meter.latest
    assert seen is not None
    parts = [f"epoch {seen.epoch}"] if seen.epochs else []
    parts.append(seen.phase)
    if seen.units.get("planned"):
        resumed = f" ({seen.units['resumed']:,} resumed)" if seen.units["resumed"] else ""
        parts.append(f"units {seen.units['published']:,}/{seen.units['planned']:,}{resumed}")
        parts.append(f"rows {_of(seen.rows['in'], seen.rows_expected)}")
    parts += _speeds(meter, tokens="tok/s")
    parts += [f"engines {_state_counts(meter)}"] if meter.engines else []
    parts += [f"errors {seen.rows['error']:,} ({top_errors(seen.errors)})"] if seen.rows["error"] else []
    if meter.left_s is not None:
        parts.append(f"~{duration(meter.left_s)} left")
    return "  ".join(parts)


def _headline(meter: Meter, pipeline: str, since_s: float) -> RenderableType:
    seen = meter.latest
    left = Text.assemble((pipeline, "bold"), "  ", (seen.phase if seen else "planning", "cyan"))
    if seen is None:
        return Text.assemble(left, f"  {duration(since_s)}")
    left.append(f"  epoch {seen.epoch}  {duration(seen.elapsed_s + since_s)}")
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right")
    grid.add_row(left, Text(f"run {seen.run_id}", style="dim", no_wrap=True))
    return grid


def _bar(meter: Meter) -> RenderableType:
    share = meter.done or 0.0
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    # floor: 100% is said when it is done
    left = f"  ~{duration(meter.left_s)} left" if meter.left_s is not None else ""
    bar = ProgressBar(total=1.0, completed=share, complete_style="cyan", finished_style="green")
    grid.add_row(bar, f"{int(share * 100):3d}%{left}")
    return grid


def _counts(meter: Meter) -> RenderableType:
    seen = meter.latest
    assert seen is not None
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", width=6)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    units = f"{seen.units['published']:,}/{seen.units['planned']:,}"
    grid.add_row("units", units, f"{seen.units['resumed']:,} resumed" if seen.units["resumed"] else "")
    speeds = Text("  ".join(_speeds(meter, tokens="tokens/s")), style="green")
    grid.add_row("rows", _of(seen.rows["in"], seen.rows_expected), speeds)
    if seen.rows["error"]:
        errors = Text(top_errors(seen.errors), style="yellow")
        grid.add_row("errors", Text(f"{seen.rows['error']:,}", style="yellow"), errors)
    return grid


def _engines(meter: Meter) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    for _ in range(5):
        table.add_column(justify="right", no_wrap=True)
    table.add_row("engine", *STATES, "in flight", "load", style="dim")
    reasons = []
    for status in meter.engines:
        name = Text.assemble((f"{status.kind} ", "dim"), short_model(status.model))
        if status.deaths:
            name.append(f" ({status.deaths} replaced)", style="yellow")
        in_flight = sum(replica.in_flight for replica in status.replicas)
        load = duration(status.load_s) if status.load_s is not None else ""
        table.add_row(name, *_states(status), f"{in_flight:,}", load)
        if not any(replica.state == "ready" for replica in status.replicas):
            reasons.append(pending_reason(status).partition("\n")[0])
    # The whole of it stands above the view
    short = (
        Text(f"  {reason}", style="yellow", no_wrap=True, overflow="ellipsis") for reason in reasons if reason
    )
    return Group(table, *short)


def _states(status: PoolStatus) -> Iterator[Text]:
    """How many replicas are in each of STATES, and for how long the slowest has been on its way."""
    for state, style in zip(STATES, ("green", "cyan", "yellow"), strict=True):
        seconds = [replica.seconds for replica in status.replicas if replica.state == state]
        clock = f" {duration(max(seconds))}" if seconds and state != "ready" else ""
        yield Text(f"{len(seconds)}{clock}", style=style) if seconds else Text("-", style="dim")


def _log(log: Path) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=6)
    grid.add_column(overflow="fold")
    grid.add_row("log", short_path(log), style="dim")
    return grid


def _speeds(meter: Meter, *, tokens: str) -> list[str]:
    speeds = [f"{speed(meter.rows_per_s)} rows/s"] if meter.rows_per_s is not None else []
    # An engine that generates none, such as an embedding model, has no speed of it
    return speeds + ([f"{speed(meter.tokens_per_s)} {tokens}"] if meter.tokens_per_s is not None else [])


def _state_counts(meter: Meter) -> str:
    counts = Counter(replica.state for status in meter.engines for replica in status.replicas)
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "none"


def pending_reason(status: PoolStatus) -> str:
    """Why a replica has waited for a place for longer than a start takes; empty if none has."""
    waits = (r.why for r in status.replicas if r.state == "pending" and r.seconds >= PENDING_S)
    return next((why for why in waits if why), "")


def top_errors(errors: Mapping[str, int]) -> str:
    """The most frequent types with their counts."""
    ordered = Counter(errors).most_common()
    shown = ", ".join(f"{kind} {count:,}" for kind, count in ordered[:TOP_ERRORS])
    return shown + (f", {len(ordered) - TOP_ERRORS} more types" if len(ordered) > TOP_ERRORS else "")


def duration(seconds: float) -> str:
    """m:ss, or h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def speed(per_s: float | None) -> str:
    """A rate with as many digits as it deserves."""
    if per_s is None:
        return "-"
    return f"{per_s:,.0f}" if per_s >= 100 or per_s == 0 else f"{per_s:.1f}" if per_s >= 1 else f"{per_s:.2g}"


def short_path(path: Path) -> str:
    """With ~ for the home folder, where a shell understands it as well."""
    with contextlib.suppress(ValueError, RuntimeError):
        return str(Path("~") / path.relative_to(Path.home()))
    return str(path)


def short_model(model: str) -> str:
    """A hub name as it is; of a folder the last two names."""
    parts = Path(model).parts
    return model if len(parts) <= 2 else str(Path("…", *parts[-2:]))


def _of(count: int, total: int | None) -> str:
    return f"{count:,}/{total:,}" if total is not None else f"{count:,}"
