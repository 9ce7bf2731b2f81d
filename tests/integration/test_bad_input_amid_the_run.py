"""Bad input that only the work itself meets: a row of it is an error row, all else ends the run with a reason,
and nothing that readers see is half-done."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from oracle import Output, input_ids, wrong
from pipelines import Done, Project, turn

pytestmark = pytest.mark.ray

MB = 1_000_000

LIMIT = """
    import os, resource

    def limit(row):
        if os.path.exists(__file__ + ".full"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))
        return row
"""


def failed(project: Project, kind: str) -> str:
    """The message with which the run fails; readers see nothing, and no epoch is committed."""
    done: Done = project.run()
    assert (done.code, done.error["type"]) == (1, kind), str(done)
    output = Output(project.output)
    assert (output.data(), output.errors(), output.commits()) == ([], [], [])
    assert "run it again to resume" in done.err
    return done.error["message"]


def types(project: Project) -> Counter[str]:
    return Counter(row["type"] for row in Output(project.output).errors())


# -- rows ----------------------------------------------------------------------------------------------------


def test_undecodable_rows_are_error_rows_and_the_others_go_on(project: Project) -> None:
    large = json.dumps({"id": "large", "text": "x" * (50 * MB)}).encode()
    good = [json.dumps({"id": str(i), "text": f"row {i}"}).encode() for i in range(5)]
    lines = [good[0], b'{"id": "utf", "text": "\xff\xfe"}', good[1], b'{"id": "json", "te', good[2], large]
    (project.input / "a.jsonl").write_bytes(b"\n".join([*lines, *good[3:]]) + b"\n")
    project.write(turn(), run={"max_error_rate": 0.5, "unit": {"max_rows": 1_000_000}})
    done = project.complete()
    assert done.document["rows"] == {"in": 8, "ok": 5, "error": 3, "dropped": 0}
    assert done.document["errors"] == {"InvalidUTF8": 1, "InvalidJSON": 1, "RowTooLarge": 1}
    assert wrong(project.output, input_ids([project.input / "a.jsonl"])) == []
    raw = {row["type"]: row["raw"] for row in Output(project.output).errors()}
    assert (raw["InvalidUTF8"], raw["InvalidJSON"]) == (lines[1], lines[3])
    assert raw["RowTooLarge"] == large[: 64 << 10]


def test_a_row_of_fifty_megabytes_goes_through_where_it_is_allowed(project: Project) -> None:
    project.lines([{"text": "x" * (50 * MB)}, {"text": "short"}])
    source = {"type": "files", "path": "in/*.jsonl", "max_row_bytes": 64 * MB}
    project.write(source=source, run={})
    project.complete()
    assert sorted(len(row["text"]) for row in Output(project.output).data()) == [5, 50 * MB]


def test_templates_that_fail_or_never_end_on_a_row_cost_that_row(project: Project) -> None:
    prompt = (
        "{% if kind == 'fails' %}{{ text.nothing.at_all }}{% endif %}"
        "{% if kind == 'loops' %}{% for i in range(99999) %}{% for j in range(99999) %}"
        "{% endfor %}{% endfor %}{% endif %}"
        "{% if kind != 'empty' %}{{ text }}{% endif %}"
    )
    kinds = ["", "fails", "", "loops", "", "empty"]
    project.rows(len(kinds), kind=lambda i: kinds[i])
    project.write(turn(prompt=prompt, template_timeout_s=0.3), run={"max_error_rate": 0.5})
    project.complete()
    assert types(project) == {"TemplateError": 1, "TemplateTimeout": 1, "EmptyPrompt": 1}
    assert all(json.loads(row["row"])["kind"] for row in Output(project.output).errors())
    assert wrong(project.output, input_ids([project.input / "a.jsonl"])) == []


# -- runs ----------------------------------------------------------------------------------------------------


def test_a_template_that_never_ends_on_any_row_ends_the_run(project: Project) -> None:
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    project.rows(40)
    project.write(turn(prompt=loop + "{{ text }}", template_timeout_s=0.05), run={"unit": {"max_rows": 1000}})
    message = failed(project, "StageError")
    assert "stage 'turn'" in message
    assert "template_timeout_s" in message


def test_a_parquet_file_with_a_broken_page_is_named_and_finished_once_restored(project: Project) -> None:
    path = project.input / "a.parquet"
    pq.write_table(pa.table({"text": [os.urandom(50).hex() for _ in range(2_000)]}), path)
    good, status = path.read_bytes(), path.stat()
    middle = len(good) // 2
    path.write_bytes(good[:middle] + bytes(1_000) + good[middle + 1_000 :])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    project.write(source={"type": "files", "path": "in/*.parquet"})
    message = failed(project, "CorruptInputError")
    assert f"{path}, unit" in message
    assert "Restore a good copy of the file" in message

    path.write_bytes(good)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    project.complete()
    assert wrong(project.output, input_ids([path])) == []


def test_a_file_that_changes_under_the_plan_is_named(project: Project) -> None:
    project.rows(20)
    project.write()
    project.run(env={"RAYBATCH_FAILPOINT": "after-plan"})
    project.rows(21)
    message = failed(project, "InputChangedError")
    assert f"{project.input / 'a.jsonl'} (" in message
    assert "Restore the file" in message


def test_a_model_folder_that_does_not_exist_is_named(project: Project) -> None:
    project.rows(1)
    generate = {"type": "generate", "model": "./nowhere", "prompt": "{{ text }}", "output": "answer"}
    project.write(generate)
    message = failed(project, "EngineLoadError")
    assert f"the model folder {project.folder / 'nowhere'} does not exist" in message
    assert "a hub name" in message


@pytest.mark.parametrize("resources", [{"num_gpus": 3}, {"num_cpus": 64}, {"custom": {"TPU": 1}}])
def test_a_model_that_no_node_has_room_for_says_what_it_asks_for_and_what_there_is(
    project: Project, resources: dict[str, Any]
) -> None:
    project.rows(1)
    project.write(turn(resources=resources, pending_timeout_s=1))
    message = failed(project, "EnginePendingError")
    (name, amount) = next(iter(resources.get("custom", resources).items()))
    shown = {"num_gpus": "GPU", "num_cpus": "CPU"}.get(name, name)
    assert f"asks for {amount} {shown} (more than any node has); the cluster has" in message
    assert "add nodes, ask for less" in message


def test_a_full_output_ends_the_run_and_with_room_it_is_finished(project: Project) -> None:
    project.functions(LIMIT)
    project.rows(40)
    # A worker whose files may have 2 kB writes less than a part: a full disk that needs no rights to make
    full = Path(project.folder, "functions.py.full")
    full.touch()
    project.write({"type": "python", "function": "functions:limit"})
    message = failed(project, "StoreError")
    assert f"cannot write {project.output}" in message
    assert "ulimit -f" in message

    full.unlink()
    project.complete()
    assert wrong(project.output, input_ids([project.input / "a.jsonl"])) == []
    assert not list(project.output.rglob("_tmp/*"))
