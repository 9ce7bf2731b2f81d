"""What several looks at a run say together: how fast it goes, and how long it will take."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from raybatch.engines.pool import PoolStatus
from raybatch.runtime.progress import Snapshot

ENGINE_PHASES = ("starting", "running", "waiting")


@dataclass
class Rate:
    """The speed of a counter that grows in jumps, such as rows that come a unit at a time.

    Over the last `window_s` seconds, or over more where those saw fewer than `jumps` jumps: a window that
    holds one jump says how long the window is, not how fast the work goes.
    """

    window_s: float
    jumps: int
    _points: deque[tuple[float, float]] = field(default_factory=deque)  # (seconds, value) of each jump
    _now: tuple[float, float] = (0.0, 0.0)

    def add(self, seconds: float, value: float) -> None:
        """The counter stood at `value` at `seconds`; both never go back. The first call starts the clock."""
        self._now = (seconds, value)
        if not self._points or value != self._points[-1][1]:
            self._points.append(self._now)
        while len(self._points) > self.jumps + 1 and self._points[1][0] < seconds - self.window_s:
            self._points.popleft()

    @property
    def per_s(self) -> float | None:
        """None until there is something to tell."""
        if len(self._points) < 2:
            return None
        start, value = self._points[0]
        return (self._now[1] - value) / (self._now[0] - start) if self._now[0] > start else None


class Meter:
    """Takes each snapshot of one run, in order, and adds to the latest what it lacks: rates and time left."""

    def __init__(self) -> None:
        self.latest: Snapshot | None = None
        self._rows = Rate(window_s=60, jumps=4)
        self._units = Rate(window_s=60, jumps=4)
        self._tokens = Rate(window_s=15, jumps=4)
        self._engines: dict[str, PoolStatus] = {}
        # Of the epochs before the latest that were seen
        self._rows_before = self._units_before = self._resumed_before = 0
        self.running_s = 0.0
        """Seconds that the run was seen at work, with its engines."""

    def add(self, snapshot: Snapshot) -> None:
        """Take one look in."""
        last, self.latest = self.latest, snapshot
        if last is not None and last.epoch != snapshot.epoch:
            self._rows_before += _own_rows(last)
            self._units_before += _own_units(last)
            self._resumed_before += last.rows_resumed
        if snapshot.phase not in ENGINE_PHASES:
            self._engines.clear()
        # An engine that was too busy to answer has not gone away
        self._engines.update({status.key: status for status in snapshot.engines})
        now = snapshot.elapsed_s
        if last is not None and last.phase == "running":
            self.running_s += now - last.elapsed_s
        if snapshot.phase != "running":
            return
        self._rows.add(now, self._rows_before + _own_rows(snapshot))
        self._units.add(now, self._units_before + _own_units(snapshot))
        self._tokens.add(now, sum(status.generated_tokens for status in self._engines.values()))

    @property
    def engines(self) -> Sequence[PoolStatus]:
        """The engines there are, each as it last was; empty before they start and after they stop."""
        return list(self._engines.values())

    @property
    def rows_resumed(self) -> int:
        """Input rows that earlier runs had published, of all epochs of this run."""
        return self._resumed_before + (self.latest.rows_resumed if self.latest else 0)

    @property
    def rows_per_s(self) -> float | None:
        """Input rows published per second, by this run; None when not running, or with nothing to go by."""
        return self._rows.per_s if self._running else None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens generated per second, by the engines' own counters; as `rows_per_s`."""
        return self._tokens.per_s if self._running else None

    @property
    def left_s(self) -> float | None:
        """Seconds until every row is published, by rows where their number is known, else by units."""
        if not self._running or self.latest is None:
            return None
        rows, units = self.latest.rows, self.latest.units
        if self.latest.rows_expected is not None:
            left, rate = self.latest.rows_expected - rows["in"], self._rows.per_s
        else:
            left, rate = units["planned"] - units["published"], self._units.per_s
        return max(0, left) / rate if rate else None

    @property
    def done(self) -> float | None:
        """The share of the epoch that is published, 0 to 1; None before there is a plan."""
        if self.latest is None or not self.latest.units.get("planned"):
            return None
        rows, expected, units = self.latest.rows["in"], self.latest.rows_expected, self.latest.units
        share = rows / expected if expected else units["published"] / units["planned"]
        return min(1.0, share)

    @property
    def _running(self) -> bool:
        return self.latest is not None and self.latest.phase == "running"


def _own_rows(snapshot: Snapshot) -> int:
    return snapshot.rows["in"] - snapshot.rows_resumed


def _own_units(snapshot: Snapshot) -> int:
    return snapshot.units["published"] - snapshot.units["resumed"]
