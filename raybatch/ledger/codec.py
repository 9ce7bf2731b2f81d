"""Records as JSON, strictly: every field, no other field, each of its type; one spelling per record.

The spelling is canonical (sorted keys, no spaces, ASCII), so a record's checksum can be computed from the
record as well as from the stored bytes.

What decodes a type is put together once per type: a run reads a million records, and looking at type hints for
each field of each would take longer than all the rest.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

from raybatch.errors import LedgerError

T = TypeVar("T")

# 2: plans hold their units by column; unit records and parts are in folders of a thousand units
VERSION = 2

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), check_circular=False)
_PLAIN = frozenset({str, int, float, bool, type(None)})

Decode = Callable[[Any], Any]


@runtime_checkable
class SpellsItself(Protocol):
    """A value of a record that is no dataclass and has its own way to be JSON."""

    def to_plain(self) -> Any:
        """Plain JSON values."""

    @classmethod
    def from_plain(cls, raw: Any) -> Any:
        """The inverse; raises `ValueError` that says what is wrong."""


def canonical(value: Any) -> str:
    """The one spelling of a JSON value."""
    return _ENCODER.encode(value)


def encode(record: Any) -> Any:
    """A dataclass, or what its fields hold, as plain JSON values."""
    if type(record) in _PLAIN:
        return record
    if dataclasses.is_dataclass(record):
        return {name: encode(getattr(record, own)) for name, own in _names(typing.cast(Any, type(record)))}
    if isinstance(record, Mapping):
        return {key: encode(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [encode(value) for value in record]
    return record.to_plain() if isinstance(record, SpellsItself) else record


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
    version = raw["version"]
    if version != VERSION:
        raise LedgerError(
            f"{where} is of version {version!r}, and this raybatch reads version {VERSION}:"
            " use the release that wrote it, or a newer one"
        )
    edited = canonical(raw) != said
    del raw["version"]
    try:
        record: T = _decoder(typing.cast(Any, cls))(raw)
    except _MisfitError as misfit:
        raise LedgerError(f"{where}{''.join(reversed(misfit.at))}: {misfit.what}") from None
    if edited:
        raise LedgerError(f"{where} is not spelled as raybatch spells it: it was edited")
    return record


class _MisfitError(Exception):
    """JSON that is not what its type asks for. `at` is the way to it, from the inside out."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.at: list[str] = []


@functools.cache
def _decoder(kind: Any) -> Decode:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return lambda raw: raw
    if origin is types.UnionType:  # `X | None` is the only one in use
        inner = _decoder(args[0])
        return lambda raw: None if raw is None else inner(raw)
    if origin is tuple:
        return _items(args[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _entries(args[1])
    if dataclasses.is_dataclass(kind):
        return _object(typing.cast("type[Any]", kind))
    if isinstance(kind, type) and issubclass(kind, SpellsItself):
        return _own(kind)
    return _scalar(kind)


def _object(cls: type[Any]) -> Decode:
    hints = typing.get_type_hints(cls)
    fields = [(name, own, _decoder(hints[own])) for name, own in _names(typing.cast(Any, cls))]
    known = dict.fromkeys(name for name, _, _ in fields)

    def decode(raw: Any) -> Any:
        if type(raw) is not dict:
            raise _MisfitError(f"an object is expected, not {_short(raw)}")
        if raw.keys() != known.keys():
            raise _MisfitError(_strange_fields(raw, known))
        values = {}
        name = ""
        try:
            for name, own, inner in fields:
                values[own] = inner(raw[name])
        except _MisfitError as misfit:
            misfit.at.append(f": {name}")
            raise
        return cls(**values)

    return decode


def _strange_fields(raw: Mapping[str, Any], known: Mapping[str, None]) -> str:
    for name in raw:
        if name not in known:
            return f"unknown field '{name}'; known: {', '.join(known)}"
    missing = next(name for name in known if name not in raw)
    return f"the field '{missing}' is missing"


def _items(kind: Any) -> Decode:
    inner = _decoder(kind)

    def decode(raw: Any) -> Any:
        if type(raw) is not list:
            raise _expected("tuple", raw)
        done: list[Any] = []
        try:
            for item in raw:
                done.append(inner(item))  # their number tells where it went wrong
        except _MisfitError as misfit:
            misfit.at.append(f"[{len(done)}]")
            raise
        return tuple(done)

    return decode


def _entries(kind: Any) -> Decode:
    inner = _decoder(kind)

    def decode(raw: Any) -> Any:
        if type(raw) is not dict:
            raise _expected("Mapping", raw)
        if kind is Any:
            return raw
        done = {}
        key = ""
        try:
            for key, item in raw.items():
                done[key] = inner(item)
        except _MisfitError as misfit:
            misfit.at.append(f".{key}")
            raise
        return done

    return decode


def _own(kind: Any) -> Decode:
    def decode(raw: Any) -> Any:
        try:
            return kind.from_plain(raw)
        except ValueError as error:
            raise _MisfitError(str(error)) from None

    return decode


def _scalar(kind: Any) -> Decode:
    # type() and not isinstance: a bool is no int
    accepted = (int, float) if kind is float else (kind,)

    def decode(raw: Any) -> Any:
        if type(raw) in accepted:
            return raw
        raise _expected(getattr(kind, "__name__", str(kind)), raw)

    return decode


def _expected(name: str, raw: Any) -> _MisfitError:
    return _MisfitError(f"{name} is expected, not {_short(raw)}")


@functools.cache
def _names(cls: type[Any]) -> tuple[tuple[str, str], ...]:
    """The fields of a dataclass that are stored: name in JSON, own name."""
    return tuple((f.metadata.get("json", f.name), f.name) for f in dataclasses.fields(cls) if f.init)


def _short(raw: Any) -> str:
    text = canonical(raw)
    return text if len(text) <= 60 else text[:57] + "..."
