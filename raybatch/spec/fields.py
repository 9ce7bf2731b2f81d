"""What a config allows at each key path, read from its JSON Schema.

Pydantic says that a key is not permitted, but not which are; and a string must be expanded before
validation, when only the schema can tell a secret or a path from other text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError

from raybatch.config import Config
from raybatch.errors import SpecError
from raybatch.spec.tree import KeyPath

_Schema = dict[str, Any]


class Fields:
    """The fields of one config class, by key path."""

    def __init__(self, config: type[Config]) -> None:
        try:
            self._root: _Schema = config.model_json_schema()
        except (PydanticInvalidForJsonSchema, PydanticUserError) as error:
            name = f"{config.__module__}:{config.__qualname__}"
            raise SpecError(f"the fields of {name} have no JSON Schema: {error.message}") from error

    def keys(self, path: KeyPath) -> list[str]:
        """The keys that the mapping at `path` may have, as far as the config names them."""
        return list(dict.fromkeys(k for option in self._at(path) for k in option.get("properties", ())))

    def formats(self, path: KeyPath) -> set[str]:
        """The JSON Schema formats that the text at `path` may have: see `raybatch.config`."""
        return {option["format"] for option in self._at(path) if "format" in option}

    def _at(self, path: KeyPath) -> list[_Schema]:
        options = list(self._options(self._root))
        for part in path:
            options = [
                o for option in options for below in _below(option, part) for o in self._options(below)
            ]
        return options

    def _options(self, schema: _Schema) -> Iterator[_Schema]:
        """The alternatives that `schema` stands for, references followed."""
        if "$ref" in schema:
            yield from self._options(self._root["$defs"][schema["$ref"].rpartition("/")[2]])
        yield schema
        for union in ("anyOf", "oneOf", "allOf"):
            for member in schema.get(union, ()):
                yield from self._options(member)


def _below(schema: _Schema, part: str | int) -> Iterator[_Schema]:
    if isinstance(part, int):
        items = schema.get("items")
        prefix = schema.get("prefixItems", [])
        child = prefix[part] if part < len(prefix) else items
    elif part in schema.get("properties", {}):
        child = schema["properties"][part]
    else:
        child = schema.get("additionalProperties")
    if isinstance(child, dict):
        yield child
