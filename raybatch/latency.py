"""How long rows took from when they were produced to when readers see them: their times as mergeable sums.

A source whose rows have times counts them in buckets, and the counts travel as stats: `UnitRows.stats`, summed in
a unit's record and in the commit. When a row becomes visible is known only at the commit; so a bucket is an
interval of time, not of latency, and its name says which:

    "produced_ms.1024.1717171717": 12    12 rows of the 1,024 ms that begin at 1717171717 * 1024 ms after 1970

A bucket is about a tenth as wide as its rows were old when they were read, and they are older when they are
visible: latencies are right to within a tenth. So a commit has some tens of buckets, if its rows are of a second
or of a year, and a few for each power of two between the youngest and the oldest.
"""

from __future__ import annotations

import datetime
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PREFIX = "produced_ms."
_SHORTEST_MS = 64  # clocks of producers differ by as much
_PER_AGE = 8
_PER_OCTAVE = 16  # of a latency's buckets: a step is 4%


def produced(times_ms: np.ndarray[Any, Any], *, now_ms: int | None = None) -> dict[str, float]:
    """Stats that count `times_ms`, when rows were produced: integers, milliseconds since 1970 in UTC.

    Those below 0 mean that nobody knows, and are not counted. `now_ms` is when they are read, by default now.
    """
    known = times_ms[times_ms >= 0].astype(np.int64)
    if not len(known):
        return {}
    now = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    age = np.maximum(now - known, _SHORTEST_MS * _PER_AGE)
    exponents = np.floor(np.log2(age // _PER_AGE)).astype(np.int64)
    # Width and index as one number: of pairs, `unique` takes two seconds for a million
    buckets, counts = np.unique((known >> exponents) << 6 | exponents, return_counts=True)
    return {
        f"{PREFIX}{1 << (bucket & 63)}.{bucket >> 6}": float(count)
        for bucket, count in zip(buckets.tolist(), counts.tolist(), strict=True)
    }


@dataclass
class Latency:
    """The latencies of any number of commits; its size does not grow with them."""

    _counts: Counter[int] = field(default_factory=Counter)

    def add(self, stats: Mapping[str, float], *, visible_at: str) -> None:
        """Count the rows of a commit: its `stats` and its `created_at`."""
        visible_ms = datetime.datetime.fromisoformat(visible_at).timestamp() * 1000
        for produced_ms, count in _times(stats):
            seconds = max(visible_ms - produced_ms, 1.0) / 1000
            self._counts[round(math.log2(seconds) * _PER_OCTAVE)] += count

    def to_json(self) -> dict[str, float] | None:
        """`{"p50", "p99"}` in seconds; None when no row had a time."""
        if not self._counts:
            return None
        return {f"p{share}": round(self._at(share / 100), 3) for share in (50, 99)}

    def _at(self, share: float) -> float:
        """The latency that this share of the rows does not exceed."""
        ordered = sorted(self._counts)
        until = np.cumsum([self._counts[bucket] for bucket in ordered])
        found = ordered[int(np.searchsorted(until, share * until[-1]))]
        return float(2 ** (found / _PER_OCTAVE))


def _times(stats: Mapping[str, float]) -> Iterable[tuple[float, int]]:
    """The middle of each bucket, and how many rows are in it."""
    for name, count in stats.items():
        if name.startswith(PREFIX):
            width, index = map(int, name.removeprefix(PREFIX).split("."))
            yield (index + 0.5) * width, int(count)
