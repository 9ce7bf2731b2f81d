"""What a person sees of a run while it works: one live view on a terminal, else a plain line now and then."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TextIO

from rich.console import Console, ConsoleDimensions, RenderableType
from rich.live import Live
from rich.text import Text

from raybatch.cli.meter import Meter
from raybatch.cli.picture import line, pending_reason, picture
from raybatch.runtime.progress import Snapshot

# The reason names every node: on a cluster that grows it changes with each
REASON_INTERVAL_S = 60.0


class View(Protocol):
    """A `raybatch.runtime.progress.Reporter` that keeps what it was told."""

    meter: Meter

    def update(self, snapshot: Snapshot) -> None: ...
    def note(self, text: str) -> None: ...


class Terminal(Console):
    """A rich console on a stream that need not be stdout or stderr, and that may go away."""

    @property
    def size(self) -> ConsoleDimensions:
        """Of the terminal behind the stream: rich asks descriptors 0 to 2, which lead to the log file."""
        if self._width is None and "COLUMNS" not in os.environ:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                size = os.get_terminal_size(self.file.fileno())
                if size.columns and size.lines:
                    return ConsoleDimensions(*size)
        return super().size

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def on_broken_pipe(self) -> None:
        """Go on in silence: nobody looks any more, but the run is not over (rich would exit)."""
        self.quiet = True


@contextmanager
def view(stream: TextIO, *, pipeline: str, log: Path, interval_s: float) -> Iterator[View]:
    """The view that suits `stream`; a live one is gone from the terminal at the end."""
    console = Terminal(file=stream, highlight=False)
    if not stream.isatty() or console.is_dumb_terminal:
        yield LineView(stream, log=log, interval_s=interval_s)
        return
    live_view = LiveView(console, pipeline=pipeline, log=log)
    with live_view.shown():
        yield live_view


class LineView:
    """A line at each new phase, and every `interval_s` in between; for pipes, CI and cluster logs."""

    def __init__(
        self, stream: TextIO, *, log: Path, interval_s: float, clock: Callable[[], str] | None = None
    ) -> None:
        self.meter = Meter()
        self._stream = stream
        self._log = log
        self._interval_s = interval_s
        self._clock = clock or (lambda: time.strftime("%H:%M:%S"))
        self._reasons = Reasons()
        self._phases: set[str] = set()  # a run over many epochs goes through them again and again
        self._printed = float("-inf")  # on the run's own clock
        self._lock = threading.Lock()

    def update(self, snapshot: Snapshot) -> None:
        with self._lock:
            self.meter.add(snapshot)
            for reason in self._reasons.new(self.meter):
                self._print(reason)
            if snapshot.phase == "done":  # the table says it, and more
                return
            turned = snapshot.phase not in self._phases
            if not turned and snapshot.elapsed_s - self._printed < self._interval_s:
                return
            self._phases.add(snapshot.phase)
            self._printed = snapshot.elapsed_s
            where = f"  log {self._log}" if turned else ""
            self._print(f"{line(self.meter)}{where}")

    def note(self, text: str) -> None:
        with self._lock:
            self._print(text)

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more; the run goes on
            self._stream.write(f"{self._clock()} {text}\n")
            self._stream.flush()


class LiveView:
    """One picture that is drawn again in place, with whole lines above it for what should stay."""

    def __init__(self, console: Console, *, pipeline: str, log: Path) -> None:
        self.meter = Meter()
        self._console = console
        self._pipeline = pipeline
        self._log = log
        self._reasons = Reasons()
        self._since = time.monotonic()  # of the latest snapshot; before the first, of the view
        self._lock = threading.Lock()

    def update(self, snapshot: Snapshot) -> None:
        with self._lock:
            self.meter.add(snapshot)
            self._since = time.monotonic()
            reasons = self._reasons.new(self.meter)
        for reason in reasons:
            self.note(reason)

    def note(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._console.print(Text(text), soft_wrap=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw the picture until the block is left."""
        live = Live(
            console=self._console,
            get_renderable=self.picture,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        live.start()
        # A hidden cursor would stay hidden if the process were killed
        self._console.show_cursor(True)
        try:
            yield
        finally:
            with contextlib.suppress(OSError, ValueError):
                live.stop()

    def picture(self) -> RenderableType:
        """What to draw now; called from the refreshing thread."""
        with self._lock:
            return picture(
                self.meter, pipeline=self._pipeline, log=self._log, since_s=time.monotonic() - self._since
            )


class Reasons:
    """Why engines wait for a place: each new reason once, and not too often."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[str, float]] = {}

    def new(self, meter: Meter) -> list[str]:
        """What has not been told yet."""
        assert meter.latest is not None
        now, found = meter.latest.elapsed_s, []
        for status in meter.engines:
            why = pending_reason(status)
            told, when = self._told.get(status.key, ("", float("-inf")))
            if why and why != told and now - when >= REASON_INTERVAL_S:
                self._told[status.key] = (why, now)
                found.append(why)
        return found
