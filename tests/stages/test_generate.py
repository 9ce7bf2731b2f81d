"""The stage `generate`: what it asks its engine, and what it makes of the replies.

The engine is a fake: that vLLM answers so is proved where a real one runs.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

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


def test_a_failure_keeps_what_the_engine_said() -> None:
    result, _ = run([{"a": "x"}], lambda _: Reply(failure="EngineKilled", message="3 times", attempts=3))
    assert result.failures == [RowFailure(index=0, type="EngineKilled", message="3 times", attempts=3)]
