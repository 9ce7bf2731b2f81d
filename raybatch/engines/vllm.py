"""vLLM behind the `Engine` contract: `AsyncLLM`, one per actor, fed continuously.

`AsyncLLM` with final-only outputs takes requests of several units at once, so its scheduler never runs dry at
the end of a unit. Engine arguments and sampling parameters keep vLLM's own names.

Requests: {"prompt": str} or {"messages": [...], "chat_template_kwargs": {...}}, with "sampling", "structured"
and "lora"; or, for pooling models, {"text": str}. See `raybatch.stages.generate` and `raybatch.stages.embed`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from raybatch.engines.base import EngineSpec, Progress, Reply
from raybatch.engines.replica import SCRATCH
from raybatch.errors import EngineLoadError

Request = Mapping[str, Any]


async def load(spec: EngineSpec) -> VLLMEngine:
    """Start vLLM with the arguments of `spec`; takes from seconds to minutes, and blocks the event loop.

    Raises `EngineLoadError` for a model path that does not exist, an unknown argument, or whatever vLLM says.
    """
    _refuse_missing_path(spec.model)
    if SCRATCH in os.environ:
        os.environ.setdefault("VLLM_RPC_BASE_PATH", os.environ[SCRATCH])  # sockets to the engine core
    try:
        from vllm import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise EngineLoadError(
            f"engine vllm: {error}; install raybatch with its `gpu` extra, or `cpu` where there is no GPU"
        ) from error
    known = {f.name for f in dataclasses.fields(AsyncEngineArgs)}
    unknown = sorted(set(spec.args) - known)
    if unknown:
        import difflib

        near = difflib.get_close_matches(unknown[0], known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise EngineLoadError(f"engine vllm: '{unknown[0]}' is no vLLM engine argument{hint}")
    args: dict[str, Any] = {"enable_log_requests": False, "disable_log_stats": True} | dict(spec.args)
    if args.get("tensor_parallel_size", 1) * args.get("pipeline_parallel_size", 1) > 1:
        # Inside an actor vLLM may choose its Ray executor and then leaks a placement group per engine
        # (ray#64035); its multiprocess executor leaves nothing that killing a process group does not free.
        args.setdefault("distributed_executor_backend", "mp")
    _compute_in_the_engine_core(args)
    steps = _Steps()
    try:
        # LLM_CLASS: the batch sizes of the offline `LLM`, not of a latency-minded server
        config = AsyncEngineArgs(model=spec.model, **args).create_engine_config(UsageContext.LLM_CLASS)
        llm = AsyncLLM.from_vllm_config(
            config, usage_context=UsageContext.LLM_CLASS, stat_loggers=[steps.logger], disable_log_stats=True
        )
    except Exception as error:
        raise EngineLoadError(f"engine vllm: {spec.model}: {error}") from error
    tokenizer = llm.get_tokenizer()
    return VLLMEngine(llm, config, await tokenizer if inspect.isawaitable(tokenizer) else tokenizer, steps)


def _compute_in_the_engine_core(args: Mapping[str, Any]) -> None:
    """On a CPU without parallelism, let vLLM compute in its engine core's process, as it does on a GPU.

    Left alone, its CPU backend has one more process for that, so that it can set OpenMP up there: it imports
    everything once more, and is sent a message per step. 5,000 prompts through a model of a million parameters
    on two cores, loading included, took 85 seconds of CPU that way, and 51 this way.
    """
    from vllm.platforms import current_platform
    from vllm.utils.cpu_resource_utils import get_visible_memory_node

    said = {"VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_OMP_THREADS_BIND"} & os.environ.keys()
    parallel = any(args.get(f"{kind}_parallel_size", 1) > 1 for kind in ("tensor", "pipeline", "data"))
    # Several NUMA nodes: vLLM's way binds threads to the one that holds the memory
    if said or parallel or not current_platform.is_cpu() or len(get_visible_memory_node()) > 1:
        return
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # what makes its CPU backend leave the executor alone
    # vLLM's own rule: one CPU is left to this process, which tokenises and detokenises
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) - 1)))


def _refuse_missing_path(model: str) -> None:
    # Said before vLLM's imports, which take ten seconds or more
    if model.startswith(("/", ".", "~")) and not os.path.isdir(model):
        raise EngineLoadError(
            f"engine vllm: the model folder {model} does not exist on this node; give a folder with"
            " config.json and *.safetensors that every node sees, or a hub name such as Qwen/Qwen3-8B"
        )


class _Steps:
    """Counts what vLLM's stat-logger hook reports after each engine step."""

    def __init__(self) -> None:
        self.steps = 0
        self.generated_tokens = 0

    def logger(self, _config: Any, _engine_index: int = 0) -> Any:
        from vllm.v1.metrics.loggers import StatLoggerBase

        counts = self

        class Logger(StatLoggerBase):  # type: ignore[misc]  # vllm is not followed by the type checker
            def __init__(self) -> None:
                pass

            def record(
                self,
                scheduler_stats: Any = None,
                iteration_stats: Any = None,
                mm_cache_stats: Any = None,
                engine_idx: int = 0,
            ) -> None:
                counts.steps += 1
                if iteration_stats is not None:
                    counts.generated_tokens += iteration_stats.num_generation_tokens

            def log_engine_initialized(self) -> None:
                pass

        return Logger()


