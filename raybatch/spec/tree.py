"""Values that know where they were said: what YAML, profiles and `--set` become before they are checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from raybatch.errors import SpecError

Scalar = str | int | float | bool | None
KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a value was said: `where` for people ("news.yaml:14", "--set run.mode"), and the folder that
    relative paths in it start from."""

    where: str
    base_dir: str


@dataclass(frozen=True)
class Node:
    """A scalar, or a mapping or list of nodes."""

    value: dict[str, Node] | list[Node] | Scalar
    origin: Origin

    def get(self, key: str) -> Node | None:
        """The child of a mapping; None when there is no such child, or when this is no mapping."""
        return self.value.get(key) if isinstance(self.value, dict) else None

    def text(self, key: str) -> str | None:
        """The child `key` if it is text."""
        child = self.get(key)
        return child.value if child and isinstance(child.value, str) else None


class Findings:
    """What is wrong with the files, collected so that one reading shows all of it."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, origin: Origin, what: str) -> None:
        """One finding; said once, also when two checks come to it."""
        line = f"{origin.where}: {what}"
        if line not in self._lines:
            self._lines.append(line)

    def raise_if_any(self) -> None:
        """Raises `SpecError` with one line for each finding."""
        if self._lines:
            raise SpecError("\n".join(self._lines))

    def __len__(self) -> int:
        return len(self._lines)


def plain(node: Node) -> Any:
    """The values alone: dicts, lists and scalars that JSON can hold."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def dotted(path: KeyPath) -> str:
    """`stages[1].output` for ("stages", 1, "output")."""
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out


def step(node: Node, part: str | int) -> Node | None:
    """The child named by one part of a key path, if there is one."""
    if isinstance(node.value, dict) and isinstance(part, str):
        return node.value.get(part)
    if isinstance(node.value, list) and isinstance(part, int) and 0 <= part < len(node.value):
        return node.value[part]
    return None


def deepest(node: Node, path: KeyPath) -> Node:
    """The node at `path`, or the nearest one above it: where something that is missing is missing from."""
    for part in path:
        child = step(node, part)
        if child is None:
            return node
        node = child
    return node


def walk(node: Node, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Node]]:
    """Every node with its key path, parents first."""
    yield path, node
    if isinstance(node.value, dict):
        for key, child in node.value.items():
            yield from walk(child, (*path, key))
    elif isinstance(node.value, list):
        for index, child in enumerate(node.value):
            yield from walk(child, (*path, index))


def merge(base: Node, over: Node) -> Node:
    """`over` on top of `base`: mappings are merged key by key, everything else (also null) replaces."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(over.value)
    for key, child in base.value.items():
        merged[key] = merge(child, merged[key]) if key in merged else child
    return Node(merged, over.origin)
