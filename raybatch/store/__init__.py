"""Where output and ledger live: conditional creates under one root, on any kind of storage."""

from __future__ import annotations

import re

from raybatch.errors import SinkError
from raybatch.store.base import Entry, Store
from raybatch.store.local import LocalStore

__all__ = ["Entry", "LocalStore", "Store", "open_store"]

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


def open_store(url: str) -> Store:
    """The store for `url`: a local path, or file:///path. No I/O. Raises `SinkError` for anything else."""
    match = _SCHEME.match(url)
    if match is None:
        return LocalStore(url)
    if match[1].lower() == "file":
        rest = url[match.end() :].removeprefix("localhost")
        if rest.startswith("/"):
            return LocalStore(rest)
        raise SinkError(f"{url}: a file URL names an absolute path: file:///path/to/output")
    raise SinkError(
        f"{url}: no store for '{match[1]}://': output goes to a local path or file:///path today"
        " (a folder on a shared filesystem serves a whole cluster)"
    )
