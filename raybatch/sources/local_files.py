"""Files on local disks: which a path names, and which version of each.

Handled with `os`, because a folder that may not be listed must be an error here, and fsspec's glob and walk leave
it out in silence.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from raybatch.config import is_url
from raybatch.errors import SourceError
from raybatch.sources.base import JSON
from raybatch.sources.file import File
from raybatch.sources.globs import MAGIC


def is_local(path: str) -> bool:
    """Whether `path` is on a local disk: no URL, or one that says so."""
    return not is_url(path) or path.lower().startswith(("file://", "local://"))


def local_path(path: str) -> str:
    """`path` without scheme, absolute."""
    return os.path.abspath(path.split("://", 1)[1] if is_url(path) else path)


def list_local(path: str) -> list[File]:
    """The files that `path` (absolute: a file, a folder, a glob) names; some may come twice."""
    kind = _kind(path)
    if kind:
        names = _walk(path, frozenset()) if kind == "folder" else iter([path])
    elif MAGIC.search(path):
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
    return File(path=path, version=local_version(status))


def _kind(path: str) -> str | None:
    """ "folder", "file" (or a broken link), or None. No permission is an error, not an absence."""
    try:
        return "folder" if stat.S_ISDIR(os.stat(path).st_mode) else "file"
    except (FileNotFoundError, NotADirectoryError):
        return "file" if os.path.islink(path) else None
    except OSError as error:
        raise SourceError(f"{path}: cannot be looked up: {error.strerror}") from error


def local_version(status: os.stat_result) -> JSON:
    """What a plan pins."""
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
    if not MAGIC.search(head):
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


def nothing_there(path: str) -> str:
    """Why `path` names nothing, and what is there instead."""
    name = local_path(path)
    if os.path.isdir(name):
        return f"{path}: the folder has no files (names that start with '.' or '_' are left out)"
    folder = os.path.dirname(MAGIC.split(name)[0])
    above = folder
    while _kind(above) is None:
        above = os.path.dirname(above)
    what = "matches nothing" if MAGIC.search(name) else "no such file or folder"
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
