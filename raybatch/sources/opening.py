"""Open and read the files of a plan, in the version that it pinned."""

from __future__ import annotations

import os
from typing import Any

import pyarrow as pa

from raybatch.sources import fsspec_files
from raybatch.sources.file import File, changed, deleted
from raybatch.sources.local_files import is_local, local_version
from raybatch.sources.objects import ObjectFile, check_object, read_object
from raybatch.store.remote import is_remote


def is_pinned(file: File) -> bool:
    """Whether each read is of the planned version or fails; else `check_unchanged` before and after is needed."""
    return not is_local(file.path) and is_remote(file.path)


def check_unchanged(file: File) -> None:
    """Raise `InputChangedError` unless `file` still is the version that the plan pinned."""
    if is_pinned(file):
        check_object(file)
        return
    try:
        now = (
            local_version(os.stat(file.path)) if is_local(file.path) else fsspec_files.url_version(file.path)
        )
    except FileNotFoundError as error:
        raise deleted(file) from error
    if now != file.version:
        raise changed(file, now)


def open_stream(file: File, *, compression: str | None) -> Any:
    """A `pyarrow.NativeFile` of the (decompressed) bytes of `file`; without compression it can seek."""
    if is_local(file.path):
        raw = pa.OSFile(file.path, "rb")
    elif is_remote(file.path):
        raw = pa.PythonFile(ObjectFile(file), mode="r")
    else:
        raw = pa.PythonFile(fsspec_files.open_url(file.path), mode="r")
    return pa.CompressedInputStream(raw, compression) if compression else raw


def read_range(file: File, start: int, stop: int) -> memoryview:
    """The stored bytes from `start` up to `stop`, or to the file's end if that comes first."""
    if is_local(file.path):
        with pa.OSFile(file.path, "rb") as opened:
            opened.seek(start)
            # into Arrow's pool, which keeps its pages: half the time of reading into fresh ones
            return memoryview(opened.read_buffer(stop - start))
    if is_remote(file.path):
        return read_object(file, start, stop)
    return fsspec_files.read_url(file.path, start, stop)
