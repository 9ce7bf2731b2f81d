"""What a run counts, and what it expects to come."""

from __future__ import annotations

import pytest
from made import record

from raybatch.runtime.progress import Tally


def tally(**options: int | None) -> Tally:
    return Tally(**{"planned": 4, "expected_rows": None, "expected_bytes": 400} | options)  # type: ignore[arg-type]


def test_rows_and_errors_of_all_units_are_summed() -> None:
    counted = tally()
    counted.add(record(0, ok=5, error=2, errors={"A": 1, "B": 1}), unit_bytes=100, resumed=True)
    counted.add(record(1, ok=7, error=1, dropped=3, errors={"A": 1}), unit_bytes=100, resumed=False)
    assert counted.rows == {"in": 18, "ok": 12, "error": 3, "dropped": 3}
    assert counted.errors == {"A": 2, "B": 1}
    assert (counted.published, counted.resumed, counted.rows_resumed) == (2, 1, 7)


def test_tokens_and_seconds_are_those_of_this_run_alone() -> None:
    counted = tally()
    stats = {"prompt_tokens": 10, "cached_tokens": 4, "generated_tokens": 6, "seconds.iso": 1.5}
    counted.add(record(0, ok=1, stats=stats), unit_bytes=100, resumed=True)
    assert counted.tokens() == {"prompt": 0, "cached": 0, "generated": 0}
    counted.add(record(1, ok=1, stats=stats), unit_bytes=100, resumed=False)
    counted.add(record(2, ok=1, stats=stats), unit_bytes=100, resumed=False)
    assert counted.tokens() == {"prompt": 20, "cached": 8, "generated": 12}
    assert counted.stats["seconds.iso"] == 3.0


def test_the_first_publication_is_the_first_of_this_run() -> None:
    counted = tally()
    counted.add(record(0, ok=1), unit_bytes=100, resumed=True)
    assert counted.first_published_s is None
    counted.add(record(1, ok=1), unit_bytes=100, resumed=False)
    first = counted.first_published_s
    assert first is not None
    counted.add(record(2, ok=1), unit_bytes=100, resumed=False)
    assert counted.first_published_s == first


def test_rows_expected_are_those_of_the_plan_where_it_knows_them() -> None:
    counted = tally(expected_rows=40)
    counted.add(record(0, ok=1), unit_bytes=100, resumed=False)
    assert counted.rows_expected == 40


@pytest.mark.parametrize(
    ("rows", "unit_bytes", "expected"),
    [
        (0, 0, None),  # nothing to go by yet
        (10, 100, 40),  # a quarter of the bytes
        (10, 400, 10),
        (10, 800, 10),  # never fewer than there were
    ],
)
def test_rows_expected_are_estimated_by_bytes_where_the_plan_does_not_know(
    rows: int, unit_bytes: int, expected: int | None
) -> None:
    counted = tally()
    counted.add(record(0, ok=rows), unit_bytes=unit_bytes, resumed=False)
    assert counted.rows_expected == expected
