"""Real vLLM on the CPU, with the model of pipelines/normalise. Most tests share one engine."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from raybatch.engines.base import EngineSpec, Reply
from raybatch.errors import EngineLoadError

pytestmark = pytest.mark.vllm

MODEL = str(pathlib.Path(__file__).parents[2] / "pipelines" / "normalise" / "model")
GREEDY = {"temperature": 0, "max_tokens": 24}
LINES = [f"the invoice of {day} March 2021 was late" for day in range(1, 29)]
ANSWERS = [f"2021-03-{day:02d}" for day in range(1, 29)]


class Loaded:
    """An engine and the event loop it lives on."""

    def __init__(self, **args: Any) -> None:
        from raybatch.engines import vllm

        self._loop = asyncio.new_event_loop()
        base = {"dtype": "bfloat16", "max_model_len": 256, "enforce_eager": True}
        spec = EngineSpec(kind="vllm", model=MODEL, args=base | args)
        self.engine = self._loop.run_until_complete(vllm.load(spec))

    def run(self, requests: Sequence[Mapping[str, Any]]) -> list[Reply]:
        return self._loop.run_until_complete(self.engine.run(requests))

    def close(self) -> None:
        self.engine.close()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA adapter whose weights are large enough to change what the model says."""
    import torch
    from safetensors.torch import save_file

    config = json.loads(pathlib.Path(MODEL, "config.json").read_text())
    hidden, rank = config["hidden_size"], 8
    out = config["num_attention_heads"] * config["head_dim"]
    torch.manual_seed(0)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        at = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{at}.lora_A.weight"] = torch.randn(rank, hidden)
        weights[f"{at}.lora_B.weight"] = torch.randn(out, rank)
    folder = tmp_path_factory.mktemp("adapter")
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 64,
        "target_modules": ["q_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    before = os.environ.get("VLLM_CPU_KVCACHE_SPACE")
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    engine = Loaded(
        enable_lora=True,
        max_lora_rank=8,
        # A model that has never seen JSON would fill it with blanks for ever
        structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
    )
    yield engine
    engine.close()
    if before is None:
        del os.environ["VLLM_CPU_KVCACHE_SPACE"]


def text(reply: Reply) -> str:
    assert reply.failure is None, reply
    return str(reply.value["outputs"][0]["text"])


def prompts(lines: Sequence[str], **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"{line} =>", "sampling": GREEDY, **more} for line in lines]


def test_answers_are_right_and_in_order(loaded: Loaded) -> None:
    assert [text(r) for r in loaded.run(prompts(LINES))] == ANSWERS


def test_tokens_of_prompt_and_answer_are_counted(loaded: Loaded) -> None:
    from transformers import AutoTokenizer

    reply = loaded.run(prompts(LINES[:1]))[0]
    expected = len(AutoTokenizer.from_pretrained(MODEL)(f"{LINES[0]} =>")["input_ids"])
    assert reply.stats["prompt_tokens"] == reply.value["prompt_tokens"] == expected
    assert reply.stats["generated_tokens"] == reply.value["outputs"][0]["tokens"] > 0


def test_messages_go_through_the_models_chat_template(loaded: Loaded) -> None:
    requests = [{"messages": [{"role": "user", "content": LINES[4]}], "sampling": GREEDY}]
    assert text(loaded.run(requests)[0]) == ANSWERS[4]


def test_prompts_and_messages_may_travel_together(loaded: Loaded) -> None:
    chat = {"messages": [{"role": "user", "content": LINES[4]}], "sampling": GREEDY}
    assert [text(r) for r in loaded.run([*prompts(LINES[:2]), chat])] == [*ANSWERS[:2], ANSWERS[4]]


def test_an_over_long_prompt_fails_alone(loaded: Loaded) -> None:
    replies = loaded.run([*prompts(LINES[:1]), {"prompt": "late " * 500, "sampling": GREEDY}])
    assert text(replies[0]) == ANSWERS[0]
    assert replies[1].failure == "PromptTooLong"
    assert "max_model_len is 256" in replies[1].message


def test_sampling_that_vllm_refuses_fails_alone(loaded: Loaded) -> None:
    bad = {"prompt": "x =>", "sampling": {"temperature": -1}}
    replies = loaded.run([bad, *prompts(LINES[:1])])
    assert replies[0].failure == "InvalidRequest"
    assert "temperature" in replies[0].message
    assert text(replies[1]) == ANSWERS[0]


def test_all_of_n_outputs_are_kept(loaded: Loaded) -> None:
    sampling = {"temperature": 1.5, "n": 3, "max_tokens": 8, "seed": 1}
    reply = loaded.run([{"prompt": "hello =>", "sampling": sampling}])[0]
    assert len(reply.value["outputs"]) == 3
    assert reply.stats["generated_tokens"] == sum(o["tokens"] for o in reply.value["outputs"])


