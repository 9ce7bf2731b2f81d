"""Calls on threads, a few ahead: in order, bounded, and done with when nobody asks for more."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from raybatch.store.ahead import map_ahead


@pytest.mark.parametrize("batch", [1, 7, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_come_in_the_order_of_the_items(count: int, batch: int) -> None:
    assert list(map_ahead(lambda n: n * n, range(count), threads=3, batch=batch)) == [
        n * n for n in range(count)
    ]


def test_calls_run_at_the_same_time() -> None:
    both = threading.Barrier(2)
    # Each waits for the other: one after the other they would never end
    assert len(list(map_ahead(lambda _: both.wait(timeout=30), range(4), threads=2))) == 4


def test_what_fits_one_batch_is_done_by_the_caller_itself() -> None:
    here = threading.get_ident()
    assert set(map_ahead(lambda _: threading.get_ident(), range(5), batch=5)) == {here}


def test_no_more_items_are_taken_than_are_allowed_ahead() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = map_ahead(lambda n: n, items(), threads=2, batch=3)
    assert [next(results) for _ in range(10)] == list(range(1, 11))
    # 10 given, the rest of that batch, and four batches in waiting
    assert taken <= 12 + 4 * 3
    results.close()


def test_what_a_call_raises_is_raised_at_its_place() -> None:
    results = map_ahead(lambda n: 1 // (5 - n), range(100), threads=2)
    assert [next(results) for _ in range(5)] == [0, 0, 0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_closing_it_ends_its_threads() -> None:
    results = map_ahead(lambda n: n, range(1000), threads=2)
    next(results)
    results.close()
    assert [t.name for t in threading.enumerate() if t.name.startswith("raybatch-ahead")] == []
