"""How the tests' own object stores are reached."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from raybatch.store import CloudStore, StorageOptions
from servers.azurite import ACCOUNT, ACCOUNT_KEY, Container
from servers.s3 import ACCESS_KEY, REGION, SECRET_KEY, S3Bucket


def storage(bucket: S3Bucket, **options: Any) -> StorageOptions:
    """What `sink.storage` would say for a bucket of the tests."""
    own: dict[str, Any] = {
        "endpoint": bucket.endpoint,
        "region": REGION,
        "access_key_id": SecretStr(ACCESS_KEY),
        "secret_access_key": SecretStr(SECRET_KEY),
    }
    return StorageOptions(**(own | options))


def s3_store(bucket: S3Bucket, path: str = "deep/output", **options: Any) -> CloudStore:
    """A store below `path` of the bucket."""
    return CloudStore(f"{bucket.url}/{path}", storage(bucket, **options))


def azure_store(container: Container, path: str = "deep/output") -> CloudStore:
    """A store below `path` of a container of Azurite."""
    options = StorageOptions(endpoint=container.endpoint, account=ACCOUNT, account_key=SecretStr(ACCOUNT_KEY))
    return CloudStore(f"az://{container.name}/{path}", options)
