"""Objects in S3, GCS and Azure as input: which there are, and their bytes as the plan pinned them.

A version is size and ETag. Each request for bytes carries the ETag as a condition, and the answer's is compared
as well (a server may ignore the condition), so what is read is the pinned version or an `InputChangedError`,
never some of the old bytes and some of the new.

obstore sends a failed request again, with growing and random pauses. An answer that breaks off in its body, or
is too short, is asked for again here.
"""

from __future__ import annotations

import random
import re
import time
from concurrent.futures import ThreadPoolExecutor

from raybatch.errors import SourceError, StoreError
from raybatch.sources.base import JSON, Progress
from raybatch.sources.file import File, changed, deleted
from raybatch.sources.globs import Pattern
from raybatch.sources.key_listing import KeyListing, NotInOrderError
from raybatch.store.bucket import Bucket, ConditionError, Meta
from raybatch.store.remote import StorageOptions

_PROGRESS_S = 5.0
# One connection gives some 50 to 100 MB/s; four parts of a large range together fill what a task may have
_PART_BYTES, _PARTS_AT_ONCE = 8 << 20, 4
_BODY_TRIES, _FIRST_PAUSE_S = 5, 0.2


# --- listing ---------------------------------------------------------------------------------------------


def list_objects(url: str, *, storage: StorageOptions | None, progress: Progress) -> list[File]:
    """The objects that `url` (a key, a folder, a glob) names, in no particular order.

    Raises `SourceError` when they cannot be listed.
    """
    try:
        bucket, key = Bucket.of(url, storage)
        # Without permission to list, S3 says "denied" for a key that does not exist: the listing will tell
        one = bucket.head(key, denied_is_none=True) if key and not key.endswith("/") else None
        if one is not None:
            return [_file(bucket, one)]
        return _below(bucket, Pattern.of(key.rstrip("/")), progress)
    except (StoreError, re.error) as error:
        raise SourceError(str(error) if isinstance(error, StoreError) else f"{url}: {error}") from error


def near(url: str, *, storage: StorageOptions | None) -> list[str]:
    """Some names beside those that `url` looked for in vain, for a message. Costs one page."""
    bucket, key = Bucket.of(url, storage)
    folder = Pattern.of(key.rstrip("/")).folder
    if folder == key.rstrip("/"):
        folder = folder.rpartition("/")[0]
    base = f"{folder}/" if folder else ""
    try:
        page = next(bucket.pages(folder, after=None), [])
    except StoreError:
        return []  # the message can do without
    return list(dict.fromkeys(meta["path"][len(base) :].split("/")[0] for meta in page))


def _file(bucket: Bucket, meta: Meta) -> File:
    return File(path=bucket.url(meta["path"]), version=version_of(meta), storage=bucket.storage)


def version_of(meta: Meta) -> JSON:
    """What a plan pins: the same from a listing, a HEAD and a GET."""
    tag = meta.get("e_tag")
    if tag and not tag.startswith("W/"):  # a weak one fits no condition
        return {"size": int(meta["size"]), "etag": tag.strip('"')}
    # A listing has milliseconds, a header whole seconds
    return {"size": int(meta["size"]), "modified": meta["last_modified"].replace(microsecond=0).isoformat()}


def _below(bucket: Bucket, pattern: Pattern, progress: Progress) -> list[File]:
    files: dict[str, File] = {}
    told = time.monotonic()

    def found(meta: Meta) -> None:
        file = _file(bucket, meta)
        files[file.path] = file

    def tell(seen: int) -> None:
        nonlocal told
        if time.monotonic() - told >= _PROGRESS_S:
            told = time.monotonic()
            progress(
                f"listing {bucket.url(pattern.literal)}: {seen:,} keys so far, {len(files):,} files of them"
            )

    def run(*, in_order: bool) -> None:
        KeyListing(bucket, pattern, in_order=in_order, found=found, progress=tell).run()

    try:
        run(in_order=bucket.in_order())
    except NotInOrderError:
        files.clear()
        run(in_order=False)
    return _without_markers(files)


