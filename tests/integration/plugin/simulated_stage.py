"""A stage as somebody else would write one: `generate` on the simulated engine, which needs no model.

`engine` holds the arguments of `raybatch.engines.simulated`, instead of vLLM's.
"""

from __future__ import annotations

from typing import Literal

from raybatch.engines.base import EngineSpec
from raybatch.stages.generate import GenerateConfig


class SimulatedConfig(GenerateConfig):
    """Turn a prompt round, one per row."""

    type: Literal["simulated"]  # type: ignore[assignment]
    """A stage without a model."""
    slice_rows: int = 16
    """Rows of one message to the engine."""

    def engines(self) -> list[EngineSpec]:
        options = self.spec_options(gpus=0)
        return [
            EngineSpec(
                kind="simulated", model=self.model, args=self.engine, slice_rows=self.slice_rows, **options
            )
        ]
