"""The store on a real S3-compatible server, behind a proxy that injects faults; what each of them comes to."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from object_stores import s3_store, storage
from raybatch.errors import StoreError
from raybatch.store import CloudStore, StorageOptions
from raybatch.store.objects import exists
from servers.faults import Exchange, Fault, Gate, answer, hold, ignore_condition, lose_answer, reset, truncate
from servers.messages import Message
from servers.proxy import Proxy
from servers.s3 import SECRET_KEY, S3Bucket

pytestmark = pytest.mark.s3

PATH = "deep/output"
LARGE = bytes(range(251)) * (40 << 12)  # some 40 MiB: three parts of an upload

MOMENT = b"Mon, 23 Nov 2026 10:00:00 GMT"

# A service account that signs nothing, as emulators take it
GOOGLE_KEY = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}

# The errors that pass, as S3 says them
PASSING = [(500, "InternalError"), (503, "SlowDown"), (429, "TooManyRequests")]


@pytest.fixture
def proxy(s3_bucket: S3Bucket) -> Iterator[Proxy]:
    with Proxy(s3_bucket.endpoint) as made:
        yield made


@pytest.fixture
def store(s3_bucket: S3Bucket, proxy: Proxy) -> CloudStore:
    """A store that is reached through the proxy."""
    return s3_store(s3_bucket.at(proxy.endpoint), PATH)


def stored(bucket: S3Bucket) -> dict[str, bytes]:
    """What is in the bucket, seen by a client that shares no code with the store."""
    return bucket.objects(f"{PATH}/")


# --- faults that pass -------------------------------------------------------------------------------------

OPERATIONS: dict[str, tuple[str, Callable[[CloudStore], object], object]] = {
    "create": ("PutObject", lambda s: s.create("new", b"x"), True),
    "put": ("PutObject", lambda s: s.put("new", b"x"), None),
    "part": ("UploadPart", lambda s: s.put("large", LARGE), None),
    "complete": ("CompleteMultipartUpload", lambda s: s.put("large", LARGE), None),
    "copy": ("UploadPartCopy", lambda s: s.link("there", "new"), True),
    "copy complete": ("CompleteMultipartUpload", lambda s: s.link("there", "new"), True),
    "read": ("GetObject", lambda s: s.read("there"), b"there"),
    "head": ("HeadObject", lambda s: exists(s, "there"), True),
    "list": ("ListObjectsV2", lambda s: [entry.key for entry in s.list("")], ["there"]),
    "delete": ("DeleteObject", lambda s: s.delete("there"), None),
}


@pytest.mark.parametrize(
    "fault",
    [*(pytest.param(answer(status, code), id=str(status)) for status, code in PASSING), reset()],
)
@pytest.mark.parametrize("name", OPERATIONS)
def test_what_fails_for_a_while_is_sent_again(
    store: CloudStore, proxy: Proxy, name: str, fault: Fault
) -> None:
    operation, ask, expected = OPERATIONS[name]
    store.probe()  # which tries copies as well
    store.put("there", b"there")
    rule = proxy.on(operation, times=2, fault=fault)
    assert ask(store) == expected
    assert (rule.struck, rule.matched >= 3) == (2, True)


def test_what_fails_for_ever_is_given_up_with_the_stores_words(s3_bucket: S3Bucket, proxy: Proxy) -> None:
    store = s3_store(s3_bucket.at(proxy.endpoint), max_retries=2)
    rule = proxy.on("PutObject", times=None, fault=answer(503, "SlowDown"))
    with pytest.raises(StoreError, match=r"cannot create a: .*storage.max_requests.*503") as caught:
        store.create("a", b"")
    assert (rule.struck, store.url in str(caught.value)) == (3, True)


def test_a_request_without_an_answer_in_time_is_sent_again(s3_bucket: S3Bucket, proxy: Proxy) -> None:
    store = s3_store(s3_bucket.at(proxy.endpoint), PATH, request_timeout_s=1)
    gate = Gate()
    rule = proxy.on("PutObject", fault=hold(gate))
    assert store.create("a", b"mine") is True
    gate.open()  # the late one meets the other
    assert (rule.struck, stored(s3_bucket)) == (1, {"a": b"mine"})


def test_a_body_that_is_cut_off_is_read_to_its_end(store: CloudStore, proxy: Proxy) -> None:
    store.put("a", LARGE)
    rule = proxy.on("GetObject", times=2, fault=truncate(1000))
    assert store.read("a") == LARGE
    assert rule.struck == 2


def test_a_listing_that_is_cut_off_is_whole(s3_bucket: S3Bucket, store: CloudStore, proxy: Proxy) -> None:
    keys = [f"unit/{number:04d}" for number in range(1100)]
    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(lambda key: s3_store(s3_bucket, PATH).create(key, b""), keys))
    rule = proxy.on("ListObjectsV2", first=2, times=2, fault=truncate(1000))
    assert [entry.key for entry in store.list("unit/")] == keys
    assert rule.struck == 2


# --- answers that are lost, or say less than they seem to ---------------------------------------------------


def test_a_create_whose_answer_was_lost_may_say_no_and_has_its_bytes_there(
    store: CloudStore, proxy: Proxy
) -> None:
    proxy.on("PutObject", fault=lose_answer())
    assert store.create("a", b"mine") is False
    assert store.read("a") == b"mine"


def test_a_link_whose_answer_was_lost_has_its_bytes_there_whatever_it_says(
    store: CloudStore, proxy: Proxy
) -> None:
    store.probe()
    store.put("parts/a", b"mine")
    store.put("parts/b", b"later")
    rule = proxy.on("CompleteMultipartUpload", fault=lose_answer())
    store.link("parts/a", "data/b")  # servers differ in what they say when it is completed again
    assert (rule.struck, store.link("parts/b", "data/b")) == (1, False)
    assert store.read("data/b") == b"mine"


def test_an_upload_whose_completion_was_not_answered_is_there(store: CloudStore, proxy: Proxy) -> None:
    proxy.on("CompleteMultipartUpload", fault=lose_answer())
    store.put("a", LARGE)
    assert store.read("a") == LARGE


def test_a_conflict_with_a_write_that_came_to_nothing_is_no_defeat(store: CloudStore, proxy: Proxy) -> None:
    proxy.on("PutObject", times=2, fault=answer(409, "ConditionalRequestConflict"))
    assert store.create("a", b"mine") is True
    assert proxy.count("PutObject") == 3


def test_a_conflict_with_a_write_that_succeeded_is_a_defeat(
    s3_bucket: S3Bucket, store: CloudStore, proxy: Proxy
) -> None:
    s3_store(s3_bucket, PATH).create("a", b"theirs")
    proxy.on("PutObject", fault=answer(409, "ConditionalRequestConflict"))
    assert store.create("a", b"mine") is False
    assert store.read("a") == b"theirs"


def test_conflicts_without_end_are_an_error(s3_bucket: S3Bucket, proxy: Proxy) -> None:
    store = s3_store(s3_bucket.at(proxy.endpoint), max_retries=2)
    proxy.on("PutObject", times=None, fault=answer(409, "ConditionalRequestConflict"))
    with pytest.raises(StoreError, match="each attempt met another one under way"):
        store.create("a", b"mine")
    assert proxy.count("PutObject") == 3


def test_a_conflict_on_completing_a_copy_repeats_the_whole_copy(store: CloudStore, proxy: Proxy) -> None:
    store.probe()
    store.put("parts/a", b"mine")
    proxy.clear()
    proxy.on("CompleteMultipartUpload", fault=answer(409, "ConditionalRequestConflict"))
    assert store.link("parts/a", "data/b") is True
    assert (proxy.count("CreateMultipartUpload"), proxy.count("UploadPartCopy")) == (2, 2)
    assert store.read("data/b") == b"mine"


def test_an_upload_that_fails_is_aborted_and_nothing_of_it_is_seen(
    s3_bucket: S3Bucket, store: CloudStore, proxy: Proxy
) -> None:
    rule = proxy.on("UploadPart", first=2, times=None, fault=answer(403, "AccessDenied"))
    with pytest.raises(StoreError, match="cannot write parts/a: access denied"):
        store.put("parts/a", LARGE)
    assert rule.struck > 0
    assert (s3_bucket.uploads(), stored(s3_bucket)) == ([], {})


# --- the probe ---------------------------------------------------------------------------------------------


def test_a_server_that_ignores_the_condition_is_refused(
    s3_bucket: S3Bucket, store: CloudStore, proxy: Proxy
) -> None:
    proxy.on("PutObject", conditional=True, times=None, fault=ignore_condition())
    with pytest.raises(StoreError, match=r"lets a second writer replace an object .*If-None-Match"):
        store.probe()
    assert stored(s3_bucket) == {}


def test_a_server_that_ignores_it_among_racers_only_is_refused(store: CloudStore, proxy: Proxy) -> None:
    # It looks first and writes then: who comes much later is told the truth
    proxy.on("PutObject", conditional=True, times=7, fault=ignore_condition())
    with pytest.raises(StoreError, match="lets a second writer replace an object"):
        store.probe()


def test_a_probe_whose_answers_are_lost_is_no_reason_to_refuse(store: CloudStore, proxy: Proxy) -> None:
    rule = proxy.on("PutObject", conditional=True, times=None, share=0.3, fault=lose_answer())
    store.probe()
    assert rule.struck > 0


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        ("CreateMultipartUpload", answer(501, "NotImplemented")),
        ("UploadPartCopy", answer(400, "InvalidRequest")),
        ("CompleteMultipartUpload", ignore_condition()),
    ],
)
def test_where_copies_have_no_condition_a_link_reads_and_creates(
    s3_bucket: S3Bucket, store: CloudStore, proxy: Proxy, operation: str, fault: Fault
) -> None:
    proxy.on(operation, times=None, fault=fault)
    store.probe()
    store.put("parts/a", b"mine")
    copies = proxy.count("UploadPartCopy")
    assert [store.link("parts/a", "data/b"), store.link("parts/a", "data/b")] == [True, False]
    assert proxy.count("UploadPartCopy") == copies
    assert stored(s3_bucket) == {"parts/a": b"mine", "data/b": b"mine"}


def test_a_store_that_lists_out_of_order_is_refused(
    s3_bucket: S3Bucket, store: CloudStore, proxy: Proxy
) -> None:
    async def swapped(exchange: Exchange) -> None:
        response = await exchange.forward()
        for old, new in ((b"unit/1", b"unit/_"), (b"unit/2", b"unit/1"), (b"unit/_", b"unit/2")):
            response.body = response.body.replace(old, new)
        await exchange.reply(response)

    for key in ("unit/1", "unit/2"):
        store.create(key, b"")
    proxy.on("ListObjectsV2", fault=swapped)
    with pytest.raises(StoreError, match="does not list keys in order"):
        list(store.list("unit/"))


# --- who may, where, and how many at once --------------------------------------------------------------------


def test_no_more_requests_are_in_flight_than_allowed(s3_bucket: S3Bucket, proxy: Proxy) -> None:
    store = s3_store(s3_bucket.at(proxy.endpoint), max_requests=3)
    now, peak = 0, 0

    async def counted(exchange: Exchange) -> None:
        nonlocal now, peak
        now += 1
        peak = max(peak, now)
        await asyncio.sleep(0.02)  # so that others arrive, if they may
        now -= 1
        await exchange.reply(await exchange.forward())

    proxy.on("*", times=None, fault=counted)
    line = threading.Barrier(12)

    def write(number: int) -> None:
        line.wait()
        store.put(f"small/{number}", b"")
        if number == 0:
            store.put("large", LARGE)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(write, range(12)))
    assert peak == 3


def test_a_store_travels_to_another_process_by_its_recipe(s3_bucket: S3Bucket) -> None:
    store = s3_store(s3_bucket)
    store.probe()
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.url, copy.create("a", b"x"), store.read("a")) == (store.url, True, b"x")


def test_keys_do_not_show_where_a_store_is_printed(s3_bucket: S3Bucket) -> None:
    store = s3_store(s3_bucket)
    assert SECRET_KEY not in f"{store!r} {vars(store)!r}"


@pytest.mark.parametrize(
    ("path", "told"),
    [("a b/ü", "a b/ü"), ("50%/x~y", "50%/x~y"), ("trailing/", "trailing"), ("", "")],
)
def test_any_path_in_the_bucket_is_used_as_it_is_written(s3_bucket: S3Bucket, path: str, told: str) -> None:
    store = s3_store(s3_bucket, path)
    store.create("plan/0.json", b"x")
    assert list(s3_bucket.sizes()) == [f"{told}/plan/0.json".lstrip("/")]
    assert [entry.key for entry in store.list("plan/")] == ["plan/0.json"]


def _problem(bucket: S3Bucket, url: str | None = None, **options: object) -> str:
    store = CloudStore(url or f"{bucket.url}/out", storage(bucket, max_retries=0, **options))
    with pytest.raises(StoreError) as caught:
        store.probe()
    return str(caught.value)


def test_a_missing_bucket_is_named(s3_bucket: S3Bucket) -> None:
    url = "s3://no-such-bucket-here/out"
    assert _problem(s3_bucket, url).startswith(f"{url}: cannot create _probe/")
    assert "no such bucket: create it, or correct the path" in _problem(s3_bucket, url)
    store = CloudStore(url, storage(s3_bucket))
    with pytest.raises(StoreError, match="no such bucket"):
        list(store.list("plan/"))


def test_wrong_keys_are_said_to_be_wrong_and_not_shown(s3_bucket: S3Bucket) -> None:
    from pydantic import SecretStr

    problem = _problem(s3_bucket, secret_access_key=SecretStr("hunter2hunter2"))
    assert "does not accept the credentials" in problem
    assert "hunter2" not in problem


def test_a_store_that_lets_nobody_in_unknown_says_that_access_is_denied(s3_bucket: S3Bucket) -> None:
    problem = _problem(s3_bucket, anonymous=True, access_key_id=None, secret_access_key=None)
    assert "access denied" in problem


def test_an_endpoint_where_nobody_listens_is_said_to_be_out_of_reach(s3_bucket: S3Bucket) -> None:
    problem = _problem(s3_bucket, endpoint="http://127.0.0.1:1")
    assert "the endpoint cannot be reached: check storage.endpoint" in problem


def test_the_wrong_region_is_named(s3_bucket: S3Bucket) -> None:
    assert "another region: set storage.region" in _problem(s3_bucket, region="eu-north-1")


# --- other clouds ---------------------------------------------------------------------------------------------


def test_google_is_asked_with_its_own_condition(tmp_path: Path) -> None:
    conditions: list[str | None] = []

    async def refused(exchange: Exchange) -> None:
        conditions.append(exchange.request.header("x-goog-if-generation-match"))
        await answer(412, "PreconditionFailed")(exchange)

    async def there(exchange: Exchange) -> None:
        headers = [(b"Content-Length", b"1"), (b"ETag", b'"e"'), (b"Last-Modified", MOMENT)]
        await exchange.reply(Message(first=b"HTTP/1.1 200 OK", headers=headers))

    with Proxy("http://127.0.0.1:1") as google:  # no server behind it: what is sent is looked at, no more
        google.on("PutObject", fault=refused)
        google.on("HeadObject", fault=there)
        key = tmp_path / "key.json"
        key.write_text(json.dumps({**GOOGLE_KEY, "gcs_base_url": google.endpoint}))
        options = StorageOptions(endpoint=google.endpoint, service_account_file=str(key))
        assert CloudStore("gs://bucket/out", options).create("a", b"x") is False
    assert conditions == ["0"]