def _without_markers(files: dict[str, File]) -> list[File]:
    """All but the empty objects that stand for a folder: consoles make them, and obstore drops their slash."""
    empty = {path for path, file in files.items() if not file.size}
    folders: set[str] = set()
    if empty:
        for path in files:
            while (path := path.rpartition("/")[0]) and path not in folders:
                folders.add(path)
    return [file for path, file in files.items() if path not in empty & folders]


# --- reading ---------------------------------------------------------------------------------------------


def check_object(file: File) -> None:
    """Raise `InputChangedError` unless the object still is the version that the plan pinned."""
    bucket, key = Bucket.of(file.path, file.storage)
    meta = bucket.head(key)
    if meta is None:
        raise deleted(file)
    if version_of(meta) != file.version:
        raise changed(file, version_of(meta))


def read_object(file: File, start: int, stop: int) -> memoryview:
    """The bytes of the pinned version from `start` up to `stop`, or to its end if that comes first.

    Raises `InputChangedError`, and `StoreError` when the store does not give them.
    """
    stop = min(stop, file.size)
    if stop <= start:
        return memoryview(b"")
    if stop - start <= 2 * _PART_BYTES:
        return _get(file, start, stop)
    whole = memoryview(bytearray(stop - start))

    def part(at: int) -> None:
        end = min(at + _PART_BYTES, stop)
        whole[at - start : end - start] = _get(file, at, end)

    with ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="raybatch-read") as pool:
        list(pool.map(part, range(start, stop, _PART_BYTES)))
    return whole


def _get(file: File, start: int, stop: int) -> memoryview:
    """One range. A body that breaks off is asked for again; a request that failed is not, obstore did that."""
    bucket, key = Bucket.of(file.path, file.storage)
    for attempt in range(_BODY_TRIES):
        if attempt:
            time.sleep(random.uniform(0.5, 1.0) * _FIRST_PAUSE_S * 2**attempt)
        try:
            answer = bucket.get(key, start, stop, etag=file.version.get("etag"))
        except KeyError as error:
            raise deleted(file) from error
        except ConditionError:
            check_object(file)  # says what it is now
            raise  # the same again: somebody is writing it
        if version_of(answer.meta) != file.version:
            raise changed(file, version_of(answer.meta))
        if len(answer.body) == stop - start:
            return answer.body
    why = f": {answer.broken}" if answer.broken else f" after {len(answer.body)} bytes"
    raise StoreError(
        f"{file.path}: bytes {start} to {stop} cannot be read: {_BODY_TRIES} answers broke off{why}"
    )


class ObjectFile:
    """The pinned version of an object as a file that can seek; for `pyarrow.PythonFile`. Not thread-safe.

    Reads ahead where it is read in order, twice as far each time, so that a small file costs one request and a
    large one few; a read elsewhere gets what it asks for.
    """

    _LEAST, _MOST = 256 << 10, 8 << 20

    def __init__(self, file: File) -> None:
        self._file = file
        self._at = 0
        self._held, self._from = memoryview(b""), 0
        self._ahead = self._LEAST
        self.closed = False

    def read(self, size: int = -1) -> memoryview:
        left = self._file.size - self._at
        wanted = left if size is None or size < 0 else min(size, left)
        data = self._read(self._at, self._at + wanted)
        self._at += len(data)
        return data

    def _read(self, start: int, stop: int) -> memoryview:
        end = self._from + len(self._held)
        if self._from <= start and stop <= end:
            return self._held[start - self._from : stop - self._from]
        in_order = self._from <= start <= end
        rest = self._held[start - self._from :] if in_order else self._held[:0]
        missing = start + len(rest)
        if in_order:
            ahead, self._ahead = self._ahead, min(2 * self._ahead, self._MOST)
        else:
            ahead, self._ahead = 0, self._LEAST
        fetched = read_object(self._file, missing, max(stop, missing + ahead))
        self._held, self._from = fetched, missing
        if not len(rest):
            return fetched[: stop - start]
        return memoryview(b"".join((rest, fetched[: stop - missing])))

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._file.size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        """Nothing is written."""

    def close(self) -> None:
        self.closed = True
        self._held = memoryview(b"")
