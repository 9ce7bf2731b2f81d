"""The pauses between attempts at one request: nobody sleeps here, pauses are noted down."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from raybatch.store import StorageOptions
from raybatch.store.requests import FIRST_PAUSE_S, LONGEST_PAUSE_S, Pauses

MANY = 100


def pauses(uniform: Callable[[float, float], float], **options: Any) -> Iterator[float]:
    """The pauses of a request that fails until it is given up."""
    slept: list[float] = []
    waiting = Pauses(StorageOptions(**options), sleep=slept.append, uniform=uniform)
    while waiting.wait():
        yield slept.pop()
    assert slept == []


def chance(name: str) -> random.Random:
    return random.Random(f"{os.environ['RAYBATCH_TEST_SEED']}-{name}")


def longest(_low: float, high: float) -> float:
    return high


def test_each_pause_may_be_twice_as_long_as_the_one_before_up_to_a_limit() -> None:
    found = list(pauses(longest, max_retries=MANY))
    assert found[0] == FIRST_PAUSE_S
    assert all(after == min(2 * before, LONGEST_PAUSE_S) for before, after in pairwise(found))
    assert found[-1] == LONGEST_PAUSE_S


def test_a_pause_is_any_part_of_the_longest_one_so_that_clients_do_not_come_back_together() -> None:
    bounds = list(pauses(longest, max_retries=MANY))
    found = list(pauses(chance("one").uniform, max_retries=MANY))
    parts = [pause / bound for pause, bound in zip(found, bounds, strict=True)]
    assert all(0 <= part <= 1 for part in parts)
    assert min(parts) < 0.25
    assert max(parts) > 0.75
    assert found != list(pauses(chance("another").uniform, max_retries=MANY))


def test_there_are_as_many_further_attempts_as_the_options_say() -> None:
    assert len(list(pauses(longest, max_retries=3))) == 3
    assert list(pauses(longest, max_retries=0)) == []


def test_none_is_made_once_the_time_for_them_is_over() -> None:
    assert list(pauses(longest, retry_timeout_s=0)) == []
