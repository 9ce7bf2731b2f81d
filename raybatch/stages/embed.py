"""The stage `embed`: a vector per row, by sentence-transformers or vLLM.

Requests that it sends to its engine, one mapping per row:

    {"text": str, "options": {"prompt": str | None, "prompt_name": str | None}}    to sentence-transformers
    {"text": str}, the prompt being part of the text                               to vLLM

`Reply.value` is the model's vector, a numpy array of float32 of shape [dimension]. What is done to it after
the model is done here, in float32, for both engines alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from raybatch.config import Config, ModelName
from raybatch.engines.base import EngineClient, EngineSpec, Reply
from raybatch.errors import StageError
from raybatch.nearest import did_you_mean
from raybatch.rows import ID_COLUMNS, RowFailure
from raybatch.stages import vllm_arguments
from raybatch.stages.base import StageContext, StageResult
from raybatch.stages.engine_options import EngineOptions
from raybatch.stages.model_identity import model_identity

# One message to an engine. The engine gathers messages into larger windows, which it sorts by length.
SLICE_ROWS = 1_024
# As torch.nn.functional.normalize has it, which `encode` calls: a vector of zeros stays one.
_SMALLEST_NORM = 1e-12

Vectors = np.ndarray[Any, np.dtype[np.floating[Any]]]


class SentenceTransformersOptions(Config):
    """How sentence-transformers loads and runs the model."""

    type: Literal["sentence_transformers"] = "sentence_transformers"
    backend: Literal["torch", "onnx", "openvino"] = "torch"
    """What computes; onnx and openvino must be installed, and the model may need a `file_name` in
    model_kwargs."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """What the model computes in; by default as sentence-transformers loads it, mostly float32."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    max_seq_length: PositiveInt | None = None
    """Tokens after which a text is cut off; by default the model's own."""
    max_batch_tokens: PositiveInt | None = None
    """Tokens of one batch, padding included; by default 2,048 on a CPU and 65,536 on a GPU."""
    local_files_only: bool = False
    """Never download."""
    model_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """For the model underneath, such as {attn_implementation: sdpa}."""
    processor_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """For its tokeniser."""
    config_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """For its config."""

    @model_validator(mode="after")
    def _dtype_has_a_backend(self) -> Self:
        if self.dtype is not None and self.backend != "torch":
            raise ValueError(
                f"dtype is for the backend torch; {self.backend} computes as its model file says, which"
                " model_kwargs: {file_name: ...} chooses"
            )
        return self


class VLLMOptions(Config):
    """vLLM engine arguments, by their own names."""

    model_config = ConfigDict(extra="allow")

    type: Literal["vllm"]

    @model_validator(mode="after")
    def _arguments(self) -> Self:
        vllm_arguments.checked(self.arguments())
        if "runner" in self.arguments():
            raise ValueError("'runner' is always pooling for embeddings; leave it out")
        return self

    def arguments(self) -> dict[str, Any]:
        """The engine arguments, without `type`."""
        return dict(self.model_extra or {})


def _engine_kind(value: object) -> str:
    if isinstance(value, str):
        return "name"
    if isinstance(value, Mapping):
        return str(value.get("type", "sentence_transformers"))
    return str(getattr(value, "type", ""))


Engine = Annotated[
    Annotated[Literal["sentence_transformers", "vllm"], Tag("name")]
    | Annotated[SentenceTransformersOptions, Tag("sentence_transformers")]
    | Annotated[VLLMOptions, Tag("vllm")],
    Discriminator(
        _engine_kind,
        custom_error_type="engine_type",
        custom_error_message="should be sentence_transformers or vllm, or a mapping with one as its `type`",
    ),
]


