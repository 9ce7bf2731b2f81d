"""A Ray cluster of one node with two CPUs, shared by all tests here, and a project per test that runs on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import Project
from raylets import Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """As small as the smallest machine that must not deadlock; not this process's own Ray."""
    found = Cluster(tmp_path_factory.mktemp("cluster"), head_cpus=2)
    yield found
    found.stop()


@pytest.fixture
def project(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Project]:
    """Runs on the cluster, where the test is marked `ray`; the others must end before they need one."""
    needs_ray = request.node.get_closest_marker("ray") is not None
    # Port 1: nobody listens, so a run that should not start Ray fails where it does
    env = request.getfixturevalue("cluster").env if needs_ray else {"RAY_ADDRESS": "127.0.0.1:1"}
    made = Project(tmp_path, env=env)
    yield made
    made.close()
