"""The config of the stage `generate`: what it refuses, what engine it asks for, and what decides its output."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from raybatch.errors import StageError
from raybatch.stages.base import StageContext
from raybatch.stages.generate import GenerateConfig


def config(**fields: Any) -> GenerateConfig:
    turns = {} if "messages" in fields else {"prompt": "{{ a }}"}
    return GenerateConfig.model_validate({"model": "org/model", "output": "out"} | turns | fields)


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
    said = config(
        structured={"json": {"type": "object"}}, resources={"num_cpus": 2}, sampling={"logit_bias": {3: 1}}
    )
    for copy in (pickle.loads(pickle.dumps(said)), GenerateConfig.model_validate(said.model_dump())):
        assert copy == said
    assert json.loads(json.dumps(said.fingerprint())) == said.fingerprint()


def test_its_fields_are_described_in_the_json_schema() -> None:
    properties = GenerateConfig.model_json_schema()["properties"]
    assert {name for name, field in properties.items() if "description" not in field} == {"type"}
    assert "resources" in properties
