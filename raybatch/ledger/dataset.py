"""For readers who want whole epochs only: a glob over data/ also shows files about to be committed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raybatch.errors import LedgerError, SinkError
from raybatch.ledger import keys
from raybatch.ledger.records import Commit, DataFile
from raybatch.store import StorageOptions, open_store
from raybatch.store.base import Store


@dataclass(frozen=True, kw_only=True)
class CommittedEpoch:
    """A complete epoch. `data` and `errors`: its Parquet files, as paths or URLs; they never change."""

    epoch: int
    data: tuple[str, ...]
    errors: tuple[str, ...]
    committed_at: str  # UTC, ISO 8601


def read_commits(path: str, storage: StorageOptions | None = None) -> list[Commit]:
    """The commits below the sink's path, in order of epochs; none where nothing is committed.

    Raises `LedgerError` when one is missing or cannot be read.
    """
    return list(iterate_commits(open_store(path, storage)))


def iterate_commits(store: Store, *, after: int | None = None, as_of: int | None = None) -> Iterator[Commit]:
    """As `committed_epochs`, from records, each read when it is asked for."""
    found = [entry.key for entry in store.list(keys.COMMITS)]
    for epoch, key in enumerate(found):
        if key != keys.commit_key(epoch):
            raise LedgerError(f"{store.url}/{keys.commit_key(epoch)} is missing, but {key} exists")
    for wanted in (after, as_of):
        if wanted is not None and not -1 <= wanted < len(found):
            there = f"the last one is {len(found) - 1}" if found else "none is"
            raise SinkError(f"epoch {wanted} of {store.url} is not committed: {there}")
    first = 0 if after is None else after + 1
    last = len(found) - 1 if as_of is None else as_of
    for key in found[first : last + 1]:
        yield Commit.from_json(store.read(key), where=f"{store.url}/{key}")


def committed_epochs(
    path: str,
    storage: StorageOptions | None = None,
    *,
    after: int | None = None,
    as_of: int | None = None,
) -> Iterator[CommittedEpoch]:
    """The committed epochs below the sink's path, in order, as they are when the first is asked for.

    `after`: only those after this epoch, the last one that you have taken; -1 is before the first. `as_of`:
    only those up to this one, itself included. Raises `SinkError` when either is not committed, which says
    that the output is not the one that you think it is, and `LedgerError` when a commit is missing or cannot
    be read.
    """
    store = open_store(path, storage)
    for commit in iterate_commits(store, after=after, as_of=as_of):
        yield CommittedEpoch(
            epoch=commit.epoch,
            data=_located(store, commit.data),
            errors=_located(store, commit.errors),
            committed_at=commit.created_at,
        )


def committed_files(
    path: str,
    storage: StorageOptions | None = None,
    *,
    after: int | None = None,
    as_of: int | None = None,
) -> list[str]:
    """The Parquet files of results of `committed_epochs`, with the same choice, as paths or URLs."""
    epochs = committed_epochs(path, storage, after=after, as_of=as_of)
    return [file for epoch in epochs for file in epoch.data]


def _located(store: Store, files: tuple[DataFile, ...]) -> tuple[str, ...]:
    return tuple(f"{store.url}/{file.key}" for file in files)
