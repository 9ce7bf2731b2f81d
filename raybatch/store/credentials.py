"""Whose name requests are signed with, where obstore alone would not do what users of a cloud expect.

obstore itself signs with, in this order,

S3     AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN); the web identity of a pod
       (AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN, as EKS sets them); the task role of ECS and the pod
       identity of EKS (AWS_CONTAINER_CREDENTIALS_...); the role of the EC2 instance
GCS    the service account's key; GOOGLE_APPLICATION_CREDENTIALS; the gcloud user's default credentials; the
       service account of the machine or pod (metadata server)
Azure  account key; SAS; client secret; workload identity (AZURE_FEDERATED_TOKEN_FILE); managed identity

It knows nothing of AWS profiles, so those come from boto3; and keys in the options must not be mixed with a
session token of the environment, so they are handed over as a whole.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybatch.errors import StoreError

if TYPE_CHECKING:
    from raybatch.store.remote import StorageOptions

# With one of these in the environment, the profile is not asked; as in boto3
_BEFORE_PROFILES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)

INSTALL_AWS = "pip install 'raybatch[aws]'"


def provider(cloud: str, options: StorageOptions) -> Any | None:
    """What obstore asks for credentials; None when it finds them itself. Reads files of ~/.aws at most."""
    if cloud != "s3" or options.anonymous or os.environ.get("AWS_SKIP_SIGNATURE", "").lower() == "true":
        return None
    if options.access_key_id and options.secret_access_key:
        return _Keys(options)
    profile = options.profile or (None if _comes_first() else os.environ.get("AWS_PROFILE"))
    if profile:
        return _of_profile(profile, region=options.region)
    if _comes_first():
        return None
    found = _of_default_profile(region=options.region) if _has_profiles() else None
    if found is None and os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        raise StoreError(
            "no credentials found, and AWS_EC2_METADATA_DISABLED forbids to ask the machine for some: set"
            " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give `storage` keys or a profile"
        )
    return found


class _Keys:
    """The keys of the options, for ever. Not to be printed."""

    def __init__(self, options: StorageOptions) -> None:
        self._options = options

    def __call__(self) -> dict[str, Any]:
        options = self._options
        assert options.access_key_id is not None
        assert options.secret_access_key is not None
        token = options.session_token
        return {
            "access_key_id": options.access_key_id.get_secret_value(),
            "secret_access_key": options.secret_access_key.get_secret_value(),
            "token": token.get_secret_value() if token else None,
            "expires_at": None,
        }


def _comes_first() -> bool:
    return any(os.environ.get(name) for name in _BEFORE_PROFILES)


def _has_profiles() -> bool:
    named = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}
    return any(Path(os.environ.get(name) or usual).expanduser().exists() for name, usual in named.items())


def _of_profile(profile: str, *, region: str | None) -> Any:
    try:
        import boto3.session
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise StoreError(f"the AWS profile '{profile}' is read by boto3: {INSTALL_AWS}") from None
    try:
        session = boto3.session.Session(profile_name=profile, region_name=region)
        if session.get_credentials() is None:
            raise StoreError(f"the AWS profile '{profile}' holds no credentials")
        return Boto3CredentialProvider(session)
    except BotoCoreError as error:
        raise StoreError(f"the AWS profile '{profile}' cannot be used: {error}") from None


def _of_default_profile(*, region: str | None) -> Any | None:
    """Credentials of the profile `default`, if there are any and boto3 is here to read them."""
    try:
        import boto3.session
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return None
    try:
        session = boto3.session.Session(region_name=region)
        return Boto3CredentialProvider(session) if session.get_credentials() is not None else None
    except BotoCoreError as error:
        raise StoreError(f"the AWS configuration cannot be used: {error}") from None