class EmbedConfig(EngineOptions):
    """Turn a text column into a column of vectors: FixedSizeList<float32>, or float16."""

    type: Literal["embed"] = "embed"
    name: str = Field(default="embed", min_length=1)
    """Names the stage in errors, statistics and error rows."""
    model: ModelName
    """Hub name, or local folder that starts with `.`, `/` or `~`."""
    engine: Engine = SentenceTransformersOptions()
    """sentence_transformers or vllm; or a mapping with that as its `type`, and with the engine's options."""
    trust_remote_code: bool = False
    """Run code that comes with the model, with all rights of the engine's process."""
    input: str = Field(min_length=1)
    """Text column; of a struct column, such as the output of generate, its field `text`, or another one by
    `column.field`."""
    prompt: str | None = None
    """Instruction that precedes each text, such as "query: "."""
    prompt_name: str | None = None
    """The same, as one of the prompts that come with the model."""
    normalize_embeddings: bool = False
    """Scale each vector to length 1. Many models do so by themselves."""
    truncate_dim: PositiveInt | None = None
    """Keep this many of the first dimensions, before normalising; for models that are trained for it."""
    output: str = Field(min_length=1)
    """Column for the vector; it must not exist yet."""
    output_dtype: Literal["float32", "float16"] = "float32"
    """What a vector's numbers are stored as."""

    @field_validator("output")
    @classmethod
    def _not_an_id(cls, value: str) -> str:
        if value in ID_COLUMNS:
            raise ValueError(f"'{value}' is a column that raybatch writes; choose another")
        return value

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if self.prompt is not None and self.prompt_name is not None:
            raise ValueError("`prompt` and `prompt_name` exclude each other")
        if self.prompt_name is not None and isinstance(self._options(), VLLMOptions):
            raise ValueError("vllm does not know the model's `prompt_name`s; write the text as `prompt`")
        return self

    def reads(self) -> list[str] | None:
        return [self.input.partition(".")[0]]

    def writes(self, available: list[str] | None) -> list[str] | None:
        return None if available is None else [c for c in available if c != self.output] + [self.output]

    def engines(self) -> list[EngineSpec]:
        options = self._options()
        code = {"trust_remote_code": True} if self.trust_remote_code else {}
        if isinstance(options, VLLMOptions):
            args = {"runner": "pooling", **options.arguments(), **code}
            gpus = vllm_arguments.gpus(args)
            return [EngineSpec(kind="vllm", model=self.model, args=args, **self.spec_options(gpus=gpus))]
        # Defaults are left out: stages that mean the same engine then share it, however they say it
        args = options.model_dump(mode="json", exclude={"type"}, exclude_defaults=True) | code
        return [
            EngineSpec(
                kind="sentence_transformers",
                model=self.model,
                args=args,
                slice_rows=SLICE_ROWS,
                **self.spec_options(),
            )
        ]

    def build(self, context: StageContext) -> EmbedStage:
        if context.engine is None:
            raise StageError(f"stage '{self.name}' was built without its engine")
        return EmbedStage(self, context.engine)

    def resources(self) -> Mapping[str, float]:
        return {}

    def fingerprint(self) -> Mapping[str, Any]:
        options = self._options()
        if isinstance(options, VLLMOptions):
            engine = vllm_arguments.deciding(options.arguments())
        else:
            engine = options.model_dump(
                mode="json", exclude={"type", "max_batch_tokens", "local_files_only"}, exclude_defaults=True
            )
        own = {"input", "prompt", "prompt_name", "normalize_embeddings", "truncate_dim", "output_dtype"}
        return self.model_dump(mode="json", include=own | {"trust_remote_code"}, exclude_defaults=True) | {
            "type": self.type,
            "name": self.name,
            "output": self.output,
            "model": self.model,
            "files": model_identity(self.model),
            "engine": {"type": options.type, **engine},
        }

    def request(self, text: str, options: Mapping[str, str | None]) -> dict[str, Any]:
        """What the engine is sent for one row; `options` is one object for all rows of a stage."""
        if isinstance(self._options(), VLLMOptions):
            return {"text": (self.prompt or "") + text}
        return {"text": text, "options": options}

    def _options(self) -> SentenceTransformersOptions | VLLMOptions:
        if self.engine == "vllm":
            return VLLMOptions(type="vllm")
        if isinstance(self.engine, str):
            return SentenceTransformersOptions()
        return self.engine


