"""The units of a plan, of which there may be a million, by column: a sequence of `UnitSpec` that are made as
they are asked for.

Units of one source look alike: the same keys, a path and a version that hold for many units in a row, numbers
that differ. So `range`, `rows` and `bytes` are columns, in memory and in the plan's JSON, and a column is one of

    {"runs": [[3, "a.jsonl"], [2, "b.jsonl"]]}             values that repeat: how often, and what
    {"fields": {"start": column, "end": column}}           objects that all have the same keys
    {"values": [0, 8192, 16384]}                           anything else

A unit of a line-based source takes some 20 bytes so, and 500 as an object of its own.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, repeat
from typing import Any, Protocol, overload

from raybatch.ledger import codec
from raybatch.sources.base import UnitSpec


class Column(Protocol):
    """A value per unit."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Any: ...

    def __iter__(self) -> Iterator[Any]: ...

    def to_plain(self) -> Any: ...


class Units(Sequence[UnitSpec]):
    """See the module's docstring. `ranges`, `rows` and `sizes` are the columns: `range`, `rows` and `bytes` of
    each unit."""

    def __init__(self, *, ranges: Column, rows: Column, sizes: Column) -> None:
        self.ranges = ranges
        self.rows = rows
        self.sizes = sizes

    @classmethod
    def of(cls, specs: Sequence[UnitSpec]) -> Units:
        """The same units, by column."""
        if isinstance(specs, Units):
            return specs
        return cls(
            ranges=_column([spec.range for spec in specs]),
            rows=_column([spec.rows for spec in specs]),
            sizes=_column([spec.bytes for spec in specs]),
        )

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> UnitSpec: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[UnitSpec]: ...

    def __getitem__(self, index: int | slice) -> UnitSpec | Sequence[UnitSpec]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(index)
        return UnitSpec(range=self.ranges[at], rows=self.rows[at], bytes=self.sizes[at])

    def __iter__(self) -> Iterator[UnitSpec]:
        for held, rows, size in zip(self.ranges, self.rows, self.sizes, strict=True):
            yield UnitSpec(range=held, rows=rows, bytes=size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (Units, tuple, list)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # ranges are JSON, of which objects have no hash

    def __repr__(self) -> str:
        return f"Units({len(self)})"

    def to_plain(self) -> Any:
        """See `codec.SpellsItself`."""
        columns = {"range": self.ranges, "rows": self.rows, "bytes": self.sizes}
        return {"count": len(self), **{name: column.to_plain() for name, column in columns.items()}}

    @classmethod
    def from_plain(cls, raw: Any) -> Units:
        """See `codec.SpellsItself`."""
        if type(raw) is not dict or raw.keys() != {"count", "range", "rows", "bytes"}:
            raise ValueError("units by column are expected: count, range, rows and bytes")
        columns = {name: _from_plain(raw[name], name) for name in ("range", "rows", "bytes")}
        for name, column in columns.items():
            if len(column) != raw["count"]:
                raise ValueError(f"{name} has {len(column)} values for {_short(raw['count'])} units")
        _check_each(columns["range"], lambda v: isinstance(v, dict), "range", "objects")
        _check_each(columns["rows"], lambda v: v is None or type(v) is int, "rows", "integers or null")
        _check_each(columns["bytes"], lambda v: type(v) is int, "bytes", "integers")
        return cls(ranges=columns["range"], rows=columns["rows"], sizes=columns["bytes"])


class _Values:
    """A value for each unit; 8 bytes each where all are integers."""

    def __init__(self, values: list[Any]) -> None:
        self._values: Sequence[Any] = values
        if values and all(type(value) is int for value in values):
            try:
                self._values = array("q", values)
            except OverflowError:
                return  # more than 64 bits, which JSON allows

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, position: int) -> Any:
        return self._values[position]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def distinct(self) -> Sequence[Any]:
        return self._values

    def to_plain(self) -> Any:
        return {"values": list(self._values)}


