"""An object of a store as a file: seekable, read in ranges."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from raybatch.errors import StoreError
from raybatch.store.requests import Requests

if TYPE_CHECKING:
    from obstore.store import ObjectStore

# A Parquet footer and its neighbours come with one request; a column chunk, which is asked for as a whole,
# is requested as it is.
BUFFER_BYTES = 256 << 10


class RangeReader(io.RawIOBase):
    """The bytes of one object, which never change. Each read is one request; not thread-safe, like any file
    with a position."""

    def __init__(self, requests: Requests, key: str, *, size: int) -> None:
        super().__init__()
        self._requests = requests
        self._key = key
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As `io.IOBase.seek`; beyond the end there is nothing to read."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"negative seek position {start + offset}")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as the object goes."""
        view = memoryview(buffer).cast("B")
        length = min(len(view), self._size - self._at)
        if length <= 0:
            return 0
        view[:length] = self._range(self._at, length)
        self._at += length
        return length

    def readall(self) -> bytes:
        """The rest, with one request."""
        length = max(0, self._size - self._at)
        data = self._range(self._at, length) if length else b""
        self._at += length
        return bytes(data)

    def _range(self, start: int, length: int) -> memoryview:
        def get(client: ObjectStore) -> memoryview:
            return memoryview(client.get_range(self._key, start=start, length=length))

        doing = f"read {self._key}"
        try:
            return self._requests.send(doing, get, size=length)
        except FileNotFoundError:
            raise StoreError(f"{self._requests.url}: cannot {doing}: it was deleted meanwhile") from None


def open_ranges(requests: Requests, key: str, *, size: int) -> io.BufferedReader:
    """A buffered `RangeReader`. No request yet."""
    return io.BufferedReader(RangeReader(requests, key, size=size), BUFFER_BYTES)
