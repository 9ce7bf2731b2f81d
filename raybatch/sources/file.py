"""One version of one file: what a plan pins, and what to say when it is no longer there."""

from __future__ import annotations

from dataclasses import dataclass, field

from raybatch.errors import InputChangedError
from raybatch.sources.base import JSON
from raybatch.store.remote import StorageOptions

_CHOICES = (
    "The unfinished plan pinned that version. Restore the file and run again, or write to another output"
    " (sink.path), which takes the input as it is now"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """`path` is absolute, or a URL, and names the file in `_source`. `version` is JSON: `size` in bytes, and
    `etag`, `mtime_ns` or `modified`, whichever the filesystem or store has.

    `storage` says how an object store is reached, and is no part of the file's identity.
    """

    path: str
    version: JSON
    storage: StorageOptions | None = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Bytes, as stored (compressed, if it is)."""
        return int(self.version["size"])


def describe_change(path: str, before: JSON, now: JSON) -> str:
    """What differs between two versions of one file, for a message."""
    changes = [
        f"{key} {before.get(key)} -> {now.get(key)}"
        for key in sorted(set(before) | set(now))
        if before.get(key) != now.get(key)
    ]
    return f"{path} ({', '.join(changes)})"


def changed(file: File, now: JSON) -> InputChangedError:
    """What to raise when `file` is another version now."""
    return InputChangedError(
        f"{describe_change(file.path, file.version, now)} changed after it was planned. {_CHOICES}"
    )


def deleted(file: File) -> InputChangedError:
    """What to raise when there is no such file any more."""
    return InputChangedError(f"{file.path} was deleted after it was planned. {_CHOICES}")
