"""sentence-transformers behind the `Engine` contract: one model per actor, fed in windows sorted by length.

Slices that wait at the same time are embedded as one window, so that batches stay full and sorted across
units. A window is tokenised once, sorted by true token counts, and cut into batches by a token budget, where
the library's own `encode` sorts by characters and has batches of a fixed number of rows. Its public
`preprocess` and `forward` do the work, so the vectors are those of `encode`.

On a CPU, several batches run at a time with one thread each, instead of one batch with many threads that wait
for each other after every operation.

Requests: {"text": str, "options": {"prompt": str | None, "prompt_name": str | None}}; options are optional.
Replies: `value` is the model's vector, float32, of shape [dimension], neither cut nor normalised further.
`stats` are prompt_tokens, padded_tokens (with the row's share of padding) and truncated_texts (1 if the
text was longer than the model's max_seq_length). An unknown prompt_name is the failure "InvalidOptions".
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raybatch.engines.base import EngineSpec, Progress, Reply
from raybatch.engines.batching import Lengths, longest_first, pack
from raybatch.engines.vectors import Counts, Matrix, VectorReplies
from raybatch.errors import EngineLoadError

# The largest batch, in tokens with padding. A CPU core is as fast with 1,024 to 4,096 (MiniLM, float32 and
# bfloat16), and slower beyond, when activations leave its cache; a GPU wants many more.
CPU_BATCH_TOKENS = 2_048
CUDA_BATCH_TOKENS = 65_536
# A batch ends where padding would exceed 2 % of it, unless it is so small that starting another costs more:
# a forward pass on a CPU costs 40 to 150 tokens before its first.
MAX_PADDING = 0.02
MIN_BATCH_SHARE = 1 / 8
# What may be sorted together. Several windows per `max_in_flight`: two at work, so that batches of one follow
# those of the other without a gap, and one that waits, ready.
CPU_WINDOW_ROWS = 2_048
CUDA_WINDOW_ROWS = 8_192
WINDOWS_AT_WORK = 2
WINDOWS_IN_FLIGHT = 3
# Tokenised together. Several per window, so that one is computed while the next is tokenised.
CHUNK_ROWS = 1_024
# Bounds a chunk's padded characters: 4 Mi tokens of int64 in three tensors are 100 MB in the worst case.
CHUNK_CHARACTERS = 4 * 1024**2
# Words of natural language give 3 to 6 characters per token.
CHARACTERS_PER_TOKEN = 4
# Batches at a time on a CPU. Python's part of a forward pass holds the interpreter's lock; with more batches
# at a time than this, they would queue for it.
MAX_CPU_WORKERS = 8

Request = Mapping[str, Any]
Features = dict[str, Any]


async def load(spec: EngineSpec) -> SentenceTransformersEngine:
    """Load the model that `spec` names, on a GPU if `spec.num_gpus` is positive, else on the CPU.

    `spec.args`: `SentenceTransformer`'s own arguments (backend, revision, trust_remote_code, model_kwargs,
    ...), `dtype` (a name, given to the model as `model_kwargs["dtype"]`), `max_seq_length`, `max_batch_tokens`.
    Raises `EngineLoadError` for a folder that holds no such model, a backend that is not installed, or
    whatever the library says.
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
        workers = min(cpus, MAX_CPU_WORKERS) if _reentrant(model, args) else 1
        torch.set_num_threads(cpus // workers)
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
        f"engine sentence_transformers: {spec.model} was given a GPU, but torch {torch.__version__} finds none;"
        " install a torch built for this GPU, or say `device: cpu`"
    )


def _reentrant(model: Any, args: Mapping[str, Any]) -> bool:
    """Whether several forward passes may run at the same time.

    Not with code that comes with a model, nor with rotary embeddings that are stretched by the longest text
    seen so far: both may change the model during a pass. ONNX and OpenVINO use all cores for one pass.
    """
    config = getattr(model, "config", None)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    stretched = any(name in str(rope) for name in ("dynamic", "longrope", "yarn"))
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


@dataclass(frozen=True)
class _Chunk:
    """Tokenised rows, longest first. `rows[i]` is the place in the window of the chunk's i-th row."""

    rows: Lengths
    features: Features
    batches: list[range]
    tokens: Counts
    padded: Counts
    truncated: Counts


