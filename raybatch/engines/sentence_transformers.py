"""sentence-transformers behind the `Engine` contract: one model per actor, fed in windows sorted by length.

Slices that wait at the same time are embedded as one window, so that batches stay full and sorted across
units. A window is tokenised once, sorted by true token counts, and cut into batches by a token budget, where
the library's own `encode` sorts by characters and has batches of a fixed number of rows. Its public
`preprocess` and `forward` do the work, so the vectors are those of `encode`.

Requests: {"text": str, "options": {"prompt": str | None, "prompt_name": str | None}}; `options` is optional,
and the same for all requests of a slice.
Replies: `value` is the model's vector, float32, of shape [dimension], neither cut nor normalised further.
`stats` are prompt_tokens, padded_tokens (with the row's share of padding) and truncated_texts (1 if the
text was longer than the model's max_seq_length). An unknown prompt_name is the failure "InvalidOptions".
"""

from __future__ import annotations

import asyncio
import math
import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybatch.engines.base import EngineSpec, Progress, Reply
from raybatch.engines.embedder import Embedder
from raybatch.engines.vectors import VectorReplies
from raybatch.errors import EngineLoadError

# What may be sorted together at most: the larger, the less padding. Several windows per `max_in_flight`: two
# at work, so that the batches of one follow those of the other without a gap, and one that waits, ready.
CPU_WINDOW_ROWS = 4_096
CUDA_WINDOW_ROWS = 16_384
WINDOWS_AT_WORK = 2
WINDOWS_IN_FLIGHT = 3
# A window is answered as a whole, so with slow models it is made smaller: what is lost when the process dies
# is then some seconds of work, and not many minutes.
WINDOW_S = 20.0
SMALLEST_WINDOW_ROWS = 256
# Batches at a time on a CPU. Python's part of a forward pass holds the interpreter's lock; with more batches
# at a time than this, they would queue for it.
MAX_CPU_WORKERS = 8

Request = Mapping[str, Any]


async def load(spec: EngineSpec) -> SentenceTransformersEngine:
    """Load the model that `spec` names, on a GPU if `spec.num_gpus` is positive, else on the CPU.

    `spec.args`: `SentenceTransformer`'s own arguments (backend, revision, trust_remote_code, model_kwargs,
    ...), and `max_seq_length`, `max_batch_tokens`, and `dtype`: a name, for `model_kwargs["dtype"]`. Raises
    `EngineLoadError` for a folder that holds no such model, a backend that is not installed, or whatever the
    library says.
    """
    return await asyncio.to_thread(_load, spec)


def _load(spec: EngineSpec) -> SentenceTransformersEngine:
    _refuse_wrong_folder(spec.model)
    try:
        import torch
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise EngineLoadError(
            f"engine sentence_transformers: {error}; install raybatch with its `cpu` or `gpu` extra, or"
            " pip install sentence-transformers"
        ) from error
    device = _device(spec, torch)
    args = dict(spec.args)
    max_seq_length = args.pop("max_seq_length", None)
    max_batch_tokens = args.pop("max_batch_tokens", None)
    dtype = args.pop("dtype", None)
    if dtype is not None:
        args["model_kwargs"] = {**args.get("model_kwargs", {}), "dtype": getattr(torch, dtype)}
    try:
        model = SentenceTransformer(spec.model, device=device, **args)
    except Exception as error:
        raise EngineLoadError(f"engine sentence_transformers: {spec.model}: {error}") from error
    if max_seq_length is not None:
        model.max_seq_length = max_seq_length
    workers = 1
    if device == "cpu":
        cpus = int(os.environ.get("OMP_NUM_THREADS", 0)) or int(spec.num_cpus) or usable_cpus()
        threads = math.ceil(cpus / MAX_CPU_WORKERS) if _reentrant(model, args) else cpus
        workers = cpus // threads
        torch.set_num_threads(threads)
    return SentenceTransformersEngine(
        model.eval(), name=spec.model, max_batch_tokens=max_batch_tokens, workers=workers
    )


def _refuse_wrong_folder(model: str) -> None:
    # Said before the imports, which take ten seconds. A folder without modules.json would load too, with a
    # pooling that the library guesses and a warning that nobody sees.
    if not model.startswith(("/", ".", "~")):
        return
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise EngineLoadError(
            f"engine sentence_transformers: the model folder {model} does not exist on this node; give"
            " a folder that every node sees, or a hub name such as sentence-transformers/all-MiniLM-L6-v2"
        )
    if not (folder / "modules.json").is_file():
        raise EngineLoadError(
            f"engine sentence_transformers: {model} is no sentence-transformers model: it has no modules.json"
            " (which says how tokens are pooled); save it with SentenceTransformer.save_pretrained, or use"
            " `engine: vllm`"
        )


def _device(spec: EngineSpec, torch: Any) -> str:
    if spec.num_gpus <= 0:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    raise EngineLoadError(
        f"engine sentence_transformers: {spec.model} was given a GPU, but torch {torch.__version__} finds"
        " none; install a torch built for this GPU, or say `device: cpu`"
    )


