"""Rates and the time that is left, from the looks at a run."""

from __future__ import annotations

import pytest

from a_run import engine, recorded, snapshot
from raybatch.cli.meter import Meter, Rate


def test_rows_per_second_leave_out_what_earlier_runs_published() -> None:
    assert recorded().rows_per_s == pytest.approx(1024 / 5)


def test_tokens_per_second_come_from_the_engines_counters() -> None:
    assert recorded().tokens_per_s == pytest.approx(10_000)


def test_time_left_is_rows_left_over_the_rate() -> None:
    assert recorded().left_s == pytest.approx((40_960 - 12 * 1024) / (1024 / 5))


def test_time_left_goes_by_units_where_the_number_of_rows_is_unknown() -> None:
    meter = Meter()
    for i in range(10):
        meter.add(snapshot(20 + 5 * i, published=3 + i, rows_expected=None))
    assert meter.left_s == pytest.approx((40 - 12) * 5)


def test_there_is_no_rate_and_no_time_left_before_the_first_unit_of_this_run() -> None:
    meter = Meter()
    meter.add(snapshot(20, published=3))
    meter.add(snapshot(30, published=3))
    assert (meter.rows_per_s, meter.left_s) == (None, None)


def test_a_rate_follows_a_change_of_speed_within_its_window() -> None:
    rate = Rate(window_s=60, jumps=4)
    for second in range(200):
        rate.add(second, second * 100)
    for second in range(200, 262):
        rate.add(second, 20_000 + (second - 200) * 10)
    assert rate.per_s == pytest.approx(10, rel=0.2)


def test_a_rate_of_jumps_rarer_than_its_window_spans_several_of_them() -> None:
    rate = Rate(window_s=60, jumps=4)
    for second in range(1000):
        rate.add(second, second // 100 * 1024)
    assert rate.per_s == pytest.approx(1024 / 100, rel=0.25)


def test_a_rate_sinks_while_nothing_happens() -> None:
    rate = Rate(window_s=60, jumps=4)
    rate.add(0, 0)
    rate.add(10, 1000)
    rate.add(100, 1000)
    assert rate.per_s == pytest.approx(10)


def test_loading_time_does_not_count_in_the_rate() -> None:
    meter = Meter()
    meter.add(snapshot(300, phase="starting", published=3))
    meter.add(snapshot(310, published=3))
    meter.add(snapshot(320, published=4))
    assert meter.rows_per_s == pytest.approx(1024 / 10)


def test_rates_go_on_over_epochs_and_waiting_is_no_work() -> None:
    meter = Meter()
    for i in range(6):
        meter.add(snapshot(20 + 5 * i, published=3 + i, planned=8))
    meter.add(snapshot(50, phase="waiting", published=8, planned=8, engines=[engine()]))
    assert [status.model for status in meter.engines] == ["Qwen/Qwen3-8B"]
    for i in range(6):
        meter.add(snapshot(60 + 5 * i, published=i, resumed=0, planned=8, epoch=1))
    # 5 units in 25 s, nothing for 15 s, 5 units in 25 s
    assert meter.rows_per_s == pytest.approx(10 * 1024 / 65)
    assert meter.running_s == 30 + 25
    assert meter.rows_resumed == 3 * 1024


def test_an_engine_that_did_not_answer_once_stays_in_view_and_in_the_rate() -> None:
    meter = recorded()
    before = meter.tokens_per_s
    meter.add(snapshot(65, engines=[]))
    assert [status.model for status in meter.engines] == ["Qwen/Qwen3-8B"]
    assert meter.tokens_per_s == before


# -- the live view -------------------------------------------------------------------------------------------