class SentenceTransformersEngine:
    """A loaded `SentenceTransformer`. Contract: `raybatch.engines.base.Engine`."""

    def __init__(self, model: Any, *, name: str, max_batch_tokens: int | None, workers: int) -> None:
        cpu = str(model.device) == "cpu"
        self._model = model
        self._name = name
        self._max_batch_tokens = max_batch_tokens or (CPU_BATCH_TOKENS if cpu else CUDA_BATCH_TOKENS)
        self._window_rows = CPU_WINDOW_ROWS if cpu else CUDA_WINDOW_ROWS
        self._side = _padded_side(model)
        self._waiting: deque[_Slice] = deque()
        self._at_work: set[asyncio.Task[None]] = set()
        self._windows = ThreadPoolExecutor(WINDOWS_AT_WORK, thread_name_prefix="window")
        self._forwards = ThreadPoolExecutor(workers, thread_name_prefix="forward")
        # A tokeniser is set up for padding and truncation at each call: two calls at a time would clash
        self._tokeniser = threading.Lock()
        self._batches = 0
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
        return Progress(steps=self._batches, in_flight=self._in_flight)

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
            "max_batch_tokens": self._max_batch_tokens,
            "max_in_flight": WINDOWS_IN_FLIGHT * self._window_rows,
            "device": str(self._model.device),
        }

    def close(self) -> None:
        for pool in (self._windows, self._forwards):
            pool.shutdown(wait=False, cancel_futures=True)
        self._model = None

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
        loop = asyncio.get_running_loop()
        while self._waiting:
            window = self._take_window()
            try:
                replies = await loop.run_in_executor(self._windows, self._embed_window, window)
            except Exception as error:
                for part in window:
                    if not part.answer.done():
                        part.answer.set_exception(error)
                continue
            for part, found in zip(window, replies, strict=True):
                if not part.answer.done():
                    part.answer.set_result(found)
        # Here, with no await since the last look: `run` must not count on a task that looks no more
        self._at_work.discard(asyncio.current_task())  # type: ignore[arg-type]  # never None in a task

    def _take_window(self) -> list[_Slice]:
        """The slices that waited longest, up to a window's rows; with one prompt, as `preprocess` wants."""
        window = [self._waiting.popleft()]
        rows = len(window[0].texts)
        while self._waiting:
            following = self._waiting[0]
            rows += len(following.texts)
            if rows > self._window_rows or following.prompt != window[0].prompt:
                break
            window.append(self._waiting.popleft())
        return window

    def _embed_window(self, window: list[_Slice]) -> list[list[Reply]]:
        texts = [text for part in window for text in part.texts]
        matrix, stats = self._embed(texts, window[0].prompt)
        replies: list[list[Reply]] = []
        start = 0
        for part in window:
            rows = slice(start, start + len(part.texts))
            replies.append(
                VectorReplies(matrix[rows], {name: counts[rows] for name, counts in stats.items()})
            )
            start = rows.stop
        return replies

    def _embed(self, texts: list[str], prompt: str | None) -> tuple[Matrix, dict[str, Counts]]:
        """Vectors [len(texts), dimension] and counts per row, in the order of `texts`."""
        done: list[tuple[_Chunk, Matrix]] = []
        launched: tuple[_Chunk, list[Future[Any]]] | None = None
        for rows in self._chunks(texts):
            chunk = self._tokenise([texts[i] for i in rows], rows, prompt)
            following = (chunk, [self._forwards.submit(self._forward, chunk, b) for b in chunk.batches])
            # Only now: the device has the new chunk to work on while the one before is fetched
            if launched is not None:
                done.append((launched[0], _fetch(launched[1])))
            launched = following
        assert launched is not None, "a window has at least one row"
        done.append((launched[0], _fetch(launched[1])))
        return _in_order(done)

    def _chunks(self, texts: list[str]) -> Iterator[Lengths]:
        """Rows to be tokenised together, longest first by characters, which go roughly with tokens."""
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        limit = self._model.max_seq_length
        # What is truncated costs no more than what just fits
        capped = np.minimum(lengths, CHARACTERS_PER_TOKEN * limit) if limit else lengths
        order = longest_first(capped)
        characters = CHUNK_CHARACTERS if self._side else CHARACTERS_PER_TOKEN * self._max_batch_tokens
        for part in pack(capped[order], max_tokens=characters, max_rows=CHUNK_ROWS):
            yield order[part.start : part.stop]

    def _tokenise(self, texts: list[str], rows: Lengths, prompt: str | None) -> _Chunk:
        with self._tokeniser:
            features = self._model.preprocess(texts, prompt=prompt)
        encodings = getattr(features, "encodings", None) or []
        truncated = np.array([bool(e.overflowing) for e in encodings] or [False] * len(rows), dtype=np.int64)
        if self._side is None:
            tokens = _flat_lengths(features, len(rows))
            return _Chunk(rows, dict(features), [range(len(rows))], tokens, tokens, truncated)
        tokens = features["attention_mask"].sum(dim=1).numpy()
        order = longest_first(tokens)
        lengths = tokens[order]
        batches = pack(
            lengths,
            max_tokens=self._max_batch_tokens,
            max_padding=MAX_PADDING,
            min_tokens=int(self._max_batch_tokens * MIN_BATCH_SHARE),
        )
        padded = np.concatenate([np.full(len(b), lengths[b.start]) for b in batches])
        in_order = {name: v[order] if _is_tensor(v) else v for name, v in features.items()}
        return _Chunk(rows[order], in_order, batches, lengths, padded, truncated[order])

    def _cut(self, chunk: _Chunk, batch: range) -> Features:
        """One batch of a chunk, on the model's device, without the padding that only other batches need."""
        features = chunk.features
        if self._side is not None:
            width = int(chunk.padded[batch.start])
            columns = slice(0, width) if self._side == "right" else slice(-width, None)
            rows = slice(batch.start, batch.stop)
            features = {n: v[rows, columns] if _is_tensor(v) else v for n, v in features.items()}
        device = self._model.device
        return {n: v.to(device, non_blocking=True) if _is_tensor(v) else v for n, v in features.items()}

    def _forward(self, chunk: _Chunk, batch: range) -> Any:
        """Vectors [rows, dimension] of one batch, a tensor on the model's device."""
        vectors = self._vectors(self._cut(chunk, batch))
        self._batches += 1
        return vectors

    def _vectors(self, batch: Features) -> Any:
        """The same, for features on the device. A batch that needs too much memory is halved."""
        import torch

        try:
            with torch.inference_mode():
                # A copy: modules add their outputs to the dict that they are given
                return self._model(dict(batch))["sentence_embedding"]
        except torch.OutOfMemoryError:
            rows = len(batch["attention_mask"]) if self._side else 1
            if rows == 1:
                raise
        torch.cuda.empty_cache()
        parts = (slice(0, rows // 2), slice(rows // 2, rows))
        halves = ({n: v[part] if _is_tensor(v) else v for n, v in batch.items()} for part in parts)
        return torch.cat([self._vectors(half) for half in halves])


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _padded_side(model: Any) -> str | None:
    """Where `preprocess` pads: "right", "left", or None when batches cannot be cut out of its output.

    None is for inputs that are no matrix of tokens: static embeddings, or flash attention without padding.
    """
    features = model.preprocess(["a", "a text of more than one token"])
    mask = features.get("attention_mask")
    if mask is None or any(v.shape != mask.shape for v in features.values() if _is_tensor(v)):
        return None
    if mask.shape[0] != 2 or bool(mask.all()):
        return None
    return "right" if bool(mask[:, 0].all()) else "left"


def _flat_lengths(features: Features, rows: int) -> Counts:
    """Tokens per row where the rows lie one after another in one dimension; zeros where that is not told."""
    if "cu_seq_lens_q" in features:
        return np.diff(features["cu_seq_lens_q"].numpy()).astype(np.int64)
    if "offsets" in features:
        return np.diff(features["offsets"].numpy(), append=len(features["input_ids"])).astype(np.int64)
    return np.zeros(rows, dtype=np.int64)


def _fetch(outputs: list[Future[Any]]) -> Matrix:
    """The vectors of a chunk's batches, in the memory of the host; waits for the device."""
    import torch

    matrix: Matrix = torch.cat([output.result() for output in outputs]).float().cpu().numpy()
    return matrix


def _in_order(done: list[tuple[_Chunk, Matrix]]) -> tuple[Matrix, dict[str, Counts]]:
    """Put the rows of all chunks of a window back where they came from."""
    back = np.argsort(np.concatenate([chunk.rows for chunk, _ in done]))
    matrix = np.concatenate([vectors for _, vectors in done])[back]
    stats = {
        "prompt_tokens": np.concatenate([chunk.tokens for chunk, _ in done])[back],
        "padded_tokens": np.concatenate([chunk.padded for chunk, _ in done])[back],
        "truncated_texts": np.concatenate([chunk.truncated for chunk, _ in done])[back],
    }
    return matrix, stats
