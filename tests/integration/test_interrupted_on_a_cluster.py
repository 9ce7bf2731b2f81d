"""A run that ends amid its work, on a cluster that goes on: nothing of it may stay there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from oracle import input_ids, wrong
from pipelines import Command, Project, turn, wait_until
from raylets import Cluster

pytestmark = pytest.mark.ray

OURS = ("ray::EnginePool", "ray::Replica", "RunStage")

PLACEMENT_GROUPS = """
import ray
ray.init(logging_level="ERROR")
print(sum(group["state"] != "REMOVED" for group in ray.util.placement_group_table().values()))
"""


def at_work(cluster: Cluster) -> list[str]:
    """What of a run the node's workers are."""
    return [title for title in cluster.head.titles() if any(name in title for name in OURS)]


def placement_groups(cluster: Cluster) -> int:
    env = {**os.environ, **cluster.env}
    done = subprocess.run(
        [sys.executable, "-c", PLACEMENT_GROUPS], env=env, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def amid_the_work(project: Project, cluster: Cluster) -> Command:
    before, command = len(project.published()), project.start()

    def working() -> bool:
        assert command.process.poll() is None, str(command.wait())
        return len(project.published()) > before and bool(at_work(cluster))

    wait_until(working, what="a unit is published")
    return command


def test_a_run_that_is_interrupted_or_killed_leaves_nothing_on_the_cluster(
    project: Project, cluster: Cluster
) -> None:
    project.rows(200)
    project.write(turn(engine={"seconds_per_row": 0.5}))

    command = amid_the_work(project, cluster)
    command.process.send_signal(signal.SIGTERM)
    assert command.wait().code == 130
    wait_until(lambda: not at_work(cluster), what="nothing of the interrupted run is left")

    amid_the_work(project, cluster).kill()
    wait_until(lambda: not at_work(cluster), what="nothing of the killed run is left")

    assert placement_groups(cluster) == 0
    project.complete()
    assert wrong(project.output, input_ids(project.input.glob("*.jsonl"))) == []


def test_a_wrong_token_is_refused_with_what_is_needed(project: Project) -> None:
    project.rows(1)
    project.write(turn())
    done = project.run(env={"RAY_AUTH_TOKEN": "0" * 32})
    assert (done.code, done.error["type"]) == (1, "RaybatchError"), str(done)
    assert f"RAY_ADDRESS={project.env['RAY_ADDRESS']} cannot be used" in done.error["message"]
    assert "RAY_AUTH_TOKEN" in done.error["message"]
