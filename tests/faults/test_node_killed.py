"""A cluster of three raylets, one of which is killed with SIGKILL while it has tasks and an engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from oracle import Output, input_ids, wrong
from pipelines import Project, turn, wait_until
from raylets import Cluster, Node

pytestmark = pytest.mark.ray


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """The head takes no engine; the two others one each."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    found = Cluster(folder, head_cpus=1)
    try:
        for _ in range(2):
            found.add("--num-cpus=2", '--resources={"engine": 1}')
        yield found
    finally:
        found.stop()


def at_work(node: Node) -> bool:
    titles = node.titles()
    return all(any(name in title for title in titles) for name in ("ray::Replica", "RunStage"))


@pytest.mark.timeout(1200)
def test_a_killed_node_costs_time_and_no_row(project: Project, cluster: Cluster) -> None:
    project.env = cluster.env
    project.rows(600)
    engines = turn(
        engine={"seconds_per_row": 0.5},
        replicas={"min": 1, "max": 2},
        resources={"custom": {"engine": 1}},
        # The lost engine has no other place to go: the one that is left must be enough
        pending_timeout_s=15,
    )
    project.write(engines)
    command = project.start()

    def busy() -> Node | None:
        assert command.process.poll() is None, str(command.wait())
        if len(project.published()) < 3:
            return None
        return next((node for node in cluster.nodes[1:] if at_work(node)), None)

    wait_until(busy, what="a node has tasks and an engine").kill()
    before = len(project.published())
    done = command.wait(deadline_s=600)
    assert done.code == 0, str(done)
    assert before < done.document["units"]["planned"]
    assert done.document["engines"][0]["replaced"] == 1
    assert wrong(project.output, input_ids(project.input.glob("*.jsonl"))) == []
    assert all(row["turned"]["text"] == row["text"][::-1] for row in Output(project.output).data())
