"""The stage `generate`: a prompt per row, answered by vLLM.

Requests that it sends to its engine, one mapping per row:

    {"prompt": str} or {"messages": [{"role": str, "content": str}], "chat_template_kwargs": {...}}
    "sampling": keyword arguments for vllm.SamplingParams; the same object in all rows without overrides
    "structured": optional, keyword arguments for StructuredOutputsParams
    "lora": optional, {"name": str, "path": str}

`Reply.value` is {"outputs": [{"text", "finish_reason", "tokens", "reasoning", "logprobs"}], "prompt_tokens",
"cached_tokens"}; `Reply.stats` has prompt_tokens, cached_tokens and generated_tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import (
    AfterValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
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
from raybatch.stages.completions import OutputColumn
from raybatch.stages.engine_options import EngineOptions
from raybatch.stages.model_identity import model_identity
from raybatch.stages.row_error import RowError
from raybatch.stages.sampling import Sampling, SamplingOverrides
from raybatch.stages.structured import Structured
from raybatch.stages.templates import PromptTemplate

# A template that loops for ever does so with every row: stop there instead of a second per row of the input.
_TIMEOUTS_BEFORE_GIVING_UP = 30
_LORAS_IN_ONE_BATCH = 8  # each slot takes GPU memory for good; vLLM's own default is 1


def _compiles(source: str) -> str:
    try:
        PromptTemplate(source, max_bytes=1 << 20, timeout_s=1.0)
    except ValueError as error:
        raise ValueError(f"not a template: {error}") from None
    return source


TemplateSource = Annotated[str, AfterValidator(_compiles)]


class Message(Config):
    """One turn of the conversation that the model's chat template is given."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """Whose turn it is; which of them a model knows is up to its chat template."""
    content: TemplateSource
    """Jinja template of the text."""


class LoRA(Config):
    """A LoRA adapter."""

    name: str = Field(min_length=1)
    """Its name in logs and statistics."""
    path: ModelName
    """Folder or hub name of the adapter."""


