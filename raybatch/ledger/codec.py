"""Records as JSON, strictly: every field, no other field, each of its type; one spelling per record.

The spelling is canonical (sorted keys, no spaces, ASCII), so a record's checksum can be computed from the
record as well as from the stored bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from raybatch.errors import LedgerError

T = TypeVar("T")

VERSION = 1


def canonical(value: Any) -> str:
    """The one spelling of a JSON value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def encode(record: Any) -> Any:
    """A dataclass, or what its fields hold, as plain JSON values."""
    if dataclasses.is_dataclass(record):
        return {_name(f): encode(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {key: encode(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [encode(value) for value in record]
    return record


def dumps(record: Any) -> str:
    """A versioned record as it is stored."""
    return canonical({"version": VERSION, **encode(record)})


def loads(cls: type[T], text: str | bytes, *, where: str) -> T:
    """The record of type `cls` in `text`. Raises `LedgerError` that names `where` and what is wrong there."""
    try:
        said = text if isinstance(text, str) else text.decode()
        raw = json.loads(said)
    except ValueError as error:
        raise LedgerError(f"{where} is not JSON ({error}): it was damaged or edited") from None
    if not isinstance(raw, dict) or "version" not in raw:
        raise LedgerError(f"{where} is no record of raybatch: a JSON object with a version is expected")
    version = raw.pop("version")
    if version != VERSION:
        raise LedgerError(
            f"{where} is of version {version!r}, and this raybatch reads version {VERSION}:"
            " use the release that wrote it, or a newer one"
        )
    record = _object(cls, raw, where)
    if dumps(record) != said:
        raise LedgerError(f"{where} is not spelled as raybatch spells it: it was edited")
    return record


def _object(cls: type[T], raw: Any, where: str) -> T:
    if not isinstance(raw, dict):
        raise LedgerError(f"{where}: an object is expected, not {_short(raw)}")
    fields = _fields(typing.cast(Any, cls))
    for name in raw:
        if name not in fields:
            raise LedgerError(f"{where}: unknown field '{name}'; known: {', '.join(fields)}")
    for name in fields:
        if name not in raw:
            raise LedgerError(f"{where}: the field '{name}' is missing")
    return cls(**{own: _value(kind, raw[n], f"{where}: {n}") for n, (own, kind) in fields.items()})


@functools.cache
def _fields(cls: type[Any]) -> dict[str, tuple[str, Any]]:
    """For each field's name in JSON, its own name and its type."""
    hints = typing.get_type_hints(cls)
    return {_name(f): (f.name, hints[f.name]) for f in dataclasses.fields(cls)}


def _value(kind: Any, raw: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return raw
    if origin is types.UnionType:  # `X | None` is the only one in use
        return None if raw is None else _value(args[0], raw, where)
    if origin is tuple and isinstance(raw, list):
        return tuple(_value(args[0], item, f"{where}[{i}]") for i, item in enumerate(raw))
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(raw, dict):
        return {key: _value(args[1], item, f"{where}.{key}") for key, item in raw.items()}
    if dataclasses.is_dataclass(kind):
        return _object(typing.cast("type[Any]", kind), raw, where)
    if kind is float and type(raw) is int:
        return raw
    if type(raw) is not kind:  # also refuses a bool for an int
        expected = getattr(kind, "__name__", None) if origin is None else origin.__name__
        raise LedgerError(f"{where}: {expected} is expected, not {_short(raw)}")
    return raw


def _name(field: dataclasses.Field[Any]) -> str:
    name: str = field.metadata.get("json", field.name)
    return name


def _short(raw: Any) -> str:
    text = canonical(raw)
    return text if len(text) <= 60 else text[:57] + "..."
