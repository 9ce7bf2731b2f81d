"""Which files a source names, which version of each, and how to open them.

A local path is handled with `os`, because a folder that may not be listed must be an error here and fsspec's
glob and walk leave it out in silence. A URL is handled by fsspec, and where fsspec lacks the package for a
scheme, by pyarrow's own filesystem for it. Imports of fsspec happen inside functions: it adds to the time
that `raybatch validate` takes.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

import pyarrow as pa

from raybatch.config import is_url
from raybatch.errors import InputChangedError, SourceError
from raybatch.sources.base import JSON

_MAGIC = re.compile(r"[*?\[]")
# What filesystems call a token that changes with the content; the first that is there decides.
_TAGS = ("ETag", "etag", "e_tag", "generation", "version_id", "md5Hash", "md5", "sha256", "checksum")
_TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated", "created")


@dataclass(frozen=True, kw_only=True)
class File:
    """One version of one file. `path` is absolute, or a URL, and names the file in `_source`. `version` is
    JSON: `size` in bytes, and `mtime_ns`, `etag` or `modified`, whichever the filesystem has."""

    path: str
    version: JSON

    @property
    def size(self) -> int:
        """Bytes, as stored (compressed, if it is)."""
        return int(self.version["size"])


# --- listing ---------------------------------------------------------------------------------------------


def list_files(paths: Sequence[str], *, taken: Collection[str] | None) -> list[File]:
    """Every file that `paths` (files, folders, globs) name, each once, in order of path as text.

    Folders are read recursively; names that start with "." or "_" are left out of folders and of wildcards.
    `taken`: the files of earlier epochs, None before the first; a path that named only those may name
    nothing now. Raises `SourceError` for what is missing, matches nothing or cannot be listed.
    """
    found: dict[str, File] = {}
    for path in paths:
        files = _list_local(_local_path(path)) if _is_local(path) else _list_remote(path)
        if not files and not _named_before(path, taken):
            raise SourceError(_nothing_there(path))
        found.update((file.path, file) for file in files)
    return [found[path] for path in sorted(found)]


def _named_before(path: str, taken: Collection[str] | None) -> bool:
    if taken is None:
        return False
    name = _local_path(path) if _is_local(path) else path.rstrip("/")
    return bool(_MAGIC.search(path)) or any(t == name or t.startswith(f"{name}/") for t in taken)


def _list_local(path: str) -> list[File]:
    kind = _kind(path)
    if kind:
        names = _walk(path, frozenset()) if kind == "folder" else iter([path])
    elif _MAGIC.search(path):
        names = _expand("/", path.strip("/").split("/"))
    else:
        return []
    return [_local_file(name) for name in names]


def _local_file(path: str) -> File:
    try:
        # Opening is the one test of permission that no access list, mount option or user id can fool; a pipe
        # without a writer must not block it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise SourceError(f"{path}: a link to a file that does not exist, or removed a moment ago") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{path}: not a regular file")
    return File(path=path, version=_local_version(status))


def _kind(path: str) -> str | None:
    """ "folder", "file" (or a broken link), or None. No permission is an error, not an absence."""
    try:
        return "folder" if stat.S_ISDIR(os.stat(path).st_mode) else "file"
    except (FileNotFoundError, NotADirectoryError):
        return "file" if os.path.islink(path) else None
    except OSError as error:
        raise SourceError(f"{path}: cannot be looked up: {error.strerror}") from error


def _local_version(status: os.stat_result) -> JSON:
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _scan(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"{folder}: the folder cannot be listed: {error.strerror}") from error


def _walk(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise SourceError(f"{folder}: a link to a folder that contains it; name the folders one by one")
    for entry in _scan(folder):
        if entry.name.startswith((".", "_")):
            continue
        path = os.path.join(folder, entry.name)
        if entry.is_dir():
            yield from _walk(path, above | {here})
        else:
            yield path


def _expand(folder: str, parts: Sequence[str]) -> Iterator[str]:
    """The files below `folder` that match `parts`, the components of a glob; some may come twice."""
    head, *rest = parts
    if not _MAGIC.search(head):
        yield from _matched(os.path.join(folder, head), rest)
        return
    if head == "**" and not rest:
        yield from _walk(folder, frozenset())
        return
    if head == "**":
        yield from _expand(folder, rest)
    for entry in _scan(folder):
        path = os.path.join(folder, entry.name)
        if entry.name.startswith((".", "_")) and not head.startswith(entry.name[0]):
            continue
        if head == "**":
            if entry.is_dir(follow_symlinks=False):
                yield from _expand(path, parts)
        elif fnmatchcase(entry.name, head):
            yield from _matched(path, rest)


def _matched(path: str, rest: Sequence[str]) -> Iterator[str]:
    kind = _kind(path)
    if kind == "folder":
        yield from _expand(path, rest) if rest else _walk(path, frozenset())
    elif kind == "file" and not rest:
        yield path


def _list_remote(url: str) -> list[File]:
    fs, name = _filesystem(url)
    try:
        fs.invalidate_cache()
        found = _remote_infos(fs, name)
    except Exception as error:  # each filesystem package has exceptions of its own
        raise SourceError(f"{url}: cannot be listed: {error}") from error
    scheme = url.split("://", 1)[0]
    files = []
    for path, listed in found.items():
        shown = _url(scheme, path)
        info = fs.info(path) if listed.get("size") is None else listed  # HTTP folders list names only
        if info.get("size") is None:
            raise SourceError(f"{shown}: the server does not tell its size, so no version can be pinned")
        files.append(File(path=shown, version=_remote_version(info)))
    return files


def _remote_infos(fs: Any, name: str) -> dict[str, Mapping[str, Any]]:
    try:
        info = fs.info(name)
    except FileNotFoundError:
        return _remote_glob(fs, name) if _MAGIC.search(name) else {}
    return _remote_folder(fs, name) if info["type"] == "directory" else {name: info}


def _remote_glob(fs: Any, pattern: str) -> dict[str, Mapping[str, Any]]:
    fixed = _MAGIC.split(pattern)[0].rpartition("/")[0]
    asked = {part[0] for part in pattern[len(fixed) :].split("/") if part}
    found: dict[str, Mapping[str, Any]] = {}
    for path, info in fs.glob(pattern, detail=True).items():
        if _shown(path, fixed, asked=asked):
            found.update(_remote_folder(fs, path) if info["type"] == "directory" else {path: info})
    return found


def _remote_folder(fs: Any, folder: str) -> dict[str, Mapping[str, Any]]:
    found = fs.find(folder, detail=True)
    return {path: info for path, info in found.items() if _shown(path, folder, asked=set())}


def _shown(path: str, root: str, *, asked: set[str]) -> bool:
    below = path[len(root) :] if path.startswith(root) else path
    return not any(part[:1] in {".", "_"} - asked for part in below.split("/"))


def _remote_version(info: Mapping[str, Any]) -> JSON:
    version: dict[str, Any] = {"size": int(info["size"])}
    for tag in _TAGS:
        if info.get(tag):
            return version | {"etag": str(info[tag]).strip('"')}
    for name in _TIMES:
        if info.get(name) is not None:
            return version | {"modified": _utc(info[name])}
    return version


def _utc(time: object) -> str:
    """One spelling of what a filesystem may give as seconds in a listing and as a date for a single file."""
    if isinstance(time, (int, float)):
        return datetime.fromtimestamp(time, UTC).isoformat()
    return time.astimezone(UTC).isoformat() if isinstance(time, datetime) else str(time)


# --- messages --------------------------------------------------------------------------------------------


def _nothing_there(path: str) -> str:
    if not _is_local(path):
        what = "matches nothing" if _MAGIC.search(path) else "no such file or folder, or nothing in it"
        return f"{path}: {what}"
    name = _local_path(path)
    if os.path.isdir(name):
        return f"{path}: the folder has no files (names that start with '.' or '_' are left out)"
    folder = os.path.dirname(_MAGIC.split(name)[0])
    above = folder
    while _kind(above) is None:
        above = os.path.dirname(above)
    what = "matches nothing" if _MAGIC.search(name) else "no such file or folder"
    if above != folder:
        return f"{path}: {what}; the folder {folder} does not exist (but {above} does)"
    if not os.path.isdir(folder):
        return f"{path}: {what}; {folder} is a file"
    there = [entry.name for entry in _scan(folder)]
    near = difflib.get_close_matches(os.path.basename(name), there, n=3, cutoff=0.4)
    if near:
        return f"{path}: {what}; similar in {folder}: {', '.join(near)}"
    listed = ", ".join(there[:5]) + (f" and {len(there) - 5} more" if len(there) > 5 else "")
    return f"{path}: {what}; in {folder}: {listed or 'nothing'}"


# --- identity --------------------------------------------------------------------------------------------


def describe_change(path: str, before: JSON, now: JSON) -> str:
    """What differs between two versions of one file, for a message."""
    changes = [
        f"{key} {before.get(key)} -> {now.get(key)}"
        for key in sorted(set(before) | set(now))
        if before.get(key) != now.get(key)
    ]
    return f"{path} ({', '.join(changes)})"


def check_unchanged(file: File) -> None:
    """Raise `InputChangedError` unless `file` still is the version that the plan pinned."""
    choices = (
        "The unfinished plan pinned that version. Restore the file and run again, or write to another output"
        " (sink.path), which takes the input as it is now"
    )
    try:
        now = _version(file.path)
    except FileNotFoundError as error:
        raise InputChangedError(f"{file.path} was deleted after it was planned. {choices}") from error
    if now != file.version:
        raise InputChangedError(
            f"{describe_change(file.path, file.version, now)} changed after it was planned. {choices}"
        )


def _version(path: str) -> JSON:
    if _is_local(path):
        return _local_version(os.stat(path))
    fs, name = _filesystem(path)
    fs.invalidate_cache()
    return _remote_version(fs.info(name))


# --- opening ---------------------------------------------------------------------------------------------


def open_stream(path: str, *, compression: str | None) -> Any:
    """A `pyarrow.NativeFile` of the file's (decompressed) bytes; without compression it can seek."""
    if _is_local(path):
        raw = pa.OSFile(path, "rb")
    else:
        fs, name = _filesystem(path)
        raw = pa.PythonFile(fs.open(name, "rb"), mode="r")
    return pa.CompressedInputStream(raw, compression) if compression else raw


