"""Threads that share a number of bytes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from raybatch.sinks.budget import Budget
from small_run import wait_until


def test_no_more_is_in_use_than_there_is() -> None:
    budget, lock = Budget(100), threading.Lock()
    used, most = 0, 0

    def use(size: int) -> None:
        nonlocal used, most
        with budget.using(size):
            with lock:
                used += size
                most = max(most, used)
            with lock:
                used -= size

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, [30, 50, 40, 60] * 200))
    assert 60 <= most <= 100


def test_what_fits_goes_on_at_once_and_what_does_not_waits_for_its_turn() -> None:
    budget, order = Budget(100), list[str]()
    waiting = threading.Event()

    def large() -> None:
        waiting.set()
        with budget.using(80):
            order.append("large")

    thread = threading.Thread(target=large)
    with budget.using(60):
        thread.start()
        waiting.wait(60)
        with budget.using(40):
            order.append("small")
    thread.join(60)
    assert order == ["small", "large"]


def test_one_that_wants_more_than_there_is_has_it_alone() -> None:
    budget, entered = Budget(100), threading.Event()

    def small() -> None:
        with budget.using(1):
            entered.set()

    thread = threading.Thread(target=small)
    with budget.using(1000):
        thread.start()
        assert not entered.is_set()
    wait_until(entered.is_set)
    thread.join(60)


def test_what_failed_gives_back_what_it_used() -> None:
    budget = Budget(100)
    for _ in range(3):
        try:
            with budget.using(100):
                raise OSError
        except OSError:
            continue
    with budget.using(100):
        assert True
