"""The stage `generate`: what it asks its engine, and what it makes of the replies.

The engine is a fake: that vLLM answers so is proved where a real one runs.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from raybatch.engines.base import Reply
from raybatch.errors import StageError
from raybatch.rows import RowFailure
from raybatch.stages.base import StageContext, StageResult
from raybatch.stages.completions import LOGPROBS
from raybatch.stages.generate import GenerateConfig
from raybatch.testing import FakeEngine, generated

PLAIN = [("text", pa.string()), ("finish_reason", pa.string())]
TOKENS = [(f"{kind}_tokens", pa.int32()) for kind in ("prompt", "cached", "generated")]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}


def config(**fields: Any) -> GenerateConfig:
    turns = {} if "messages" in fields else {"prompt": "{{ a }}"}
    return GenerateConfig.model_validate({"model": "org/model", "output": "out"} | turns | fields)


def run(
    rows: list[dict[str, Any]] | pa.Table, answer: Any = lambda _: "yes", **fields: Any
) -> tuple[StageResult, FakeEngine]:
    engine = FakeEngine(answer)
    stage = config(**fields).build(StageContext(base_dir=".", engine=engine))
    table = pa.Table.from_pylist(rows) if isinstance(rows, list) else rows
    return stage.process(table), engine


def outputs(result: StageResult) -> list[Any]:
    return result.table["out"].to_pylist()


def test_a_prompt_is_rendered_and_its_answer_becomes_a_struct() -> None:
    result, engine = run(
        [{"a": "sky", "id": 1}],
        lambda _: generated("so blue", prompt_tokens=5, cached_tokens=4),
        prompt="Why is the {{ a }} blue?",
        sampling={"temperature": 0},
    )
    assert engine.requests == [{"prompt": "Why is the sky blue?", "sampling": {"temperature": 0}}]
    assert result.table.to_pylist() == [
        {
            "a": "sky",
            "id": 1,
            "out": {
                "text": "so blue",
                "finish_reason": "stop",
                "prompt_tokens": 5,
                "cached_tokens": 4,
                "generated_tokens": 2,
            },
        }
    ]
    assert result.stats == {"prompt_tokens": 5, "cached_tokens": 4, "generated_tokens": 2}


def test_messages_are_templates_and_go_to_the_chat_template() -> None:
    _, engine = run(
        [{"a": "2+2"}],
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Compute {{ a }}"},
        ],
        chat_template_kwargs={"enable_thinking": False},
    )
    assert engine.requests == [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Compute 2+2"},
            ],
            "chat_template_kwargs": {"enable_thinking": False},
            "sampling": {},
        }
    ]


def test_one_unit_is_one_call() -> None:
    _, engine = run([{"a": str(i)} for i in range(1000)])
    assert (engine.calls, len(engine.requests)) == (1, 1000)


def test_rows_share_their_sampling_so_that_a_message_holds_it_once() -> None:
    _, engine = run([{"a": "x"}] * 100, sampling={"stop": ["word" * 100]}, structured={"choice": ["yes"]})
    assert len({id(request["sampling"]) for request in engine.requests}) == 1
    assert len({id(request["structured"]) for request in engine.requests}) == 1


def test_an_output_column_that_exists_is_not_overwritten() -> None:
    with pytest.raises(StageError, match="writes 'out', which is there already; choose another name"):
        run([{"a": "x", "out": 1}])


def test_rows_that_fail_leave_the_others_as_they_are() -> None:
    def answer(request: Any) -> str | Reply:
        if request["prompt"] == "long":
            return Reply(failure="PromptTooLong", message="9 tokens", attempts=2, stats={"prompt_tokens": 9})
        return request["prompt"].upper()

    result, engine = run([{"a": "p"}, {"a": " "}, {"a": "long"}, {"a": None}, {"a": "q"}], answer)
    assert [out["text"] for out in outputs(result)] == ["P", "Q"]
    assert result.parents.tolist() == [0, 4]
    assert {f.index: (f.type, f.attempts) for f in result.failures} == {
        1: ("EmptyPrompt", 1),
        2: ("PromptTooLong", 2),
        3: ("TemplateError", 1),
    }
    assert len(engine.requests) == 3
    assert result.stats["prompt_tokens"] == 11  # refused prompts were counted too


def test_a_prompt_above_the_limit_is_never_sent() -> None:
    result, engine = run([{"a": "x" * 50_000_000}, {"a": "x"}])
    assert [f.type for f in result.failures] == ["PromptTooLarge"]
    assert len(engine.requests) == 1


def test_messages_are_measured_together() -> None:
    turns = [{"role": "system", "content": "{{ a }}"}, {"role": "user", "content": "{{ a }}"}]
    result, _ = run([{"a": "x" * 60}, {"a": "x" * 50}], messages=turns, max_prompt_bytes=100)
    assert [(f.index, f.type) for f in result.failures] == [(0, "PromptTooLarge")]


def test_an_empty_user_turn_is_an_empty_prompt() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{{ a }}"}]
    result, _ = run([{"a": "\n"}, {"a": "x"}], messages=turns)
    assert [(f.index, f.type, f.message) for f in result.failures] == [
        (0, "EmptyPrompt", "messages[1], the user's, is empty")
    ]


def test_a_template_that_loops_for_some_rows_fails_those() -> None:
    loop = "{% for i in range(n) %}{% for j in range(n) %}{% endfor %}{% endfor %}{{ n }}"
    rows = [{"n": 1}, {"n": 99_999}, {"n": 2}]
    result, engine = run(rows, prompt=loop, template_timeout_s=0.05)
    assert [(f.index, f.type) for f in result.failures] == [(1, "TemplateTimeout")]
    assert [request["prompt"] for request in engine.requests] == ["1", "2"]


def test_a_template_that_loops_for_every_row_ends_the_run() -> None:
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(StageError, match="with each of 30 rows, and was done with none; look for a loop"):
        run([{"a": "x"}] * 1000, prompt=loop, template_timeout_s=0.01)


def test_the_whole_row_can_be_used() -> None:
    _, engine = run([{"a b": 1, "c": None}], prompt="{{ row['a b'] }} {{ row|length }}")
    assert [request["prompt"] for request in engine.requests] == ["1 2"]


@pytest.mark.parametrize(
    ("fields", "reads"),
    [
        ({"prompt": "{{ b }}{{ a }}"}, ["a", "b"]),
        ({"prompt": "{{ a }}", "sampling_column": "s"}, ["a", "s"]),
        ({"prompt": "{{ a }}", "lora_column": "l", "loras": {"x": "org/x"}}, ["a", "l"]),
        ({"messages": [{"role": "user", "content": "{{ a }}{{ row.b }}"}]}, ["a", "b"]),
        ({"prompt": "{{ row }}"}, None),
    ],
)
def test_the_columns_that_it_reads_are_known(fields: dict[str, Any], reads: list[str] | None) -> None:
    assert config(**fields).reads() == reads


def test_rows_have_sampling_of_their_own() -> None:
    rows = [
        {"a": "p", "s": {"max_tokens": 9}},
        {"a": "q", "s": {"max_tokens": None}},
        {"a": "r", "s": {"max_tokens": 0}},
    ]
    result, engine = run(rows, sampling={"temperature": 0}, sampling_column="s")
    assert {request["prompt"]: request["sampling"] for request in engine.requests} == {
        "p": {"temperature": 0, "max_tokens": 9},
        "q": {"temperature": 0},
    }
    assert [(f.index, f.type) for f in result.failures] == [(2, "InvalidSampling")]


def test_what_may_become_long_is_asked_first_and_rows_keep_their_place() -> None:
    said = [{"max_tokens": 8}, {"max_tokens": 500}, {"max_tokens": None}, {"max_tokens": 8}, {}]  # unsaid: 16
    rows = [{"a": f"row {n}", "s": json.dumps(one)} for n, one in enumerate(said)]
    result, engine = run(rows, lambda request: f"to {request['prompt']}", sampling_column="s")
    assert [request["prompt"] for request in engine.requests] == ["row 2", "row 1", "row 4", "row 0", "row 3"]
    assert [one["text"] for one in outputs(result)] == [f"to row {n}" for n in range(5)]
    assert result.parents.tolist() == list(range(5))


def test_a_sampling_column_that_is_not_there_ends_the_run() -> None:
    with pytest.raises(
        StageError, match=r"reads 'samplin', which is no column \(did you mean 'sampling'\?\)"
    ):
        run([{"a": "x", "sampling": None}], sampling_column="samplin")


def test_rows_choose_their_adapter() -> None:
    rows = [{"a": "p", "l": "x"}, {"a": "q", "l": None}, {"a": "r", "l": "y"}]
    result, engine = run(rows, lora_column="l", loras={"x": "org/x"})
    assert [request.get("lora") for request in engine.requests] == [{"name": "x", "path": "org/x"}, None]
    assert [(f.index, f.type) for f in result.failures] == [(2, "UnknownLoRA")]


def test_one_adapter_serves_all_rows() -> None:
    _, engine = run([{"a": "p"}, {"a": "q"}], lora={"name": "x", "path": "org/x"})
    assert [request["lora"]["path"] for request in engine.requests] == ["org/x", "org/x"]


def test_json_output_is_parsed_and_what_is_not_json_fails() -> None:
    rows = [{"a": '{"name": "A", "age": 3}'}, {"a": '{"name": "B'}, {"a": '{"name": "C"}'}]

    def answer(request: Any) -> Reply:
        whole = request["prompt"].endswith("}")
        return generated(request["prompt"], finish_reason="stop" if whole else "length")

    result, engine = run(rows, answer, structured={"json": PERSON})
    assert engine.requests[0]["structured"] == {"json": PERSON}
    assert [out["json"] for out in outputs(result)] == [{"name": "A", "age": 3}, {"name": "C", "age": None}]
    assert [(f.index, f.type) for f in result.failures] == [(1, "InvalidJSONOutput")]
    assert "cut off by max_tokens" in result.failures[0].message


def test_all_outputs_are_kept() -> None:
    result, _ = run(
        [{"a": "x"}], lambda _: generated("one", "two words"), sampling={"n": 2, "temperature": 1}
    )
    [out] = outputs(result)
    assert (out["text"], out["generated_tokens"]) == ("one", 3)
    assert [(o["text"], o["generated_tokens"]) for o in out["outputs"]] == [("one", 1), ("two words", 2)]


def test_of_several_outputs_one_that_is_valid_is_enough() -> None:
    rows = [{"a": "x"}, {"a": "y"}]
    texts = {"x": ("{", '{"name": "B"}'), "y": ("{", "}")}
    result, _ = run(
        rows,
        lambda request: generated(*texts[request["prompt"]]),
        structured={"json": PERSON},
        sampling={"n": 2, "temperature": 1},
    )
    [out] = outputs(result)
    assert (out["text"], out["json"]) == ('{"name": "B"}', {"name": "B", "age": None})
    assert [o["json"] for o in out["outputs"]] == [None, {"name": "B", "age": None}]
    assert [(f.index, f.type) for f in result.failures] == [(1, "InvalidJSONOutput")]


def test_reasoning_and_logprobs_are_kept_when_asked_for() -> None:
    token = {"token": "y", "token_id": 7, "logprob": -0.5, "rank": 1}

    def answer(_: Any) -> Reply:
        reply = generated("yes")
        reply.value["outputs"][0] |= {"reasoning": "because", "logprobs": [[token]]}
        return reply

    asked, _ = run(
        [{"a": "x"}], answer, engine={"reasoning_parser": "qwen3"}, reasoning=True, sampling={"logprobs": 0}
    )
    [out] = outputs(asked)
    assert (out["reasoning"], out["logprobs"]) == ("because", [[token]])
    not_asked, _ = run([{"a": "x"}], answer)
    assert not outputs(not_asked)[0].keys() & {"reasoning", "logprobs"}


SCHEMAS: list[tuple[dict[str, Any], pa.DataType]] = [
    ({}, pa.struct([*PLAIN, *TOKENS])),
    ({"structured": {"regex": "a+"}}, pa.struct([*PLAIN, *TOKENS])),
    (
        {"structured": {"json": PERSON}},
        pa.struct([*PLAIN, *TOKENS, ("json", pa.struct({"name": pa.string(), "age": pa.int64()}))]),
    ),
    ({"structured": {"json": {"type": "object"}}}, pa.struct([*PLAIN, *TOKENS, ("json", pa.string())])),
    ({"sampling": {"logprobs": 1}}, pa.struct([*PLAIN, *TOKENS, ("logprobs", LOGPROBS)])),
    (
        {"sampling": {"n": 2, "temperature": 1}},
        pa.struct([*PLAIN, *TOKENS, ("outputs", pa.list_(pa.struct([*PLAIN, TOKENS[-1]])))]),
    ),
]


@pytest.mark.parametrize(("fields", "expected"), SCHEMAS)
def test_the_type_of_the_output_depends_on_the_config_alone(
    fields: dict[str, Any], expected: pa.DataType
) -> None:
    full, _ = run([{"a": "x"}], lambda _: '{"name": "A"}', **fields)
    failed, _ = run([{"a": "x"}], lambda _: Reply(failure="EngineKilled"), **fields)
    empty, _ = run(pa.table({"a": pa.array([], pa.string())}), **fields)
    assert [result.table.schema.field("out").type for result in (full, failed, empty)] == [expected] * 3


def test_a_unit_without_rows_asks_nothing() -> None:
    result, engine = run(pa.table({}))
    assert (len(result.table), engine.calls) == (0, 0)


def test_an_engine_that_loses_a_request_ends_the_run() -> None:
    class Forgetful(FakeEngine):
        def call(self, requests: Any) -> list[Reply]:
            return super().call(requests)[1:]

    stage = config().build(StageContext(base_dir=".", engine=Forgetful(lambda _: "yes")))
    with pytest.raises(StageError, match="got 1 replies to 2 requests"):
        stage.process(pa.table({"a": ["x", "y"]}))


def test_the_engine_takes_vllm_s_own_arguments() -> None:
    [spec] = config(
        model="org/model",
        engine={"max_model_len": 128, "tensor_parallel_size": 2, "pipeline_parallel_size": 3},
        trust_remote_code=True,
        replicas={"min": 1, "max": 4},
        env={"VLLM_CPU_KVCACHE_SPACE": "1"},
    ).engines()
    assert (spec.kind, spec.model) == ("vllm", "org/model")
    assert spec.args == {
        "max_model_len": 128,
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 3,
        "trust_remote_code": True,
    }
    assert (spec.replicas_min, spec.replicas_max) == (1, 4)
    assert spec.env == {"VLLM_CPU_KVCACHE_SPACE": "1"}


@pytest.mark.parametrize(
    ("fields", "gpus"),
    [
        ({"device": "cpu"}, 0),
        ({"device": "cuda"}, 2),
        ({"device": "auto"}, -2),  # that many, if the cluster has any
        ({"resources": {"num_gpus": 0.5}}, 0.5),
    ],
)
def test_the_device_decides_what_a_replica_reserves(fields: dict[str, Any], gpus: float) -> None:
    [spec] = config(engine={"tensor_parallel_size": 2}, **fields).engines()
    assert spec.num_gpus == gpus


def test_adapters_are_switched_on_in_the_engine() -> None:
    [one] = config(lora={"name": "x", "path": "org/x"}).engines()
    [many] = config(lora_column="l", loras={str(i): f"org/{i}" for i in range(20)}).engines()
    [own] = config(lora={"name": "x", "path": "org/x"}, engine={"max_loras": 4, "max_lora_rank": 8}).engines()
    assert one.args == {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 1}
    assert many.args == {"enable_lora": True, "max_loras": 8, "max_cpu_loras": 20}
    assert own.args == {"enable_lora": True, "max_loras": 4, "max_cpu_loras": 4, "max_lora_rank": 8}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": None}, "exactly one of `prompt` and `messages` is needed"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "exactly one of `prompt` and"),
        ({"prompt": "a\n{{ b"}, "not a template: line 2: unexpected end of template"),
        (
            {"messages": [{"role": "user", "content": "{% if %}"}]},
            "messages.0.content\n.*not a template: line 1",
        ),
        ({"messages": [{"role": "usr", "content": "x"}]}, "messages.0.role\n.*'system', 'developer', 'user'"),
        ({"messages": []}, "messages"),
        ({"chat_template_kwargs": {"a": 1}}, "a `prompt` has no chat template"),
        ({"engine": {"model": "x"}}, "'model' does not belong here: use the stage's field `model`"),
        ({"engine": {"trust_remote_code": True}}, "use the stage's field `trust_remote_code`"),
        ({"engine": {"hf_token": "hf_x"}}, "a secret is never written down"),
        ({"engine": {"tensor_parallel_size": "2"}}, "tensor_parallel_size is a positive number, got '2'"),
        ({"engine": {"a": {1, 2}}}, "engine arguments are plain JSON values"),
        ({"sampling": {"temprature": 1}}, "sampling.temprature"),
        ({"structured": {"json": {"type": "string", "not": {}}}}, "structured\n.*json: /: 'not' cannot be"),
        ({"reasoning": True}, "reasoning needs the engine argument `reasoning_parser`"),
        ({"lora_column": "l"}, "`loras` and `lora_column` need each other"),
        ({"loras": {"x": "y"}}, "`loras` and `lora_column` need each other"),
        ({"output": "_row"}, "'_row' is a column that raybatch writes"),
        ({"output": ""}, "output"),
        ({"device": "cpu", "resources": {"num_gpus": 1}}, "device is cpu, but resources.num_gpus is 1"),
        ({"template_timeout_s": 0}, "template_timeout_s"),
    ],
)
def test_a_config_that_cannot_work_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**fields)


def test_the_chosen_grammar_library_decides_which_schemas_are_taken() -> None:
    structured = {"json": {"type": "object", "properties": {"a": {"maxLength": 3}}}}
    with pytest.raises(ValidationError, match="'maxLength' without 'type' would be ignored"):
        config(structured=structured)
    config(engine={"structured_outputs_config": {"backend": "guidance"}}, structured=structured)


def test_paths_of_models_are_relative_to_the_pipeline() -> None:
    said = {"model": "./m", "prompt": "x", "output": "o", "loras": {"x": "../x"}, "lora_column": "l"}
    found = GenerateConfig.model_validate(said, context={"base_dir": "/srv/pipelines"})
    assert (found.model, found.loras) == ("/srv/pipelines/m", {"x": "/srv/x"})


def test_it_needs_its_engine() -> None:
    with pytest.raises(StageError, match="without its engine"):
        config().build(StageContext(base_dir="."))


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt": "{{ a }}!"},
        {"model": "org/other"},
        {"sampling": {"temperature": 0.5}},
        {"engine": {"dtype": "float16"}},
        {"structured": {"choice": ["a"]}},
        {"lora": {"name": "x", "path": "org/x"}},
        {"output": "other"},
    ],
)
def test_what_decides_the_output_is_in_the_fingerprint(changed: dict[str, Any]) -> None:
    assert config(**changed).fingerprint() != config().fingerprint()


@pytest.mark.parametrize(
    "changed",
    [
        {"engine": {"gpu_memory_utilization": 0.5, "tensor_parallel_size": 4}},
        {"replicas": 8},
        {"env": {"HF_TOKEN": "secret"}},
        {"watchdog_s": 1},
    ],
)
def test_what_decides_only_the_speed_is_not_in_the_fingerprint(changed: dict[str, Any]) -> None:
    assert config(**changed).fingerprint() == config().fingerprint()


def test_a_model_that_was_trained_again_in_place_is_in_the_fingerprint(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"\0" * 3_000_000)
    before = config(model=str(tmp_path)).fingerprint()
    (tmp_path / "README.md").write_text("notes")
    assert config(model=str(tmp_path)).fingerprint() == before
    weights.write_bytes(b"\1" * 3_000_000)
    assert config(model=str(tmp_path)).fingerprint() != before


def test_a_config_survives_a_dump_and_a_pickle() -> None:
    said = config(structured={"json": PERSON}, resources={"num_cpus": 2}, sampling={"logit_bias": {3: 1}})
    for copy in (pickle.loads(pickle.dumps(said)), GenerateConfig.model_validate(said.model_dump())):
        assert copy == said
    assert json.loads(json.dumps(said.fingerprint())) == said.fingerprint()


def test_its_fields_are_described_in_the_json_schema() -> None:
    properties = GenerateConfig.model_json_schema()["properties"]
    assert {name for name, field in properties.items() if "description" not in field} == {"type"}
    assert "resources" in properties


def test_a_failure_keeps_what_the_engine_said() -> None:
    result, _ = run([{"a": "x"}], lambda _: Reply(failure="EngineKilled", message="3 times", attempts=3))
    assert result.failures == [RowFailure(index=0, type="EngineKilled", message="3 times", attempts=3)]
