"""The synchronous half of the sentence-transformers engine: texts in, a matrix of vectors out.

On a CPU, several batches run at a time with one thread each, instead of one batch whose many threads wait for
each other after every operation. On a GPU, one thread feeds the device while the next texts are tokenised.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from raybatch.engines.batching import Lengths, longest_first, pack
from raybatch.engines.vectors import Counts, Matrix

# The largest batch, in tokens with padding. A CPU core is as fast with 1,024 to 4,096 (MiniLM, float32 and
# bfloat16), and slower beyond, when activations leave its cache. A GPU wants many more; 65,536 is an estimate.
CPU_BATCH_TOKENS = 2_048
CUDA_BATCH_TOKENS = 65_536
# A batch ends where padding would exceed 2 % of it, unless it is still so small that to start another costs
# more. To start one costs a CPU what 40 (float32) to 150 (bfloat16) tokens of MiniLM cost; for a GPU, which is
# sent some hundred kernels for each, thousands are assumed and not measured.
MAX_PADDING = 0.02
CPU_SMALL_BATCH = 512
CUDA_SMALL_BATCH = 4_096
# Texts are tokenised and sorted together up to this many characters, padding included, which bounds memory:
# 4 Mi tokens of int64 in three tensors are 100 MB in the worst case.
CHUNK_CHARACTERS = 4 * 1024**2
# Words of natural language give 3 to 6 characters per token.
CHARACTERS_PER_TOKEN = 4
# Text beyond this many characters per token that the model can see is cut off before it is tokenised, which is
# done to all of it: 50 MB of text take 54 s and 7 GB, for a model that sees 256 tokens.
CHARACTERS_TOKENISED_PER_TOKEN = 1_000
_NO_LIMIT = 2**32

Features = dict[str, Any]


@dataclass(frozen=True)
class _Chunk:
    """Tokenised rows, longest first. `rows[i]` is the place in the window of the chunk's i-th row."""

    rows: Lengths
    features: Features
    batches: list[range]
    tokens: Counts
    padded: Counts
    truncated: Counts


class Embedder:
    """A loaded `SentenceTransformer` and the threads that it works with.

    `max_batch_tokens` bounds a batch, padding included; `workers` is how many batches run at a time.
    """

    def __init__(self, model: Any, *, max_batch_tokens: int | None = None, workers: int = 1) -> None:
        cpu = str(model.device) == "cpu"
        self._model = model
        self.max_batch_tokens = max_batch_tokens or (CPU_BATCH_TOKENS if cpu else CUDA_BATCH_TOKENS)
        self._small_batch = min(CPU_SMALL_BATCH if cpu else CUDA_SMALL_BATCH, self.max_batch_tokens)
        self.batches = 0  # that were computed: only grows, so it tells a slow device from a hung one
        self._side = _padded_side(model)
        # None, infinity and 10^30 all say that there is no limit
        self._max_tokens = int(min(model.max_seq_length or _NO_LIMIT, _NO_LIMIT))
        self._forwards = ThreadPoolExecutor(workers, thread_name_prefix="forward")
        # A tokeniser is set up for padding and truncation at each call: two calls at a time would clash
        self._tokeniser = threading.Lock()

    def close(self) -> None:
        """Start no further batch. An `embed` that is at work raises."""
        self._forwards.shutdown(wait=False, cancel_futures=True)

    def embed(self, texts: list[str], *, prompt: str | None = None) -> tuple[Matrix, dict[str, Counts]]:
        """Vectors [len(texts), dimension] and counts per row, in the order of `texts`; at least one text.

        The counts are prompt_tokens, padded_tokens and truncated_texts. May be called from several threads.
        """
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
        # What is truncated costs no more than what just fits
        capped = np.minimum(lengths, CHARACTERS_PER_TOKEN * self._max_tokens)
        order = longest_first(capped)
        characters = CHUNK_CHARACTERS if self._side else CHARACTERS_PER_TOKEN * self.max_batch_tokens
        for part in pack(capped[order], max_tokens=characters):
            yield order[part.start : part.stop]

    def _tokenise(self, texts: list[str], rows: Lengths, prompt: str | None) -> _Chunk:
        limit = CHARACTERS_TOKENISED_PER_TOKEN * self._max_tokens
        with self._tokeniser:
            features = self._model.preprocess([text[:limit] for text in texts], prompt=prompt)
        cut = [len(text) > limit for text in texts]
        overflowing = [bool(e.overflowing) for e in getattr(features, "encodings", None) or []]
        truncated = np.logical_or(cut, overflowing or False).astype(np.int64)
        if self._side is None:
            tokens = _flat_lengths(features, len(rows))
            return _Chunk(rows, dict(features), [range(len(rows))], tokens, tokens, truncated)
        tokens = features["attention_mask"].sum(dim=1).numpy()
        order = longest_first(tokens)
        lengths = tokens[order]
        batches = pack(
            lengths,
            max_tokens=self.max_batch_tokens,
            max_padding=MAX_PADDING,
            min_tokens=self._small_batch,
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
        self.batches += 1
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
