"""A small plugin, as somebody else would write one: found by its entry points, like any package."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from raybatch.config import Config, ModelName, PathOrUrl, Secret


class Login(Config):
    """Who reads."""

    user: str
    """The user."""
    token: Secret
    """Their token."""


class ToySource(Config):
    """Rows that are nowhere."""

    type: Literal["toy"]
    """A toy."""
    path: PathOrUrl | list[PathOrUrl] = "rows"
    """Where they would be."""
    fields: list[str] | None = None
    """Their columns."""
    format: Literal["jsonl", "parquet", "csv"] | None = None
    """How they would be written."""
    password: Secret | None = None
    """What would open them."""
    login: Login | None = None
    """Who would open them."""

    def columns(self) -> list[str] | None:
        return self.fields

    def build(self, *, max_rows: int, max_bytes: int) -> Any:
        return self


class StreamSource(ToySource):
    """Rows without end."""

    type: Literal["stream"]  # type: ignore[assignment]
    """A stream."""
    continuous: ClassVar[bool] = True


class Sampling(Config):
    """How to choose."""

    temperature: float = Field(default=1, ge=0)
    """How freely."""
    max_tokens: int = 16
    """How much."""


class Replicas(Config):
    """How many."""

    min: PositiveInt = 1
    """At least."""
    max: PositiveInt = 1
    """At most."""


class ToyStage(Config):
    """Adds a column."""

    type: Literal["toy"]
    """A toy."""
    name: str
    """Its name."""
    input: str | None = None
    """The column it reads."""
    output: str = "answer"
    """The column it writes."""
    prompt: str | None = None
    """What it is asked."""
    model: ModelName | None = None
    """Who answers."""
    sampling: Sampling = Sampling()
    """How the answer is chosen."""
    replicas: PositiveInt | Replicas = 1
    """How many."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Engine arguments."""

    @model_validator(mode="after")
    def _one_question(self) -> ToyStage:
        if self.input and self.prompt:
            raise ValueError("give either input or prompt, not both")
        return self

    def reads(self) -> list[str] | None:
        if self.prompt:
            return [word.strip("{}") for word in self.prompt.split() if word.startswith("{{")]
        return [self.input] if self.input else []

    def writes(self, available: list[str] | None) -> list[str] | None:
        return None if available is None else [*available, self.output]

    def engines(self) -> list[Any]:
        return []

    def build(self, context: Any) -> Any:
        raise NotImplementedError

    def resources(self) -> dict[str, float]:
        return {}

    def fingerprint(self) -> dict[str, Any]:
        return {}


class OpaqueStage(Config):
    """Does what it likes."""

    type: Literal["opaque"]
    """Opaque."""
    name: str
    """Its name."""
    gives: list[str] | None = None
    """All columns after it."""

    def reads(self) -> list[str] | None:
        return None

    def writes(self, available: list[str] | None) -> list[str] | None:
        return self.gives

    def engines(self) -> list[Any]:
        return []

    def build(self, context: Any) -> Any:
        raise NotImplementedError

    def resources(self) -> dict[str, float]:
        return {}

    def fingerprint(self) -> dict[str, Any]:
        return {}


class ToySink(Config):
    """Keeps nothing."""

    type: Literal["toy"]
    """A toy."""
    path: PathOrUrl
    """Where it would be kept."""
    by: list[str] = Field(default_factory=list)
    """The columns that it needs."""

    def reads(self) -> list[str]:
        return self.by

    def build(self) -> Any:
        raise NotImplementedError
