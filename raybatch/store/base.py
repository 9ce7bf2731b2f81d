"""The one primitive under the ledger: a conditional create, and what is needed around it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One stored object, as a listing shows it. `size` in bytes; `modified` in seconds since 1970 by the store's
    own clock, None where it does not say."""

    key: str
    size: int
    modified: float | None = None


class Store(Protocol):
    """Objects by key ("plan/0.json") under one root. Picklable: workers use it too.

    Reads after writes are consistent, listings too. All raise `StoreError`.
    """

    url: str

    def create(self, key: str, data: bytes | memoryview) -> bool:
        """Write `key` if and only if it does not exist; True for exactly one caller, ever.

        Atomic and durable: when True is returned the bytes survive a crash, and no reader ever sees a part.
        False says only that somebody's bytes are there, maybe those of this very call: where the answer to
        a request was lost it is sent again, and meets its own effect. Read them to learn whose. After a
        `StoreError` the outcome is unknown.
        """

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write `key`, whatever is there; for names that are new each time, so that nothing can be.

        As durable and as atomic as `create`, and fit for large objects: a store may upload them in parts.
        After a `StoreError` it may be there or not. Never for what the ledger decides by.
        """

    def link(self, existing: str, key: str) -> bool:
        """Make `key` another name for the bytes of `existing`, under the same condition as `create`.

        Without copying where the store can; the two names then live and die separately. False is as of
        `create`. Raises `KeyError` when there is no `existing`.
        """

    def read(self, key: str) -> bytes:
        """All bytes. Raises `KeyError` when there is no such key."""

    def open(self, key: str) -> BinaryIO:
        """A seekable reader, for what is too large to read whole. Raises `KeyError` like `read`."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """Entries whose key starts with `prefix`, a folder that ends in "/", in order of key."""

    def delete(self, key: str) -> None:
        """Remove it; no error when it is gone already."""

    def probe(self) -> None:
        """Check that it is writable and that all but one `create` of a key are refused, also at once.

        Leaves nothing behind.
        """
