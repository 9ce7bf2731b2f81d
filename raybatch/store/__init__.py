"""Where output and ledger live: conditional creates under one root, on any kind of storage."""

from __future__ import annotations

import re

from raybatch.errors import SinkError, StoreError
from raybatch.store.base import Entry, Store
from raybatch.store.cloud import CloudStore
from raybatch.store.local import LocalStore
from raybatch.store.remote import StorageOptions, is_remote

__all__ = ["CloudStore", "Entry", "LocalStore", "StorageOptions", "Store", "is_remote", "open_store"]

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


def open_store(url: str, options: StorageOptions | None = None) -> Store:
    """The store for `url`: a local path, file:///path, or an object store (s3://, gs://, az://, abfss://).

    `options` say how to reach an object store; elsewhere they have no meaning. No I/O. Raises `SinkError` for
    anything else.
    """
    match = _SCHEME.match(url)
    if match is None:
        return LocalStore(url)
    if match[1].lower() == "file":
        rest = url[match.end() :].removeprefix("localhost")
        if rest.startswith("/"):
            return LocalStore(rest)
        raise SinkError(f"{url}: a file URL names an absolute path: file:///path/to/output")
    if is_remote(url):
        try:
            return CloudStore(url, options)
        except StoreError as error:
            raise SinkError(str(error)) from None
    raise SinkError(
        f"{url}: no store for '{match[1]}://': output goes to a local path, file:///path, s3://bucket/path,"
        " gs://bucket/path, az://container/path or abfss://container@account.dfs.core.windows.net/path"
    )
