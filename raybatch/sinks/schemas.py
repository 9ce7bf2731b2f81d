"""One schema for all units of an epoch, and for the epochs after it as far as types allow.

Units may come with different schemas: a column that is null in all rows of one unit, whole numbers where
another has fractions, keys that only some rows have. Readers want files that agree.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from raybatch.errors import LedgerError
from raybatch.rows import ID_COLUMNS, ID_FIELDS


def normalise(table: pa.Table) -> pa.Table:
    """The table as it is stored: the user's columns in their order, then the ids, in types that Parquet gives
    back as they are.

    Dictionary columns are decoded (Parquet encodes by dictionary itself, and units' types then agree), and
    schema metadata is dropped: it describes an index or a file that is not this one. Raises `ValueError` that
    names the column which cannot be stored.
    """
    names = table.column_names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"the column '{twice[0]}' is there twice")
    fields, columns = [], []
    for field in table.schema:
        if field.name in ID_COLUMNS:
            continue
        column = table[field.name]
        if pa.types.is_dictionary(field.type):
            column = column.cast(field.type.value_type)
        fields.append(field.with_type(column.type).with_nullable(True))
        columns.append(column)
    ids = [table[field.name].cast(field.type) for field in ID_FIELDS]
    whole = pa.table([*columns, *ids], schema=pa.schema([*fields, *ID_FIELDS]))
    return whole.cast(stored_as(whole.schema))


def stored_as(schema: pa.Schema) -> pa.Schema:
    """`schema` as a reader of the Parquet file sees it: seconds become milliseconds, and so on.

    Raises `ValueError` that names the column which Parquet cannot hold, and says why in Arrow's words.
    """
    return pa.schema([_stored_field(field) for field in schema])


@functools.lru_cache(maxsize=1024)
def _stored_field(field: pa.Field) -> pa.Field:
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    try:
        pq.ParquetWriter(sink, pa.schema([field])).close()
        return pq.read_schema(pa.BufferReader(sink.getvalue())).field(0)
    except pa.ArrowException as error:
        raise ValueError(
            f"the column '{field.name}' ({field.type}) cannot be stored as Parquet: {error}"
        ) from None


@dataclass
class _Column:
    type: pa.DataType
    unit: int  # the one whose type it was first


def unify(schemas: Iterable[tuple[int, pa.Schema]], *, before: pa.Schema | None = None) -> pa.Schema:
    """The schema that every unit's rows fit: null becomes typed, types widen as Arrow's own rules permit.

    `schemas` are those of units, by number, in order. `before` is that of the epoch before: its columns
    come first, and its types are kept where rows of this epoch fit them, so that one glob reads all. Raises
    `LedgerError` that names the column, both types and the two units where two units cannot be reconciled.
    """
    columns: dict[str, _Column] = {}
    for unit, schema in schemas:
        for field in schema:
            if field.name not in ID_COLUMNS:
                _add(columns, field, unit)
    types = {name: column.type for name, column in columns.items()}
    for field in before or ():
        if (
            field.name not in ID_COLUMNS
            and _widen(field.type, types.get(field.name, pa.null())) == field.type
        ):
            types[field.name] = field.type
    old = [field.name for field in before or () if field.name in types]
    order = [*old, *(name for name in types if name not in old)]
    return pa.schema([*(pa.field(name, _without_null(types[name])) for name in order), *ID_FIELDS])


def conform(table: pa.Table, schema: pa.Schema, *, where: str) -> pa.Table:
    """The rows in `schema`, made by `unify` of theirs. Raises `LedgerError` for a value that does not fit."""
    bare = table.replace_schema_metadata(None)
    if bare.schema.equals(schema):
        return bare
    try:
        widened = pa.concat_tables([schema.empty_table(), bare], promote_options="permissive")
        return widened.select(schema.names).cast(schema)
    except pa.ArrowInvalid as error:
        raise LedgerError(
            f"{where} does not fit the columns of the other units: {error}. Have the stage that makes the"
            " column give it one type in every unit"
        ) from None


def _add(columns: dict[str, _Column], field: pa.Field, unit: int) -> None:
    known = columns.get(field.name)
    if known is None:
        columns[field.name] = _Column(type=field.type, unit=unit)
        return
    widened = _widen(known.type, field.type)
    if widened is None:
        raise LedgerError(
            f"the column '{field.name}' is {known.type} in unit {known.unit} and {field.type} in unit {unit},"
            " and no type holds both. Have the stage that makes it give it one type in every unit, and run"
            " again to another sink.path, or delete the records of the units of the wrong type to have them"
            " done again"
        )
    if widened != known.type:
        columns[field.name] = _Column(type=widened, unit=unit)


def _widen(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds both, by Arrow's permissive rules; None if there is none."""
    if one == other:
        return one
    pair = [pa.schema([("x", one)]), pa.schema([("x", other)])]
    try:
        return pa.unify_schemas(pair, promote_options="permissive").field(0).type
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return None


def _without_null(kind: pa.DataType) -> pa.DataType:
    """`kind` with string for null: a column that is null throughout has no type, and Spark reads none such.

    String is a guess, made once an epoch is complete; `unify` lets a later epoch know better.
    """
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(_without_null(f.type)) for f in kind])
    if pa.types.is_fixed_size_list(kind):
        item = kind.value_field
        return pa.list_(item.with_type(_without_null(item.type)), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_without_null(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_without_null(kind.value_type)))
    return kind
