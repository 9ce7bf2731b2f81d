"""Profiles: what one environment says about every pipeline that runs in it.

A profile is a partial pipeline file. Its values are defaults: the pipeline's own win, mappings are merged
key by key, lists are replaced. Three rules make one profile fit many pipelines:

- `source` and `sink` sections that say a `type` count only for pipelines with a source or sink of that type;
- `stages` is a mapping instead of a list. A key that is a stage type (`generate`) is said of every stage of
  that type, a key that is a stage's name of that stage, with more weight. Any other key is an error;
- relative paths start at the profile's own folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from raybatch.errors import SpecError
from raybatch.nearest import did_you_mean
from raybatch.registry import known_types
from raybatch.spec.tree import Findings, Node, merge

_SUFFIXES = (".yaml", ".yml")


def find_profile(profile: str, *, pipeline_file: str) -> str:
    """The file of `--profile`: a path if it has a slash or a YAML suffix, else the name of a file in
    `configs/`.

    `configs/NAME.yaml` is looked for beside the pipeline's folder, in it, and in the current directory.
    Raises `SpecError` with the names that there are.
    """
    if os.sep in profile or profile.endswith(_SUFFIXES):
        return profile
    folders = _folders(pipeline_file)
    for folder in folders:
        for suffix in _SUFFIXES:
            if (folder / f"{profile}{suffix}").is_file():
                return str(folder / f"{profile}{suffix}")
    names = sorted({p.stem for f in folders if f.is_dir() for p in f.iterdir() if p.suffix in _SUFFIXES})
    there = f"there is: {', '.join(names)}" if names else "there is none"
    looked = ", ".join(str(f) for f in folders)
    raise SpecError(
        f"--profile {profile}: no such profile{did_you_mean(profile, names)}; {there}; looked in {looked}"
    )


def _folders(pipeline_file: str) -> list[Path]:
    home = Path(pipeline_file).absolute().parent
    current = Path.cwd()
    found = dict.fromkeys([home.parent / "configs", home / "configs", current / "configs"])
    return [f.relative_to(current) if f.is_relative_to(current) else f for f in found]


def with_profile(pipeline: Node, profile: Node, *, findings: Findings) -> Node:
    """`pipeline` on top of `profile`, both whole files."""
    assert isinstance(profile.value, dict)
    base = dict(profile.value)
    for kind in ("source", "sink"):
        if kind in base and _other_type(base[kind], pipeline.get(kind)):
            del base[kind]
    overlays = base.pop("stages", None)
    merged = merge(Node(base, profile.origin), pipeline)
    stages = pipeline.get("stages")
    if overlays is None or stages is None or not isinstance(stages.value, list):
        return merged
    if not isinstance(overlays.value, dict):
        findings.add(
            overlays.origin, "stages: in a profile, this is a mapping of stage types or names, not a list"
        )
        return merged
    _check_overlays(overlays.value, stages.value, findings)
    laid = [_with_overlays(stage, overlays) for stage in stages.value]
    assert isinstance(merged.value, dict)
    return Node(merged.value | {"stages": Node(laid, stages.origin)}, merged.origin)


def _other_type(said: Node, pipeline: Node | None) -> bool:
    wanted = pipeline.text("type") if pipeline else None
    return wanted is not None and said.text("type") not in (None, wanted)


def _stage_name(stage: Node) -> str | None:
    return stage.text("name") or stage.text("type")


def _check_overlays(overlays: dict[str, Node], stages: list[Node], findings: Findings) -> None:
    names = [name for name in map(_stage_name, stages) if name]
    known = dict.fromkeys([*names, *known_types("stage")])
    for key, overlay in overlays.items():
        if key not in known:
            near = did_you_mean(key, known)
            what = f"stages.{key}: neither a stage of this pipeline nor a stage type{near}"
            findings.add(overlay.origin, f"{what}; known: {', '.join(known)}")
        elif not isinstance(overlay.value, dict):
            findings.add(overlay.origin, f"stages.{key}: should be a mapping")


def _with_overlays(stage: Node, overlays: Node) -> Node:
    laid = stage
    # Nearest first: what the stage's name says is already there when its type's overlay is merged under it.
    for key in dict.fromkeys([_stage_name(stage), stage.text("type")]):
        overlay = overlays.get(key) if key else None
        if overlay and isinstance(overlay.value, dict):
            laid = merge(overlay, laid)
    return laid
