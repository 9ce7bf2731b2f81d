"""What every stage that calls an engine lets its user choose: how many replicas, on what, and for how long.

`GenerateConfig` and `EmbedConfig` inherit these fields; `spec_options` gives them to `EngineSpec`.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from raybatch.config import Config


class Replicas(Config):
    """How many copies of the engine may run at the same time."""

    min: PositiveInt = 1
    """Started before the first row is sent."""
    max: PositiveInt = 1
    """Started at most, when the cluster has room for them."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"replicas.max ({self.max}) is less than replicas.min ({self.min})")
        return self


class EngineResources(Config):
    """What one replica reserves of the Ray cluster."""

    num_gpus: float | None = Field(default=None, ge=0)
    """GPUs of one replica, fractions allowed; by default what the model needs on the chosen device."""
    num_cpus: float = Field(default=0, ge=0)
    """CPUs of one replica. 0 reserves none: a small cluster keeps them for reading and writing."""
    custom: dict[str, float] = Field(default_factory=dict)
    """Custom Ray resources of one replica, such as an accelerator type: {"accelerator_type:A100": 0.001}."""


class EngineOptions(Config):
    """Fields shared by the stages that call an engine."""

    model_config = ConfigDict(serialize_by_alias=True)

    replicas: PositiveInt | Replicas = 1
    """Copies of the engine: a number, or {min, max}."""
    # `resources` is a method of stages: what one of their own tasks takes
    replica_resources: EngineResources = Field(default=EngineResources(), alias="resources")
    """What one replica reserves: {num_gpus, num_cpus, custom}."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where the model runs; auto takes a GPU if the cluster has one."""
    max_in_flight: PositiveInt | None = None
    """Rows that one replica is sent at a time; by default as many as the engine says keep it busy."""
    pending_timeout_s: PositiveFloat = 300.0
    """How long an engine may wait for a place in the cluster before the run fails and says why."""
    load_timeout_s: PositiveFloat = 1800.0
    """How long a placed engine may take to load its model, download included."""
    watchdog_s: PositiveFloat = 300.0
    """How long an engine with rows in flight may make no progress before it is killed and replaced."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the engine's process."""

    @model_validator(mode="after")
    def _device_agrees(self) -> Self:
        gpus = self.replica_resources.num_gpus
        if self.device == "cpu" and gpus:
            raise ValueError(f"device is cpu, but resources.num_gpus is {gpus:g}; leave one of them out")
        if self.device == "cuda" and gpus == 0:
            raise ValueError("device is cuda, but resources.num_gpus is 0; leave one of them out")
        return self

    def spec_options(self, *, gpus: float = 1, max_in_flight: int = 0) -> dict[str, Any]:
        """Keyword arguments for `EngineSpec`, all but `kind`, `model`, `args` and `slice_rows`.

        `gpus`: what one replica takes where it runs on GPUs. `max_in_flight`: the stage's default; 0 leaves
        it to the engine. A negative `num_gpus` in the result leaves the choice to the runtime, which sees the
        cluster: that many GPUs (-1: one) if the cluster has any, else none.
        """
        replicas = self.replicas
        span = Replicas(min=replicas, max=replicas) if isinstance(replicas, int) else replicas
        return {
            "replicas_min": span.min,
            "replicas_max": span.max,
            "max_in_flight": self.max_in_flight or max_in_flight,
            "num_gpus": self._num_gpus(gpus),
            "num_cpus": self.replica_resources.num_cpus,
            "resources": self.replica_resources.custom,
            "env": self.env,
            "pending_timeout_s": self.pending_timeout_s,
            "load_timeout_s": self.load_timeout_s,
            "watchdog_s": self.watchdog_s,
        }

    def _num_gpus(self, gpus: float) -> float:
        if self.replica_resources.num_gpus is not None:
            return self.replica_resources.num_gpus
        return {"cpu": 0.0, "cuda": gpus, "auto": -gpus}[self.device]
