"""Listings of many keys: whole, whatever is cut and when; and parallel."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybatch.sources import key_listing
from raybatch.sources.globs import Pattern
from raybatch.sources.key_listing import KeyListing, NotInOrderError, between
from raybatch.store.bucket import Meta


class Keys:
    """Keys in memory, given in pages. `before_page` is called before each, with its number."""

    def __init__(
        self, keys: Sequence[str], *, page: int = 1000, before_page: Callable[[int], None] | None = None
    ) -> None:
        self.keys = sorted(keys)
        self.requests = 0
        self._page = page
        self._before_page = before_page
        self._lock = threading.Lock()

    def pages(self, folder: str, *, after: str | None) -> Iterator[Sequence[Meta]]:
        base = f"{folder}/" if folder else ""
        at = max(bisect_left(self.keys, base), bisect_right(self.keys, after or ""))
        while True:
            self._ask()
            page = [{"path": key} for key in self.keys[at : at + self._page] if key.startswith(base)]
            yield page
            at += self._page
            if len(page) < self._page:
                return

    def children(self, folder: str) -> tuple[Sequence[Meta], Sequence[str]]:
        self._ask()
        base = f"{folder}/" if folder else ""
        below = [key for key in self.keys if key.startswith(base)]
        objects = [{"path": key} for key in below if "/" not in key[len(base) :]]
        return objects, sorted(
            {base + k[len(base) :].split("/")[0] for k in below} - {o["path"] for o in objects}
        )

    def _ask(self) -> None:
        with self._lock:
            self.requests += 1
            number = self.requests
        if self._before_page:
            self._before_page(number)


def listed(keys: Keys, pattern: str, *, in_order: bool, threads: int = key_listing.THREADS) -> list[str]:
    found: set[str] = set()
    KeyListing(
        keys,
        Pattern.of(pattern),
        in_order=in_order,
        found=lambda meta: found.add(meta["path"]),
        progress=lambda seen: None,
        threads=threads,
    ).run()
    return sorted(found)


FLAT = [f"in/part-{i:05}.jsonl" for i in range(20_000)]
DEEP = [f"in/{day:03}/{i:03}.jsonl" for day in range(100) for i in range(300)]
HIDDEN = [f"in/_temporary/{i}" for i in range(25_000)]


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize(
    "pattern", ["in", "in/*", "in/part-0*.jsonl", "in/0[12]*", "in/**/007.jsonl", "*/05?/*"]
)
@pytest.mark.parametrize("keys", [FLAT, DEEP, DEEP + HIDDEN + FLAT], ids=["flat", "deep", "all"])
def test_every_key_that_is_named_is_found(keys: list[str], pattern: str, in_order: bool) -> None:
    names = Pattern.of(pattern).names
    assert listed(Keys(keys), pattern, in_order=in_order) == sorted(key for key in keys if names(key))


COMPONENTS = st.text(st.sampled_from("-./09AZaz~é\U0001f600 _"), min_size=1, max_size=4)
ANY_KEYS = st.lists(
    COMPONENTS.map(lambda name: name.strip("/") or "0").map(lambda name: name.replace("//", "/")), max_size=60
)


@settings(max_examples=60, deadline=None)
@given(keys=ANY_KEYS, page=st.integers(1, 5), threads=st.integers(1, 8), in_order=st.booleans())
def test_cuts_lose_no_key_wherever_they_are(keys: list[str], page: int, threads: int, in_order: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_listing, "PAGES_BEFORE_CUT", 1)
        patch.setattr(key_listing, "KEYS_BEFORE_FOLDERS", 7)
        names = Pattern.of("").names
        found = listed(Keys(list(set(keys)), page=page), "", in_order=in_order, threads=threads)
    assert found == sorted({key for key in keys if names(key)})


@settings(max_examples=300)
@given(low=st.text(max_size=6), high=st.one_of(st.none(), st.text(min_size=1, max_size=6)))
def test_a_cut_is_between(low: str, high: str | None) -> None:
    if high is not None and high <= low:
        return
    middle = between(low, high)
    assert middle is None or (low < middle and (high is None or middle < high))


def in_flight(wanted: int) -> Callable[[int], None]:
    """Lets the first pages pass, and then none until so many are asked for at the same time."""
    changed, waiting, met = threading.Condition(), 0, False

    def before_page(number: int) -> None:
        nonlocal waiting, met
        if number <= key_listing.PAGES_BEFORE_CUT:
            return
        with changed:
            waiting += 1
            met = met or waiting >= wanted
            changed.notify_all()
            assert changed.wait_for(lambda: met, timeout=30), f"never more than {waiting} pages at a time"
            waiting -= 1

    return before_page


def test_a_long_flat_listing_in_order_is_cut_so_that_many_pages_are_in_flight() -> None:
    assert listed(Keys(FLAT, before_page=in_flight(8)), "in", in_order=True) == FLAT


def test_a_long_listing_without_order_is_one_of_each_folder_so_that_many_pages_are_in_flight() -> None:
    keys = Keys(DEEP)
    pages = 20 + 1 + 1  # of the first listing; the folders
    gate = in_flight(8)
    keys._before_page = lambda number: gate(number) if number > pages else None
    assert listed(keys, "in", in_order=False) == DEEP


def test_cuts_cost_few_requests() -> None:
    keys = Keys(FLAT * 1, page=100)  # 200 pages
    listed(keys, "in", in_order=True)
    assert keys.requests <= 200 + 64 + 200


def test_a_short_listing_is_one_request() -> None:
    keys = Keys(FLAT[:900])
    listed(keys, "in", in_order=True)
    assert keys.requests == 1


def test_a_folder_that_the_pattern_does_not_name_is_not_listed_to_its_end() -> None:
    other = [f"in/a/{i:07}" for i in range(200_000)]
    keys = Keys([*other, "in/b.jsonl"])
    assert listed(keys, "in/*.jsonl", in_order=False) == ["in/b.jsonl"]
    assert keys.requests < 30  # of 200 pages


def test_a_store_that_lists_out_of_order_is_found_out() -> None:
    keys = Keys(FLAT[:10])
    keys.keys.reverse()
    keys.pages = lambda folder, *, after: iter([[{"path": key} for key in keys.keys]])  # type: ignore[method-assign]
    with pytest.raises(NotInOrderError):
        listed(keys, "in", in_order=True)


def test_what_the_store_raises_ends_the_listing() -> None:
    def fail(number: int) -> None:
        if number == 5:
            raise OSError("the store is gone")

    with pytest.raises(OSError, match="the store is gone"):
        listed(Keys(FLAT, before_page=fail), "in", in_order=True)
