"""Plugins that break the registry's contract, each in its own way."""

from typing import Literal

from raybatch.config import Config


class NotAConfig:
    """No pydantic model."""


class OtherType(Config):
    """Says another type than its entry point."""

    type: Literal["something_else"]
    """Wrong."""


class Half(Config):
    """Has the fields of a stage, and not its methods."""

    type: Literal["half"]
    """Half."""
    name: str
    """Its name."""

    def reads(self) -> list[str] | None:
        return None
