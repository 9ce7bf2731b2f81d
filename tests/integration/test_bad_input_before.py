"""Bad input that is found before anything is started: exit code 2, and a message that says where, what and
what is possible."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import privileges
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import MODEL, Project, turn

Refused = Callable[..., str]


@pytest.fixture
def refused(project: Project) -> Refused:
    """refused(type): the message with which the run refuses to start, having left nothing to see."""

    def message(kind: str, **options: Any) -> str:
        seen = sorted(project.folder.rglob("out/**/*"))
        done = project.run(**options)
        assert (done.code, done.error["type"]) == (2, kind), str(done)
        assert sorted(project.folder.rglob("out/**/*")) == seen
        assert done.error["message"].split("\n")[0] in done.err
        return done.error["message"]

    return message


def folder_without_rights(path: Path, mode: int) -> Path:
    path.mkdir(exist_ok=True)
    path.chmod(mode)
    return path


def source(path: str) -> dict[str, Any]:
    return {"source": {"type": "files", "path": path}}


def test_a_missing_file_is_named_with_what_is_there_instead(project: Project, refused: Refused) -> None:
    project.rows(1, file="tickets.jsonl")
    project.write(turn(), **source("in/ticket.jsonl"))
    message = refused("SourceError")
    assert f"{project.input / 'ticket.jsonl'}: no such file" in message
    assert "tickets.jsonl" in message


def test_a_glob_that_matches_nothing_is_named_with_what_is_there(project: Project, refused: Refused) -> None:
    project.rows(1, file="tickets.jsonl")
    project.write(turn(), **source("in/*.parquet"))
    message = refused("SourceError")
    assert f"{project.input}/*.parquet: matches nothing" in message
    assert "tickets.jsonl" in message


def test_a_folder_without_permission_is_named(project: Project, refused: Refused) -> None:
    project.rows(1)
    folder_without_rights(project.input, 0)
    project.write(turn(), **source("in/"))
    message = refused("SourceError", before=privileges.drop)
    project.input.chmod(0o755)
    assert str(project.input) in message
    assert "ermission" in message


def test_a_file_that_is_no_parquet_file_is_named(project: Project, refused: Refused) -> None:
    bad = project.input / "b.parquet"
    pq.write_table(pa.table({"text": ["a"]}), project.input / "a.parquet")
    bad.write_bytes((project.input / "a.parquet").read_bytes()[:-20])
    project.write(turn(), **source("in/*.parquet"))
    assert str(bad) in refused("SourceError")


def test_a_truncated_gzip_file_is_named(project: Project, refused: Refused) -> None:
    bad = project.input / "a.jsonl.gz"
    packed = gzip.compress(b"".join(b'{"text": "row %d"}\n' % i for i in range(10_000)))
    bad.write_bytes(packed[: len(packed) // 2])
    project.write(turn(), **source("in/*.jsonl.gz"))
    assert str(bad) in refused("SourceError")


def test_a_schema_that_no_grammar_can_express_is_named_with_its_line(
    project: Project, refused: Refused
) -> None:
    project.rows(1)
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "not": {"required": ["a"]}}
    generate = {
        "type": "generate",
        "model": str(MODEL),
        "prompt": "{{ text }}",
        "output": "answer",
        "structured": {"json": schema},
    }
    file = project.write(generate)
    line = 1 + file.read_text().splitlines().index("  structured:")
    message = refused("SpecError")
    assert re.search(rf"{file.name}:{line}\b", message) or f"{file.name}:" in message
    assert "stages[0].structured" in message
    assert "not" in message


def test_an_output_that_cannot_be_written_is_named(project: Project, refused: Refused) -> None:
    project.rows(1)
    project.write(turn())
    folder_without_rights(project.output, 0o555)
    message = refused("SinkError", before=privileges.drop)
    assert f"sink.path {project.output} cannot be used" in message
    assert "permission denied" in message


def test_an_output_below_a_file_is_named(project: Project, refused: Refused) -> None:
    project.rows(1)
    project.write(turn())
    project.output.write_text("a file")
    assert f"sink.path {project.output} cannot be used" in refused("SinkError")


def test_an_output_of_another_pipeline_is_left_alone(project: Project, refused: Refused) -> None:
    project.rows(1)
    project.write(turn())
    project.run(env={"RAYBATCH_FAILPOINT": "after-plan"})
    project.write(turn(), name="other")
    message = refused("SinkError")
    assert f"sink.path {project.output} belongs to the pipeline 'small', and this is 'other'" in message
    assert "a sink.path of its own" in message


def test_an_output_with_files_of_another_origin_is_left_alone(project: Project, refused: Refused) -> None:
    project.rows(1)
    project.write(turn())
    (project.output / "data").mkdir(parents=True)
    (project.output / "data" / "mine.parquet").write_bytes(b"not ours")
    assert "holds data/mine.parquet, which no run of raybatch has written" in refused("SinkError")


def test_an_empty_input_is_complete_at_once_and_says_so(project: Project) -> None:
    (project.input / "a.jsonl").touch()
    project.write(turn())
    done = project.run()
    assert done.code == 0, str(done)
    assert "the input is empty" in done.err
    assert done.document["rows"] == {"in": 0, "ok": 0, "error": 0, "dropped": 0}


def test_a_cluster_that_does_not_answer_is_named_with_how_to_reach_it(project: Project) -> None:
    project.rows(1)
    project.write(turn())
    done = project.run()
    assert (done.code, done.error["type"]) == (1, "RaybatchError"), str(done)
    assert "RAY_ADDRESS=127.0.0.1:1 cannot be used" in done.error["message"]
