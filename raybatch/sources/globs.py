"""Which keys a path into an object store names: a folder, or a glob, matched on whole keys.

A key has no folders, only slashes; "folder" here is what stands before one. The rules are those of local
paths: `*`, `?` and `[a-z]` stay within one component, `**` is any number of them, names that start with "."
or "_" are left out of folders and wildcards, and a glob that names a folder names all files below it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

MAGIC = re.compile(r"[*?\[]")
_HIDDEN = (".", "_")
_VISIBLE = r"(?![._])[^/]+"


@dataclass(frozen=True)
class Pattern:
    """`folder` is the literal part of the path, without slashes at its ends, "" for the root; `parts` the
    components after it, of which the first has a wildcard. Without parts it names the folder."""

    folder: str
    parts: tuple[str, ...] = ()

    @classmethod
    def of(cls, key: str) -> Pattern:
        """What `key` (without slashes at its ends) names."""
        parts = key.split("/") if key else []
        fixed = next((i for i, part in enumerate(parts) if MAGIC.search(part)), len(parts))
        return cls("/".join(parts[:fixed]), tuple(parts[fixed:]))

    @property
    def literal(self) -> str:
        """How every key that it names starts."""
        start = f"{self.folder}/" if self.folder else ""
        return start + (MAGIC.split(self.parts[0])[0] if self.parts else "")

    def names(self, key: str) -> bool:
        """Whether `key` is one of those."""
        return self._regex.match(key) is not None

    def may_hold(self, folder: str) -> bool:
        """Whether a key below `folder`, which is below `self.folder`, can be one of those. Rather True."""
        below = folder[len(self.folder) :].strip("/").split("/")
        for i, name in enumerate(below):
            part = self.parts[i] if i < len(self.parts) else "**"
            if part == "**":
                asked = {later[0] for later in self.parts[i:]}
                return all(n[:1] not in _HIDDEN or n[:1] in asked for n in below[i:])
            if not _matches(name, part):
                return False
        return True

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        start = re.escape(f"{self.folder}/" if self.folder else "")
        if not self.parts:
            return re.compile(rf"{start}{_VISIBLE}(?:/{_VISIBLE})*\Z")
        return re.compile(start + "".join(_translate(self.parts)) + r"\Z")


def _matches(name: str, part: str) -> bool:
    if name.startswith(_HIDDEN) and not part.startswith(name[0]):
        return False
    return fnmatchcase(name, part)


def _translate(parts: Sequence[str]) -> Iterator[str]:
    *before, last = parts
    for part in before:
        yield rf"(?:{_VISIBLE}/)*" if part == "**" else f"{_component(part)}/"
    yield _VISIBLE if last == "**" else _component(last)
    yield rf"(?:/{_VISIBLE})*"  # a folder of that name stands for the files below it


def _component(part: str) -> str:
    found = [] if part.startswith(_HIDDEN) else [r"(?![._])"]
    at = 0
    while at < len(part):
        char = part[at]
        at += 1
        if char == "*":
            found.append("[^/]*")
        elif char == "?":
            found.append("[^/]")
        elif char == "[" and (end := part.find("]", at + 1 + (part[at : at + 1] == "!"))) > 0:
            inside = part[at:end].replace("\\", r"\\").replace("[", r"\[").replace("^", r"\^")
            inside = f"^{inside[1:]}" if inside.startswith("!") else inside
            found.append(f"(?!/)[{inside}]")
            at = end + 1
        else:
            found.append(re.escape(char))
    return "".join(found)