def read_range(path: str, start: int, stop: int) -> memoryview:
    """The stored bytes from `start` up to `stop`, or to the file's end if that comes first."""
    if _is_local(path):
        with pa.OSFile(path, "rb") as opened:
            opened.seek(start)
            # into Arrow's pool, which keeps its pages: half the time of reading into fresh ones
            return memoryview(opened.read_buffer(stop - start))
    fs, name = _filesystem(path)
    return memoryview(fs.cat_file(name, start=start, end=stop))


def _is_local(path: str) -> bool:
    return not is_url(path) or path.lower().startswith(("file://", "local://"))


def _local_path(path: str) -> str:
    return os.path.abspath(path.split("://", 1)[1] if is_url(path) else path)


def _url(scheme: str, name: str) -> str:
    return name if name.startswith(f"{scheme}://") else f"{scheme}://{name}"


def _filesystem(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        fs, name = url_to_fs(url)
        return fs, str(name)
    except (ImportError, ValueError) as missing:
        try:
            return _arrow_filesystem(url)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SourceError(f"{url}: no filesystem for it: {missing} (pyarrow's own: {error})") from missing


def _arrow_filesystem(url: str) -> tuple[Any, str]:
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileSystem

    fs, name = FileSystem.from_uri(url)
    return ArrowFSWrapper(fs), str(name)
