"""A bucket (or container) as input: what is in it, and ranges of its objects, each of one version.

For output there is `cloud.py`: that one writes, and lists in the order that the ledger needs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from raybatch.errors import StoreError
from raybatch.store.failures import reason, translated
from raybatch.store.remote import StorageOptions, gate, open_remote

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Meta = Mapping[str, Any]
"""What obstore tells of an object: path (the key), size, e_tag, last_modified."""

_PAGE_KEYS = 1000  # what S3 gives at a time
_AMAZON = re.compile(r"(^|\.)amazonaws\.com(\.cn)?$")


class ConditionError(StoreError):
    """The object is not the version that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A range of an object. Where the answer broke off, `body` is empty and `broken` says why."""

    meta: Meta
    body: memoryview
    broken: str | None = None


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """`root` is the part of a URL before the key, as it was spelled. No I/O to make; thread-safe; picklable.

    Errors: `StoreError` from all methods.
    """

    root: str
    storage: StorageOptions | None

    @classmethod
    def of(cls, url: str, storage: StorageOptions | None) -> tuple[Bucket, str]:
        """The bucket of a URL, and the key, which keeps a slash at its end."""
        scheme, _, rest = url.partition("://")
        authority, _, key = rest.partition("/")
        return cls(root=f"{scheme}://{authority}", storage=storage), key.lstrip("/")

    def url(self, key: str) -> str:
        """The URL of `key`, without credentials or query."""
        return f"{self.root}/{key}"

    def in_order(self) -> bool:
        """Whether the store promises listings in the order of keys. Servers that speak S3 do not all keep to it,
        nor do S3's directory buckets."""
        scheme, _, name = self.root.partition("://")
        own = self.storage.endpoint if self.storage else None
        if scheme.lower() in ("gs", "gcs"):
            return not own
        if not scheme.lower().startswith("s3") or name.endswith("--x-s3"):
            return False
        endpoint = own or _endpoint_of_the_environment()
        return not endpoint or _AMAZON.search(urlsplit(endpoint).hostname or "") is not None

    def head(self, key: str, *, denied_is_none: bool = False) -> Meta | None:
        """What the store tells of one object; None when there is none (or no bucket: a HEAD cannot tell).

        Also None, with `denied_is_none`, where the store only says that access is denied.
        """
        from obstore.exceptions import PermissionDeniedError

        with translated(self.url(key), "look it up"), self._gate():
            try:
                return self._store().head(key)
            except FileNotFoundError:
                return None
            except PermissionDeniedError:
                if denied_is_none:
                    return None
                raise

    def pages(self, folder: str, *, after: str | None) -> Iterator[Sequence[Meta]]:
        """All objects below `folder` ("": all) whose key is greater than `after`; a request for each page.

        An object whose key is `folder` and a slash, as consoles make them, is left out.
        """
        with translated(self.url(folder), "list it"):
            stream = self._store().list(folder or None, offset=after, chunk_size=_PAGE_KEYS)
        while True:
            with translated(self.url(folder), "list it"), self._gate():
                page = next(stream, None)
            if page is None:
                return
            yield [meta for meta in page if meta["path"] != folder]

    def children(self, folder: str) -> tuple[Sequence[Meta], Sequence[str]]:
        """Objects and folders directly in `folder`."""
        with translated(self.url(folder), "list it"), self._gate():
            found = self._store().list_with_delimiter(folder or None)
        return [meta for meta in found["objects"] if meta["path"] != folder], found["common_prefixes"]

    def get(self, key: str, start: int, stop: int, *, etag: str | None) -> Answer:
        """Bytes `start` to `stop` - 1 of the object, which has to have this ETag (without quotes) if one is given.

        A server may ignore that: compare `Answer.meta`. Raises `KeyError` when there is no such object,
        `ConditionError` when it has another ETag.
        """
        from obstore.exceptions import BaseError, PreconditionError

        options: dict[str, Any] = {"range": (start, stop)}
        if etag is not None:
            options["if_match"] = f'"{etag}"'
        try:
            with translated(self.url(key), "read it"), self._gate():
                found = self._store().get(key, options=options)  # type: ignore[arg-type]
                try:
                    return Answer(meta=found.meta, body=memoryview(found.bytes()))
                except BaseError as error:
                    return Answer(meta=found.meta, body=memoryview(b""), broken=reason(error))
        except FileNotFoundError as error:
            raise KeyError(key) from error
        except PreconditionError as error:
            raise ConditionError(f"{self.url(key)}: {reason(error)}") from None

    def _store(self) -> ObjectStore:
        return open_remote(self.root, self.storage)

    def _gate(self) -> Any:
        return gate(self.storage).enter()


def _endpoint_of_the_environment() -> str:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")
