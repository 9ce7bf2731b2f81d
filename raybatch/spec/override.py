"""`--set key.path=value`: one value, said on the command line, above all files."""

from __future__ import annotations

import os
import re

from raybatch.errors import SpecError
from raybatch.nearest import did_you_mean
from raybatch.spec.tree import Findings, Node, Origin, dotted
from raybatch.spec.yaml_tree import parse_argument

_INDEX = re.compile(r"\[(\d+)\]")


def with_set(tree: Node, text: str, *, findings: Findings) -> Node:
    """`tree` with the value of one `--set` in it. The list index is a number: `stages.0.model` or
    `stages[0].model`.

    Mappings on the way are made as needed; a list keeps its length. Relative paths in the value start at the
    current directory. Raises `SpecError` when `text` names no place in the tree.
    """
    key, equals, value = text.partition("=")
    keys = _INDEX.sub(r".\1", key.strip()).split(".")
    if not equals or not all(keys):
        raise SpecError(f"--set {key}: should be key.path=value, as in stages.0.sampling.temperature=0.5")
    # Without the value, which may have been meant for a secret field.
    origin = Origin(where=f"--set {key.strip()}", base_dir=os.getcwd())
    return _assigned(tree, keys, parse_argument(value, origin=origin, findings=findings), done=())


def _assigned(node: Node, keys: list[str], value: Node, *, done: tuple[str | int, ...]) -> Node:
    if not keys:
        return value
    where = value.origin.where
    head, rest = keys[0], keys[1:]
    if isinstance(node.value, list):
        index = int(head) if head.isdecimal() else -1
        if not 0 <= index < len(node.value):
            have = f"0 to {len(node.value) - 1}" if node.value else "none at all"
            raise SpecError(f"{where}: {dotted(done)} has no item '{head}', but {have}{_named(node, head)}")
        items = list(node.value)
        items[index] = _assigned(items[index], rest, value, done=(*done, index))
        return Node(items, node.origin)
    if node.value is not None and not isinstance(node.value, dict):
        raise SpecError(f"{where}: {dotted(done)} is no mapping, so it has no key '{head}'")
    children = dict(node.value or {})
    below = children.get(head) or Node({}, value.origin)
    children[head] = _assigned(below, rest, value, done=(*done, head))
    return Node(children, node.origin)


def _named(items: Node, name: str) -> str:
    """A hint for who names a stage instead of counting it."""
    assert isinstance(items.value, list)
    names = {item.text("name") or item.text("type") or "": i for i, item in enumerate(items.value)}
    if name in names:
        return f"; '{name}' is item {names[name]}"
    return did_you_mean(name, filter(None, names))
