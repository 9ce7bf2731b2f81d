"""`raybatch run` from S3 to S3, on a real server: what readers find, and how it goes on after SIGKILL."""

from __future__ import annotations

import signal
from collections import Counter

import pytest

from oracle import Id, Output, twice, wrong
from pipelines import wait_until
from servers.faults import Gate, hold
from servers.project import S3Project
from servers.proxy import Proxy
from servers.s3 import S3Bucket

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.timeout(1200)]

# Of six rows, one is dropped, one fails, one becomes two
FUNCTIONS = """
    def sort(row):
        kind = row["n"] % 6
        if kind == 1:
            raise ValueError("unwanted")
        return {0: None, 2: [row, row]}.get(kind, row)
"""
ROWS = 60
UNITS = 12  # of ten rows at most, of two files


def write(project: S3Project) -> None:
    project.functions(FUNCTIONS)
    project.rows(ROWS, file="a.jsonl", n=lambda i: i)
    project.rows(ROWS, file="b.jsonl", n=lambda i: i)
    stage = {"type": "python", "function": "functions:sort"}
    project.write(stage, run={"unit": {"max_rows": 10}, "max_error_rate": 1})


def sorted_ids(project: S3Project) -> Counter[Id]:
    """What FUNCTIONS makes of the rows."""
    found: Counter[Id] = Counter()
    for n, (source, row, _) in enumerate(sorted(project.ids())):
        found.update([(source, row, "0"), (source, row, "1")] if n % 6 == 2 else [(source, row, None)])
    return found


@pytest.fixture
def each_project(s3_project: S3Project, each_s3_bucket: S3Bucket) -> S3Project:
    """A project in a bucket of each server."""
    return S3Project(s3_project.folder / "each", bucket=each_s3_bucket)


def test_every_row_is_in_the_bucket_once_and_a_second_run_has_nothing_to_do(each_project: S3Project) -> None:
    write(each_project)
    done = each_project.complete()
    assert done.document["output"] == f"{each_project.bucket.url}/out"
    assert done.document["rows"] == {"in": 120, "ok": 100, "error": 20, "dropped": 20}
    before = each_project.bucket.etags()
    assert wrong(each_project.fetched(), sorted_ids(each_project)) == []
    assert each_project.complete().document["units"]["planned"] == 0
    assert each_project.bucket.etags() == before
    assert each_project.bucket.uploads() == []


def test_new_objects_are_the_next_epoch(s3_project: S3Project) -> None:
    write(s3_project)
    s3_project.complete()
    s3_project.rows(6, file="c.jsonl", n=lambda i: i)
    done = s3_project.complete()
    assert (done.document["epoch"], done.document["rows"]["in"]) == (1, 6)
    assert wrong(s3_project.fetched(), sorted_ids(s3_project)) == []


def test_a_driver_killed_amid_its_units_is_resumed_and_what_it_sent_last_changes_nothing(
    s3_project: S3Project,
) -> None:
    write(s3_project)
    gate = Gate()
    with Proxy(s3_project.bucket.endpoint) as proxy:
        records = "out/_raybatch/units/*"
        # Those after the third are under way, and nobody knows how they end
        proxy.on("PutObject", key=records, first=4, times=None, fault=hold(gate))
        killed = s3_project.start(env={"AWS_ENDPOINT_URL": proxy.endpoint})
        wait_until(
            lambda: killed.process.poll() is not None or proxy.count("PutObject", key=records) >= 4,
            what="another unit is about to be published",
        )
        wait_until(lambda: len(s3_project.published()) == 3, what="three units are published")
        assert killed.process.poll() is None, str(killed.wait())
        killed.kill()
        published = Output(s3_project.fetched()).units()
        assert len(published) == 3

        done = s3_project.complete()
        assert done.document["units"] == {"planned": UNITS, "published": UNITS, "resumed": 3}
        visible = s3_project.visible()
        gate.open()
        wait_until(lambda: all(one.status for one in proxy.seen(key=records)), what="the last words arrive")
    assert {one.status for one in proxy.seen(key=records)} == {200, 412}
    assert s3_project.visible() == visible
    output = s3_project.fetched()
    assert published.items() <= Output(output).units().items()
    assert wrong(output, sorted_ids(s3_project)) == []


@pytest.mark.parametrize("point", ["after-plan", "after-file", "after-commit"])
def test_a_driver_killed_at_a_durable_step_is_finished_by_the_next(s3_project: S3Project, point: str) -> None:
    write(s3_project)
    dead = s3_project.run(env={"RAYBATCH_FAILPOINT": point})
    assert dead.code == -signal.SIGKILL, str(dead)
    published = Output(s3_project.fetched()).units()
    assert not twice(s3_project.fetched())
    s3_project.complete()
    output = s3_project.fetched()
    assert len(Output(output).plans()) == 1
    assert published.items() <= Output(output).units().items()
    assert wrong(output, sorted_ids(s3_project)) == []


def test_a_missing_bucket_and_wrong_keys_are_said_before_any_work(s3_project: S3Project) -> None:
    s3_project.rows(1)
    s3_project.write(sink={"type": "parquet", "path": "s3://no-such-bucket-here/out"})
    done = s3_project.run(env={"RAY_ADDRESS": "127.0.0.1:1"})  # nobody listens: it must not come so far
    assert done.code == 2, str(done)
    assert "no such bucket" in done.error["message"]

    s3_project.write()
    done = s3_project.run(env={"RAY_ADDRESS": "127.0.0.1:1", "AWS_SECRET_ACCESS_KEY": "wrong"})
    assert done.code == 2, str(done)
    assert "credentials" in done.error["message"]
    assert s3_project.bucket.sizes("out/") == {}


def test_no_secret_is_stored_or_said(s3_project: S3Project) -> None:
    write(s3_project)
    done = s3_project.complete()
    secret = s3_project.bucket.env["AWS_SECRET_ACCESS_KEY"]
    assert secret not in done.out + done.err
    assert not [key for key, data in s3_project.bucket.objects().items() if secret.encode() in data]
    logs = (s3_project.folder / "logs").rglob("*")
    assert not [file for file in logs if file.is_file() and secret in file.read_text(errors="replace")]
