"""The JSON Schema of the pipeline file, for editors: completion, hover texts, and red lines under typos.

It is made from the same config classes that the file is validated with, so it knows every installed plugin.
"""

from __future__ import annotations

from typing import Any, cast

from pydantic.json_schema import JsonSchemaMode, models_json_schema

from raybatch.config import Config
from raybatch.registry import Kind, all_types
from raybatch.spec.load import NAME_PATTERN, STAGE_NAME_PATTERN
from raybatch.spec.pipeline import RunConfig

_Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_REFERENCE: _Schema = {
    "type": "string",
    "pattern": r"\$\{env:[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}",
    "description": "A value from the environment: ${env:NAME}, or ${env:NAME:-default}.",
}


def pipeline_schema() -> _Schema:
    """The schema of a whole pipeline file, draft 2020-12. Imports every registered source, stage and sink.

    Raises `SpecError` when one of them is broken.
    """
    kinds: dict[Kind, dict[str, type[Config]]] = {
        kind: all_types(kind) for kind in ("source", "stage", "sink")
    }
    classes: list[type[Config]] = [RunConfig, *(c for types in kinds.values() for c in types.values())]
    mode: JsonSchemaMode = "validation"
    refs, defs = models_json_schema([(c, mode) for c in classes], ref_template="#/$defs/{model}")
    definitions: dict[str, _Schema] = defs["$defs"]
    for definition in definitions.values():
        _tidy(definition)
    for kind, types in kinds.items():
        for config in types.values():
            _complete(definitions[_name(refs[(config, mode)])], kind)

    def one_of(kind: Kind) -> _Schema:
        return {"type": "object", "oneOf": [refs[(config, mode)] for config in kinds[kind].values()]}

    return {
        "$schema": DIALECT,
        "title": "raybatch pipeline",
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "source", "stages", "sink"],
        "properties": {
            "name": {
                "description": "Names the run and what it makes: a DNS label of at most 63 characters.",
                "anyOf": [{"type": "string", "pattern": NAME_PATTERN}, {"$ref": "#/$defs/EnvReference"}],
            },
            "source": {"description": "Where rows come from.", **one_of("source")},
            "stages": {
                "description": "What happens to each row, in this order.",
                "type": "array",
                "items": one_of("stage"),
            },
            "sink": {"description": "The dataset that rows end up in.", **one_of("sink")},
            "run": {"description": "How the pipeline is run.", **refs[(RunConfig, mode)]},
        },
        "$defs": {**definitions, "EnvReference": _REFERENCE},
    }


def _name(ref: _Schema) -> str:
    return str(ref["$ref"]).rpartition("/")[2]


def _complete(definition: _Schema, kind: Kind) -> None:
    """What the loader knows and the config class does not say: `type` is never left out, `name` often."""
    required = set(definition.get("required", ())) | {"type"}
    if kind == "stage":
        required -= {"name"}
        definition["properties"]["name"] |= {"pattern": STAGE_NAME_PATTERN}
    definition["required"] = sorted(required)


def _tidy(schema: _Schema) -> None:
    """Drops titles ("Max Rows" for max_rows), and allows a reference for every number and switch.

    Explains `type` once for all.
    """
    for node in _schemas(schema):
        for field in node.get("properties", {}).values():
            field.pop("title", None)
            if "const" in field:  # a `type`
                field.setdefault("description", "Which kind it is; the other keys depend on it.")
            _allow_reference(field)


def _schemas(schema: Any) -> list[_Schema]:
    """`schema` and all schemas in it, but not values such as defaults and examples."""
    if isinstance(schema, list):
        return [s for item in schema for s in _schemas(item)]
    if not isinstance(schema, dict):
        return []
    found = [cast(_Schema, schema)]
    for key in ("properties", "$defs", "patternProperties"):
        found += [s for child in schema.get(key, {}).values() for s in _schemas(child)]
    for key in ("items", "anyOf", "oneOf", "allOf", "prefixItems", "additionalProperties"):
        found += _schemas(schema.get(key))
    return found


def _allow_reference(schema: _Schema) -> None:
    reference = {"$ref": "#/$defs/EnvReference"}
    if "anyOf" in schema:
        if not any(member.get("type") == "string" for member in schema["anyOf"]):
            schema["anyOf"].append(reference)
    elif schema.get("type") in ("integer", "number", "boolean"):
        rules = {key: schema.pop(key) for key in list(schema) if key not in ("description", "default")}
        schema["anyOf"] = [rules, reference]
