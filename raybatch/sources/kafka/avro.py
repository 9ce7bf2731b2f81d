"""Avro values: the Arrow type of a schema, and records read under it.

What Avro has and Arrow has not: of unions only those of one type and null have a type, and no schema may contain
itself. Enums are strings, uuids too. Dates, times and timestamps come as Avro holds them, as numbers, so that
none is out of range of what Python can say.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from raybatch.errors import SourceError

HEADER_BYTES = 5  # of a schema registry: a zero, and the schema's number

_PLAIN: Mapping[str, pa.DataType] = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
}
_LOGICAL: Mapping[tuple[str, str], pa.DataType] = {
    ("int", "date"): pa.date32(),
    ("int", "time-millis"): pa.time32("ms"),
    ("long", "time-micros"): pa.time64("us"),
    ("long", "timestamp-millis"): pa.timestamp("ms", tz="UTC"),
    ("long", "timestamp-micros"): pa.timestamp("us", tz="UTC"),
    ("long", "timestamp-nanos"): pa.timestamp("ns", tz="UTC"),
    ("long", "local-timestamp-millis"): pa.timestamp("ms"),
    ("long", "local-timestamp-micros"): pa.timestamp("us"),
    ("long", "local-timestamp-nanos"): pa.timestamp("ns"),
}


class AvroSchema:
    """The schema in the text of an .avsc file. `where` names the file in messages. Raises `SourceError`."""

    def __init__(self, text: str, *, where: str) -> None:
        self._where = where
        try:
            said = json.loads(text)
        except ValueError as error:
            raise SourceError(f"{where}: an Avro schema is JSON, and this is not: {error}") from None
        try:
            found = _Types(where).of(said)
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(f"{where}: no Avro schema: {type(error).__name__}: {error}") from None
        if not pa.types.is_struct(found.type):
            raise SourceError(
                f"{where}: values of {found.type} have no columns: the schema has to be a record"
            )
        self.arrow = pa.schema(list(found.type))
        self._avro = found.avro

    def reader(self) -> Callable[[bytes], Mapping[str, Any]]:
        """What reads one value, and raises `ValueError` for one that is none.

        Raises `SourceError` where the library is not installed.
        """
        try:
            import fastavro
        except ImportError:
            raise SourceError("Avro values need fastavro: pip install 'raybatch[avro]'") from None
        try:
            parsed = fastavro.parse_schema(self._avro)
        except Exception as error:  # its exceptions have no common base
            raise SourceError(f"{self._where}: no Avro schema: {error}") from None

        def read(value: bytes) -> Mapping[str, Any]:
            stream = io.BytesIO(value)
            try:
                row: Mapping[str, Any] = fastavro.schemaless_reader(stream, parsed, None)
            except Exception as error:  # of any type, as the bytes may be anything
                raise ValueError(f"not of the Avro schema: {type(error).__name__}: {error}") from None
            if stream.tell() < len(value):
                raise ValueError(f"not of the Avro schema: {len(value) - stream.tell()} bytes are left over")
            return row

        return read


class _Found:
    """The Arrow type of a place in a schema, and the schema as it is to be read: without logical types, but decimals.

    With these, fastavro would make Python's dates and times.
    """

    def __init__(self, type_: pa.DataType, avro: Any) -> None:
        self.type = type_
        self.avro = avro


class _Types:
    """Walks a schema; named types are known from where they are defined."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._named: dict[str, pa.DataType | None] = {}  # None: being defined

    def of(self, said: Any, *, path: str = "", namespace: str = "") -> _Found:
        if isinstance(said, list):
            return self._union(said, path, namespace)
        if isinstance(said, str):
            return self._by_name(said, path, namespace)
        kind = said.get("type") if isinstance(said, dict) else None
        if isinstance(kind, (dict, list)):
            return self.of(kind, path=path, namespace=namespace)
        if kind in ("record", "error"):
            return self._record(said, path, namespace)
        if kind in ("enum", "fixed"):
            return self._leaf(said, kind, path, namespace)
        if kind == "array":
            item = self.of(said.get("items"), path=f"{path}[]", namespace=namespace)
            return _Found(pa.list_(item.type), {"type": "array", "items": item.avro})
        if kind == "map":
            item = self.of(said.get("values"), path=f"{path}{{}}", namespace=namespace)
            return _Found(pa.map_(pa.string(), item.type), {"type": "map", "values": item.avro})
        if not isinstance(kind, str):
            raise self._error(path, f"{json.dumps(said)} is no Avro type")
        return self._simple(said, kind, path, namespace)

    def _simple(self, said: Mapping[str, Any], kind: str, path: str, namespace: str) -> _Found:
        logical = said.get("logicalType")
        if kind == "bytes" and logical == "decimal":
            return _Found(self._decimal(said, path), said)
        if (kind, logical) in _LOGICAL:
            return _Found(_LOGICAL[(kind, str(logical))], kind)
        return self._by_name(kind, path, namespace)

    def _by_name(self, name: str, path: str, namespace: str) -> _Found:
        if name in _PLAIN:
            return _Found(_PLAIN[name], name)
        full = name if "." in name or not namespace else f"{namespace}.{name}"
        full = full if full in self._named else name
        if full not in self._named:
            raise self._error(path, f"'{name}' is no Avro type, and defined nowhere before")
        found = self._named[full]
        if found is None:
            raise self._error(
                path, f"'{name}' contains itself, which no column can; read the values as bytes"
            )
        return _Found(found, full)

    def _record(self, said: Mapping[str, Any], path: str, namespace: str) -> _Found:
        full = self._define(said, path, namespace)
        inside = full.rpartition(".")[0]
        self._named[full] = None
        fields, avro = [], []
        for field in said.get("fields", ()):
            at = f"{path}.{field['name']}" if path else str(field["name"])
            found = self.of(field.get("type"), path=at, namespace=inside)
            fields.append(pa.field(field["name"], found.type))
            avro.append({"name": field["name"], "type": found.avro})
        if not fields:
            raise self._error(path, "a record without fields, which no column can hold")
        self._named[full] = pa.struct(fields)
        return _Found(pa.struct(fields), {"type": "record", "name": full, "fields": avro})

    def _leaf(self, said: Mapping[str, Any], kind: str, path: str, namespace: str) -> _Found:
        full = self._define(said, path, namespace)
        if kind == "enum":
            self._named[full] = pa.string()
            return _Found(pa.string(), {"type": "enum", "name": full, "symbols": said.get("symbols")})
        whole: dict[str, Any] = {"type": "fixed", "name": full, "size": said.get("size")}
        found = pa.binary(int(said["size"]))
        if said.get("logicalType") == "decimal":
            found = self._decimal(said, path)
            whole |= {key: said[key] for key in ("logicalType", "precision", "scale") if key in said}
        self._named[full] = found
        return _Found(found, whole)

    def _define(self, said: Mapping[str, Any], path: str, namespace: str) -> str:
        name = said.get("name")
        if not isinstance(name, str):
            raise self._error(path, f"a type '{said['type']}' without a name")
        space = said.get("namespace", namespace)
        return name if "." in name or not space else f"{space}.{name}"

    def _decimal(self, said: Mapping[str, Any], path: str) -> pa.DataType:
        precision, scale = said.get("precision"), said.get("scale", 0)
        if not isinstance(precision, int) or not isinstance(scale, int) or not 0 < precision <= 76:
            raise self._error(path, f"a decimal of {precision} digits; from 1 to 76 are possible")
        return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)

    def _union(self, said: Sequence[Any], path: str, namespace: str) -> _Found:
        found = [self.of(one, path=path, namespace=namespace) for one in said]
        types = {one.type for one in found} - {pa.null()}
        if len(types) > 1:
            named = ", ".join(sorted(map(str, types)))
            raise self._error(path, f"a union of {named}, which no column can hold; read the values as bytes")
        return _Found(types.pop() if types else pa.null(), [one.avro for one in found])

    def _error(self, path: str, what: str) -> SourceError:
        return SourceError(f"{self._where}: {path + ': ' if path else ''}{what}")
