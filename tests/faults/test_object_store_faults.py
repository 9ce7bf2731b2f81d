"""The real ledger and sink on a real S3-compatible server, behind a proxy that fails on purpose.

Runs are those of tests/small_run.py, in this process. Each ends with the oracle's count and the audit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from raybatch.errors import SinkError, StoreError
from raybatch.ledger.audit import audit
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Commit
from raybatch.rows import DROPPED_SCHEMA, UnitRows, source_errors
from raybatch.store import CloudStore, StorageOptions
from servers.faults import Fault, answer, flip_bit, ignore_condition, lose_answer, reset, truncate
from servers.proxy import Proxy
from servers.s3 import S3Bucket
from small_run import PIPELINE, ROWS, Oracle, make_plan, make_sink, ok_table, run

pytestmark = pytest.mark.s3

UNITS = 5
PLAN, UNIT, COMMIT = "out/_raybatch/plan/*", "out/_raybatch/units/*", "out/_raybatch/commit/*"
PARTS, DATA, ERRORS = "out/_raybatch/parts/*", "out/data/*", "out/errors/*"
# All that a run touches, but what it tries at its start to learn what the store can do
KEYS = ("out/_raybatch/*", DATA, ERRORS)

PASSING: dict[str, Fault] = {
    "500": answer(500, "InternalError"),
    "503": answer(503, "SlowDown"),
    "429": answer(429, "TooManyRequests"),
    "reset": reset(),
}
CONFLICT = answer(409, "ConditionalRequestConflict")


@pytest.fixture
def proxy(s3_bucket: S3Bucket) -> Iterator[Proxy]:
    with Proxy(s3_bucket.endpoint) as made:
        yield made


def open_output(bucket: S3Bucket, endpoint: str, *, max_retries: int = 10) -> CloudStore:
    env = bucket.env
    options = StorageOptions(
        endpoint=endpoint,
        region=env["AWS_REGION"],
        access_key_id=SecretStr(env["AWS_ACCESS_KEY_ID"]),
        secret_access_key=SecretStr(env["AWS_SECRET_ACCESS_KEY"]),
        max_retries=max_retries,
    )
    return CloudStore(f"{bucket.url}/out", options)


@pytest.fixture
def store(s3_bucket: S3Bucket, proxy: Proxy) -> CloudStore:
    """The output as a run sees it, through the proxy."""
    return open_output(s3_bucket, proxy.endpoint)


def check_complete(bucket: S3Bucket, commit: Commit | None, *, run_id: str) -> None:
    """Every row once, by the run that says so, in a store that holds no half-made upload."""
    assert commit is not None
    assert commit.run_id == run_id
    Oracle(bucket.objects("out/")).check_complete(units=UNITS)
    assert bucket.uploads() == []
    report = audit(open_output(bucket, bucket.endpoint))
    assert report.ok, report


def large_unit(unit: int) -> UnitRows:
    """Rows that compress badly: 36 MB, which an object store takes in parts."""
    ids = [("input-0", unit * ROWS + row, None) for row in range(ROWS)]
    return UnitRows(
        unit=make_plan(units=1).unit_key(unit),
        rows_in=ROWS,
        table=ok_table(ids, [os.urandom(6 << 20).hex()[: 6 << 20] for _ in ids]),
        errors=source_errors([]),
        dropped=DROPPED_SCHEMA.empty_table(),
        made=0,
        stats={},
    )


# --- T8: applied, and the answer is lost ---------------------------------------------------------------------


@pytest.mark.parametrize("key", [PLAN, PARTS, UNIT, DATA, ERRORS, COMMIT])
def test_a_write_whose_answer_was_lost_is_recognised_as_its_own(
    s3_bucket: S3Bucket, proxy: Proxy, store: CloudStore, key: str
) -> None:
    lost = proxy.on("PutObject", key=key, fault=lose_answer())
    commit = run(store, run_id="run-1", units=UNITS)
    assert lost.struck == 1
    check_complete(s3_bucket, commit, run_id="run-1")
    assert len(s3_bucket.sizes("out/_raybatch/plan/")) == 1
    # No unit was taken for another's and done again, or its parts deleted
    attempts = {name.split("/")[-1].split(".")[0] for name in s3_bucket.sizes("out/_raybatch/parts/")}
    assert len(attempts) == UNITS


def test_every_second_answer_may_be_lost(s3_bucket: S3Bucket, proxy: Proxy, store: CloudStore) -> None:
    lost = [
        proxy.on("*", key=key, share=0.5, times=None, fault=lose_answer())
        for key in (PLAN, UNIT, DATA, COMMIT)
    ]
    commit = run(store, run_id="run-1", units=UNITS)
    assert sum(rule.struck for rule in lost) > 5
    check_complete(s3_bucket, commit, run_id="run-1")


def test_a_link_whose_completion_was_lost_is_the_file(
    s3_bucket: S3Bucket, proxy: Proxy, store: CloudStore
) -> None:
    lost = proxy.on("CompleteMultipartUpload", key=DATA, fault=lose_answer())
    commit = run(store, run_id="run-1", units=UNITS)
    assert lost.struck == 1
    check_complete(s3_bucket, commit, run_id="run-1")


# --- T9: failures that pass ----------------------------------------------------------------------------------

OPERATIONS = [
    "PutObject",
    "CreateMultipartUpload",
    "UploadPartCopy",
    "CompleteMultipartUpload",
    "GetObject",
    "HeadObject",
]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fault", PASSING)
def test_a_failure_that_passes_is_sent_again(
    s3_bucket: S3Bucket, proxy: Proxy, store: CloudStore, operation: str, fault: str
) -> None:
    rules = [proxy.on(operation, key=key, times=2, fault=PASSING[fault]) for key in KEYS]
    commit = run(store, run_id="run-1", units=UNITS)
    assert sum(rule.struck for rule in rules) >= 2
    check_complete(s3_bucket, commit, run_id="run-1")


@pytest.mark.parametrize("fault", PASSING)
def test_a_listing_that_fails_is_sent_again(
    s3_bucket: S3Bucket, proxy: Proxy, store: CloudStore, fault: str
) -> None:
    rule = proxy.on("ListObjectsV2", share=0.5, times=None, fault=PASSING[fault])
    commit = run(store, run_id="run-1", units=UNITS)
    assert rule.struck >= 3
    check_complete(s3_bucket, commit, run_id="run-1")


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
@pytest.mark.parametrize("fault", PASSING)
def test_a_large_part_survives_failures_of_its_upload(
    s3_bucket: S3Bucket, proxy: Proxy, store: CloudStore, operation: str, fault: str
) -> None:
    rule = proxy.on(operation, key=PARTS, times=2, fault=PASSING[fault])
    ledger, plan = Ledger(store, PIPELINE), make_plan(units=1)
    plan = ledger.create_plan(plan)
    record = make_sink().write(large_unit(0), plan=plan.reference(), attempt="a", ledger=ledger)
    assert rule.struck == 2
    (part,) = record.parts.values()
    assert s3_bucket.sizes("out/_raybatch/parts/") == {f"out/{part.key}": part.size}
    make_sink().finalise(plan, [record], ledger=ledger)  # verifies the part's SHA-256
    assert s3_bucket.uploads() == []


@pytest.mark.parametrize("operation", ["PutObject", "UploadPart", "CompleteMultipartUpload"])
def test_an_upload_that_fails_for_good_leaves_nothing_to_be_seen(
    s3_bucket: S3Bucket, proxy: Proxy, operation: str
) -> None:
    store = open_output(s3_bucket, proxy.endpoint, max_retries=1)
    ledger, sink = Ledger(store, PIPELINE), make_sink()
    plan = ledger.create_plan(make_plan(units=1))
    proxy.on(operation, times=None, fault=PASSING["503"])
    with pytest.raises(StoreError, match="asks for fewer requests"):
        sink.write(large_unit(0), plan=plan.reference(), attempt="a", ledger=ledger)
    parts = s3_bucket.sizes("out/_raybatch/parts/")
    assert len(parts) == (1 if operation == "PutObject" else 0)  # the record is what failed, then
    assert list(s3_bucket.sizes("out/_raybatch/")) == sorted(["out/_raybatch/plan/00000000.json", *parts])
    assert s3_bucket.uploads() == []


@pytest.mark.parametrize("key", [PLAN, PARTS, UNIT, DATA, ERRORS, COMMIT])
def test_a_run_that_has_to_give_up_shows_no_half_and_the_next_one_finishes(
    s3_bucket: S3Bucket, proxy: Proxy, key: str
) -> None:
    impatient = open_output(s3_bucket, proxy.endpoint, max_retries=1)
    for operation in ("PutObject", "CompleteMultipartUpload"):
        proxy.on(operation, key=key, times=None, fault=PASSING["500"])
    with pytest.raises(StoreError):
        run(impatient, run_id="run-1", units=UNITS)
    left = Oracle(s3_bucket.objects("out/"))
    assert left.keys("_raybatch/commit/") == []
    seen = left.ids()  # reads each file: none is a half
    assert all(len(ids) == len(set(ids)) for ids in seen.values())
    proxy.clear()
    check_complete(s3_bucket, run(impatient, run_id="run-2", units=UNITS), run_id="run-2")


def test_any_mixture_of_failures_passes_and_requests_stay_bounded(
    s3_bucket: S3Bucket, proxy: Proxy, store: CloudStore
) -> None:
    run(open_output(s3_bucket, proxy.endpoint), run_id="clean", units=UNITS)
    usual = proxy.count()
    proxy.clear()
    other = CloudStore(f"{s3_bucket.url}/other", store._requests.options)
    rules = [proxy.on("*", share=0.04, times=None, fault=fault) for fault in PASSING.values()]
    commit = run(other, run_id="run-1", units=UNITS)
    struck = sum(rule.struck for rule in rules)
    assert commit is not None
    assert struck > 10
    Oracle(s3_bucket.objects("other/")).check_complete(units=UNITS)
    # What was struck is sent again; a lost completion of an upload costs the whole upload, and a look
    assert proxy.count() <= usual + 5 * struck


# --- T10: 409, and what else S3 says about completing --------------------------------------------------------


@pytest.mark.parametrize("key", [PLAN, UNIT, DATA, COMMIT])
def test_a_conflict_on_a_conditional_put_is_tried_again(
    s3_bucket: S3Bucket, proxy: Proxy, store: CloudStore, key: str
) -> None:
    rule = proxy.on("PutObject", key=key, conditional=True, times=2, fault=CONFLICT)
    commit = run(store, run_id="run-1", units=UNITS)
    assert rule.struck == 2
    check_complete(s3_bucket, commit, run_id="run-1")


def test_a_conflict_on_completing_an_upload_means_the_whole_upload_again(
    s3_bucket: S3Bucket, proxy: Proxy, store: CloudStore
) -> None:
    rule = proxy.on("CompleteMultipartUpload", key=DATA, fault=CONFLICT)
    commit = run(store, run_id="run-1", units=UNITS)
    assert rule.struck == 1
    assert proxy.count("CreateMultipartUpload", key=DATA) == 2
    assert proxy.count("UploadPartCopy", key=DATA) == 2
    check_complete(s3_bucket, commit, run_id="run-1")


def test_an_error_in_the_body_of_a_200_is_an_error(
    s3_bucket: S3Bucket, proxy: Proxy, store: CloudStore
) -> None:
    rule = proxy.on("CompleteMultipartUpload", key=DATA, fault=answer(200, "InternalError"))
    commit = run(store, run_id="run-1", units=UNITS)
    assert rule.struck == 1
    check_complete(s3_bucket, commit, run_id="run-1")


# --- lies ----------------------------------------------------------------------------------------------------


def test_a_store_that_ignores_the_condition_is_refused_before_any_work(
    s3_bucket: S3Bucket, proxy: Proxy, store: CloudStore
) -> None:
    proxy.on("PutObject", conditional=True, times=None, fault=ignore_condition())
    with pytest.raises(SinkError, match="If-None-Match"):
        run(store, run_id="run-1", units=UNITS)
    assert s3_bucket.sizes() == {}


def test_a_body_that_ends_early_is_read_again(s3_bucket: S3Bucket, proxy: Proxy, store: CloudStore) -> None:
    rule = proxy.on("GetObject", key=PARTS, times=3, fault=truncate(100))
    commit = run(store, run_id="run-1", units=UNITS)
    assert rule.struck == 3
    check_complete(s3_bucket, commit, run_id="run-1")


def test_a_part_read_with_a_flipped_bit_is_never_committed(
    s3_bucket: S3Bucket, proxy: Proxy, store: CloudStore
) -> None:
    proxy.on("GetObject", key=PARTS, fault=flip_bit(500))
    with pytest.raises(Exception, match="was damaged: its SHA-256 is not the recorded one"):
        run(store, run_id="run-1", units=UNITS)
    assert s3_bucket.sizes("out/_raybatch/commit/") == {}
    # The store itself was right: the next run reads it again
    check_complete(s3_bucket, run(store, run_id="run-2", units=UNITS), run_id="run-2")
