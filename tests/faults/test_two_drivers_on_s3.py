"""Two drivers of one pipeline on an object store: started together (T6), and one stopped amid its writing (T7).

Fifty times in a row: python tests/faults/two_drivers_fifty_times.py
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator

import psutil
import pytest
import races

from oracle import wrong
from pipelines import Command, wait_until
from servers.faults import Gate, hold
from servers.project import S3Project
from servers.proxy import Proxy

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("attempt", range(3))
def test_of_two_drivers_started_together_one_commits_and_the_other_says_who_won(
    s3_project: S3Project, attempt: int
) -> None:
    races.write(s3_project)
    done = races.race(s3_project, random.Random(f"{os.environ['RAYBATCH_TEST_SEED']}-{attempt}"))
    assert races.faults(s3_project, done) == []


@pytest.fixture
def proxy(s3_project: S3Project) -> Iterator[Proxy]:
    with Proxy(s3_project.bucket.endpoint) as made:
        yield made


def stop(command: Command) -> list[psutil.Process]:
    """SIGSTOP to a driver and all that it has started; gives them."""
    driver = psutil.Process(command.process.pid)
    stopped = [driver, *driver.children(recursive=True)]
    for process in stopped:
        process.suspend()
    return stopped


@pytest.mark.parametrize(
    "key",
    ["out/_raybatch/parts/*", "out/_raybatch/units/*", "out/data/*", "out/_raybatch/commit/*"],
)
def test_a_driver_that_was_stopped_amid_a_write_changes_nothing_when_it_wakes(
    s3_project: S3Project, proxy: Proxy, key: str
) -> None:
    races.write(s3_project)
    gate = Gate()
    proxy.on("PutObject", key=key, times=None, fault=hold(gate))
    slow = s3_project.start(env={"AWS_ENDPOINT_URL": proxy.endpoint})
    wait_until(lambda: slow.process.poll() is not None or proxy.count("PutObject", key=key), what="it writes")
    assert slow.process.poll() is None, str(slow.wait())
    stopped = stop(slow)
    try:
        s3_project.complete()
        visible = s3_project.visible()
        assert wrong(s3_project.fetched(), s3_project.ids()) == []
        gate.open()
        wait_until(lambda: all(one.status for one in proxy.seen("PutObject", key=key)), what="it has written")
    finally:
        for process in stopped:
            process.send_signal(signal.SIGCONT)
    done = slow.wait()
    assert done.code == 4, str(done)
    assert s3_project.visible() == visible
    assert wrong(s3_project.fetched(), s3_project.ids()) == []
    assert s3_project.run(command="audit").code == 0
