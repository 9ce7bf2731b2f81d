"""A pipeline after reading: typed, checked, and free of YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field, PositiveInt, model_validator

from raybatch.config import Config

if TYPE_CHECKING:
    from raybatch.sinks.base import SinkConfig
    from raybatch.sources.base import Source
    from raybatch.stages.base import StageConfig


class UnitConfig(Config):
    """How large a unit is, the piece of input that is read, published and resumed as one."""

    max_rows: PositiveInt | None = None
    """Rows of one unit at most; by default chosen from the input and the stages."""
    max_bytes: PositiveInt | None = None
    """Bytes of input of one unit at most; by default chosen from the input and the stages."""


class EpochConfig(Config):
    """When a continuous run takes its next epoch, and how much of the input at most."""

    every_s: float = Field(default=30, gt=0)
    """Seconds from one epoch to the next; it comes at once where the one before left input to it, and later
    where that takes longer to compute."""
    max_rows: PositiveInt | None = None
    """Input rows of one epoch at most, in whole files where the source is files."""
    max_bytes: PositiveInt | None = None
    """Bytes of input of one epoch at most, in whole files where the source is files."""


class RunConfig(Config):
    """How the pipeline is run, whatever it does."""

    mode: Literal["batch", "continuous"] = "batch"
    """batch: take what there is and end. continuous: go on with what arrives, until stopped."""
    epoch: EpochConfig = EpochConfig()
    """mode continuous: how input is cut into epochs: {every_s, max_rows, max_bytes}."""
    idle_exit_s: float | None = Field(default=None, ge=0)
    """mode continuous: end with exit code 0 when there has been nothing to do for so many seconds; 0: as soon as all
    that is there is done. By default never."""
    max_error_rate: float = Field(default=0.01, ge=0, le=1)
    """Share of input rows that may end as error rows, 0 to 1; beyond it the run ends with exit code 5."""
    unit: UnitConfig = UnitConfig()
    """The size of a unit: {max_rows, max_bytes}."""
    in_flight_units: PositiveInt | None = None
    """Units worked on at the same time; by default what keeps every engine busy."""
    grace_s: float = Field(default=20, ge=0)
    """Seconds that units which have begun get to be published after SIGTERM, before the run ends with exit
    code 130. Less than whoever sends it waits before SIGKILL: 30 by default on Kubernetes; engines take some
    seconds to end."""
    report_interval_s: float = Field(default=10, gt=0)
    """Seconds between the plain progress lines that are printed where there is no terminal."""

    @model_validator(mode="after")
    def _fits_the_mode(self) -> RunConfig:
        meant = [name for name in ("epoch", "idle_exit_s") if name in self.model_fields_set]
        if self.mode == "batch" and meant:
            raise ValueError(
                f"{', '.join(meant)}: only with `mode: continuous`; in a batch run all that is there is one epoch"
            )
        return self


class SourceConfig(Protocol):
    """What the registry expects of each source's pydantic `Config`.

    A source that can be read without end also has an attribute `continuous = True`; without it,
    `run.mode: continuous` is refused. A class attribute `decides_nothing` names fields that an unfinished plan
    does not depend on, such as credentials: they may be others when it is resumed.
    """

    type: str

    def build(self, *, max_rows: int, max_bytes: int) -> Source:
        """The source, planning units of at most so many rows and bytes of input. No I/O."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A whole pipeline, ready to run. `raybatch.spec.load.load_pipeline` makes one from a file.

    `file` is the path as it was given, `base_dir` the absolute folder that holds it. `raw` is the merged
    tree of pipeline, profile and `--set` as plain JSON data, with `${...}` references as they were said, so
    that it can be stored. `where` tells for each key path of `raw` ("stages[1].output") where it was said
    ("news.yaml:14").
    """

    name: str
    source: SourceConfig
    stages: tuple[StageConfig, ...]
    sink: SinkConfig
    run: RunConfig
    file: str
    base_dir: str
    raw: Mapping[str, Any]
    where: Mapping[str, str]
