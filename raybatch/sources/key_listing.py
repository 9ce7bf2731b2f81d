"""List the keys below a prefix, many pages at a time, and keep those that a pattern names.

A page of a listing holds 1,000 keys and costs a round trip, and pages of one listing come one after another: a
million keys are 1,000 round trips. So several listings run at the same time, each of a part of the keys:

- Where a store lists in the order of keys (S3 and GCS promise it), a long listing is cut in two between its
  place and its end, at a key made up in between, as soon as a thread is free. A cut above the last key costs
  one page that is empty, and tells where the next cut belongs.
- Elsewhere, and where most keys are in folders that the pattern does not name, a long listing is replaced by
  one of each folder in it.

Both only ever replace a listing by listings of the same keys, so what is found does not depend on timing.
A million keys at 60 ms a page took 11 s either way, 72 s one after the other (tests/scale/million_keys.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

from raybatch.sources.globs import Pattern
from raybatch.store.bucket import Meta

# At 100 ms a page, 16 listings give 160,000 keys a second; S3 takes 5,500 requests a second per prefix.
THREADS = 16
PAGES_BEFORE_CUT = 2  # shorter listings are done before a second one has begun
# Keys in folders that the pattern does not name (or in any, without order) before each folder is listed by itself
KEYS_BEFORE_FOLDERS = 20_000
# Empty pages must not outnumber full ones by much: cuts are at most this many and half the pages so far
_FREE_CUTS = 64
_HIGHEST = "~"  # the last printable ASCII character


class Keys(Protocol):
    """What is needed of a store."""

    def pages(self, folder: str, *, after: str | None) -> Iterator[Sequence[Meta]]:
        """All objects below `folder` whose key is greater than `after`."""

    def children(self, folder: str) -> tuple[Sequence[Meta], Sequence[str]]:
        """Objects and folders directly in `folder`."""


class NotInOrderError(Exception):
    """The store does not list in the order of keys."""


@dataclass(eq=False)
class _Range:
    """Keys below `folder` that are greater than `after`, which moves, and not greater than `until`."""

    folder: str
    after: str | None = None
    until: str | None = None
    pages: int = 0


class KeyListing:
    """One use. `found` is called from several threads, one at a time, with each object that `pattern` names,
    some of them perhaps twice; `progress` with the number of keys seen."""

    def __init__(
        self,
        keys: Keys,
        pattern: Pattern,
        *,
        in_order: bool,
        found: Callable[[Meta], None],
        progress: Callable[[int], None],
        threads: int = THREADS,
    ) -> None:
        self._keys = keys
        self._pattern = pattern
        self._in_order = in_order
        self._found = found
        self._progress = progress
        self._threads = threads
        self._changed = threading.Condition()
        self._waiting = [self._first()]
        self._active: list[_Range] = []
        self._by_folder: set[str] = set()  # listed folder by folder from now on
        self._beside: dict[str, int] = {}  # keys seen that speak for that
        self._seen = self._pages = self._cuts = 0
        self._failure: BaseException | None = None

    def run(self) -> None:
        """List. Raises what the store raises, and `NotInOrderError`."""
        with ThreadPoolExecutor(self._threads, thread_name_prefix="raybatch-list") as pool:
            working = [pool.submit(self._work) for _ in range(self._threads)]
            try:
                wait(working)
            except BaseException as error:  # Ctrl-C: the threads must not list on to the end
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
        if self._failure is not None:
            raise self._failure

    def _first(self) -> _Range:
        folder, literal = self._pattern.folder, self._pattern.literal
        start = literal[len(folder) :].strip("/")
        if not (self._in_order and start):
            return _Range(folder)
        before = literal[:-1] + chr(ord(literal[-1]) - 1) + _HIGHEST
        plain = start.isascii() and start.isalnum()  # others may have no key just before them
        return _Range(folder, after=before if plain else None, until=literal + chr(0x10FFFF))

    # --- threads -----------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (chosen := self._next()) is not None:
                try:
                    self._list(chosen)
                finally:
                    with self._changed:
                        self._active.remove(chosen)
                        self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify_all()

    def _next(self) -> _Range | None:
        """Something to list; waits for it. None when all is done, or failed."""
        with self._changed:
            while self._failure is None:
                chosen = self._waiting.pop() if self._waiting else self._cut()
                if chosen is not None:
                    self._active.append(chosen)
                    return chosen
                if not self._active:
                    return None
                self._changed.wait()
            return None

    def _cut(self) -> _Range | None:
        """The upper part of the active range that has the most pages behind it; that one is made shorter."""
        if not self._in_order or self._cuts >= _FREE_CUTS + self._pages // 2:
            return None
        long = [r for r in self._active if r.pages >= PAGES_BEFORE_CUT and r.folder not in self._by_folder]
        for chosen in sorted(long, key=lambda r: -r.pages):
            middle = between(chosen.after or "", chosen.until)
            if middle is not None:
                self._cuts += 1
                upper = _Range(chosen.folder, after=middle, until=chosen.until)
                chosen.until = middle
                return upper
        return None

    # --- one listing -------------------------------------------------------------------------------------

    def _list(self, part: _Range) -> None:
        for page in self._keys.pages(part.folder, after=part.after):
            if not page:
                continue
            with self._changed:
                over = self._take(part, page)
                by_folder = self._beside.get(part.folder, 0) > KEYS_BEFORE_FOLDERS
                first = by_folder and part.folder not in self._by_folder
                if first:
                    self._by_folder.add(part.folder)
                over = over or by_folder or self._failure is not None
                self._changed.notify_all()
            if first:
                self._list_by_folder(part.folder)
            if over:
                return

    def _take(self, part: _Range, page: Sequence[Meta]) -> bool:
        """Keep what is named, and move on; True when the range is over."""
        if self._in_order:
            self._check_order(part, page)
        base = f"{part.folder}/" if part.folder else ""
        beside = 0
        for meta in page:
            key = meta["path"]
            if part.until is not None and key > part.until:
                continue
            named = self._pattern.names(key)
            if named:
                self._found(meta)
            beside += "/" in key[len(base) :] and not (named and self._in_order)
        last = page[-1]["path"]
        part.after = last
        part.pages += 1
        self._pages += 1
        self._seen += len(page)
        self._beside[part.folder] = self._beside.get(part.folder, 0) + beside
        self._progress(self._seen)
        return part.until is not None and last >= part.until

    @staticmethod
    def _check_order(part: _Range, page: Sequence[Meta]) -> None:
        before = part.after or ""
        for meta in page:
            if meta["path"] <= before:
                raise NotInOrderError(f"{meta['path']} after {before}")
            before = meta["path"]

    def _list_by_folder(self, folder: str) -> None:
        objects, folders = self._keys.children(folder)
        with self._changed:
            for meta in objects:
                if self._pattern.names(meta["path"]):
                    self._found(meta)
            self._waiting.extend(_Range(f) for f in folders if self._pattern.may_hold(f))
            self._changed.notify_all()


def between(low: str, high: str | None) -> str | None:
    """A key about half-way from `low` to `high` (None: the end), exclusively; None when there is none to be had.

    Keys are cut at ASCII characters: half-way is a guess anyway, and any store takes such a key.
    """
    common = 0
    while high is not None and common < min(len(low), len(high)) and low[common] == high[common]:
        common += 1
    prefix = low[:common]
    for at in range(common, len(low) + 1):
        first = min(ord(low[at]) if at < len(low) else ord("!"), ord(_HIGHEST))
        bounded = at == common and high is not None and at < len(high)
        last = min(ord(high[at]), ord(_HIGHEST)) if bounded and high is not None else ord(_HIGHEST)
        middle = prefix + _usable((first + last) // 2)
        if last - first >= 2 and middle > low and (high is None or middle < high):
            return middle
        prefix += low[at] if at < len(low) else ""
    return None


def _usable(code: int) -> str:
    # a slash alone, or twice, is no path; a dot alone is none either
    return "0" if chr(code) in "./" else chr(code)
