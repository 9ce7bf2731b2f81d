"""How old rows are when they become visible, told from sums."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from raybatch.latency import Latency, produced

VISIBLE_AT = "2026-11-01T12:00:00.000+00:00"
VISIBLE_MS = 1793534400000
HOUR_MS = 3600 * 1000


def latency(*units: dict[str, float], visible_at: str = VISIBLE_AT) -> dict[str, float] | None:
    """Of a commit that sums the stats of its units."""
    found = Latency()
    found.add(sum((Counter(unit) for unit in units), Counter()), visible_at=visible_at)
    return found.to_json()


def read(*ages_s: float, before_visible_s: float = 1) -> dict[str, float]:
    """Stats of a unit that was read so long before it was visible, with rows of these ages when visible."""
    times = np.array([VISIBLE_MS - round(age * 1000) for age in ages_s])
    return produced(times, now_ms=VISIBLE_MS - round(before_visible_s * 1000))


@pytest.mark.parametrize("age_s", [2, 5, 30, 600, 86_400, 86_400 * 365])
def test_a_latency_is_right_to_within_a_tenth(age_s: float) -> None:
    found = latency(read(age_s))
    assert found == {"p50": pytest.approx(age_s, rel=0.1), "p99": pytest.approx(age_s, rel=0.1)}


def test_p99_is_that_of_the_slowest_hundredth() -> None:
    assert latency(read(*[10] * 99, 100))["p99"] == pytest.approx(10, rel=0.1)
    found = latency(read(*[10] * 98, 100, 100))
    assert found == {"p50": pytest.approx(10, rel=0.1), "p99": pytest.approx(100, rel=0.1)}


def test_units_and_commits_add_up_whenever_they_were_read() -> None:
    ages = [3.0, 7.0, 11.0, 40.0, 41.0, 42.0, 43.0]
    together = latency(read(*ages))
    apart = latency(*(read(age, before_visible_s=age * share) for age in ages for share in (0.1, 0.9)))
    assert apart == {name: pytest.approx(value, rel=0.2) for name, value in together.items()}
    commits = Latency()
    for age in ages:
        commits.add(read(age), visible_at=VISIBLE_AT)
    assert commits.to_json() == {name: pytest.approx(value, rel=0.2) for name, value in together.items()}


def test_the_sums_of_a_commit_are_few_however_many_and_old_its_rows_are() -> None:
    ages = np.random.default_rng(1).uniform(0, 30 * 24, 1_000_000) * HOUR_MS
    assert len(produced((VISIBLE_MS - ages).astype(np.int64), now_ms=VISIBLE_MS)) < 500


def test_rows_without_a_time_are_not_counted_and_alone_give_no_latency() -> None:
    assert produced(np.array([-1, -1]), now_ms=VISIBLE_MS) == {}
    assert latency({"prompt_tokens": 5.0}) is None
    known = produced(np.array([-1, VISIBLE_MS - 5000]), now_ms=VISIBLE_MS)
    assert sum(known.values()) == 1


def test_a_clock_that_is_ahead_makes_no_latency_below_nothing() -> None:
    found = latency(produced(np.array([VISIBLE_MS + HOUR_MS]), now_ms=VISIBLE_MS))
    assert found is not None
    assert 0 < found["p50"] < 0.01