def _reentrant(model: Any, args: Mapping[str, Any]) -> bool:
    """Whether several forward passes may run at the same time.

    Not with code that comes with a model, nor with rotary embeddings that are stretched by the longest text
    seen so far: both may change the model during a pass. ONNX and OpenVINO use all cores for one pass.
    """
    config = getattr(model, "config", None)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    stretched = any(name in str(rope) for name in ("dynamic", "longrope"))
    return model.get_backend() == "torch" and not args.get("trust_remote_code") and not stretched


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity, and its container's quota, which torch does not see."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cpus
    return cpus if quota == "max" else min(cpus, math.ceil(int(quota) / int(period)))


@dataclass(frozen=True)
class _Slice:
    """One call of `run` that waits for its answer."""

    texts: list[str]
    prompt: str | None
    answer: asyncio.Future[list[Reply]]


class SentenceTransformersEngine:
    """A loaded `SentenceTransformer`. Contract: `raybatch.engines.base.Engine`."""

    def __init__(self, model: Any, *, name: str, max_batch_tokens: int | None, workers: int) -> None:
        self._model = model
        self._name = name
        self._embedder = Embedder(model, max_batch_tokens=max_batch_tokens, workers=workers)
        self._largest_window = CPU_WINDOW_ROWS if str(model.device) == "cpu" else CUDA_WINDOW_ROWS
        self._window_rows = SMALLEST_WINDOW_ROWS  # until it is seen how fast the model is
        self._waiting: deque[_Slice] = deque()
        self._at_work: set[asyncio.Task[None] | None] = set()
        self._threads = ThreadPoolExecutor(WINDOWS_AT_WORK, thread_name_prefix="window")
        self._in_flight = 0

    async def run(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer a slice; raises what the model raises."""
        if not requests:
            return []
        try:
            prompt = self._prompt(requests[0].get("options") or {})
        except KeyError as error:
            return [Reply(failure="InvalidOptions", message=str(error.args[0])) for _ in requests]
        waiting = _Slice([r["text"] for r in requests], prompt, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._in_flight += len(requests)
        if len(self._at_work) < WINDOWS_AT_WORK:
            self._at_work.add(asyncio.create_task(self._work()))
        try:
            return await waiting.answer
        finally:
            self._in_flight -= len(requests)

    def progress(self) -> Progress:
        return Progress(steps=self._embedder.batches, in_flight=self._in_flight)

    def describe(self) -> Mapping[str, Any]:
        import sentence_transformers

        return {
            "engine": "sentence_transformers",
            "version": sentence_transformers.__version__,
            "model": self._name,
            "backend": self._model.get_backend(),
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "dimension": self._model.get_embedding_dimension(),
            "max_seq_length": self._model.max_seq_length,
            "max_batch_tokens": self._embedder.max_batch_tokens,
            "max_in_flight": WINDOWS_IN_FLIGHT * self._largest_window,
            "device": str(self._model.device),
        }

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._embedder.close()

    def _prompt(self, options: Mapping[str, str | None]) -> str | None:
        """What precedes each text, chosen as `encode` does. Raises `KeyError` with a message for users."""
        if options.get("prompt") is not None:
            return options["prompt"]
        name = options.get("prompt_name") or self._model.default_prompt_name
        if name is None:
            return None
        if name not in self._model.prompts:
            known = ", ".join(sorted(self._model.prompts)) or "none"
            raise KeyError(f"prompt_name '{name}' is no prompt of {self._name}; it has: {known}")
        return str(self._model.prompts[name])

    async def _work(self) -> None:
        """Embed window after window until nothing waits."""
        try:
            while self._waiting:
                await self._answer(self._take_window())
        finally:
            # With no await since the last look: `run` must not count on a task that looks no more
            self._at_work.discard(asyncio.current_task())

    async def _answer(self, window: list[_Slice]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            replies = await loop.run_in_executor(self._threads, self._embed, window)
        except Exception as error:
            for part in window:
                if not part.answer.done():
                    part.answer.set_exception(error)
            return
        rows = 0
        for part, found in zip(window, replies, strict=True):
            rows += len(found)
            if not part.answer.done():
                part.answer.set_result(found)
        within = int(rows * WINDOW_S / max(loop.time() - started, 1e-3))
        self._window_rows = min(max(within, SMALLEST_WINDOW_ROWS), self._largest_window)

    def _take_window(self) -> list[_Slice]:
        """The slices that waited longest, up to a window's rows; with one prompt, as `preprocess` wants.

        At least one slice, however large.
        """
        window = [self._waiting.popleft()]
        rows = len(window[0].texts)
        while self._waiting:
            following = self._waiting[0]
            rows += len(following.texts)
            if rows > self._window_rows or following.prompt != window[0].prompt:
                break
            window.append(self._waiting.popleft())
        return window

    def _embed(self, window: list[_Slice]) -> list[VectorReplies]:
        texts = [text for part in window for text in part.texts]
        matrix, stats = self._embedder.embed(texts, prompt=window[0].prompt)
        replies = []
        start = 0
        for part in window:
            rows = slice(start, start + len(part.texts))
            replies.append(VectorReplies(matrix[rows], {name: count[rows] for name, count in stats.items()}))
            start = rows.stop
        return replies