class _Runs:
    """Values that hold for several units in a row each."""

    def __init__(self, counts: list[int], values: list[Any]) -> None:
        self._counts = array("q", counts)
        self._ends = array("q", accumulate(counts))
        self._values = values

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, position: int) -> Any:
        return self._values[bisect_right(self._ends, position)]

    def __iter__(self) -> Iterator[Any]:
        for count, value in zip(self._counts, self._values, strict=True):
            yield from repeat(value, count)

    def distinct(self) -> Sequence[Any]:
        return self._values

    def to_plain(self) -> Any:
        return {"runs": [list(run) for run in zip(self._counts, self._values, strict=True)]}


class _Fields:
    """Objects that all have the same keys: a column for each."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self._columns = columns
        self._length = len(next(iter(columns.values())))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> Any:
        return {name: column[position] for name, column in self._columns.items()}

    def __iter__(self) -> Iterator[Any]:
        names = tuple(self._columns)
        for values in zip(*self._columns.values(), strict=True):
            yield dict(zip(names, values, strict=True))

    def distinct(self) -> Sequence[Any]:
        return [self[0]]  # all are objects

    def to_plain(self) -> Any:
        return {"fields": {name: column.to_plain() for name, column in self._columns.items()}}


_Column = _Values | _Runs | _Fields


def _column(values: Sequence[Any]) -> _Column:
    """The column that is the shortest, or nearly."""
    runs = _runs(values)
    if runs is not None:
        return runs
    names = _common_names(values)
    if names:
        return _Fields({name: _column([value[name] for value in values]) for name in names})
    return _Values([codec.encode(value) for value in values])


def _runs(values: Sequence[Any]) -> _Runs | None:
    """None where there would be more than a run for two values."""
    counts: list[int] = []
    held: list[Any] = []
    for value in values:
        if held and _same(held[-1], value):
            counts[-1] += 1
            continue
        if 2 * len(held) + 2 > len(values):
            return None
        counts.append(1)
        held.append(value)
    return _Runs(counts, [codec.encode(value) for value in held])


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are spelled the same: 1, 1.0 and true are not."""
    if one is other:
        return True
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if type(one) is str or type(one) is int:
        return type(other) is type(one) and bool(one == other)
    return codec.canonical(codec.encode(one)) == codec.canonical(codec.encode(other))


def _common_names(values: Sequence[Any]) -> list[str]:
    """The keys of objects that all have the same; empty if there are none such."""
    first = values[0] if values else None
    if not isinstance(first, Mapping):
        return []
    names = first.keys()
    same = all(isinstance(value, Mapping) and value.keys() == names for value in values)
    return list(names) if same else []


def _from_plain(raw: Any, where: str) -> _Column:
    kind = next(iter(raw)) if isinstance(raw, dict) and len(raw) == 1 else None
    held = raw[kind] if kind is not None else None
    if kind == "values" and isinstance(held, list):
        return _Values(held)
    if kind == "runs" and isinstance(held, list):
        for run in held:
            if type(run) is not list or len(run) != 2 or type(run[0]) is not int or run[0] < 1:
                raise ValueError(f"{where}: a run is a positive count and a value, not {_short(run)}")
        return _Runs([count for count, _ in held], [value for _, value in held])
    if kind == "fields" and isinstance(held, dict) and held:
        columns = {name: _from_plain(column, f"{where}.{name}") for name, column in held.items()}
        if len({len(column) for column in columns.values()}) > 1:
            raise ValueError(f"{where}: its fields are of different lengths")
        return _Fields(columns)
    raise ValueError(f"{where}: values, runs or fields are expected, not {_short(raw)}")


def _check_each(column: _Column, fits: Callable[[Any], bool], name: str, what: str) -> None:
    for value in column.distinct():
        if not fits(value):
            raise ValueError(f"{name}: {what} are expected, not {_short(value)}")


def _short(raw: Any) -> str:
    text = codec.canonical(raw)
    return text if len(text) <= 60 else text[:57] + "..."