class VLLMEngine:
    """A running `AsyncLLM`. Contract: `raybatch.engines.base.Engine`."""

    def __init__(self, llm: Any, config: Any, tokenizer: Any, steps: _Steps) -> None:
        self._llm = llm
        self._config = config
        self._tokenizer = tokenizer
        self._steps = steps
        self._ids = itertools.count()
        self._in_flight = 0
        self._loras: dict[tuple[str, str], Any] = {}
        self._reasoning = _reasoning_parser(config, tokenizer)

    async def run(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer a slice; raises only when the engine is dead."""
        params = _ParamsCache()
        self._in_flight += len(requests)
        try:
            prompts = await asyncio.to_thread(self._prompts, requests)
            jobs = [self._one(r, p, params) for r, p in zip(requests, prompts, strict=True)]
            return list(await asyncio.gather(*jobs))
        finally:
            self._in_flight -= len(requests)

    def progress(self) -> Progress:
        return Progress(
            steps=self._steps.steps,
            generated_tokens=self._steps.generated_tokens,
            in_flight=self._in_flight,
        )

    def describe(self) -> Mapping[str, Any]:
        import vllm

        model = self._config.model_config
        seqs = self._config.scheduler_config.max_num_seqs
        return {
            "engine": "vllm",
            # vllm-cpu registers no distribution named vllm, so importlib.metadata does not know it
            "version": vllm.__version__,
            "model": model.model,
            "dtype": str(model.dtype).removeprefix("torch."),
            "max_model_len": model.max_model_len,
            "tensor_parallel_size": self._config.parallel_config.tensor_parallel_size,
            "max_num_seqs": seqs,
            # A slice counts as in flight until its longest answer is there, and of 32 heavy-tailed lengths the
            # longest is four to five times the mean. So 5: that vLLM's own queue never runs dry
            "max_in_flight": 5 * seqs,
        }

    def close(self) -> None:
        self._llm.shutdown()

    def _prompts(self, requests: Sequence[Request]) -> list[Any]:
        """Token ids of each request's prompt, tokenised together, or the `Reply` that refuses it."""
        texts: list[str] = []
        chat: list[bool] = []
        refused: dict[int, Reply] = {}
        for index, request in enumerate(requests):
            try:
                texts.append(self._text(request))
            except Exception as error:
                refused[index] = Reply(failure="ChatTemplateError", message=str(error))
                texts.append("")
            chat.append("messages" in request)
        ids = self._tokenise(texts, special=not any(chat)) if len(set(chat)) == 1 else None
        if ids is None:  # a mixture: chat templates write their own special tokens
            pairs = zip(texts, chat, strict=True)
            ids = [self._tokenise([text], special=not is_chat)[0] for text, is_chat in pairs]
        limit = self._config.model_config.max_model_len
        for index, tokens in enumerate(ids):
            own = 0 if "text" in requests[index] else 1  # to answer, the model needs room for one token
            if index not in refused and len(tokens) + own > limit:
                what = f"{len(tokens)} prompt tokens, and max_model_len is {limit}"
                refused[index] = Reply(failure="PromptTooLong", message=what)
        return [refused.get(i, {"prompt_token_ids": tokens}) for i, tokens in enumerate(ids)]

    def _text(self, request: Request) -> str:
        if "messages" not in request:
            return str(request["prompt"] if "prompt" in request else request["text"])
        return str(
            self._tokenizer.apply_chat_template(
                list(request["messages"]),
                tokenize=False,
                add_generation_prompt=True,
                **request.get("chat_template_kwargs", {}),
            )
        )

    def _tokenise(self, texts: list[str], *, special: bool) -> list[list[int]]:
        found: list[list[int]] = self._tokenizer(texts, add_special_tokens=special)["input_ids"]
        return found

    async def _one(self, request: Request, prompt: Any, params: _ParamsCache) -> Reply:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineGenerateError

        if isinstance(prompt, Reply):
            return prompt
        try:
            if "text" in request:
                return await self._embed(prompt)
            return await self._generate(request, prompt, params)
        except (VLLMClientError, ValueError, TypeError) as error:
            return Reply(failure="InvalidRequest", message=str(error))
        except EngineGenerateError as error:  # vLLM calls it recoverable: this request only
            return Reply(failure="GenerateError", message=str(error.__cause__ or error))

    async def _generate(self, request: Request, prompt: Any, params: _ParamsCache) -> Reply:
        sampling = params.get(request.get("sampling") or {}, request.get("structured"))
        lora = self._lora(request.get("lora"))
        final = None
        name = str(next(self._ids))
        async for output in self._llm.generate(prompt, sampling, name, lora_request=lora):
            final = output
        assert final is not None, "vLLM ended a request without an output"
        generated = sum(len(o.token_ids) for o in final.outputs)
        prompt_tokens = len(final.prompt_token_ids or ())
        cached = final.num_cached_tokens or 0
        value = {
            "outputs": [_completion(o, self._reasoning) for o in final.outputs],
            "prompt_tokens": prompt_tokens,
            "cached_tokens": cached,
        }
        stats = {"prompt_tokens": prompt_tokens, "cached_tokens": cached, "generated_tokens": generated}
        return Reply(value=value, stats=stats)

    async def _embed(self, prompt: Any) -> Reply:
        import numpy as np
        from vllm import PoolingParams

        final = None
        async for output in self._llm.encode(prompt, PoolingParams(task="embed"), str(next(self._ids))):
            final = output
        assert final is not None, "vLLM ended a request without an output"
        vector = np.asarray(final.outputs.data.float().cpu().numpy(), dtype=np.float32).reshape(-1)
        return Reply(value=vector, stats={"prompt_tokens": len(final.prompt_token_ids)})

    def _lora(self, lora: Mapping[str, str] | None) -> Any:
        if lora is None:
            return None
        from vllm.lora.request import LoRARequest

        key = (lora["name"], lora["path"])
        if key not in self._loras:
            self._loras[key] = LoRARequest(lora["name"], len(self._loras) + 1, lora["path"])
        return self._loras[key]


class _ParamsCache:
    """`SamplingParams` of one slice. Rows without overrides share one dict object, and so one instance."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int], Any] = {}

    def get(self, sampling: Mapping[str, Any], structured: Mapping[str, Any] | None) -> Any:
        key = (id(sampling), id(structured))
        if key not in self._made:
            self._made[key] = _sampling_params(sampling, structured)
        return self._made[key]


def _sampling_params(sampling: Mapping[str, Any], structured: Mapping[str, Any] | None) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    extra: dict[str, Any] = {}
    if structured is not None:
        extra["structured_outputs"] = StructuredOutputsParams(**structured)
    # FINAL_ONLY: every token of every request through Python would cost more than a small model does
    return SamplingParams(**sampling, **extra, output_kind=RequestOutputKind.FINAL_ONLY)


def _reasoning_parser(config: Any, tokenizer: Any) -> Any:
    """vLLM's parser of the model's reasoning; None without the engine argument `reasoning_parser`."""
    name = config.structured_outputs_config.reasoning_parser
    if not name:
        return None
    from vllm.reasoning import ReasoningParserManager

    return ReasoningParserManager.get_reasoning_parser(name)(tokenizer)


def _completion(output: Any, reasoning_parser: Any) -> dict[str, Any]:
    reasoning, text = None, output.text
    if reasoning_parser is not None:
        reasoning, content = reasoning_parser.extract_reasoning(output.text, None)
        text = content or ""
    return {
        "text": text,
        "finish_reason": output.finish_reason,
        "tokens": len(output.token_ids),
        "reasoning": reasoning,
        "logprobs": _logprobs(output.logprobs),
    }


def _logprobs(found: Any) -> list[list[dict[str, Any]]] | None:
    """Per generated token, the chosen and the likeliest tokens: [{token, token_id, logprob, rank}, ...]."""
    if found is None:
        return None
    return [
        [
            {"token": entry.decoded_token, "token_id": token, "logprob": entry.logprob, "rank": entry.rank}
            for token, entry in position.items()
        ]
        for position in found
    ]
