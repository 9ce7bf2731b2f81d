"""Files behind URLs of other kinds (http, sftp, hdfs, …): fsspec's, and where it lacks the package, pyarrow's.

fsspec is imported inside functions: it adds to the time that `raybatch validate` takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from raybatch.errors import SourceError
from raybatch.sources.base import JSON
from raybatch.sources.file import File
from raybatch.sources.globs import MAGIC

# What filesystems call a token that changes with the content; the first that is there decides.
_TAGS = ("ETag", "etag", "e_tag", "generation", "version_id", "md5Hash", "md5", "sha256", "checksum")
_TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated", "created")


def list_url(url: str) -> list[File]:
    """The files that `url` (a file, a folder, a glob) names."""
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
        return _remote_glob(fs, name) if MAGIC.search(name) else {}
    return _remote_folder(fs, name) if info["type"] == "directory" else {name: info}


def _remote_glob(fs: Any, pattern: str) -> dict[str, Mapping[str, Any]]:
    fixed = MAGIC.split(pattern)[0].rpartition("/")[0]
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


def url_version(url: str) -> JSON:
    """The version that is there now. Raises `FileNotFoundError`, and what fsspec raises."""
    fs, name = _filesystem(url)
    fs.invalidate_cache()
    return _remote_version(fs.info(name))


def open_url(url: str) -> Any:
    """A file of fsspec's, for reading."""
    fs, name = _filesystem(url)
    return fs.open(name, "rb")


def read_url(url: str, start: int, stop: int) -> memoryview:
    """The bytes from `start` up to `stop`, or to the file's end if that comes first."""
    fs, name = _filesystem(url)
    return memoryview(fs.cat_file(name, start=start, end=stop))


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
