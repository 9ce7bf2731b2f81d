"""Which files a source names, and which version of each, wherever they are.

Local paths are `local_files.py`'s, S3, GCS and Azure `objects.py`'s, and all other URLs fsspec's.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

from raybatch.errors import SourceError
from raybatch.sources import fsspec_files, local_files, objects
from raybatch.sources.base import Progress, no_progress
from raybatch.sources.file import File
from raybatch.sources.globs import MAGIC
from raybatch.sources.local_files import is_local, local_path
from raybatch.store.remote import StorageOptions, is_remote


def list_files(
    paths: Sequence[str],
    *,
    taken: Collection[str] | None,
    storage: StorageOptions | None = None,
    progress: Progress = no_progress,
) -> list[File]:
    """Every file that `paths` (files, folders, globs) name, each once, in order of path as text.

    Folders are read recursively; names that start with "." or "_" are left out of folders and of wildcards.
    `taken`: the files of earlier epochs, None before the first; a path that named only those may name
    nothing now. Raises `SourceError` for what is missing, matches nothing or cannot be listed.
    """
    found: dict[str, File] = {}
    for path in paths:
        files = _list(path, storage, progress)
        if not files and not _named_before(path, taken):
            raise SourceError(_nothing_there(path, storage))
        found.update((file.path, file) for file in files)
    return [found[path] for path in sorted(found)]


def _list(path: str, storage: StorageOptions | None, progress: Progress) -> list[File]:
    if is_local(path):
        return local_files.list_local(local_path(path))
    if is_remote(path):
        return objects.list_objects(path, storage=storage, progress=progress)
    return fsspec_files.list_url(path)


def _named_before(path: str, taken: Collection[str] | None) -> bool:
    if taken is None:
        return False
    name = local_path(path) if is_local(path) else path.rstrip("/")
    return bool(MAGIC.search(path)) or any(t == name or t.startswith(f"{name}/") for t in taken)


def _nothing_there(path: str, storage: StorageOptions | None) -> str:
    if is_local(path):
        return local_files.nothing_there(path)
    what = "matches nothing" if MAGIC.search(path) else "no such file or folder, or nothing in it"
    there = objects.near(path, storage=storage) if is_remote(path) else []
    if not there:
        return f"{path}: {what}"
    similar = difflib.get_close_matches(path.rstrip("/").rpartition("/")[2], there, n=3, cutoff=0.4)
    if similar:
        return f"{path}: {what}; similar beside it: {', '.join(similar)}"
    return f"{path}: {what}; beside it: {', '.join(there[:5])}{', …' if len(there) > 5 else ''}"
