"""YAML text to a tree of located values: the only place that knows YAML.

The semantics are `yaml.safe_load`'s, with the differences that a pipeline file needs: duplicate keys are
errors, keys are text, only plain data (no tags of other types), dates stay text, `1e-5` is a number as in
YAML 1.2, and size, depth and alias expansion are bounded.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from typing import Any, cast

import yaml

from raybatch.errors import SpecError
from raybatch.spec.tree import Findings, Node, Origin, Scalar

MAX_BYTES = 1024 * 1024  # a pipeline is read by people, and PyYAML takes 6 s for a dense megabyte
MAX_DEPTH = 64  # room for nested JSON schemas, and far from Python's recursion limit
MAX_VALUES = 100_000  # once aliases are expanded: nine levels of nine aliases each would be 4 * 10^8

_PREFIX = "tag:yaml.org,2002:"
_TAGS = {_PREFIX + name for name in ("str", "int", "float", "bool", "null")}
_MERGE = _PREFIX + "merge"


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = cast(Any, self).peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


# No field is a date, and what is stored of a pipeline is JSON. `=` has a type of its own in YAML 1.1.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _TAGS or tag == _MERGE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1 wants a dot in a float and takes 1e-5 for text: wrong for every learning rate and every tolerance.
_Loader.add_implicit_resolver(
    _PREFIX + "float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_tree(path: str, *, findings: Findings) -> Node:
    """The mapping in the file at `path`, an empty one if the file is empty; each value knows its line.

    Raises `SpecError` when the file cannot be read or is not YAML. What is wrong with single keys and values
    goes to `findings`, and the rest is returned.
    """
    text = _read_text(path)
    origin = Origin(where=f"{path}:1", base_dir=os.path.dirname(os.path.abspath(path)))
    node = _parse(text, file=path, base_dir=origin.base_dir, findings=findings) or Node({}, origin)
    if not isinstance(node.value, dict):
        raise SpecError(
            f"{node.origin.where}: should be a mapping of keys to values (name: ..., source: ...)"
        )
    return node


def parse_argument(text: str, *, origin: Origin, findings: Findings) -> Node:
    """The value of a `--set`: `[...]`, `{...}` and quoted text as YAML, anything else as one plain scalar.

    So `0.5` is a number, nothing is null, and `Summarise: {{ body }}` is text, colon and braces included.
    """
    stripped = text.strip()
    if stripped.startswith(("[", "{", '"', "'")):
        try:
            node = _parse(stripped, file=None, base_dir=origin.base_dir, findings=findings, origin=origin)
        except SpecError as error:
            raise SpecError(
                f"{error} (text that starts with {stripped[0]} needs quotes: '\"...\"')"
            ) from None
        return node or Node(None, origin)
    loader: Any = _Loader("")
    try:
        tag = loader.resolve(yaml.ScalarNode, stripped, (True, False))
        tag = tag if tag in _TAGS else _PREFIX + "str"
        return Node(_scalar(loader, yaml.ScalarNode(tag, stripped), findings, origin), origin)
    finally:
        loader.dispose()


def _read_text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file{_sibling(path)}") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise SpecError(f"{path}: larger than {MAX_BYTES} bytes, which no pipeline file is")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SpecError(f"{path}:{line}: not UTF-8 text (byte {error.start}: {error.reason})") from None


def _sibling(path: str) -> str:
    folder = os.path.dirname(path) or "."
    try:
        names = [n for n in os.listdir(folder) if n.endswith((".yaml", ".yml"))]
    except OSError:
        return ""
    near = difflib.get_close_matches(os.path.basename(path), names, n=1)
    return f" (did you mean {os.path.join(os.path.dirname(path), near[0])}?)" if near else ""


def _parse(
    text: str, *, file: str | None, base_dir: str, findings: Findings, origin: Origin | None = None
) -> Node | None:
    """`origin`, where given, is said of every value instead of file and line."""
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            reader = _Reader(loader, file=file, base_dir=base_dir, findings=findings, origin=origin)
            return reader.node(root, line=root.start_mark.line + 1, depth=1)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise SpecError(_syntax(error, text, origin.where if origin else file)) from None


def _syntax(error: yaml.YAMLError, text: str, where: str | None) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"{where}:{line}: the character U+{error.character:04X} is not allowed in YAML"
    if not isinstance(error, yaml.MarkedYAMLError):
        return f"{where}: {error}"
    mark = error.problem_mark or error.context_mark
    place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
    said = ", ".join(part for part in (error.context, error.problem) if part)
    if "'\\t'" in said:
        said += " (YAML indents with spaces, not tabs)"
    if "single document" in said:
        said += " (one file describes one pipeline: remove what follows the `---`)"
    return f"{place}: {said}"


class _Reader:
    """Turns PyYAML's nodes into ours, within bounds. One per file."""

    def __init__(
        self, loader: _Loader, *, file: str | None, base_dir: str, findings: Findings, origin: Origin | None
    ) -> None:
        self._loader = loader
        self._file = file
        self._base_dir = base_dir
        self._findings = findings
        self._origin = origin
        self._values = 0

    def node(self, found: yaml.Node, *, line: int, depth: int) -> Node:
        """`line` is where people look for it: the line of its key."""
        origin = self._at(line)
        self._values += 1
        if self._values > MAX_VALUES:
            raise SpecError(f"{origin.where}: more than {MAX_VALUES} values once its aliases are expanded")
        if depth > MAX_DEPTH:
            raise SpecError(
                f"{origin.where}: nested deeper than {MAX_DEPTH} levels, or an alias inside itself"
            )
        if isinstance(found, yaml.MappingNode) and found.tag == _PREFIX + "map":
            return Node(self._mapping(found, depth=depth), origin)
        if isinstance(found, yaml.SequenceNode) and found.tag == _PREFIX + "seq":
            items = [self.node(i, line=i.start_mark.line + 1, depth=depth + 1) for i in found.value]
            return Node(items, origin)
        if isinstance(found, yaml.ScalarNode):
            return Node(_scalar(self._loader, found, self._findings, origin), origin)
        self._findings.add(origin, f"the tag {_tag(found)} is not allowed; only plain YAML data is")
        return Node(None, origin)

    def _mapping(self, found: yaml.MappingNode, *, depth: int) -> dict[str, Node]:
        out: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        said_on: dict[str, int] = {}
        for key_node, value_node in found.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in (_PREFIX + "str", _MERGE):
                said = key_node.value if isinstance(key_node, yaml.ScalarNode) else f"(a {key_node.id})"
                self._findings.add(self._at(line), f"the key {said} is not text; put it in quotes")
                continue
            key = str(key_node.value)
            if key in said_on:
                self._findings.add(
                    self._at(line), f"duplicate key '{key}', first said on line {said_on[key]}"
                )
                continue
            said_on[key] = line
            if key_node.tag == _MERGE:
                merged = self._merged(value_node, line=line, depth=depth)
            else:
                out[key] = self.node(value_node, line=line, depth=depth + 1)
        return out | {key: child for key, child in merged.items() if key not in out}

    def _merged(self, found: yaml.Node, *, line: int, depth: int) -> dict[str, Node]:
        """What `<<` brings in: a mapping, or a list of mappings of which the first wins."""
        node = self.node(found, line=line, depth=depth + 1)
        sources = node.value if isinstance(node.value, list) else [node]
        out: dict[str, Node] = {}
        for source in sources:
            if not isinstance(source.value, dict):
                self._findings.add(self._at(line), "<< should be given a mapping, or a list of mappings")
                continue
            out = source.value | out
        return out

    def _at(self, line: int) -> Origin:
        return self._origin or Origin(where=f"{self._file}:{line}", base_dir=self._base_dir)


def _scalar(loader: _Loader, found: yaml.ScalarNode, findings: Findings, origin: Origin) -> Scalar:
    if found.tag not in _TAGS:
        findings.add(origin, f"the tag {_tag(found)} is not allowed; only plain YAML data is")
        return None
    try:
        value: Scalar = loader.construct_object(found)
    except (ValueError, yaml.YAMLError):
        findings.add(origin, f"'{found.value[:40]}' is not of type {_tag(found)}")
        return None
    if isinstance(value, float) and not math.isfinite(value):
        findings.add(origin, f"{found.value} is not a finite number")
        return None
    return value


def _tag(found: yaml.Node) -> str:
    return str(found.tag).replace(_PREFIX, "!!")
