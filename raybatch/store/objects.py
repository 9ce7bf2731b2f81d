"""What can be asked of any store by its primitives alone."""

from __future__ import annotations

import hashlib

from raybatch.store.base import Store

_CHUNK = 1 << 20


def exists(store: Store, key: str) -> bool:
    """Whether there is an object `key`."""
    try:
        store.open(key).close()
    except KeyError:
        return False
    return True


def size_of(store: Store, key: str) -> int:
    """The bytes of an object. Raises `KeyError`."""
    with store.open(key) as file:
        return file.seek(0, 2)


def sha256_of(store: Store, key: str) -> str:
    """The digest of an object as hexadecimal, read in chunks. Raises `KeyError`."""
    with store.open(key) as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
