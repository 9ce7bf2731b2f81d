"""The Parquet sink, but an epoch is laid out only once the next one is planned, or there is a file `go` beside the
output: so that epochs overlap in a test, however fast the machine is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import DataFile, Plan, UnitRecord
from raybatch.sinks.parquet import ParquetConfig, ParquetSink

DEADLINE_S = 120.0


class HeldConfig(ParquetConfig):
    """Parquet, with patience."""

    type: Literal["held"]  # type: ignore[assignment]
    """Parquet files, as late as they can be."""

    def build(self) -> HeldSink:
        made = super().build()
        return HeldSink(**{name: getattr(made, name) for name in made.__dataclass_fields__}, path=self.path)


@dataclass(frozen=True, kw_only=True)
class HeldSink(ParquetSink):
    """See the module's docstring."""

    path: str

    def finalise(
        self, plan: Plan, records: Sequence[UnitRecord], *, ledger: Ledger, **options: Any
    ) -> list[DataFile]:
        end = time.monotonic() + DEADLINE_S
        while ledger.plan(plan.epoch + 1) is None and not (Path(self.path).parent / "go").exists():
            assert time.monotonic() < end, f"no epoch after {plan.epoch}"
            time.sleep(0.02)
        return super().finalise(plan, records, ledger=ledger, **options)
