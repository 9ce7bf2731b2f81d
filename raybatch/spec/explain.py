"""Pydantic's complaints, in the words of the file: `news.yaml:14: stages[1].outptu: unknown key …`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from raybatch.config import SECRET_FORMAT
from raybatch.nearest import did_you_mean
from raybatch.spec.fields import Fields
from raybatch.spec.tree import KeyPath, Node, Origin, deepest, dotted, step

_Details = Any  # pydantic_core.ErrorDetails

# Pydantic speaks of Python's types, the file of YAML's.
_PLAIN_WORDS = {
    "model_type": "should be a mapping",
    "dict_type": "should be a mapping",
    "mapping_type": "should be a mapping",
    "list_type": "should be a list",
    "tuple_type": "should be a list",
    "set_type": "should be a list",
    "string_type": "should be text",
}


def explain(
    error: ValidationError, *, node: Node, root: KeyPath, fields: Fields
) -> Iterator[tuple[KeyPath, Origin, str]]:
    """One finding per key path, with where it was said. `node`, at `root`, is what was validated.

    Values are quoted as the file says them, references unexpanded, and never those of secret fields.
    """
    grouped: dict[KeyPath, list[_Details]] = {}
    for details in error.errors(include_url=False):
        grouped.setdefault(_key_path(details, node), []).append(details)
    for path, found in grouped.items():
        if _is_deeper_elsewhere(path, found, grouped):
            continue
        said = _said(found, path=path, node=node, fields=fields)
        where = deepest(node, path).origin
        full = dotted((*root, *path))
        yield (*root, *path), where, f"{full}: {said}" if full else said


def _key_path(details: _Details, node: Node) -> KeyPath:
    """The keys among pydantic's location, which also names the members of unions that were tried."""
    path: KeyPath = ()
    parts = details["loc"]
    for position, part in enumerate(parts):
        child = step(node, part)
        if child is not None:
            path, node = (*path, part), child
        elif details["type"] == "missing" and position == len(parts) - 1:
            path = (*path, part)
    return path


def _is_deeper_elsewhere(
    path: KeyPath, found: list[_Details], grouped: dict[KeyPath, list[_Details]]
) -> bool:
    """Whether these only say that a union's value is not of its simpler members, while a member that fits
    better has complaints of its own: a mapping for `int | Replicas` is a `Replicas` with something wrong
    inside."""
    in_union = all(len(details["loc"]) > len(path) for details in found)
    return in_union and any(len(p) > len(path) and p[: len(path)] == path for p in grouped)


def _said(found: list[_Details], *, path: KeyPath, node: Node, fields: Fields) -> str:
    kind = found[0]["type"]
    if kind == "extra_forbidden":
        return unknown_key(str(path[-1]), fields.keys(path[:-1]))
    if kind == "missing":
        return "is missing"
    messages = dict.fromkeys(_message(details) for details in found)
    said = ", or ".join(messages)
    value = deepest(node, path).value
    if any(details["type"] in ("value_error", "assertion_error") for details in found):
        return said
    if SECRET_FORMAT in fields.formats(path) or not _may_show(value):
        return said
    return f"{said}, got {quoted(value)}{_near(found, value)}"


def unknown_key(key: str, valid: list[str]) -> str:
    """What is wrong with a key that no config has, and what is possible."""
    known = f"; valid keys: {', '.join(valid)}" if valid else "; no keys are allowed here"
    return f"unknown key{did_you_mean(key, valid)}{known}"


def _message(details: _Details) -> str:
    message: str = _PLAIN_WORDS.get(details["type"], details["msg"])
    for prefix in ("Value error, ", "Assertion failed, "):
        message = message.removeprefix(prefix)
    return message.replace("Input should be", "should be")


def _may_show(value: object) -> bool:
    return value is None or (isinstance(value, (str, int, float)) and len(str(value)) <= 80)


def quoted(value: object) -> str:
    """A scalar as the file would say it."""
    return f"'{value}'" if isinstance(value, str) else json.dumps(value)


def _near(found: list[_Details], value: object) -> str:
    expected = found[0].get("ctx", {}).get("expected", "") if found[0]["type"] == "literal_error" else ""
    return did_you_mean(str(value), re.findall(r"'([^']*)'", expected))
