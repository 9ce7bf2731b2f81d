"""Which URLs name an object store, and the options and credentials by which it is reached."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from raybatch.errors import SinkError, SpecError, StoreError
from raybatch.runtime.planning import fingerprint
from raybatch.spec.load import load_pipeline
from raybatch.store import CloudStore, StorageOptions, is_remote, open_store
from raybatch.store.remote import Location, locate, open_remote
from servers.s3 import ACCESS_KEY, SECRET_KEY, S3Bucket

KEYS = {"access_key_id": SecretStr("AKIA"), "secret_access_key": SecretStr("hunter2")}


@pytest.mark.parametrize(
    ("url", "cloud", "bucket", "prefix", "account"),
    [
        ("s3://tickets/2026/out", "s3", "tickets", "2026/out", None),
        ("s3a://tickets/", "s3", "tickets", "", None),
        ("gs://tickets/a//b/", "gcs", "tickets", "a//b", None),
        ("az://container/out", "azure", "container", "out", None),
        ("abfss://container@acc.dfs.core.windows.net/out", "azure", "container", "out", "acc"),
    ],
)
def test_a_url_names_bucket_and_prefix(
    url: str, cloud: Any, bucket: str, prefix: str, account: str | None
) -> None:
    assert locate(url) == Location(cloud=cloud, bucket=bucket, prefix=prefix, account=account)
    assert is_remote(url)
    store = open_store(url)
    assert isinstance(store, CloudStore)
    assert store.url == url.rstrip("/")


@pytest.mark.parametrize("url", ["/data/out", "file:///data", "hdfs://n/k", "out", "C:/x"])
def test_other_places_are_no_object_stores(url: str) -> None:
    assert not is_remote(url)


@pytest.mark.parametrize("url", ["s3:///out", "s3://AKIA:hunter2@bucket/out", "gs://user@bucket/x"])
def test_a_url_without_a_bucket_or_with_credentials_is_refused_and_they_are_not_repeated(url: str) -> None:
    with pytest.raises(SinkError) as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"access_key_id": SecretStr("a")}, "access_key_id and secret_access_key go together"),
        ({"session_token": SecretStr("a")}, "session_token goes with access_key_id"),
        ({**KEYS, "profile": "prod"}, "choose one way to sign requests: access_key_id or profile"),
        ({**KEYS, "anonymous": True}, "choose one way to sign requests: anonymous or access_key_id"),
        ({"endpoint": "minio:9000"}, "an endpoint is http://host:port"),
        ({"endpoint": "http://me:pw@minio:9000"}, "an endpoint is http://host:port"),
        ({"secret_access_key": "hunter2", "access_key_id": "a"}, "never written down"),
        ({"retry_timeout_s": 600}, "less than or equal to 300"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(said: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem) as caught:
        StorageOptions.model_validate(said)
    assert "hunter2" not in str(caught.value)


def test_options_of_another_cloud_are_refused() -> None:
    with pytest.raises(StoreError, match=r"storage\.region is not for this kind of store; it takes account,"):
        open_remote("az://container/out", StorageOptions(region="eu-north-1"))


def test_options_do_not_show_their_secrets() -> None:
    assert "hunter2" not in repr(StorageOptions(**KEYS))


def test_a_client_is_shared_by_all_who_use_the_same_recipe() -> None:
    first, second = (StorageOptions(**KEYS, region="eu-north-1") for _ in range(2))
    assert open_remote("s3://b/p", first) is open_remote("s3://b/p", second)
    assert open_remote("s3://b/p", first) is not open_remote("s3://b/q", first)


# --- the pipeline file --------------------------------------------------------------------------------------

TEXT = """\
name: small
source: {type: files, path: in/*.jsonl}
stages: [{type: python, function: "steps:same", schema: {a: string}}]
sink:
  type: parquet
  path: s3://bucket/out
"""


def _load(folder: Path, text: str) -> Any:
    path = folder / "pipeline.yaml"
    path.write_text(text)
    (folder / "steps.py").write_text("def same(row):\n    return row\n")
    return load_pipeline(str(path))


def test_the_file_says_how_the_sink_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "hunter2")
    keys = '{endpoint: "http://minio:9000", access_key_id: "${env:KEY}", secret_access_key: "${env:KEY}"}'
    storage = _load(tmp_path, TEXT + f"  storage: {keys}\n").sink.storage
    assert (storage.endpoint, storage.access_key_id) == ("http://minio:9000", SecretStr("hunter2"))


def test_a_secret_in_the_file_is_refused_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"pipeline\.yaml:7: .*account_key.*never written down") as caught:
        _load(tmp_path, TEXT + "  storage: {account_key: hunter2}\n")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["s3://AKIA:hunter2@bucket/out", "https://acc.blob.core.windows.net/c/out?sv=1&sig=hunter2"]
)
def test_credentials_in_the_url_of_a_sink_are_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    with pytest.raises(SpecError, match=r"sink\.path: a URL holds no credentials") as caught:
        _load(tmp_path, TEXT.replace("s3://bucket/out", url))
    assert "hunter2" not in str(caught.value)


def test_how_storage_is_reached_is_no_drift(tmp_path: Path) -> None:
    before = fingerprint(_load(tmp_path, TEXT))
    assert fingerprint(_load(tmp_path, TEXT + '  storage: {endpoint: "http://a:1"}\n')) == before


# --- credentials --------------------------------------------------------------------------------------------


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of AWS's own files, with nothing of the machine's around it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path


def _profile(folder: Path, name: str) -> None:
    lines = [f"[{name}]", f"aws_access_key_id = {ACCESS_KEY}", f"aws_secret_access_key = {SECRET_KEY}"]
    (folder / "credentials").write_text("\n".join(lines))


@pytest.mark.s3
@pytest.mark.parametrize("how", ["option", "variable", "default", "environment"])
def test_credentials_come_from_where_users_of_aws_have_them(
    aws: Path, monkeypatch: pytest.MonkeyPatch, s3_bucket: S3Bucket, how: str
) -> None:
    options = StorageOptions(endpoint=s3_bucket.endpoint, profile="work" if how == "option" else None)
    if how == "environment":
        for name, value in s3_bucket.env.items():
            monkeypatch.setenv(name, value)
        options = StorageOptions()  # the endpoint too
    else:
        _profile(aws, "default" if how == "default" else "work")
    if how == "variable":
        monkeypatch.setenv("AWS_PROFILE", "work")
    assert CloudStore(f"{s3_bucket.url}/out", options).create("a", b"") is True


@pytest.mark.s3
def test_keys_of_the_options_are_not_mixed_with_a_token_of_the_environment(
    aws: Path, monkeypatch: pytest.MonkeyPatch, s3_bucket: S3Bucket
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-other-keys")
    options = StorageOptions(
        endpoint=s3_bucket.endpoint,
        access_key_id=SecretStr(ACCESS_KEY),
        secret_access_key=SecretStr(SECRET_KEY),
    )
    assert CloudStore(f"{s3_bucket.url}/out", options).create("a", b"") is True


def test_a_profile_that_is_not_there_is_named(aws: Path) -> None:
    with pytest.raises(StoreError, match=r"the AWS profile 'work' cannot be used: .*work"):
        open_remote("s3://bucket/out", StorageOptions(profile="work", region="none-there"))


def test_no_credentials_at_all_are_said_to_be_missing(aws: Path) -> None:
    with pytest.raises(StoreError, match="no credentials found"):
        open_remote("s3://bucket/none", StorageOptions(region="no-credentials"))


def test_a_machine_without_an_identity_is_told_apart_from_a_network_failure(
    aws: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")  # nobody listens
    store = CloudStore("s3://bucket/out", StorageOptions(max_retries=0, region="no-identity"))
    with pytest.raises(StoreError, match="no credentials found: set the cloud's usual environment"):
        store.read("a")


def test_a_profile_without_boto3_names_the_command_that_installs_it(aws: Path) -> None:
    _profile(aws, "work")
    program = (
        "import sys\n"
        "sys.modules['boto3'] = None\n"
        "from raybatch.store.remote import StorageOptions, open_remote\n"
        "open_remote('s3://bucket/out', StorageOptions(profile='work'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "the AWS profile 'work' is read by boto3: pip install 'raybatch[aws]'" in done.stderr
