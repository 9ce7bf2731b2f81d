"""The fault-injecting proxy before a real server: what it does to a request, and that it does nothing else."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from servers.client import CREATE, Client
from servers.faults import (
    Gate,
    answer,
    flip_bit,
    hold,
    ignore_condition,
    lose_answer,
    reset,
    truncate,
)
from servers.proxy import Proxy
from servers.s3 import S3Bucket, S3Server

pytestmark = pytest.mark.s3

NO_ANSWER = (ConnectionError, http.client.RemoteDisconnected)


@pytest.fixture
def proxy(each_s3_server: S3Server) -> Iterator[Proxy]:
    with Proxy(each_s3_server.endpoint) as made:
        yield made


@pytest.fixture
def bucket(each_s3_server: S3Server, proxy: Proxy) -> S3Bucket:
    """A bucket that is reached through the proxy."""
    return each_s3_server.bucket().at(proxy.endpoint)


@pytest.fixture
def direct(each_s3_server: S3Server, bucket: S3Bucket) -> S3Bucket:
    """The same bucket, without the proxy."""
    return bucket.at(each_s3_server.endpoint)


def path(bucket: S3Bucket, key: str) -> str:
    return f"{bucket.name}/{key}"


def test_without_rules_everything_passes_and_is_counted_by_its_name(bucket: S3Bucket, proxy: Proxy) -> None:
    client: Client = bucket.client
    every = bytes(range(256)) * 20_480  # 5 MiB, the least that a part but the last may have
    bucket.put("a b/ä+c", every)
    assert client.create(path(bucket, "a b/ä+c"), b"") == 412
    upload = client.begin(path(bucket, "up"))
    etags = [
        client.upload_part(path(bucket, "up"), upload, n, data) for n, data in enumerate((every, b"."), 1)
    ]
    assert client.complete(path(bucket, "up"), upload, etags, headers=CREATE).status == 200
    aborted = client.begin(path(bucket, "aborted"))
    client.request("DELETE", path(bucket, "aborted"), query={"uploadId": aborted})
    source = {"x-amz-copy-source": f"/{path(bucket, 'up')}"}
    assert client.request("PUT", path(bucket, "copy"), headers=source).status == 200
    assert client.request("HEAD", path(bucket, "copy")).headers["content-length"] == str(len(every) + 1)
    bucket.delete("up")
    assert bucket.objects() == {"a b/ä+c": every, "copy": every + b"."}
    assert [one.operation for one in proxy.seen()] == [
        "PutObject",
        "PutObject",
        "CreateMultipartUpload",
        "UploadPart",
        "UploadPart",
        "CompleteMultipartUpload",
        "CreateMultipartUpload",
        "AbortMultipartUpload",
        "CopyObject",
        "HeadObject",
        "DeleteObject",
        "ListObjectsV2",
        "GetObject",
        "GetObject",
    ]
    assert [one.key for one in proxy.seen("*Object") if one.conditional] == ["a b/ä+c"]


def test_pyarrows_own_client_reads_and_writes_through_it(bucket: S3Bucket) -> None:
    data = bytes(range(256)) * 50_000
    with bucket.filesystem.open_output_stream("folder/file") as file:
        file.write(data)
    with bucket.filesystem.open_input_file("folder/file") as file:
        assert file.read() == data


@pytest.mark.parametrize(
    ("status", "code"), [(500, "InternalError"), (503, "SlowDown"), (429, "TooManyRequests")]
)
def test_an_injected_error_reaches_the_client_and_not_the_server(
    bucket: S3Bucket, direct: S3Bucket, proxy: Proxy, status: int, code: str
) -> None:
    proxy.on("PutObject", fault=answer(status, code, retry_after_s=1))
    got = bucket.client.request("PUT", path(bucket, "a"), body=b"a")
    assert (got.status, got.texts("Code"), got.headers["retry-after"]) == (status, [code], "1")
    assert direct.sizes() == {}
    bucket.put("a", b"a")
    assert direct.sizes() == {"a": 1}


def test_an_error_for_a_head_has_no_body(bucket: S3Bucket, proxy: Proxy) -> None:
    proxy.on("HeadObject", fault=answer(503, "SlowDown"))
    got = bucket.client.request("HEAD", path(bucket, "a"))
    assert (got.status, got.body) == (503, b"")


def test_a_reset_request_never_comes_to_the_server(bucket: S3Bucket, direct: S3Bucket, proxy: Proxy) -> None:
    proxy.on("PutObject", fault=reset())
    with pytest.raises(NO_ANSWER):
        bucket.put("a", b"a")
    assert direct.sizes() == {}


def test_a_request_whose_answer_is_lost_is_done_all_the_same(
    bucket: S3Bucket, direct: S3Bucket, proxy: Proxy
) -> None:
    proxy.on("PutObject", fault=lose_answer())
    with pytest.raises(NO_ANSWER):
        bucket.client.create(path(bucket, "a"), b"a")
    assert direct.objects() == {"a": b"a"}
    assert bucket.client.create(path(bucket, "a"), b"b") == 412
    assert [one.status for one in proxy.seen("PutObject")] == [None, 412]


def test_a_held_request_waits_for_its_gate_while_others_pass(
    bucket: S3Bucket, direct: S3Bucket, proxy: Proxy
) -> None:
    gate = Gate()
    proxy.on("PutObject", key="held", fault=hold(gate))
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(bucket.put, "held", b"late")
        bucket.put("passes", b"now")
        assert direct.sizes() == {"passes": 3}
        gate.open()
        held.result(60)
    assert direct.sizes() == {"held": 4, "passes": 3}


def test_a_truncated_body_is_shorter_than_its_headers_say(bucket: S3Bucket, proxy: Proxy) -> None:
    bucket.put("a", b"0123456789")
    proxy.on("GetObject", fault=truncate(4))
    with pytest.raises(http.client.IncompleteRead) as failed:
        bucket.get("a")
    assert failed.value.partial == b"0123"
    assert bucket.get("a") == b"0123456789"


def test_a_flipped_bit_does_not_show_in_the_headers(bucket: S3Bucket, proxy: Proxy) -> None:
    bucket.put("a", b"0123456789")
    right = bucket.client.request("GET", path(bucket, "a"))
    proxy.on("GetObject", fault=flip_bit(12))
    wrong = bucket.client.request("GET", path(bucket, "a"))
    assert wrong.body == b"0133456789"
    assert wrong.headers["etag"] == right.headers["etag"]


def test_a_store_that_ignores_the_condition_claims_to_have_written(
    bucket: S3Bucket, direct: S3Bucket, proxy: Proxy
) -> None:
    proxy.on("PutObject", conditional=True, times=None, fault=ignore_condition())
    created = [bucket.client.create(path(bucket, "a"), data) for data in (b"first", b"second")]
    assert created == [200, 200]
    assert direct.objects() == {"a": b"first"}


def test_a_rule_strikes_the_requests_that_it_names_and_no_others(bucket: S3Bucket, proxy: Proxy) -> None:
    rule = proxy.on("Get*", key="hit/*", first=2, times=2, fault=answer(503, "SlowDown"))
    bucket.put("hit/a", b"a")
    bucket.put("other", b"b")
    got = [bucket.client.request("GET", path(bucket, "hit/a")).status for _ in range(5)]
    assert got == [200, 503, 503, 200, 200]
    assert bucket.get("other") == b"b"
    assert (rule.matched, rule.struck) == (5, 2)
    assert [one.struck for one in proxy.seen("GetObject")] == [False, True, True, False, False, False]


def test_chance_is_the_seeds(each_s3_server: S3Server) -> None:
    bucket = each_s3_server.bucket()
    bucket.put("a", b"a")

    def struck(seed: int) -> list[bool]:
        with Proxy(each_s3_server.endpoint, seed=seed) as proxy:
            proxy.on("GetObject", share=0.5, times=None, fault=answer(503, "SlowDown"))
            client = bucket.at(proxy.endpoint).client
            return [client.request("GET", path(bucket, "a")).status == 503 for _ in range(40)]

    assert struck(1) == struck(1)
    assert struck(1) != struck(2)
    assert 0 < sum(struck(1)) < 40


def test_many_clients_at_once_get_their_own_answers(bucket: S3Bucket, proxy: Proxy) -> None:
    line = threading.Barrier(8)

    def ask(thread: int) -> None:
        line.wait(60)
        for number in range(20):
            key = f"{thread}/{number}"
            bucket.put(key, key.encode())
            assert bucket.get(key) == key.encode()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, range(8)))
    assert (proxy.count("PutObject"), proxy.count("GetObject", key="3/*")) == (160, 20)


def test_a_server_that_is_gone_closes_the_clients_connection() -> None:
    with Proxy("http://127.0.0.1:1") as proxy:  # nobody listens
        client = Client(endpoint=proxy.endpoint, access_key="a", secret_key="b", region="c")
        with pytest.raises(NO_ANSWER):
            client.request("GET", "bucket/key")
        assert proxy.count("GetObject") == 1
