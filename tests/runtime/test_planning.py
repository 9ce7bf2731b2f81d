"""What a new epoch consists of: how large its units are, and that they are what was planned first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made import Listener, pipeline

from raybatch.errors import DriftError, SpecError
from raybatch.ledger.ledger import Ledger
from raybatch.runtime import planning
from raybatch.runtime.watch import Watch
from raybatch.spec.pipeline import Pipeline
from raybatch.store import open_store

GENERATE = {"type": "generate", "model": "org/none", "prompt": "{{ text }}", "output": "answer"}
EMBED = {"type": "embed", "model": "org/none", "input": "text", "output": "vector"}


def write_rows(folder: Path, count: int = 10, file: str = "in.jsonl") -> None:
    (folder / file).write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(count)))


def ledger_of(made: Pipeline) -> Ledger:
    return Ledger(open_store(made.sink.path), made.name)


def watch_of(made: Pipeline, listener: Listener | None = None) -> Watch:
    return Watch(made, run_id="run-1", reporter=listener or Listener())


def new_plan(made: Pipeline, listener: Listener | None = None, *, epoch: int = 0, start: Any = None) -> Any:
    source, watch, ledger = planning.build_source(made), watch_of(made, listener), ledger_of(made)
    found = planning.look(made, ledger, source, (epoch, start), watch=watch)
    return found and planning.freeze(made, ledger, found, (epoch, start), run_id="run-1")


@pytest.mark.parametrize(
    ("stages", "limits"),
    [
        ([], planning.UNIT_LIMITS_WITHOUT_ENGINE),
        ([GENERATE], planning.UNIT_LIMITS["vllm"]),
        ([EMBED], planning.UNIT_LIMITS["sentence_transformers"]),
        ([EMBED, GENERATE], planning.UNIT_LIMITS["sentence_transformers"]),  # the first decides
    ],
)
def test_a_unit_is_what_suits_the_first_engine(
    tmp_path: Path, stages: list[dict[str, Any]], limits: tuple[int, int]
) -> None:
    source: Any = planning.build_source(pipeline(tmp_path, *stages))
    assert (source.max_rows, source.max_bytes) == limits


def test_the_pipeline_may_say_how_large_a_unit_is(tmp_path: Path) -> None:
    made = pipeline(tmp_path, GENERATE, run={"unit": {"max_rows": 7}})
    source: Any = planning.build_source(made)
    assert (source.max_rows, source.max_bytes) == (7, planning.UNIT_LIMITS["vllm"][1])


def test_an_empty_input_is_planned_once_and_never_again(tmp_path: Path) -> None:
    write_rows(tmp_path, 0)
    made, listener = pipeline(tmp_path, GENERATE), Listener()
    first = new_plan(made, listener)
    assert first.units == ()
    assert "the input is empty" in listener.notes[-1]
    assert new_plan(made, epoch=1, start=first.end) is None


def test_an_epoch_is_planned_from_where_the_plan_before_ends_before_that_is_committed(tmp_path: Path) -> None:
    write_rows(tmp_path, file="a.jsonl")
    made = pipeline(tmp_path, source={"type": "files", "path": "*.jsonl"})
    first = new_plan(made)
    write_rows(tmp_path, file="b.jsonl")
    second = new_plan(made, epoch=1, start=first.end)
    assert [unit.range["path"] for unit in second.units] == [str(tmp_path / "b.jsonl")]
    assert (second.epoch, second.start) == (1, first.end)


def test_of_two_plans_of_one_epoch_the_first_stands(tmp_path: Path) -> None:
    write_rows(tmp_path)
    made = pipeline(tmp_path)
    first = new_plan(made)
    write_rows(tmp_path, file="in.jsonl.new")
    assert new_plan(made) == first


def test_a_column_that_the_input_lacks_is_said_before_there_is_a_plan(tmp_path: Path) -> None:
    write_rows(tmp_path)
    made = pipeline(tmp_path, GENERATE | {"prompt": "{{ tekst }}"})
    with pytest.raises(SpecError, match="'tekst'"):
        new_plan(made)
    assert ledger_of(made).plan(0) is None


def unfinished(made: Pipeline, *, allow_drift: bool = False, listener: Listener | None = None) -> Any:
    watch = watch_of(made, listener)
    return planning.unfinished_plan(made, ledger_of(made), 0, allow_drift=allow_drift, watch=watch)


def test_the_unfinished_plan_of_the_same_pipeline_is_taken_up(tmp_path: Path) -> None:
    write_rows(tmp_path)
    made, listener = pipeline(tmp_path, GENERATE), Listener()
    assert unfinished(made) is None
    planned = new_plan(made)
    assert unfinished(made, listener=listener) == planned
    assert "planned by run run-1" in listener.notes[0]


@pytest.mark.parametrize(
    ("sections", "path"),
    [
        ({"stages": [GENERATE | {"prompt": "{{ text }}!"}]}, "stages[0].prompt"),
        ({"stages": [GENERATE | {"sampling": {"temperature": 1}}]}, "stages[0].sampling"),
        ({"stages": [GENERATE | {"model": "org/other"}]}, "stages[0].model"),
        ({"source": {"type": "files", "path": "in.jsonl", "columns": ["text"]}}, "source.columns"),
    ],
)
def test_what_decides_the_output_may_not_change_while_an_epoch_is_unfinished(
    tmp_path: Path, sections: dict[str, Any], path: str
) -> None:
    write_rows(tmp_path)
    new_plan(pipeline(tmp_path, GENERATE))
    changed, listener = pipeline(tmp_path, **{"stages": [GENERATE], **sections}), Listener()
    with pytest.raises(DriftError) as caught:
        unfinished(changed)
    assert f"  {path}" in str(caught.value)
    assert unfinished(changed, allow_drift=True, listener=listener) is not None
    assert any(note.startswith(f"--allow-drift: {path}") for note in listener.notes)


@pytest.mark.parametrize(
    "sections",
    [
        {"run": {"max_error_rate": 1}},
        {"stages": [GENERATE | {"replicas": 2, "watchdog_s": 9}]},
        {"stages": [GENERATE | {"engine": {"tensor_parallel_size": 2, "max_num_seqs": 4}}]},
    ],
)
def test_what_only_decides_how_fast_may_change(tmp_path: Path, sections: dict[str, Any]) -> None:
    write_rows(tmp_path)
    planned = new_plan(pipeline(tmp_path, GENERATE))
    assert unfinished(pipeline(tmp_path, **{"stages": [GENERATE], **sections})) == planned


def test_another_revision_of_a_model_is_a_change(tmp_path: Path) -> None:
    write_rows(tmp_path)
    new_plan(pipeline(tmp_path, GENERATE | {"engine": {"revision": "a1"}}))
    with pytest.raises(DriftError, match=r'stages\[0\]\.\S*revision: "a1" -> "b2"'):
        unfinished(pipeline(tmp_path, GENERATE | {"engine": {"revision": "b2"}}))


def test_other_files_in_a_model_folder_are_a_change(tmp_path: Path) -> None:
    write_rows(tmp_path)
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"trained once")
    new_plan(pipeline(tmp_path, GENERATE | {"model": "./model"}))
    weights.write_bytes(b"trained more")
    with pytest.raises(DriftError, match=r"  stages\[0\]\.\S+: "):
        unfinished(pipeline(tmp_path, GENERATE | {"model": "./model"}))


def test_other_code_of_a_python_stage_is_a_change(tmp_path: Path) -> None:
    write_rows(tmp_path)
    stage = {"type": "python", "function": "own_functions:keep"}
    code = tmp_path / "own_functions.py"
    code.write_text("def keep(row):\n    return row\n")
    new_plan(pipeline(tmp_path, stage))
    code.write_text("def keep(row):\n    return None\n")
    with pytest.raises(DriftError, match=r"  stages\[0\]\.code: ") as caught:
        unfinished(pipeline(tmp_path, stage))
    assert "raybatch retry" in str(caught.value)
