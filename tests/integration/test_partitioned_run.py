"""Runs whose results are by partition, killed and resumed."""

from __future__ import annotations

from collections import Counter

import pytest

from oracle import Output, input_ids, twice, wrong
from pipelines import Project

pytestmark = pytest.mark.ray

NO_RAY = {"RAY_ADDRESS": "127.0.0.1:1"}  # nobody listens: a run that wants Ray fails
LANGS = ("de", "en", "../../fr")


def _project(project: Project, **sink: object) -> Project:
    project.rows(60, lang=lambda n: LANGS[n % 3])
    project.write(sink={"type": "parquet", "path": "out", "partition_by": ["lang"], **sink})
    return project


def test_every_row_is_in_the_folder_of_its_value_once(project: Project) -> None:
    _project(project).complete()
    rows = Output(project.output).data()
    assert Counter(row["lang"] for row in rows) == dict.fromkeys(LANGS, 20)
    assert all(row["lang"] == LANGS[int(row["id"].rpartition("-")[2]) % 3] for row in rows)
    assert wrong(project.output, input_ids(project.input.glob("*.jsonl"))) == []
    assert {path.name for path in (project.output / "data").iterdir()} == {
        "lang=de",
        "lang=en",
        "lang=..%2F..%2Ffr",
    }
    assert project.start(command="audit").wait().code == 0


@pytest.mark.parametrize("point", ["after-file@1", "before-file@3", "before-commit"])
def test_killed_while_files_appear_it_goes_on_and_no_row_is_there_twice(project: Project, point: str) -> None:
    _project(project)
    killed = project.run(env={"RAYBATCH_FAILPOINT": point})
    assert killed.code < 0, str(killed)
    assert Output(project.output).commits() == []
    assert twice(project.output) == []
    units = len(project.published())
    done = project.complete(env=NO_RAY)  # every unit was published: there is nothing for Ray to do
    assert done.document["units"] == {"planned": units, "published": units, "resumed": units}
    assert wrong(project.output, input_ids(project.input.glob("*.jsonl"))) == []
    assert project.start(command="audit").wait().code == 0


def test_too_many_partitions_end_the_run_and_more_of_them_allowed_finish_it(project: Project) -> None:
    _project(project, max_partitions=2)
    refused = project.run()
    assert (refused.code, refused.error["type"]) == (1, "TooManyPartitionsError"), str(refused)
    assert "sink.max_partitions is 2" in refused.error["message"]
    assert not (project.output / "data").exists()
    project.complete("--set", "sink.max_partitions=3")
    assert wrong(project.output, input_ids(project.input.glob("*.jsonl"))) == []


def test_an_output_cannot_be_partitioned_in_another_way_later(project: Project) -> None:
    _project(project).complete()
    project.rows(10, file="b.jsonl", lang=lambda n: "en")
    refused = project.run("--set", "sink.partition_by=[id]", env=NO_RAY)
    assert (refused.code, refused.error["type"]) == (2, "SinkError"), str(refused)
    assert "sink.partition_by is ['id'], and what is at sink.path has ['lang']" in refused.error["message"]


def test_an_unfinished_epoch_cannot_be_partitioned_in_another_way(project: Project) -> None:
    _project(project)
    killed = project.run(env={"RAYBATCH_FAILPOINT": "after-plan"})
    assert killed.code < 0, str(killed)
    refused = project.run("--set", "sink.partition_by=[]", "--allow-drift", env=NO_RAY)
    assert (refused.code, refused.error["type"]) == (2, "SinkError"), str(refused)


def test_a_column_that_nothing_writes_or_that_cannot_be_a_folder_costs_no_ray(project: Project) -> None:
    _project(project, partition_by=["lnag"])
    refused = project.run(env=NO_RAY)
    assert (refused.code, refused.error["type"]) == (2, "SpecError"), str(refused)
    assert "sink reads 'lnag', which nothing writes (did you mean 'lang'?)" in refused.error["message"]
    project.rows(3, file="b.jsonl", lang=lambda n: "en", score=lambda n: n / 2)
    refused = project.run("--set", "sink.partition_by=[score]", "--set", "source.path=in/b.jsonl", env=NO_RAY)
    assert (refused.code, refused.error["type"]) == (2, "SinkError"), str(refused)
    assert "the column 'score' is double, and partitions are made of" in refused.error["message"]