class EmbedStage:
    """Contract: `raybatch.stages.base.Stage`. Rows of one unit go to the engine in one call."""

    def __init__(self, config: EmbedConfig, engine: EngineClient) -> None:
        self._config = config
        self._engine = engine
        # One object for all rows: a message to the engine then holds it once
        self._options = {"prompt": config.prompt, "prompt_name": config.prompt_name}
        self._dtype = np.dtype(config.output_dtype)
        self._type: pa.DataType | None = None

    def process(self, rows: pa.Table) -> StageResult:
        failures: list[RowFailure] = []
        asked: list[int] = []
        texts: list[str] = []
        for index, text in enumerate(self._texts(rows)):
            if text is None:
                failures.append(RowFailure(index=index, type="NullText", message="the text is null"))
            elif not text.strip():
                failures.append(RowFailure(index=index, type="EmptyText", message="the text is empty"))
            else:
                asked.append(index)
                texts.append(text)
        replies = self._ask(texts)
        kept, vectors = self._vectors(asked, replies, failures)
        table = rows if len(kept) == len(rows) else rows.take(pa.array(kept, pa.int64()))
        if self._config.output in table.column_names:
            table = table.drop_columns([self._config.output])
        return StageResult(
            table=table.append_column(self._config.output, self._column(vectors)),
            parents=np.array(kept, dtype=np.int64),
            failures=failures,
            stats=_sums(replies),
        )

    def close(self) -> None:
        """Nothing: the engine is the run's."""

    def _texts(self, rows: pa.Table) -> list[str | None]:
        column, _, field = self._config.input.partition(".")
        if column not in rows.column_names:
            available = ", ".join(rows.column_names) or "none"
            raise self._broken(
                f"reads '{column}', which is no column{did_you_mean(column, rows.column_names)};"
                f" available: {available}"
            )
        values = rows[column]
        if pa.types.is_struct(values.type):
            values = self._field(values, column, field or "text")
        elif field:
            raise self._broken(f"reads '{column}.{field}', but '{column}' is no struct, it is {values.type}")
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if not _is_text(values.type):
            raise self._broken(
                f"reads '{self._config.input}', which is {values.type} and no text; a python stage before it"
                " can make it text"
            )
        found: list[str | None] = values.to_pylist()
        return found

    def _field(self, values: pa.ChunkedArray, column: str, field: str) -> pa.ChunkedArray:
        names = [values.type.field(i).name for i in range(values.type.num_fields)]
        if field not in names:
            raise self._broken(f"reads '{column}.{field}', but '{column}' has the fields {', '.join(names)}")
        return pc.struct_field(values, field)

    def _ask(self, texts: Sequence[str]) -> list[Reply]:
        """One reply per text. Raises `StageError` for what is wrong with all of them alike."""
        if not texts:
            return []
        replies = self._engine.call([self._config.request(text, self._options) for text in texts])
        if len(replies) != len(texts):
            raise self._broken(f"got {len(replies)} replies to {len(texts)} requests")
        for reply in replies:
            if reply.failure == "InvalidOptions":
                raise self._broken(reply.message)
        return replies

    def _vectors(
        self, asked: Sequence[int], replies: Sequence[Reply], failures: list[RowFailure]
    ) -> tuple[list[int], Vectors | None]:
        """Rows that have a vector, and these as a matrix [rows, dimension]; appends to `failures`."""
        good: list[int] = []
        raw: list[Vectors] = []
        for index, reply in zip(asked, replies, strict=True):
            if reply.failure is None:
                good.append(index)
                raw.append(reply.value)
            else:
                failures.append(_failure(index, reply.failure, reply.message, reply))
        if not good:
            return [], None
        matrix = self._finished(np.stack(raw))
        finite = np.asarray(np.isfinite(matrix).all(axis=1))
        by_row = dict(zip(asked, replies, strict=True))
        for position in np.flatnonzero(~finite):
            index = good[position]
            why = "the model's vector has"
            if np.isfinite(raw[position]).all():
                why = f"stored as {self._dtype}, the vector has"
            message = f"{why} a number that is infinite or not a number"
            failures.append(_failure(index, "NonFiniteVector", message, by_row[index]))
        kept = [index for index, ok in zip(good, finite.tolist(), strict=True) if ok]
        return kept, matrix[finite] if not finite.all() else matrix

    def _finished(self, matrix: Vectors) -> Vectors:
        """Cut, normalised and in the dtype to be stored."""
        wanted = self._config.truncate_dim
        if wanted is not None:
            if wanted > matrix.shape[1]:
                raise self._broken(
                    f"truncate_dim is {wanted}, but the model has {matrix.shape[1]} dimensions"
                )
            matrix = matrix[:, :wanted]
        with np.errstate(all="ignore"):  # what is not finite becomes an error row
            if self._config.normalize_embeddings:
                norms = np.linalg.norm(matrix, axis=1, keepdims=True)
                matrix = matrix / np.maximum(norms, _SMALLEST_NORM)
            return np.ascontiguousarray(matrix, dtype=self._dtype)

    def _column(self, vectors: Vectors | None) -> pa.Array:
        """The output column. Its type is the same for every unit, also for one without a single vector."""
        if vectors is None:
            return pa.array([], self._type or self._learn_type())
        self._type = self._vector_type(vectors.shape[1])
        return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=self._type)

    def _learn_type(self) -> pa.DataType:
        """Ask the engine for one vector, to see its dimension; null where it has none to give."""
        reply = self._ask(["a"])[0]
        if reply.failure is not None:
            return pa.null()
        self._type = self._vector_type(self._finished(reply.value[None, :]).shape[1])
        return self._type

    def _vector_type(self, dimension: int) -> pa.DataType:
        return pa.list_(pa.from_numpy_dtype(self._dtype), dimension)

    def _broken(self, message: str) -> StageError:
        return StageError(f"stage '{self._config.name}': {message}")


def _is_text(type_: pa.DataType) -> bool:
    # null: a column in which no row of this unit has a value
    return str(type_) in ("string", "large_string", "string_view", "null")


def _failure(index: int, type_: str, message: str, reply: Reply) -> RowFailure:
    return RowFailure(index=index, type=type_, message=message, attempts=reply.attempts)


def _sums(replies: Sequence[Reply]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for reply in replies:
        for key, value in reply.stats.items():
            sums[key] = sums.get(key, 0) + value
    return sums
