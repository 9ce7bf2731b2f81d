"""What a stage knows of engines: a recipe (`EngineSpec`), requests, replies, and a client to send them with.

Recipes travel, objects don't: the driver ships an `EngineSpec`; the actor that holds the GPU imports the
model library and builds the `Engine`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """A recipe for an engine. Two stages with equal `key` share one.

    `kind` names the module in `raybatch.engines` that builds it ("vllm", "sentence_transformers"); `model` is
    a path or a hub name; `args` are the library's own arguments, by their own names. A negative `num_gpus`
    leaves the choice to the runtime, which sees the cluster: that many GPUs if it has any, else none.

    `max_in_flight` bounds the rows that one replica is sent at a time (0: the engine says once it is loaded);
    `slice_rows` is how many travel in one message, and so what at most must be computed again when a replica
    dies between two answers. Times are in seconds.
    """

    kind: str
    model: str
    args: Mapping[str, Any] = field(default_factory=dict)
    replicas_min: int = 1
    replicas_max: int = 1
    max_in_flight: int = 0
    slice_rows: int = 32
    num_gpus: float = 0
    num_cpus: float = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    pending_timeout_s: float = 300.0
    load_timeout_s: float = 1800.0
    watchdog_s: float = 300.0

    @property
    def key(self) -> str:
        """A short digest of what is loaded and where; replicas and time-outs of equal keys must agree too."""
        what = [self.kind, self.model, self.args, self.num_gpus, self.num_cpus, self.resources, self.env]
        plain = json.dumps(what, sort_keys=True, default=dict)
        return hashlib.sha256(plain.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The answer to one request: `value` (its shape is the request's business), or `failure` and why.

    `failure` is a typed reason such as "PromptTooLong"; then `message` says more and `value` is None.
    """

    value: Any = None
    failure: str | None = None
    message: str = ""
    attempts: int = 1
    stats: Mapping[str, float] = field(default_factory=dict)  # prompt_tokens, cached_tokens, generated_tokens


class EngineClient(Protocol):
    """A stage's way to an engine; holds no model. Safe to use from several threads."""

    def call(self, requests: Sequence[Mapping[str, Any]]) -> list[Reply]:
        """Answer every request, in order; blocks. A request's own trouble is a `Reply.failure`.

        Dead and hung replicas are replaced and their requests sent again; a request that kills engines
        becomes a failure "EngineKilled". Raises `EngineError` when no replica can be had.
        """


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Counters that only grow while an engine works; equal twice with requests in flight means hung."""

    steps: int = 0
    generated_tokens: int = 0
    in_flight: int = 0


class Engine(Protocol):
    """Each module `raybatch/engines/<kind>.py` has `async def load(spec: EngineSpec) -> Engine`, which raises
    `EngineLoadError` with what is wrong and what is possible.

    A loaded model, inside its actor. `run` is called many times at once on one event loop."""

    async def run(self, requests: Sequence[Mapping[str, Any]]) -> list[Reply]:
        """Answer a slice of requests in order. Raising means that the engine is broken: its process exits."""

    def progress(self) -> Progress:
        """Cheap, never blocks."""

    def describe(self) -> Mapping[str, Any]:
        """What was loaded: model, dtype, context length or dimension, library version, device.

        `max_in_flight` is the number of rows that keep it busy.
        """

    def close(self) -> None:
        """Free the engine's memory and processes, for whoever holds an engine in a process of its own.

        Called at most once, also after a failed `run`. Not called on the engine of an actor: its whole
        process group is ended instead.
        """
