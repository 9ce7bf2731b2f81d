"""A cluster whose head is lost, by its GCS or with all of its processes: the same command resumes on another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from oracle import Output, input_ids, twice, wrong
from pipelines import Project, turn, wait_until
from raylets import Cluster

pytestmark = pytest.mark.ray

ROWS = 200


class Clusters:
    """One after the other, as an operator replaces a cluster that was lost."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[Cluster] = []

    def new(self) -> Cluster:
        folder = self.folder / f"cluster-{len(self.made)}"
        folder.mkdir()
        self.made.append(Cluster(folder, head_cpus=2))
        return self.made[-1]

    def stop(self) -> None:
        for one in self.made:
            one.stop()


@pytest.fixture
def clusters(tmp_path: Path) -> Iterator[Clusters]:
    found = Clusters(tmp_path)
    yield found
    found.stop()


def processes(cluster: Cluster, *names: str) -> list[psutil.Process]:
    """What runs on the head, by the names of programs."""
    children = psutil.Process(cluster.head.process.pid).children(recursive=True)
    found = [child for child in children if child.name() in names]
    assert {child.name() for child in found} == set(names)
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "names",
    [
        ["raylet", "gcs_server"],
        # Each takes a minute or two, which Ray's driver waits for what may come back
        pytest.param(["gcs_server"], marks=pytest.mark.long),
        pytest.param(["raylet"], marks=pytest.mark.long),
    ],
    ids="+".join,
)
def test_a_lost_head_ends_the_run_and_a_new_cluster_finishes_it(
    project: Project, clusters: Clusters, names: list[str]
) -> None:
    cluster = clusters.new()
    project.env = cluster.env
    project.rows(ROWS)
    project.write(turn(engine={"seconds_per_row": 0.5}))
    command = project.start()

    def amid_the_work() -> bool:
        assert command.process.poll() is None, str(command.wait())
        return len(project.published()) >= 2

    wait_until(amid_the_work, what="units are published")
    for process in processes(cluster, *names):
        process.kill()
    assert command.wait().code != 0
    cluster.stop()
    assert not twice(project.output)

    published = Output(project.output).units()
    assert 2 <= len(published) < ROWS / 10
    project.env = clusters.new().env
    done = project.complete()
    assert done.document["units"]["resumed"] == len(published)
    assert published.items() <= Output(project.output).units().items()
    assert wrong(project.output, input_ids(project.input.glob("*.jsonl"))) == []
