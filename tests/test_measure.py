"""The measuring skeleton of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.measure import Ratio, Result, interleave, save, speed_ratio, table, time_ratio


def test_sides_alternate_and_the_first_round_is_discarded() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    seconds = interleave(lambda: side("a"), lambda: side("b"), pairs=2)
    assert order == ["a", "b"] * 3
    assert seconds == [[3, 5], [4, 6]]


def test_a_speed_ratio_above_one_means_that_ours_is_faster() -> None:
    found = speed_ratio([1, 1, 1], [2, 2, 4], peer="peer", wanted=">= 1.0")
    assert (found.ratio, found.low, found.high, found.met) == (2, 2, 4, True)


def test_a_time_ratio_below_one_means_that_ours_takes_less() -> None:
    found = time_ratio([1, 1, 1], [2, 2, 2], peer="peer", wanted="<= 0.6")
    assert (found.ratio, found.met) == (0.5, True)


@pytest.mark.parametrize(("ratio", "wanted"), [(0.94, ">= 0.95"), (0.61, "<= 0.6")])
def test_a_ratio_on_the_wrong_side_is_missed(ratio: float, wanted: str) -> None:
    assert not Ratio(peer="peer", ratio=ratio, low=0, high=2, wanted=wanted).met


def test_noise_that_hits_a_whole_round_does_not_change_the_ratio() -> None:
    found = speed_ratio([1, 10, 1, 10], [2, 20, 2, 20], peer="peer", wanted=">= 1.0")
    assert (found.ratio, found.low, found.high) == (2, 2, 2)


def test_results_are_saved_with_the_machine_and_without_its_name(tmp_path: Path) -> None:
    import socket

    ratio = Ratio(peer="peer", ratio=1.1, low=1.0, high=1.2, wanted=">= 1.0")
    path = save(Result(name="W0", ratios=[ratio], counters={"tokens": 5}), tmp_path)
    found = json.loads(path.read_text())
    assert path.name == "W0.json"
    assert list(found) == ["name", "machine", "ratios", "counters", "configurations"]
    assert found["ratios"] == [{"peer": "peer", "ratio": 1.1, "low": 1.0, "high": 1.2, "wanted": ">= 1.0"}]
    assert f'"{socket.gethostname()}"' not in path.read_text()


def test_the_table_says_what_was_missed() -> None:
    ratio = Ratio(peer="peer", ratio=0.9, low=0.8, high=1.0, wanted=">= 1.0")
    last = table([Result(name="W0", ratios=[ratio])]).splitlines()[-1]
    assert last == "| W0 | peer | 0.90 | 0.80 to 1.00 | >= 1.0 | missed |"
