"""Arrow types by name, as pipeline files declare them: `int64`, `list<string>`, `struct<a: int64, b: bool>`.

    type   := name | name[args] | name(args) | list<type> | fixed_size_list<type>[n] | map<type, type>
              | struct<field: type, ...>

What `str(pa_type)` prints is understood as well (`double`, `list<item: string>`, `timestamp[us, tz=UTC]`), so
a type can be copied from a schema that was printed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import pyarrow as pa

from raybatch.nearest import did_you_mean

_PLAIN: Mapping[str, pa.DataType] = {
    "null": pa.null(),
    "bool": pa.bool_(),
    **{
        f"{sign}int{bits}": getattr(pa, f"{sign}int{bits}")()
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
    "float16": pa.float16(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "halffloat": pa.float16(),  # Arrow's own spelling of the three
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.string(),
    "large_string": pa.large_string(),
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "date32": pa.date32(),
    "date32[day]": pa.date32(),
    "date64": pa.date64(),
    "date64[ms]": pa.date64(),
}
_UNITS: Mapping[str, tuple[str, ...]] = {
    "timestamp": ("s", "ms", "us", "ns"),
    "duration": ("s", "ms", "us", "ns"),
    "time32": ("s", "ms"),
    "time64": ("us", "ns"),
}
_NESTED = ("list", "large_list", "fixed_size_list", "map", "struct")
_HEAD = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*")
_ARGUMENTS = re.compile(r"\[([^\]<>]*)\]|\(([^)<>]*)\)")
_FIELD = re.compile(r"\s*(?:\"([^\"]+)\"|([^\s:<>,\"]+))\s*:")
_KNOWN = [n for n in _PLAIN if "[" not in n] + [f"{n}[{u}]" for n, us in _UNITS.items() for u in us]


def parse_type(text: str) -> pa.DataType:
    """The Arrow type that `text` names; see the module's docstring for the grammar.

    Raises `ValueError` that names the part which is wrong and what is possible.
    """
    parser = _Parser(text)
    found = parser.type()
    parser.end()
    return found


class _Parser:
    """Recursive descent over one type; `at` is how far it has read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def type(self) -> pa.DataType:
        head = _HEAD.match(self.text, self.at)
        if head is None:
            raise self.error("a type name is missing")
        self.at = head.end()
        name = head.group(1)
        return self.nested(name) if name in _NESTED else self.plain(name)

    def plain(self, name: str) -> pa.DataType:
        arguments = _ARGUMENTS.match(self.text, self.at)
        if arguments is None:
            if name in _PLAIN:
                return _PLAIN[name]
            raise self.unknown(name)
        self.at = arguments.end()
        if name + arguments.group(0) in _PLAIN:
            return _PLAIN[name + arguments.group(0)]
        inside = [part.strip() for part in (arguments.group(1) or arguments.group(2) or "").split(",")]
        return self.with_arguments(name, inside)

    def with_arguments(self, name: str, inside: list[str]) -> pa.DataType:
        unit, *rest = inside
        if name == "timestamp" and len(rest) == 1 and unit in _UNITS[name] and rest[0].startswith("tz="):
            return pa.timestamp(unit, tz=rest[0].removeprefix("tz="))
        if name in _UNITS and unit in _UNITS[name] and not rest:
            return getattr(pa, name)(unit)
        if (
            name in ("decimal128", "decimal256")
            and len(inside) == 2
            and all(re.fullmatch(r"-?\d+", i) for i in inside)
        ):
            return self.checked(lambda: getattr(pa, name)(*map(int, inside)))
        raise self.unknown(f"{name}[{', '.join(inside)}]")

    def nested(self, name: str) -> pa.DataType:
        self.expect("<")
        if name == "struct":
            return pa.struct(self.fields())
        first = self.item()
        if name == "map":
            self.expect(",")
            second = self.item()
            self.expect(">")
            return self.checked(lambda: pa.map_(first, second))
        self.expect(">")
        if name != "fixed_size_list":
            return pa.list_(first) if name == "list" else pa.large_list(first)
        size = re.compile(r"\s*\[\s*(\d+)\s*\]").match(self.text, self.at)
        if size is None:
            raise self.error("fixed_size_list needs its length, as in fixed_size_list<float32>[384]")
        self.at = size.end()
        return pa.list_(first, int(size.group(1)))

    def item(self) -> pa.DataType:
        """A list's item, with or without the field name that Arrow prints before it (`item: string`)."""
        name = re.compile(r"\s*(item|element|key|value)\s*:").match(self.text, self.at)
        if name is not None:
            self.at = name.end()
        return self.type()

    def fields(self) -> list[pa.Field]:
        fields: list[pa.Field] = []
        while not fields or self.accept(","):
            name = _FIELD.match(self.text, self.at)
            if name is None:
                raise self.error("a struct's fields look like `name: type`")
            self.at = name.end()
            fields.append(pa.field(name.group(1) or name.group(2), self.type()))
            if fields[-1].name in [f.name for f in fields[:-1]]:
                raise self.error(f"the struct has the field '{fields[-1].name}' twice")
        self.expect(">")
        return fields

    def accept(self, mark: str) -> bool:
        found = re.compile(r"\s*" + re.escape(mark)).match(self.text, self.at)
        if found is None:
            return False
        self.at = found.end()
        return True

    def expect(self, mark: str) -> None:
        if not self.accept(mark):
            raise self.error(f"'{mark}' is missing")

    def end(self) -> None:
        if self.text[self.at :].strip():
            raise self.error("the type has ended, but the text goes on")

    def checked(self, make: Callable[[], pa.DataType]) -> pa.DataType:
        try:
            return make()
        except (ValueError, pa.ArrowInvalid) as error:
            raise self.error(str(error)) from None

    def unknown(self, name: str) -> ValueError:
        hint = did_you_mean(name, [*_KNOWN, *_NESTED])
        return ValueError(
            f"'{self.text}' is no Arrow type: '{name}' is unknown{hint}; possible: {', '.join(_KNOWN)},"
            " decimal128(precision, scale), list<...>, fixed_size_list<...>[n], struct<name: type, ...>,"
            " map<key, value>"
        )

    def error(self, what: str) -> ValueError:
        rest = self.text[self.at :].strip()
        where = f"before '{rest}'" if rest else "at the end"
        return ValueError(f"'{self.text}' is no Arrow type: {what} ({where})")