class GenerateConfig(EngineOptions):
    """Generate text with vLLM: one prompt per row, one struct column as the result."""

    type: Literal["generate"] = "generate"
    name: str = Field(default="generate", min_length=1)
    """Names the stage in errors, statistics and error rows."""
    model: ModelName
    """Hub name, or local folder that starts with `.`, `/` or `~`."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """vLLM engine arguments, by their own names, such as {max_model_len: 8192, tensor_parallel_size: 2}."""
    trust_remote_code: bool = False
    """Run code that comes with the model, with all rights of the engine's process."""
    prompt: TemplateSource | None = None
    """Jinja template of the prompt: the text that the model continues, without a chat template."""
    messages: list[Message] | None = Field(default=None, min_length=1)
    """Turns of a conversation, put together by the model's chat template."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """For the model's chat template, such as {enable_thinking: false}; with `messages` only."""
    sampling: Sampling = Sampling()
    """vLLM sampling parameters, by their own names."""
    sampling_column: str | None = None
    """Column with sampling parameters of single rows, as a struct or JSON text; they go before `sampling`."""
    structured: Structured | None = None
    """What the output must be: {json: schema}, {regex: ...} or {choice: [...]}."""
    reasoning: bool = False
    """Keep the reasoning apart, in the field `reasoning`; needs vLLM's engine argument `reasoning_parser`."""
    lora: LoRA | None = None
    """LoRA adapter for all rows."""
    loras: dict[str, ModelName] = Field(default_factory=dict)
    """Adapters that rows may ask for, by name: folder or hub name; needs `lora_column`."""
    lora_column: str | None = None
    """Column with the name of each row's adapter among `loras`; null for the plain model."""
    output: str = Field(min_length=1)
    """Column for the result; it must not exist yet."""
    max_prompt_bytes: PositiveInt = 1 << 20
    """Size of a rendered prompt at most; a row above it becomes an error row."""
    template_timeout_s: PositiveFloat = 1.0
    """Processor time that one template may take for one row."""

    @field_validator("engine")
    @classmethod
    def _engine_arguments(cls, value: dict[str, Any]) -> dict[str, Any]:
        return vllm_arguments.checked(value)

    @field_validator("structured")
    @classmethod
    def _enforceable(cls, value: Structured | None, info: ValidationInfo) -> Structured | None:
        options = info.data.get("engine", {}).get("structured_outputs_config") or {}
        backend = options.get("backend", "auto") if isinstance(options, dict) else "auto"
        why = value.problems(backend) if value else None
        if why:
            raise ValueError(why)
        return value

    @field_validator("output")
    @classmethod
    def _not_an_id(cls, value: str) -> str:
        if value in ID_COLUMNS:
            raise ValueError(f"'{value}' is a column that raybatch writes; choose another")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("exactly one of `prompt` and `messages` is needed")
        if self.chat_template_kwargs and self.messages is None:
            raise ValueError("chat_template_kwargs are for `messages`; a `prompt` has no chat template")
        if self.reasoning and "reasoning_parser" not in self.engine:
            raise ValueError("reasoning needs the engine argument `reasoning_parser`, which tells it apart")
        if bool(self.loras) != (self.lora_column is not None):
            raise ValueError("`loras` and `lora_column` need each other")
        if self.lora and self.loras:
            raise ValueError("`lora` is for all rows and `lora_column` for single ones; choose one")
        return self

    def reads(self) -> list[str] | None:
        columns = [c for c in (self.sampling_column, self.lora_column) if c is not None]
        for template in self.templates():
            if template.reads is None:
                return None
            columns += template.reads
        return sorted(set(columns))

    def writes(self, available: list[str] | None) -> list[str] | None:
        return None if available is None else [*available, self.output]

    def engines(self) -> list[EngineSpec]:
        options = self.spec_options(gpus=vllm_arguments.gpus(self.engine))
        return [EngineSpec(kind="vllm", model=self.model, args=self._engine_args(), **options)]

    def build(self, context: StageContext) -> GenerateStage:
        if context.engine is None:
            raise StageError(f"stage '{self.name}' was built without its engine")
        return GenerateStage(self, context.engine)

    def resources(self) -> Mapping[str, float]:
        return {}

    def fingerprint(self) -> Mapping[str, Any]:
        plain = self.model_dump(
            mode="json",
            by_alias=True,
            exclude_unset=True,
            include={
                *("prompt", "messages", "chat_template_kwargs", "sampling", "sampling_column", "structured"),
                *("reasoning", "lora", "loras", "lora_column", "trust_remote_code"),
            },
        )
        adapters = [self.lora.path] if self.lora else list(self.loras.values())
        return plain | {
            "type": self.type,
            "name": self.name,
            "output": self.output,
            "model": self.model,
            "files": [model_identity(model) for model in (self.model, *adapters)],
            "engine": vllm_arguments.deciding(self.engine),
            "max_prompt_bytes": self.max_prompt_bytes,
        }

    def templates(self) -> list[PromptTemplate]:
        """Compiled: of the prompt, or of each message."""
        sources = [self.prompt] if self.prompt is not None else [m.content for m in self.messages or ()]
        limits = {"max_bytes": self.max_prompt_bytes, "timeout_s": self.template_timeout_s}
        return [PromptTemplate(source, **limits) for source in sources]  # type: ignore[arg-type]

    def _engine_args(self) -> dict[str, Any]:
        args = dict(self.engine)
        if self.trust_remote_code:
            args["trust_remote_code"] = True
        adapters = len(self.loras) or (1 if self.lora else 0)
        if adapters:
            args["enable_lora"] = True
            args.setdefault("max_loras", min(adapters, _LORAS_IN_ONE_BATCH))
            args.setdefault("max_cpu_loras", max(adapters, args["max_loras"]))
        return args


