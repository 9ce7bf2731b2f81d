"""The stage `python`: the user's own function, on rows or on whole batches.

    mode: row      a dict in; out a dict (which replaces the row), None (the row is dropped, and that is
                   recorded), or a list of dicts (the row becomes several; an empty list drops it). A
                   generator counts as a list.
    mode: batch    a pyarrow.Table in, with the rows of one unit and an int64 column `_index`; a pyarrow.Table
                   out. If it keeps `_index`, rows may be left out (dropped), repeated (several rows of one)
                   and moved; if it does not, their number and order must not change.

A row whose function raises becomes an error row of that type. If a batch raises, it is halved and tried again
until only the rows that raise are left, so a function must not depend on which rows come together; one that
breaks the contract above ends the run. Functions may be async: rows then run `max_concurrency` at a time.

Without a declared `schema`, types are inferred over one unit's rows. Units may then differ; they are unified
when files are merged, and what does not unify stops the run there. Declare the schema where a column may be
empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from raybatch.arrow_types import parse_type
from raybatch.config import Config
from raybatch.engines.base import EngineSpec
from raybatch.stages import functions
from raybatch.stages.base import Stage, StageContext
from raybatch.stages.batch_function import BatchFunctionStage
from raybatch.stages.output_schema import RESERVED, OutputSchema
from raybatch.stages.row_function import RowFunctionStage
from raybatch.stages.user_function import UserFunction


class PythonConfig(Config):
    """Run a Python function on every row, or on whole batches."""

    model_config = ConfigDict(serialize_by_alias=True)

    type: Literal["python"] = "python"
    name: str = Field(default="python", min_length=1)
    """Names the stage in errors, statistics and error rows."""
    function: str
    """`module:function`, or a class, made once per worker; beside the pipeline file, or installed."""
    init: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the class."""
    mode: Literal["row", "batch"] = "row"
    """row: a dict in, a dict out; batch: a pyarrow.Table in, a pyarrow.Table out."""
    input_columns: list[str] | None = None
    """Columns that the function reads, for the check before the run; it is given all of them anyway."""
    output_columns: list[str] | None = Field(default=None, min_length=1)
    """All columns of the result, in order; by default those of `schema`, or whatever the function returns."""
    types: dict[str, str] | None = Field(default=None, alias="schema", min_length=1)
    """Arrow types of the result's columns, such as {score: float32, tags: list<string>}."""
    num_cpus: float = Field(default=1, ge=0)
    """CPUs of one task."""
    max_concurrency: PositiveInt = 64
    """Rows that an async function works on at the same time."""

    _base_dir: str = PrivateAttr(default=".")

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, value: str) -> str:
        if not functions.NAME.fullmatch(value):
            raise ValueError(f"a function is named `module:function`, got '{value}'")
        return value

    @field_validator("types")
    @classmethod
    def _are_types(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        for column, text in (value or {}).items():
            try:
                parse_type(text)
            except ValueError as error:
                raise ValueError(f"column '{column}': {error}") from None
        return value

    @field_validator("output_columns", "types")
    @classmethod
    def _not_reserved(cls, value: Any) -> Any:
        reserved = sorted(RESERVED & set(value or ()))
        if reserved:
            raise ValueError(f"'{reserved[0]}' is a column that raybatch writes; choose another")
        return value

    @model_validator(mode="after")
    def _remember_folder(self, info: ValidationInfo) -> Self:
        if info.context and "base_dir" in info.context:
            self._base_dir = info.context["base_dir"]
        return self

    @model_validator(mode="after")
    def _columns_agree(self) -> Self:
        extra = [c for c in self.types or () if c not in (self.output_columns or self.types or ())]
        if extra:
            raise ValueError(f"schema names '{extra[0]}', which output_columns does not")
        return self

    def reads(self) -> list[str] | None:
        return self.input_columns

    def writes(self, available: list[str] | None) -> list[str] | None:
        return self.output_columns or (list(self.types) if self.types else None)

    def engines(self) -> list[EngineSpec]:
        return []

    def build(self, context: StageContext) -> Stage:
        function = UserFunction(
            functions.load(self.function, base_dir=context.base_dir, init=self.init),
            base_dir=context.base_dir,
            max_concurrency=self.max_concurrency,
        )
        types = {column: parse_type(text) for column, text in (self.types or {}).items()}
        output = OutputSchema(columns=self.writes(None), types=types)
        kind = RowFunctionStage if self.mode == "row" else BatchFunctionStage
        return kind(self.name, function, output)

    def resources(self) -> Mapping[str, float]:
        return {"num_cpus": self.num_cpus}

    def fingerprint(self) -> Mapping[str, Any]:
        said = self.model_dump(
            mode="json",
            by_alias=True,
            include={"type", "name", "function", "init", "mode", "output_columns", "types"},
        )
        return said | {"code": functions.source_digest(self.function, base_dir=self._base_dir)}
