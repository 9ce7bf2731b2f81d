"""For readers who want whole epochs only: a glob over data/ also shows files about to be committed."""

from __future__ import annotations

from collections.abc import Iterator

from raybatch.errors import LedgerError
from raybatch.ledger import keys
from raybatch.ledger.records import Commit
from raybatch.store import open_store
from raybatch.store.base import Store


def read_commits(path: str) -> list[Commit]:
    """The commits below the sink's path, in order of epochs; none where nothing is committed.

    Raises `LedgerError` when one is missing or cannot be read.
    """
    return list(iterate_commits(open_store(path)))


def iterate_commits(store: Store) -> Iterator[Commit]:
    """As `read_commits`, one at a time."""
    for epoch, entry in enumerate(store.list(keys.COMMITS)):
        if entry.key != keys.commit_key(epoch):
            raise LedgerError(f"{store.url}/{keys.commit_key(epoch)} is missing, but {entry.key} exists")
        yield Commit.from_json(store.read(entry.key), where=f"{store.url}/{entry.key}")


def committed_files(path: str) -> list[str]:
    """The Parquet files of all committed epochs, as paths that any reader takes, in order of epochs."""
    store = open_store(path)
    return [f"{store.url}/{file.key}" for commit in iterate_commits(store) for file in commit.data]
