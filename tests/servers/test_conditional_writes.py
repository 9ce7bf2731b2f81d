"""Whether the servers that the tests trust hold the condition `If-None-Match: *` when many ask at once.

Two processes with several threads each wait for one another before every key, then all try to create it.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier

import pytest

from servers.client import CREATE, Client
from servers.s3 import S3Bucket

pytestmark = [pytest.mark.s3, pytest.mark.timeout(600)]

PROCESSES, THREADS = 2, 4
RACERS = PROCESSES * THREADS
KEYS = 200
LATE_S = 120

_line: Barrier


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One attempt at one key, with bytes that no other attempt has."""

    key: str
    data: bytes
    status: int


def _at_line(line: Barrier) -> None:
    global _line
    _line = line


def _by_put(client: Client, path: str, data: bytes) -> int:
    _line.wait(LATE_S)
    return client.create(path, data)


def _by_upload(client: Client, path: str, data: bytes) -> int:
    upload = client.begin(path)
    etag = client.upload_part(path, upload, 1, data)
    _line.wait(LATE_S)
    answer = client.complete(path, upload, [etag], headers=CREATE)
    # S3 can say so late that it fails: with a status that was sent before
    return answer.status if b"<Error" not in answer.body else 412


WAYS: dict[str, list[Callable[[Client, str, bytes], int]]] = {
    "puts": [_by_put],
    "uploads": [_by_upload],
    "puts and uploads": [_by_put, _by_upload],
}


def _race(process: int, client: Client, bucket: str, way: str) -> list[Tried]:
    """What one process tries."""

    def race(thread: int) -> list[Tried]:
        ways = itertools.cycle(WAYS[way])
        for _ in range(thread):
            next(ways)
        tried = []
        for number in range(KEYS):
            key, data = f"keys/{number}", b"%d of process %d, thread %d" % (number, process, thread)
            status = next(ways)(client, f"{bucket}/{key}", data)
            tried.append(Tried(key=key, data=data, status=status))
        return tried

    with ThreadPoolExecutor(THREADS) as threads:
        return [one for some in threads.map(race, range(THREADS)) for one in some]


@pytest.mark.parametrize("way", WAYS)
def test_of_many_who_create_a_key_exactly_one_succeeds_and_its_bytes_stand(
    each_s3_bucket: S3Bucket, way: str
) -> None:
    spawn = multiprocessing.get_context("spawn")
    line = spawn.Barrier(RACERS)
    with ProcessPoolExecutor(PROCESSES, mp_context=spawn, initializer=_at_line, initargs=(line,)) as pool:
        client, bucket = each_s3_bucket.client, each_s3_bucket.name
        racing = [pool.submit(_race, process, client, bucket, way) for process in range(PROCESSES)]
        tried = [one for some in racing for one in some.result()]
    assert {one.status for one in tried} <= {200, 409, 412}
    won = sorted((one.key, one.data) for one in tried if one.status == 200)
    assert won == sorted(each_s3_bucket.objects().items())
    assert len(won) == KEYS


def test_what_was_created_is_read_and_listed_at_once(each_s3_bucket: S3Bucket) -> None:
    for number in range(50):
        key = f"a/{number:03d}"
        assert each_s3_bucket.client.create(f"{each_s3_bucket.name}/{key}", b"%d" % number) == 200
        assert each_s3_bucket.get(key) == b"%d" % number
        assert len(each_s3_bucket.sizes("a/")) == number + 1


def test_a_deleted_key_can_be_created_again(each_s3_bucket: S3Bucket) -> None:
    path = f"{each_s3_bucket.name}/a/b"
    assert each_s3_bucket.client.create(path, b"first") == 200
    each_s3_bucket.delete("a/b")
    assert each_s3_bucket.client.create(path, b"second") == 200
    assert each_s3_bucket.objects() == {"a/b": b"second"}


def test_a_key_is_free_while_an_upload_to_it_is_under_way(each_s3_bucket: S3Bucket) -> None:
    client, path = each_s3_bucket.client, f"{each_s3_bucket.name}/a"
    upload = client.begin(path)
    etag = client.upload_part(path, upload, 1, b"upload")
    assert each_s3_bucket.sizes() == {}
    assert client.create(path, b"put") == 200
    assert client.complete(path, upload, [etag], headers=CREATE).status == 412
    assert each_s3_bucket.objects() == {"a": b"put"}


def test_a_listing_of_several_pages_is_whole_and_in_order_of_bytes(each_s3_bucket: S3Bucket) -> None:
    keys = [f"a/{number}" for number in range(1100)] + ["a.json", "a/b/c", "ä", "b c+d", "Z"]
    client = each_s3_bucket.client
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: client.put(f"{each_s3_bucket.name}/{key}", b""), keys))
    assert list(each_s3_bucket.sizes()) == sorted(keys, key=str.encode)
