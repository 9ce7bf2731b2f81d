"""The files source on real S3-compatible servers, well and through a proxy that breaks things."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from pydantic import SecretStr

from object_stores import storage
from raybatch.errors import InputChangedError, SourceError, StoreError
from raybatch.sources import objects
from raybatch.sources.base import SourcePlan
from raybatch.sources.files import FilesConfig, FilesSource
from raybatch.sources.globs import Pattern
from raybatch.sources.listing import list_files
from raybatch.store import StorageOptions
from raybatch.store import bucket as bucket_module
from raybatch.store.bucket import Bucket
from servers.faults import Exchange, Fault, answer, nothing, reset, truncate
from servers.proxy import Proxy
from servers.s3 import SECRET_KEY, S3Bucket

pytestmark = pytest.mark.s3

MB = 1 << 20


def lines(*values: object) -> bytes:
    return "".join(json.dumps({"v": value}) + "\n" for value in values).encode()


def noise(rows: int) -> bytes:
    """Rows that no compression makes much smaller: some 200 bytes each."""
    chance = random.Random(rows)
    return lines(*(chance.randbytes(100).hex() for _ in range(rows)))


def source_of(
    bucket: S3Bucket, path: str, *, max_rows: int = 1000, max_bytes: int = 64 * MB, **options: Any
) -> FilesSource:
    config = FilesConfig(type="files", path=f"{bucket.url}/{path}", storage=storage(bucket, **options))
    return config.build(max_rows=max_rows, max_bytes=max_bytes)


def rows(source: FilesSource, plan: SourcePlan) -> list[Any]:
    units = [source.read(unit, key=str(i), schema=plan.schema) for i, unit in enumerate(plan.units)]
    return [value for unit in units for value in unit.table["v"].to_pylist()]


def listed(bucket: S3Bucket, path: str, **options: Any) -> list[str]:
    files = list_files([f"{bucket.url}/{path}"], taken=None, storage=storage(bucket, **options))
    return [file.path.removeprefix(f"{bucket.url}/") for file in files]


def put_all(bucket: S3Bucket, keys: list[str], data: bytes = b"x") -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda key: bucket.put(key, data), keys))


@pytest.fixture
def proxy(s3_bucket: S3Bucket) -> Iterator[Proxy]:
    with Proxy(s3_bucket.endpoint) as made:
        yield made


# --- listing ---------------------------------------------------------------------------------------------


def test_a_url_names_a_folder_a_glob_or_an_object(each_s3_bucket: S3Bucket) -> None:
    bucket = each_s3_bucket
    put_all(bucket, ["in/1.x", "in/a/3.x", "in/a/_b/4.x", "in/_c/5.x", "in/y", "in-2/6.x"])
    assert listed(bucket, "in") == listed(bucket, "in/") == ["in/1.x", "in/a/3.x", "in/y"]
    assert listed(bucket, "in/*.x") == ["in/1.x"]
    assert listed(bucket, "in/**/*.x") == ["in/1.x", "in/a/3.x"]
    assert listed(bucket, "in/_c/*.x") == ["in/_c/5.x"]
    assert listed(bucket, "in/a*") == ["in/a/3.x"]
    assert listed(bucket, "in/a/3.x") == ["in/a/3.x"]
    assert listed(bucket, "in*/*.x") == ["in-2/6.x", "in/1.x"]
    assert listed(bucket, "") == ["in-2/6.x", "in/1.x", "in/a/3.x", "in/y"]


def test_names_are_taken_as_they_are(s3_bucket: S3Bucket) -> None:
    names = ["in/with space.x", "in/50%.x", "in/a+b&c=d.x", "in/größe.x", "in/a[1].x", "in/a%20b.x"]
    put_all(s3_bucket, names)
    assert listed(s3_bucket, "in") == sorted(names)
    assert all(listed(s3_bucket, name) == [name] for name in names)


def test_an_object_that_stands_for_a_folder_is_no_file(s3_bucket: S3Bucket) -> None:
    s3_bucket.put("in/", b"")
    s3_bucket.put("in/a/", b"")
    put_all(s3_bucket, ["in/a/1.x"])
    assert listed(s3_bucket, "in") == ["in/a/1.x"]


def test_a_listing_of_many_pages_is_whole(each_s3_bucket: S3Bucket) -> None:
    keys = [f"in/{i % 7}/{i:04}.x" for i in range(1500)]
    put_all(each_s3_bucket, keys)
    assert listed(each_s3_bucket, "in/**/*.x") == sorted(keys)
    assert listed(each_s3_bucket, "in/[35]/*") == sorted(key for key in keys if key[3] in "35")


@pytest.mark.parametrize("pattern", ["in", "in/*/*", "in/*/00*", "in/[35]/*"])
def test_a_listing_that_is_cut_in_ranges_is_whole(
    pattern: str, each_s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"in/{i % 7}/{i:04}.x" for i in range(700)]
    put_all(each_s3_bucket, keys)
    monkeypatch.setattr(Bucket, "in_order", lambda self: True)
    monkeypatch.setattr(bucket_module, "_PAGE_KEYS", 20)
    names = Pattern.of(pattern).names
    assert listed(each_s3_bucket, pattern) == sorted(key for key in keys if names(key))


def test_only_stores_that_promise_it_are_taken_to_list_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)

    def in_order(url: str, **options: Any) -> bool:
        return Bucket.of(url, StorageOptions(**options))[0].in_order()

    assert in_order("s3://bucket/key")
    assert in_order("s3://bucket/key", endpoint="https://bucket.vpce-1.s3.eu-west-1.vpce.amazonaws.com")
    assert in_order("gs://bucket/key")
    assert not in_order("s3://bucket--use1-az4--x-s3/key")  # a directory bucket
    assert not in_order("s3://bucket/key", endpoint="http://minio:9000")
    assert not in_order("az://container/key")


def test_a_version_is_size_and_etag_from_a_listing_as_from_the_object(each_s3_bucket: S3Bucket) -> None:
    etag = each_s3_bucket.put("in/a.x", b"12345").strip('"')
    url, options = f"{each_s3_bucket.url}/in", storage(each_s3_bucket)
    [of_folder] = list_files([url], taken=None, storage=options)
    [of_object] = list_files([f"{url}/a.x"], taken=None, storage=options)
    assert of_folder.version == of_object.version == {"size": 5, "etag": etag}


def test_a_long_listing_tells_how_far_it_is(s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    put_all(s3_bucket, ["in/a.x", "in/b.y"])
    monkeypatch.setattr(objects, "_PROGRESS_S", 0)
    told: list[str] = []
    options = storage(s3_bucket)
    list_files([f"{s3_bucket.url}/in/*.x"], taken=None, storage=options, progress=told.append)
    assert told == [f"listing {s3_bucket.url}/in/: 2 keys so far, 1 files of them"]


# --- what cannot be reached, said in one sentence before the run -------------------------------------------


def refused(bucket: S3Bucket, path: str, **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        source_of(bucket, path, **options).plan(after=None)
    message = str(caught.value)
    assert message.startswith(f"{bucket.url}/")
    assert "\n" not in message
    assert SECRET_KEY not in message
    return message


def test_a_missing_object_is_answered_with_similar_names(s3_bucket: S3Bucket) -> None:
    put_all(s3_bucket, ["in/tickets-2026.jsonl", "in/other.csv"])
    said = refused(s3_bucket, "in/tickets-2025.jsonl")
    assert "no such file or folder" in said
    assert said.endswith("similar beside it: tickets-2026.jsonl")
    assert refused(s3_bucket, "in/*.parquet").endswith(
        "matches nothing; beside it: other.csv, tickets-2026.jsonl"
    )


def test_a_missing_bucket_is_said(s3_bucket: S3Bucket) -> None:
    missing = S3Bucket(name="nowhere", endpoint=s3_bucket.endpoint)
    assert "no such bucket" in refused(missing, "in/*.jsonl")
    assert "no such bucket" in refused(missing, "in/a.jsonl")


def test_keys_that_are_wrong_are_said_and_not_repeated(s3_bucket: S3Bucket) -> None:
    said = refused(s3_bucket, "in/*.jsonl", secret_access_key=SecretStr("not-the-secret"))
    assert "does not accept the credentials" in said
    assert "not-the-secret" not in said


def test_access_that_is_denied_is_said(s3_bucket: S3Bucket) -> None:
    s3_bucket.put("in/a.jsonl", lines(1))
    nobody = {"anonymous": True, "access_key_id": None, "secret_access_key": None}
    for path in ("in/a.jsonl", "in", "in/*.jsonl"):
        assert "access denied" in refused(s3_bucket, path, **nobody)


def test_an_endpoint_where_nobody_answers_is_said(s3_bucket: S3Bucket) -> None:
    with Proxy(s3_bucket.endpoint) as gone:
        endpoint = gone.endpoint
    said = refused(s3_bucket, "in/*.jsonl", endpoint=endpoint, max_retries=1)
    assert "the endpoint cannot be reached" in said


# --- input that changes under the plan (T22) ---------------------------------------------------------------


def overwritten(bucket: S3Bucket, key: str, data: bytes) -> None:
    size = len(bucket.get(key))
    bucket.put(key, data[:1] + b"\0" * (size - 2) + data[-1:])
    assert len(bucket.get(key)) == size


def grown(bucket: S3Bucket, key: str, data: bytes) -> None:
    bucket.put(key, data + data)


def removed(bucket: S3Bucket, key: str, data: bytes) -> None:
    bucket.delete(key)


def as_parquet() -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({"v": list(range(100_000))}), sink, row_group_size=10_000)
    return sink.getvalue().to_pybytes()


CONTENT = {"a.jsonl": noise(20_000), "a.jsonl.gz": gzip.compress(noise(20_000)), "a.parquet": as_parquet()}
CHANGES = {
    overwritten: r"etag \w+ -> \w+\) changed after it was planned",
    grown: r"size \d+ -> \d+\) changed after it was planned",
    removed: "was deleted after it was planned",
}


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_an_object_that_changed_after_the_plan_is_an_error_with_choices(
    change: Callable[[S3Bucket, str, bytes], None], name: str, each_s3_bucket: S3Bucket
) -> None:
    each_s3_bucket.put(f"in/{name}", CONTENT[name])
    source = source_of(each_s3_bucket, "in")
    plan = source.plan(after=None)
    change(each_s3_bucket, f"in/{name}", CONTENT[name])
    with pytest.raises(InputChangedError, match=CHANGES[change]) as caught:
        source.read(plan.units[-1], key="0/1", schema=plan.schema)
    message = str(caught.value)
    assert message.startswith(f"{each_s3_bucket.url}/in/{name} ")
    assert "Restore the file and run again" in message
    assert "another output (sink.path)" in message


def changing(bucket: S3Bucket, key: str, data: bytes) -> Fault:
    """Somebody overwrites the object just before the request."""

    async def fault(exchange: Exchange) -> None:
        await asyncio.to_thread(bucket.put, key, data)
        await nothing(exchange)

    return fault


def test_an_object_that_changes_between_two_requests_is_never_read_as_a_mixture(
    s3_bucket: S3Bucket, proxy: Proxy
) -> None:
    old, new = gzip.compress(noise(20_000), mtime=0), gzip.compress(noise(20_000), mtime=1)
    s3_bucket.put("in/a.jsonl.gz", old)
    source = source_of(s3_bucket.at(proxy.endpoint), "in", max_rows=100_000)
    plan = source.plan(after=None)
    proxy.clear()
    proxy.on("GetObject", first=2, fault=changing(s3_bucket, "in/a.jsonl.gz", new))
    with pytest.raises(InputChangedError, match="changed after it was planned"):
        source.read(plan.units[0], key="u", schema=plan.schema)
    assert proxy.count("GetObject") == 2


async def _other_etag(exchange: Exchange) -> None:
    response = await exchange.forward()
    response.headers = [(k, b'"other"' if k.lower() == b"etag" else v) for k, v in response.headers]
    await exchange.reply(response)


def test_a_server_that_ignores_the_condition_is_found_out_by_its_answer(
    s3_bucket: S3Bucket, proxy: Proxy
) -> None:
    s3_bucket.put("in/a.jsonl", lines(1, 2))
    source = source_of(s3_bucket.at(proxy.endpoint), "in")
    plan = source.plan(after=None)
    proxy.on("GetObject", fault=_other_etag)
    with pytest.raises(InputChangedError, match=r"etag \w+ -> other\)"):
        source.read(plan.units[0], key="u", schema=plan.schema)


def test_an_object_that_changed_after_it_was_taken_is_an_error_of_the_next_plan(s3_bucket: S3Bucket) -> None:
    s3_bucket.put("in/a.jsonl", lines(1))
    source = source_of(s3_bucket, "in")
    first = source.plan(after=None)
    s3_bucket.put("in/b.jsonl", lines(2))
    s3_bucket.put("in/a.jsonl", lines(3))
    with pytest.raises(SourceError, match=r"changed after an earlier run took it: .*in/a\.jsonl \(etag"):
        source.plan(after=first.end, history=first.units)
    s3_bucket.put("in/a.jsonl", lines(1))  # restored: the ETag of the same bytes is the same
    assert rows(source, source.plan(after=first.end, history=first.units)) == [2]


def test_an_object_that_is_restored_is_read(s3_bucket: S3Bucket) -> None:
    s3_bucket.put("in/a.jsonl", lines(1))
    source = source_of(s3_bucket, "in")
    plan = source.plan(after=None)
    s3_bucket.put("in/a.jsonl", lines(2))
    s3_bucket.put("in/a.jsonl", lines(1))
    assert rows(source, plan) == [1]


# --- reading -----------------------------------------------------------------------------------------------


def test_a_unit_of_lines_is_one_request(s3_bucket: S3Bucket, proxy: Proxy) -> None:
    s3_bucket.put("in/a.jsonl", noise(5000))
    source = source_of(s3_bucket.at(proxy.endpoint), "in")
    plan = source.plan(after=None)
    proxy.clear()
    rows(source, plan)
    assert len(plan.units) == 5
    assert proxy.count() == 5


def test_a_unit_larger_than_a_part_is_read_in_parts(s3_bucket: S3Bucket, proxy: Proxy) -> None:
    data = noise(100_000)
    s3_bucket.put("in/a.jsonl", data)
    source = source_of(s3_bucket.at(proxy.endpoint), "in", max_rows=1_000_000)
    plan = source.plan(after=None)
    proxy.clear()
    assert rows(source, plan) == [json.loads(line)["v"] for line in data.splitlines()]
    assert (len(plan.units), proxy.count("GetObject")) == (1, 3)  # 20 MB, 8 MiB each


def test_row_groups_are_read_without_those_between(s3_bucket: S3Bucket, proxy: Proxy) -> None:
    data = as_parquet()
    s3_bucket.put("in/a.parquet", data)
    source = source_of(s3_bucket.at(proxy.endpoint), "in", max_rows=10_000)
    plan = source.plan(after=None)
    proxy.clear()
    last = source.read(plan.units[-1], key="u", schema=plan.schema)
    assert last.table["v"].to_pylist() == list(range(90_000, 100_000))
    assert proxy.count("GetObject") <= 3  # footer, and the pages of one row group


@pytest.mark.parametrize("name", CONTENT)
def test_answers_that_break_off_are_asked_for_again(
    name: str, s3_bucket: S3Bucket, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_FIRST_PAUSE_S", 0)
    s3_bucket.put(f"in/{name}", CONTENT[name])
    source = source_of(s3_bucket.at(proxy.endpoint), "in")
    plan = source.plan(after=None)
    whole = rows(source, plan)
    cut = proxy.on("GetObject", fault=truncate(1000), times=3)
    assert rows(source, plan) == whole
    assert cut.struck == 3


def test_an_answer_that_always_breaks_off_is_an_error_that_names_the_place(
    s3_bucket: S3Bucket, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_FIRST_PAUSE_S", 0)
    s3_bucket.put("in/a.jsonl", lines(1, 2))
    source = source_of(s3_bucket.at(proxy.endpoint), "in", max_retries=0)
    plan = source.plan(after=None)
    proxy.on("GetObject", fault=truncate(5), times=None)
    with pytest.raises(StoreError, match=r"in/a\.jsonl: bytes 0 to 18 cannot be read: 5 answers broke off"):
        source.read(plan.units[0], key="u", schema=plan.schema)


@pytest.mark.parametrize(
    "fault",
    [answer(503, "SlowDown"), answer(500, "InternalError"), answer(429, "TooManyRequests"), reset()],
    ids=["503", "500", "429", "reset"],
)
def test_requests_that_fail_for_a_moment_are_sent_again(
    fault: Fault, s3_bucket: S3Bucket, proxy: Proxy
) -> None:
    s3_bucket.put("in/a.jsonl", lines(*range(10)))
    rules = [proxy.on(what, fault=fault, times=2) for what in ("ListObjectsV2", "GetObject", "HeadObject")]
    source = source_of(s3_bucket.at(proxy.endpoint), "in")
    assert rows(source, source.plan(after=None)) == list(range(10))
    assert [rule.struck for rule in rules] == [2, 2, 2]


def test_requests_in_flight_are_bounded(s3_bucket: S3Bucket, proxy: Proxy) -> None:
    put_all(s3_bucket, [f"in/{i:02}.parquet" for i in range(30)], as_parquet())
    now, most = 0, 0

    async def counted(exchange: Exchange) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await nothing(exchange)
        now -= 1

    proxy.on("*", fault=counted, times=None)
    source_of(s3_bucket.at(proxy.endpoint), "in", max_requests=3).plan(after=None)
    assert 1 <= most <= 3


# --- secrets -----------------------------------------------------------------------------------------------


def test_no_secret_is_in_a_plan_a_row_id_or_a_printed_source(s3_bucket: S3Bucket) -> None:
    s3_bucket.put("in/a.jsonl", lines(1))
    source = source_of(s3_bucket, "in")
    plan = source.plan(after=None)
    unit = source.read(plan.units[0], key="u", schema=plan.schema)
    assert unit.table["_source"].to_pylist() == [f"{s3_bucket.url}/in/a.jsonl"]
    assert SECRET_KEY not in repr((source, plan, unit, source.config.model_dump_json()))
    assert isinstance(source.config.storage, StorageOptions)
