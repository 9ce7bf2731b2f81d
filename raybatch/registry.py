"""Finds the config class of a source, stage or sink by the `type` that the pipeline file says.

Types are entry points in three groups, so that a plugin is its own distribution and no edit here:

    [project.entry-points."raybatch.stages"]
    generate = "raybatch.stages.generate:GenerateConfig"

Only what a pipeline names is imported; `all_types` imports everything.
"""

from __future__ import annotations

import importlib.metadata
from importlib.metadata import EntryPoint
from typing import Literal, get_args

from raybatch.config import Config
from raybatch.errors import SpecError
from raybatch.nearest import did_you_mean

Kind = Literal["source", "stage", "sink"]

_GROUPS: dict[Kind, str] = {
    "source": "raybatch.sources",
    "stage": "raybatch.stages",
    "sink": "raybatch.sinks",
}

# What the rest of raybatch calls on a config; the contracts are in sources/base.py, stages/base.py,
# sinks/base.py.
_METHODS: dict[Kind, tuple[str, ...]] = {
    "source": ("build",),
    "stage": ("reads", "writes", "engines", "build", "resources", "fingerprint"),
    "sink": ("build",),
}


def known_types(kind: Kind) -> list[str]:
    """The names that `type` may have, sorted. Imports no plugin."""
    return sorted(_entry_points(kind))


def config_class(kind: Kind, name: str) -> type[Config]:
    """The config class registered as `name`.

    Raises `SpecError`, which names the known types, when there is none, and which names the distribution when
    it is broken. The message holds no file and line: the caller knows them.
    """
    found = _entry_points(kind)
    if name not in found:
        known = ", ".join(found) or "none is installed"
        raise SpecError(f"unknown {kind} type '{name}'{did_you_mean(name, found)}; known: {known}")
    points = found[name]
    if len({p.value for p in points}) > 1:
        said = " and ".join(sorted(_described(p) for p in points))
        raise SpecError(f"{kind} type '{name}' is registered twice, by {said}; uninstall one")
    return _load(kind, points[0])


def all_types(kind: Kind) -> dict[str, type[Config]]:
    """Every registered config class by its type. Raises `SpecError` if one is broken."""
    return {name: config_class(kind, name) for name in known_types(kind)}


def _entry_points(kind: Kind) -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for point in sorted(importlib.metadata.entry_points(group=_GROUPS[kind]), key=lambda p: p.name):
        found.setdefault(point.name, []).append(point)
    return found


def _load(kind: Kind, point: EntryPoint) -> type[Config]:
    subject = f"{kind} type '{point.name}' ({_described(point)})"
    try:
        loaded = point.load()
    # A plugin's module may raise anything while it is imported; whatever it is, the plugin is to blame.
    except Exception as error:
        raise SpecError(f"{subject} cannot be loaded: {type(error).__name__}: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Config)):
        raise SpecError(f"{subject} is not a subclass of raybatch.config.Config")
    field = loaded.model_fields.get("type")
    if field is None or get_args(field.annotation) != (point.name,):
        raise SpecError(f'{subject} must have the field `type: Literal["{point.name}"]`')
    missing = [m for m in _METHODS[kind] if not callable(getattr(loaded, m, None))]
    if missing:
        raise SpecError(f"{subject} has no method {', '.join(missing)}")
    return loaded


def _described(point: EntryPoint) -> str:
    return f"{point.value} of {point.dist.name} {point.dist.version}" if point.dist else point.value
