"""Embeddings by vLLM's pooling runner, for models that it serves: real MiniLM weights, on the CPU."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from raybatch.engines.base import EngineSpec

pytestmark = [pytest.mark.vllm, pytest.mark.embedding]

TEXTS = ["a cat sat on the mat", "dogs chase cats", "the central bank raised interest rates", "x"]


def test_vllm_gives_the_vectors_of_sentence_transformers(
    minilm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer

    from raybatch.engines import vllm

    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    args = {"runner": "pooling", "dtype": "float32", "enforce_eager": True}

    async def embed() -> np.ndarray:
        engine = await vllm.load(EngineSpec(kind="vllm", model=minilm, args=args))
        try:
            replies = await engine.run([{"text": text} for text in TEXTS])
        finally:
            engine.close()
        assert [r.failure for r in replies] == [None] * len(TEXTS)
        assert all(r.stats["prompt_tokens"] > 0 for r in replies)
        return np.stack([r.value for r in replies])

    expected = SentenceTransformer(minilm, device="cpu").encode(TEXTS)
    np.testing.assert_allclose(asyncio.run(embed()), expected, atol=2e-3)
