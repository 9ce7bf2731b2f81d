"""From a pipeline file to a `Pipeline`: read, lay over, expand, validate, check columns.

    tree = read_tree(file)                     # every value knows its line
    tree = profile under it, --set over it     # precedence: defaults, profile, pipeline, --set
    config of each source, stage, sink         # ${env:NAME} expanded, then the component's own pydantic model
    check_columns(pipeline)                    # who reads what nobody writes

What is wrong is collected and told at once, one line for each finding.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import ValidationError

from raybatch.config import Config
from raybatch.errors import RaybatchError, SpecError
from raybatch.registry import Kind, config_class, known_types
from raybatch.spec.columns import check_columns
from raybatch.spec.expand import Expander
from raybatch.spec.explain import explain, quoted, unknown_key
from raybatch.spec.fields import Fields
from raybatch.spec.override import with_set
from raybatch.spec.pipeline import Pipeline, RunConfig
from raybatch.spec.profile import find_profile, with_profile
from raybatch.spec.tree import Findings, KeyPath, Node, dotted, plain, walk
from raybatch.spec.yaml_tree import read_tree

TOP_LEVEL_KEYS = ("name", "source", "stages", "sink", "run")

NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
"""A DNS label (RFC 1123): the name becomes part of Kubernetes objects and of a Kafka group."""

STAGE_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"


def load_pipeline(
    path: str | os.PathLike[str],
    *,
    profile: str | None = None,
    sets: Sequence[str] = (),
    env: Mapping[str, str] = os.environ,
) -> Pipeline:
    """The pipeline in the file at `path`, with `--profile` under it and each `--set` text of `sets` over it.

    Reads no input and starts nothing; the only files read are the pipeline, the profile and mounted secrets.
    Relative paths start at the folder of the file that says them, those of `sets` at the current directory.
    Raises `SpecError`, with one line `file:line: what` for each finding.
    """
    file = os.fspath(path)
    findings = Findings()
    tree = read_tree(file, findings=findings)
    if profile is not None:
        profile_file = find_profile(profile, pipeline_file=file)
        tree = with_profile(tree, read_tree(profile_file, findings=findings), findings=findings)
    for text in sets:
        tree = with_set(tree, text, findings=findings)
    pipeline = _Compiler(tree, file=file, env=env, findings=findings).pipeline()
    check_columns(pipeline)
    return pipeline


class _Compiler:
    """One use: turns the merged tree into typed configs, or into findings."""

    def __init__(self, tree: Node, *, file: str, env: Mapping[str, str], findings: Findings) -> None:
        self._tree = tree
        self._file = file
        self._base_dir = os.path.dirname(os.path.abspath(file))
        self._findings = findings
        self._expander = Expander(env, findings)
        self._context = {"base_dir": self._base_dir}

    def pipeline(self) -> Pipeline:
        """Raises `SpecError` with all findings, those from before included."""
        self._check_keys()
        name = self._context["pipeline"] = self._name()
        source = self._component("source", self._tree.get("source"), ("source",))
        stages = self._stages()
        sink = self._component("sink", self._tree.get("sink"), ("sink",))
        run = self._run()
        if source and run:
            self._check_mode(source, run)
        self._findings.raise_if_any()
        return Pipeline(
            name=name,
            source=cast(Any, source),
            stages=cast(Any, tuple(stages)),
            sink=cast(Any, sink),
            run=cast(RunConfig, run),
            file=self._file,
            base_dir=self._base_dir,
            raw=plain(self._tree),
            where={dotted(path): node.origin.where for path, node in walk(self._tree)},
        )

    def _check_keys(self) -> None:
        assert isinstance(self._tree.value, dict)
        for key, node in self._tree.value.items():
            if key not in TOP_LEVEL_KEYS:
                self._findings.add(node.origin, f"{key}: {unknown_key(key, list(TOP_LEVEL_KEYS))}")

    def _name(self) -> str:
        node = self._tree.get("name")
        if node is None:
            self._findings.add(
                self._tree.origin, "name: is missing; it names the run, as in `name: ticket-summaries`"
            )
            return ""
        if not isinstance(node.value, str):
            self._findings.add(
                node.origin, f"name: should be text, got {quoted(node.value)}; put it in quotes"
            )
            return ""
        name = self._expander.text(node, path=("name",))
        if ("name",) not in self._expander.failed and not re.fullmatch(NAME_PATTERN, name):
            fitting = re.sub(r"[^a-z0-9]+", "-", name.lower())[:63].strip("-")
            hint = f"; try '{fitting}'" if fitting else ""
            rule = "should be a DNS label: a-z, 0-9 and '-' between them, at most 63"
            self._findings.add(node.origin, f"name: {rule}, got {name!r}{hint}")
        return name

    def _stages(self) -> list[Config]:
        node = self._tree.get("stages")
        if node is None:
            self._findings.add(
                self._tree.origin, "stages: is missing; to copy rows as they are, write `stages: []`"
            )
            return []
        if not isinstance(node.value, list):
            self._findings.add(node.origin, "stages: should be a list, each item a mapping that has a `type`")
            return []
        found = [self._component("stage", item, ("stages", i)) for i, item in enumerate(node.value)]
        self._check_stage_names(found, node.value)
        return [stage for stage in found if stage]

    def _check_stage_names(self, stages: list[Config | None], nodes: list[Node]) -> None:
        seen: dict[str, int] = {}
        for i, (stage, node) in enumerate(zip(stages, nodes, strict=True)):
            if stage is None:
                continue
            name: str = cast(Any, stage).name
            origin = (node.get("name") or node).origin
            key = f"stages[{i}].name"
            if not re.fullmatch(STAGE_NAME_PATTERN, name) or name in ("source", "sink"):
                rule = "should be letters, digits, '_' and '-', at most 63, and not 'source' or 'sink'"
                self._findings.add(origin, f"{key}: {rule}, got {name!r}")
            elif name in seen:
                what = f"stages[{seen[name]}] is called '{name}' too; give one of them a `name:` of its own"
                self._findings.add(origin, f"{key}: {what}")
            seen.setdefault(name, i)

    def _run(self) -> RunConfig | None:
        node = self._tree.get("run")
        # A section of which every line is a comment is null
        if node is None or node.value is None:
            node = Node({}, self._tree.origin)
        return cast(RunConfig | None, self._validated(RunConfig, node, ("run",)))

    def _check_mode(self, source: Config, run: RunConfig) -> None:
        if run.mode == "continuous" and not getattr(source, "continuous", False):
            kind = cast(Any, source).type
            node = cast(Node, cast(Node, self._tree.get("run")).get("mode"))
            what = (
                f"a '{kind}' source is read to its end and cannot be continuous; use batch, and run it again"
            )
            self._findings.add(node.origin, f"run.mode: {what} for what has appeared since")

    def _component(self, kind: Kind, node: Node | None, path: KeyPath) -> Config | None:
        """The typed config of a source, stage or sink; None when there are findings instead."""
        key = dotted(path)
        if node is None:
            types = ", ".join(known_types(kind))
            self._findings.add(
                self._tree.origin, f"{key}: is missing; it is a mapping with `type` one of: {types}"
            )
            return None
        type_node = node.get("type")
        if type_node is None or not isinstance(type_node.value, str):
            origin = (type_node or node).origin
            types = ", ".join(known_types(kind))
            self._findings.add(origin, f"{key}: should be a mapping that has a `type`, one of: {types}")
            return None
        name = self._expander.text(type_node, path=(*path, "type"))
        if (*path, "type") in self._expander.failed:
            return None
        try:
            config = config_class(kind, name)
        except SpecError as error:
            self._findings.add(type_node.origin, f"{key}: {error}")
            return None
        return self._validated(config, node, path, defaults={"name": name} if kind == "stage" else {})

    def _validated(
        self, config: type[Config], node: Node, path: KeyPath, *, defaults: Mapping[str, str] | None = None
    ) -> Config | None:
        try:
            fields = Fields(config)
            values = self._expander.plain(node, path=path, fields=fields, root=path)
            if isinstance(values, dict):
                values = {**(defaults or {}), **values}
            return config.model_validate(values, context=self._context)
        except ValidationError as error:
            for at, origin, what in explain(error, node=node, root=path, fields=fields):
                # An empty text stands where a reference could not be expanded: that was said already.
                if not any(failed[: len(at)] == at for failed in self._expander.failed):
                    self._findings.add(origin, what)
        except RaybatchError as error:
            self._findings.add(node.origin, f"{dotted(path)}: {error}")
        return None
