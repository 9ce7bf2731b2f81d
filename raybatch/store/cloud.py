"""A store on S3 and what speaks its protocol, on Google Cloud Storage and on Azure Blob Storage.

`create` is one PUT with a condition (`If-None-Match: *`; on GCS `ifGenerationMatch=0`), which the store
decides. Its answer can be lost, and "exists" can then mean that we were the first, see `Store.create`.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from raybatch.errors import StoreError
from raybatch.store.base import Entry
from raybatch.store.failures import reason
from raybatch.store.ranges import open_ranges
from raybatch.store.remote import StorageOptions, locate
from raybatch.store.requests import LARGE_BYTES, Pauses, Requests

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_PROBE = "_probe"

# Enough for a store that looks first and writes then to let two of them through, nearly always
_PROBE_RACERS = 8
_PROBE_ROUNDS = 3

# Parts of an upload: 10,000 at most on S3, so up to 160 GB. One connection gives some 50 to 100 MB/s; four fill
# what a task may have, and hold 64 MiB.
_PART_BYTES = 16 << 20
_PARTS_AT_ONCE = 4

# Keys of one page of a listing; all clouds give as many at most
_PAGE = 1000

logger = logging.getLogger(__name__)


class CloudStore:
    """See `raybatch.store.base.Store`. The bucket must exist; what is below the prefix need not."""

    def __init__(self, url: str, options: StorageOptions | None = None) -> None:
        """No I/O. Raises `StoreError` for what is not the URL of an object store."""
        locate(url)
        self.url = url.rstrip("/")
        self._requests = Requests(url=self.url, options=options or StorageOptions())
        self._copies: bool | None = None  # whether the store copies on condition; None: not yet asked

    def __repr__(self) -> str:
        return f"CloudStore({self.url!r})"

    def create(self, key: str, data: bytes | memoryview) -> bool:
        """See `Store.create`. False may also be said of a write of our own whose answer was lost."""

        def put(client: ObjectStore) -> None:
            client.put(key, _octets(data), mode="create", use_multipart=False)

        return self._once(key, f"create {key}", put, size=len(data))

    def link(self, existing: str, key: str) -> bool:
        """See `Store.link`: a copy inside the store, on condition; where it has none, a read and a `create`.

        Bytes are copied either way: once within the store, or through this process.
        """
        if not self._copies_on_condition():
            return self.create(key, self.read(existing))
        try:
            return self._copy(existing, key)
        except FileNotFoundError:
            raise KeyError(existing) from None

    def put(self, key: str, data: bytes | memoryview) -> None:
        """See `Store.put`: large ones in parts, in parallel; the parts of one that fails are aborted."""
        whole = len(data) <= _PART_BYTES
        pauses = Pauses(self._requests.options)

        def put(client: ObjectStore) -> None:
            client.put(
                key,
                _octets(data),
                use_multipart=not whole,
                chunk_size=_PART_BYTES,
                max_concurrency=min(_PARTS_AT_ONCE, self._requests.options.max_requests),
            )

        while True:
            try:
                return self._requests.send(f"write {key}", put, requests=1 if whole else _PARTS_AT_ONCE)
            except FileNotFoundError as error:
                # The upload is gone: it was completed, and the answer lost; or somebody cleaned up. Once more
                if whole or not pauses.wait():
                    raise StoreError(f"{self.url}: cannot write {key}: {reason(error)}") from None

    def read(self, key: str) -> bytes:
        """See `Store.read`. One request for what is small, as records are."""

        def get(client: ObjectStore) -> bytes | None:
            found = client.get(key)
            return bytes(found.bytes()) if found.meta["size"] <= LARGE_BYTES else None

        try:
            data = self._requests.send(f"read {key}", get)
        except FileNotFoundError:
            raise KeyError(key) from None
        if data is not None:
            return data
        with self.open(key) as file:
            return file.read()

    def open(self, key: str) -> BinaryIO:
        """See `Store.open`. Asks for the size; each read is a request, small ones share a buffer."""
        try:
            meta = self._requests.send(f"read {key}", lambda client: client.head(key))
        except FileNotFoundError:
            raise KeyError(key) from None
        return cast(BinaryIO, open_ranges(self._requests, key, size=meta["size"]))

    def list(self, prefix: str) -> Iterator[Entry]:
        """See `Store.list`. One page of keys is held at a time."""
        if prefix and not prefix.endswith("/"):
            raise ValueError(f"a listing is of a folder, which ends in '/': {prefix!r}")
        return self._pages(prefix)

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        try:
            self._requests.send(f"delete {key}", lambda client: client.delete(key))
        except FileNotFoundError:
            return

    def probe(self) -> None:
        """See `Store.probe`. Several threads race for keys; the store must let one of them win each."""
        with self._temporary() as new_key:
            keys = [new_key() for _ in range(_PROBE_ROUNDS)]
            if not all(self._holds(key, partial(self.create, key)) for key in keys):
                raise StoreError(
                    f"{self.url}: this store lets a second writer replace an object (it ignores"
                    " `If-None-Match: *`), so exactly-once cannot be kept on it: use a server or version"
                    " with conditional writes, or a shared filesystem"
                )
            if not set(keys) <= {entry.key for entry in self.list(f"{_PROBE}/")}:
                raise StoreError(
                    f"{self.url}: a listing does not show what was just written, so what is published could"
                    " be overlooked: use a store whose listings are consistent"
                )
        self._copies_on_condition()

    # --- on condition ------------------------------------------------------------------------------------

    def _once(self, key: str, doing: str, action: Callable[[ObjectStore], None], *, size: int = 0) -> bool:
        """`action`, which makes `key` if there is none: whether it was made, as `Store.create` says it."""
        from obstore.exceptions import AlreadyExistsError

        pauses = Pauses(self._requests.options)
        while True:
            try:
                self._requests.send(doing, action, size=size)
                return True
            except AlreadyExistsError as error:
                # 412, or 409: then another request for the key was under way, and it may have come to nothing
                if self._exists(key):
                    return False
                if not pauses.wait():
                    raise StoreError(
                        f"{self.url}: cannot {doing}: each attempt met another one under way, and none has"
                        f" made it; run again. {reason(error)}"
                    ) from None

    def _copy(self, existing: str, key: str) -> bool:
        pauses = Pauses(self._requests.options)
        while True:
            try:
                return self._once(
                    key, f"copy {existing} to {key}", lambda c: c.copy(existing, key, overwrite=False)
                )
            except FileNotFoundError:
                # No `existing`; or, on S3, an upload that a lost answer had completed
                if not self._exists(existing):
                    raise
                if self._exists(key):
                    return False
                if not pauses.wait():
                    raise StoreError(f"{self.url}: cannot copy {existing} to {key}: run again") from None

    def _exists(self, key: str) -> bool:
        try:
            self._requests.send(f"look for {key}", lambda client: client.head(key))
        except FileNotFoundError:
            return False
        return True

    def _copies_on_condition(self) -> bool:
        """Whether the store can copy on condition, and keeps the condition. Tried once."""
        if self._copies is None:
            # Azure's copies may go on after their answer, and nothing in it says so
            self._copies = locate(self.url).cloud != "azure" and self._try_copies()
        return self._copies

    def _try_copies(self) -> bool:
        from obstore.exceptions import NotSupportedError

        try:
            with self._temporary() as new_key:
                key = new_key()

                def copy(mark: bytes) -> bool:
                    self.put(source := new_key(), mark)
                    return self._copy(source, key)

                return self._holds(key, copy)
        except (NotSupportedError, StoreError) as error:
            # Whatever the reason: the other way fails for it as well, and says so, or works
            logger.info("%s: no copies on condition, so links are read and written: %s", self.url, error)
            return False

    @contextmanager
    def _temporary(self) -> Iterator[Callable[[], str]]:
        """Gives new keys; what is there under them is removed at the end."""
        keys = []

        def new_key() -> str:
            keys.append(f"{_PROBE}/{uuid.uuid4().hex}")
            return keys[-1]

        try:
            yield new_key
        except BaseException:
            with suppress(StoreError):  # it would hide the first, of which it is likely another case
                self._delete_all(keys)
            raise
        self._delete_all(keys)

    def _delete_all(self, keys: Sequence[str]) -> None:
        with ThreadPoolExecutor(_PROBE_RACERS) as threads:
            list(threads.map(self.delete, keys))

    def _holds(self, key: str, attempt: Callable[[bytes], bool]) -> bool:
        """Whether one of many attempts at once, each with bytes of its own, is the one that stands."""
        marks = [uuid.uuid4().bytes for _ in range(_PROBE_RACERS)]
        with ThreadPoolExecutor(len(marks)) as threads:
            made = list(threads.map(attempt, marks))
        later = attempt(uuid.uuid4().bytes)
        winners = [mark for mark, won in zip(marks, made, strict=True) if won]
        standing = self.read(key)
        # No winner is one whose answer was lost
        return not later and (winners == [standing] or (not winners and standing in marks))

    # --- listing -----------------------------------------------------------------------------------------

    def _pages(self, prefix: str) -> Iterator[Entry]:
        last = ""
        for page in self._chunks(prefix):
            for meta in page:
                key = meta["path"]
                if key <= last:
                    raise StoreError(
                        f"{self.url}: this store does not list keys in order (S3 directory buckets do not):"
                        " use a general purpose bucket"
                    )
                last = key
                yield Entry(key=key, size=meta["size"], modified=meta["last_modified"].timestamp())

    def _chunks(self, prefix: str) -> Iterator[Any]:
        """Pages of a listing. After a failure a new one goes on behind the last key: a stream that has failed
        would only say that it is at its end."""
        doing = f"list {prefix}"
        stream: Iterator[Any] | None = None
        last: str | None = None

        def page(client: ObjectStore) -> Any | None:
            nonlocal stream
            going, stream = stream, None
            if going is None:
                going = iter(client.list(prefix or None, offset=last, chunk_size=_PAGE))
            found = next(going, None)
            stream = going
            return found

        try:
            while found := self._requests.send(doing, page):
                yield found
                last = found[-1]["path"]
        except FileNotFoundError:
            raise StoreError(f"{self.url}: cannot {doing}: no such bucket: create it") from None


def _octets(data: bytes | memoryview) -> memoryview:
    """As obstore takes it: Arrow's views are of signed bytes, which it would go through one by one."""
    return memoryview(data).cast("B")