def test_logprobs_are_given_for_each_token_when_asked(loaded: Loaded) -> None:
    reply = loaded.run([{"prompt": f"{LINES[0]} =>", "sampling": GREEDY | {"logprobs": 2}}])[0]
    output = reply.value["outputs"][0]
    assert len(output["logprobs"]) == output["tokens"]
    assert all(len(position) >= 2 for position in output["logprobs"])
    assert all(entry["logprob"] <= 0 for position in output["logprobs"] for entry in position)


@pytest.mark.parametrize(
    ("structured", "accepts"),
    [
        ({"choice": ["red", "green"]}, lambda t: t in ("red", "green")),
        ({"regex": r"[0-9]{3}-x"}, lambda t: len(t) == 5 and t[:3].isdigit() and t[3:] == "-x"),
        (
            {"json": {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}},
            lambda t: json.loads(t)["a"] in (1, 2),
        ),
    ],
)
def test_structured_output_has_the_structure(loaded: Loaded, structured: Any, accepts: Any) -> None:
    request = {"prompt": "say =>", "sampling": GREEDY | {"max_tokens": 64}, "structured": structured}
    assert accepts(text(loaded.run([request])[0]))


def test_a_lora_adapter_changes_its_own_rows_only(loaded: Loaded, adapter: str) -> None:
    with_lora = prompts(LINES[:8], lora={"name": "noise", "path": adapter})
    plain, changed = loaded.run(prompts(LINES[:8])), loaded.run(with_lora)
    assert [text(r) for r in plain] == ANSWERS[:8]
    assert [text(r) for r in changed] != ANSWERS[:8]


def test_slices_of_several_units_are_answered_at_the_same_time(loaded: Loaded) -> None:
    async def together() -> list[list[Reply]]:
        return await asyncio.gather(*(loaded.engine.run(prompts(LINES)) for _ in range(4)))

    found = loaded._loop.run_until_complete(together())
    assert [[text(r) for r in replies] for replies in found] == [ANSWERS] * 4


def test_progress_grows_with_work_and_nothing_stays_in_flight(loaded: Loaded) -> None:
    before = loaded.engine.progress()
    loaded.run(prompts(LINES))
    after = loaded.engine.progress()
    assert after.steps > before.steps
    assert after.generated_tokens > before.generated_tokens
    assert after.in_flight == 0


def test_the_engine_describes_what_was_loaded(loaded: Loaded) -> None:
    found = loaded.engine.describe()
    assert (found["model"], found["dtype"], found["max_model_len"]) == (MODEL, "bfloat16", 256)


def test_reasoning_is_told_from_the_answer_by_vllms_own_parser() -> None:
    from transformers import AutoTokenizer
    from vllm.reasoning import ReasoningParserManager

    from raybatch.engines.vllm import _completion

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.add_tokens(["<think>", "</think>"])
    parser = ReasoningParserManager.get_reasoning_parser("deepseek_r1")(tokenizer)
    output = SimpleNamespace(
        text="<think>the third month</think>2021-03-01", finish_reason="stop", token_ids=[1], logprobs=None
    )
    found = _completion(output, parser)
    assert (found["reasoning"], found["text"]) == ("the third month", "2021-03-01")


def load_fails(*, model: str = MODEL, **args: Any) -> str:
    from raybatch.engines import vllm

    with pytest.raises(EngineLoadError) as caught:
        asyncio.run(vllm.load(EngineSpec(kind="vllm", model=model, args=args)))
    return str(caught.value)


def test_a_model_folder_that_does_not_exist_is_named() -> None:
    assert "/no/such/model does not exist" in load_fails(model="/no/such/model")


def test_an_unknown_engine_argument_is_named_with_the_nearest() -> None:
    said = load_fails(tensor_paralel_size=2)
    assert "'tensor_paralel_size'" in said
    assert "tensor_parallel_size" in said


def test_a_context_longer_than_the_models_is_refused_in_vllms_words() -> None:
    assert "max_model_len" in load_fails(max_model_len=100_000)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_two_tensor_parallel_ranks_give_the_same_greedy_text_as_one(loaded: Loaded) -> None:
    import ray

    from raybatch.engines.client import PoolClient
    from raybatch.engines.pool import EnginePool

    args = {"dtype": "bfloat16", "max_model_len": 256, "enforce_eager": True, "tensor_parallel_size": 2}
    # One core for each rank; without it vLLM wants as many NUMA nodes as ranks
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    spec = EngineSpec(kind="vllm", model=MODEL, args=args, env=env)
    pool = ray.remote(EnginePool).options(num_cpus=0, max_concurrency=100).remote(spec, can_grow=False)
    ray.get(pool.start.remote())
    try:
        found = PoolClient(pool=pool, slice_rows=64).call(prompts(LINES))
        status = ray.get(pool.status.remote())
    finally:
        ray.get(pool.stop.remote())
    assert status.describe["tensor_parallel_size"] == 2
    assert [text(r) for r in found] == [text(r) for r in loaded.run(prompts(LINES))]