class GenerateStage:
    """Contract: `raybatch.stages.base.Stage`. Rows of one unit go to the engine in one call."""

    def __init__(self, config: GenerateConfig, engine: EngineClient) -> None:
        self._config = config
        self._engine = engine
        self._templates = config.templates()
        self._columns = config.reads()
        self._sampling = SamplingOverrides(config.sampling)
        # One object each for all rows: a message to the engine then holds them once
        self._structured = config.structured.request() if config.structured else None
        self._lora = config.lora.model_dump() if config.lora else None
        self._loras = {name: {"name": name, "path": path} for name, path in config.loras.items()}
        self._output = OutputColumn(
            structured=config.structured.reader() if config.structured else None,
            n=config.sampling.n,
            reasoning=config.reasoning,
            logprobs=config.sampling.wants_logprobs,
        )

    def process(self, rows: pa.Table) -> StageResult:
        if self._config.output in rows.column_names:
            raise self._broken(f"writes '{self._config.output}', which is there already; choose another name")
        asked, requests, failures = self._requests(rows)
        replies = self._replies(requests) if requests else []
        kept: list[int] = []
        values: list[dict[str, Any]] = []
        for index, reply in zip(asked, replies, strict=True):
            try:
                values.append(self._value(reply))
                kept.append(index)
            except RowError as error:
                failures.append(
                    RowFailure(index=index, type=error.type, message=error.message, attempts=reply.attempts)
                )
        table = rows if len(kept) == len(rows) else rows.take(pa.array(kept, pa.int64()))
        return StageResult(
            table=table.append_column(self._config.output, pa.array(values, self._output.type)),
            parents=np.array(kept, dtype=np.int64),
            failures=failures,
            stats=_sums(replies),
        )

    def close(self) -> None:
        """Nothing: the engine is the run's."""

    def _requests(self, rows: pa.Table) -> tuple[list[int], list[dict[str, Any]], list[RowFailure]]:
        """The rows that can be asked, what is asked for each, and the failures of the others."""
        asked: list[int] = []
        requests: list[dict[str, Any]] = []
        failures: list[RowFailure] = []
        timeouts = 0
        for index, row in enumerate(self._rows(rows)):
            try:
                requests.append(self._request(row))
                asked.append(index)
            except RowError as error:
                failures.append(error.at(index))
                timeouts += error.type == "TemplateTimeout"
                if timeouts >= _TIMEOUTS_BEFORE_GIVING_UP and not requests:
                    raise self._never_renders(timeouts) from None
        return asked, requests, failures

    def _replies(self, requests: Sequence[dict[str, Any]]) -> list[Reply]:
        """The engine's, in the order of `requests`. What may become long is asked for first: the engine is then
        full to the end, and what travels together is answered at about the same time."""
        order = sorted(range(len(requests)), key=lambda i: _longest(requests[i]), reverse=True)
        replies = self._engine.call([requests[i] for i in order])
        if len(replies) != len(requests):
            raise self._broken(f"got {len(replies)} replies to {len(requests)} requests")
        found = dict(zip(order, replies, strict=True))
        return [found[i] for i in range(len(requests))]

    def _never_renders(self, timeouts: int) -> StageError:
        return self._broken(
            f"its template took more than {self._config.template_timeout_s:g} s (template_timeout_s) with"
            f" each of {timeouts} rows, and was done with none; look for a loop that does not end, or raise"
            " template_timeout_s"
        )

    def _rows(self, rows: pa.Table) -> Iterator[dict[str, Any]]:
        if not len(rows):
            return iter(())
        for column in (self._config.sampling_column, self._config.lora_column):
            if column is not None and column not in rows.column_names:
                near = did_you_mean(column, rows.column_names)
                raise self._broken(f"reads '{column}', which is no column{near}")
        columns = rows.column_names if self._columns is None else self._columns
        # A template may ask whether a column is defined, so one that is not there is not an error here
        present = [c for c in columns if c in rows.column_names]
        return iter(rows.select(present).to_pylist()) if present else iter([{} for _ in range(len(rows))])

    def _request(self, row: Mapping[str, Any]) -> dict[str, Any]:
        request = self._prompt(row)
        column = self._config.sampling_column
        request["sampling"] = self._sampling.merge(row[column] if column else None)
        if self._structured is not None:
            request["structured"] = self._structured
        lora = self._adapter(row)
        if lora is not None:
            request["lora"] = lora
        return request

    def _prompt(self, row: Mapping[str, Any]) -> dict[str, Any]:
        texts = [template.render(row) for template in self._templates]
        messages = self._config.messages
        if messages is None:
            if not texts[0].strip():
                raise RowError("EmptyPrompt", "the prompt is empty")
            return {"prompt": texts[0]}
        size = sum(len(text.encode(errors="surrogatepass")) for text in texts)
        if size > self._config.max_prompt_bytes:
            what = f"the messages are larger than {self._config.max_prompt_bytes} bytes together"
            raise RowError("PromptTooLarge", what)
        for index, (message, text) in enumerate(zip(messages, texts, strict=True)):
            if message.role == "user" and not text.strip():
                raise RowError("EmptyPrompt", f"messages[{index}], the user's, is empty")
        turns = [{"role": m.role, "content": t} for m, t in zip(messages, texts, strict=True)]
        return {"messages": turns, "chat_template_kwargs": self._config.chat_template_kwargs}

    def _adapter(self, row: Mapping[str, Any]) -> Mapping[str, str] | None:
        column = self._config.lora_column
        name = row[column] if column else None
        if name is None:
            return self._lora
        if name not in self._loras:
            known = ", ".join(self._loras)
            near = did_you_mean(str(name), self._loras)
            raise RowError("UnknownLoRA", f"'{name}' is none of the stage's loras ({known}){near}")
        return self._loras[name]

    def _broken(self, what: str) -> StageError:
        return StageError(f"stage '{self._config.name}': {what}")

    def _value(self, reply: Reply) -> dict[str, Any]:
        if reply.failure is not None:
            raise RowError(reply.failure, reply.message)
        return self._output.read(reply.value)


def _longest(request: Mapping[str, Any]) -> float:
    limit = request["sampling"].get("max_tokens", Sampling.model_fields["max_tokens"].default)
    return math.inf if limit is None else limit


def _sums(replies: Sequence[Reply]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for reply in replies:
        for key, value in reply.stats.items():
            sums[key] = sums.get(key, 0) + value
    return sums
