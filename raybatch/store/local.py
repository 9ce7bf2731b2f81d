"""A store on a POSIX filesystem, local or shared: keys are paths below a root folder.

`create` writes and syncs a temporary file and gives it its name with link(2), which fails for all but one
caller (also on NFS), then syncs the folder: a name that can be seen is whole, and survives a power cut.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO

from raybatch.errors import StoreError
from raybatch.store.base import Entry

_TEMP = "_tmp"
_PROBE = "_probe"

# The same key may need its folders again when a probe of another process tidied an empty one away.
_TRIES = 5

_REASONS = {
    errno.ENOSPC: "no space left on the device: free some, or choose another path",
    errno.EDQUOT: "the disk quota is used up: free some space, or choose another path",
    errno.EFBIG: "the file is larger than the filesystem or `ulimit -f` allows",
    errno.EROFS: "the filesystem is mounted read-only: choose another path",
    errno.ENOTDIR: "part of the path is a file, not a folder",
}


class LocalStore:
    """See `raybatch.store.base.Store`. Creates the root folder, and its parents, at the first write."""

    def __init__(self, root: str) -> None:
        self.url = os.path.abspath(os.path.expanduser(root))
        self._settled: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.url = state["url"]
        self._settled = set()  # a folder is settled when this process has synced its name

    def __repr__(self) -> str:
        return f"LocalStore({self.url!r})"

    def create(self, key: str, data: bytes | memoryview) -> bool:
        """See `Store.create`. On a full disk nothing is left behind but, after SIGKILL, a file in `_tmp`."""
        path = self._path(key)
        temp = None
        try:
            temp = self._write_temp(data)
            return self._give_name(temp, path)
        except OSError as error:
            raise self._failure(error, f"cannot write {path}") from error
        finally:
            if temp is not None:
                _unlink_quietly(temp)

    def put(self, key: str, data: bytes | memoryview) -> None:
        """See `Store.put`."""
        path = self._path(key)
        temp = None
        try:
            temp = written = self._write_temp(data)
            self._with_folder(os.path.dirname(path), lambda: os.replace(written, path))
            temp = None
            _sync_folder(os.path.dirname(path))
        except OSError as error:
            raise self._failure(error, f"cannot write {path}") from error
        finally:
            if temp is not None:
                _unlink_quietly(temp)

    def link(self, existing: str, key: str) -> bool:
        """See `Store.link`: link(2); copies where hard links are refused."""
        source, path = self._path(existing), self._path(key)
        try:
            if not os.path.exists(source):
                raise KeyError(existing)
            return self._give_name(source, path)
        except OSError as error:
            # EPERM: protected_hardlinks and another user's file; EMLINK: 65,000 names on ext4
            if error.errno in (errno.EPERM, errno.EMLINK, errno.EXDEV):
                return self.create(key, self.read(existing))
            raise self._failure(error, f"cannot link {path} to {source}") from error

    def read(self, key: str) -> bytes:
        """See `Store.read`."""
        with self.open(key) as file:
            try:
                return file.read()
            except OSError as error:
                raise self._failure(error, f"cannot read {self._path(key)}") from error

    def open(self, key: str) -> BinaryIO:
        """See `Store.open`."""
        path = self._path(key)
        try:
            return open(path, "rb")
        except FileNotFoundError:
            raise KeyError(key) from None
        except OSError as error:
            raise self._failure(error, f"cannot read {path}") from error

    def list(self, prefix: str) -> Iterator[Entry]:
        """See `Store.list`."""
        if prefix and not prefix.endswith("/"):
            raise ValueError(f"a listing is of a folder, which ends in '/': {prefix!r}")
        folder = self._path(prefix.rstrip("/")) if prefix else self.url
        return self._walk(folder, prefix)

    def delete(self, key: str) -> None:
        """See `Store.delete`. Not synced: after a power cut the object may be back."""
        path = self._path(key)
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._failure(error, f"cannot delete {path}") from error

    def probe(self) -> None:
        """See `Store.probe`. The root folder stays."""
        key, other = f"{_PROBE}/{uuid.uuid4().hex}", f"{_PROBE}/{uuid.uuid4().hex}"
        try:
            first, second = self.create(key, b"first"), self.create(key, b"second")
            linked, again = self.link(key, other), self.link(key, other)
            if (first, second, linked, again) != (True, False, True, False) or self.read(key) != b"first":
                raise StoreError(
                    f"{self.url}: this filesystem lets a second writer replace an existing name, so"
                    " exactly-once cannot be kept on it: choose one with working hard links (ext4, xfs, NFS)"
                )
        finally:
            for name in (key, other):
                _unlink_quietly(self._path(name))
            for folder in (_PROBE, _TEMP):
                self._remove_if_empty(os.path.join(self.url, folder))

    def _path(self, key: str) -> str:
        parts = key.split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"not a key: {key!r}")
        return os.path.join(self.url, *parts)

    def _write_temp(self, data: bytes | memoryview) -> str:
        folder = os.path.join(self.url, _TEMP)
        path = os.path.join(folder, uuid.uuid4().hex)
        # not mkstemp, whose mode 0600 would hide data/ from everybody else
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        handle = self._with_folder(folder, lambda: os.open(path, flags, 0o666))
        try:
            with open(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            _unlink_quietly(path)
            raise
        return path

    def _give_name(self, existing: str, path: str) -> bool:
        folder = os.path.dirname(path)
        try:
            self._with_folder(folder, lambda: os.link(existing, path))
            made = True
        except FileExistsError:
            made = False
        # Also for the name of another: whoever made it may have been killed before it was durable, and the
        # caller is about to build on it.
        _sync_folder(folder)
        return made

    def _with_folder(self, folder: str, action: Any) -> Any:
        """`action()`, with `folder` made first, also when it vanishes in between."""
        for _ in range(_TRIES):
            self._make_folder(folder)
            try:
                return action()
            except FileNotFoundError as error:
                self._settled.clear()
                last = error
        raise last

    def _make_folder(self, folder: str) -> None:
        if folder in self._settled:
            return
        parent = os.path.dirname(folder)
        try:
            made = _mkdir(folder)
        except FileNotFoundError:
            self._make_folder(parent)
            made = _mkdir(folder)
        # Below the root also what others made: they may have been killed before it was durable
        if made or folder.startswith(self.url + os.sep):
            _sync_folder(parent)
        self._settled.add(folder)

    def _remove_if_empty(self, folder: str) -> None:
        self._settled.discard(folder)
        try:
            os.rmdir(folder)
        except OSError:
            return  # somebody else is using it, or it never came to be

    def _walk(self, folder: str, prefix: str) -> Iterator[Entry]:
        try:
            # A name that is listed is built upon; its maker may have been killed before it was durable.
            _sync_folder(folder)
            with os.scandir(folder) as found:
                # "a/" sorts after "a.json", as keys do; plain names would not
                entries = sorted(found, key=lambda e: e.name + "/" if e.is_dir() else e.name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._failure(error, f"cannot list {folder}") from error
        for entry in entries:
            if entry.is_dir():
                yield from self._walk(entry.path, f"{prefix}{entry.name}/")
                continue
            try:
                found_now = entry.stat()
            except FileNotFoundError:
                continue  # deleted since
            yield Entry(key=prefix + entry.name, size=found_now.st_size, modified=found_now.st_mtime)

    def _failure(self, error: OSError, doing: str) -> StoreError:
        reason = _REASONS.get(error.errno or 0)
        if error.errno in (errno.EACCES, errno.EPERM):
            reason = f"permission denied for user {os.geteuid()}"
        if reason is None:
            reason = os.strerror(error.errno) if error.errno else str(error)
        return StoreError(f"{doing}: {reason}")


def _mkdir(folder: str) -> bool:
    """Make a folder; False if it is there."""
    try:
        os.mkdir(folder)
    except FileExistsError:
        return False
    return True


def _sync_folder(folder: str) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return  # may be written and not listed, or is above the root: nothing of ours to sync it by
    try:
        os.fsync(handle)
    except OSError as error:
        # EINVAL: a filesystem that has no such notion; EROFS: nothing can be unwritten
        if error.errno not in (errno.EINVAL, errno.EROFS):
            raise
    finally:
        os.close(handle)


def _unlink_quietly(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return
