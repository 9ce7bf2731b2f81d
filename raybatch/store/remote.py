"""Object stores: which URLs name one, how to reach it, and the client that does (the library obstore).

A URL and its `StorageOptions` are the recipe that travels between processes; clients never do. Each process
opens its own at the first use, and keeps it: connections and credentials are shared by all who use the same
recipe. With no options at all each cloud's usual environment variables and the identity of the machine or pod
decide, see `credentials.py`.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from raybatch.config import Config, PathOrUrl, Secret
from raybatch.errors import StoreError
from raybatch.store.credentials import provider
from raybatch.store.failures import translated
from raybatch.store.gate import Gate

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Cloud = Literal["s3", "gcs", "azure"]

_CLOUDS: dict[str, Cloud] = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
}
_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)/*(.*)$", re.DOTALL)
_AZURE_HOST = re.compile(r"^([a-z0-9]+)\.(?:dfs|blob)\.", re.IGNORECASE)

_OWN: dict[Cloud, tuple[str, ...]] = {
    "s3": ("region", "path_style", "access_key_id", "secret_access_key", "session_token", "profile"),
    "gcs": ("service_account_file",),
    "azure": ("account", "account_key", "sas_token", "tenant_id", "client_id", "client_secret"),
}


class StorageOptions(Config):
    """How to reach an object store. Everything is optional: by default the environment decides."""

    endpoint: str | None = None
    """URL of the service, for S3-compatible servers, private endpoints and emulators. http:// is sent as
    plain text."""
    anonymous: bool = False
    """Send no credentials at all: for public buckets."""

    region: str | None = None
    """S3: region of the bucket. Default: AWS_REGION, AWS_DEFAULT_REGION, the profile's, us-east-1."""
    path_style: bool | None = None
    """S3: the bucket is in the path of the URL (true) or in the name of the host (false). Default: true with
    an endpoint, false on AWS itself."""
    access_key_id: Secret | None = None
    """S3: access key; with it goes secret_access_key. Default: AWS_ACCESS_KEY_ID, then the profile, then the
    role of the pod or machine."""
    secret_access_key: Secret | None = None
    """S3: secret of access_key_id."""
    session_token: Secret | None = None
    """S3: token that goes with temporary keys."""
    profile: str | None = None
    """S3: profile of ~/.aws/config and ~/.aws/credentials (needs `raybatch[aws]`). Default: AWS_PROFILE."""

    service_account_file: PathOrUrl | None = None
    """GCS: path of a service account's JSON key. Default: GOOGLE_APPLICATION_CREDENTIALS, then the service
    account of the pod or machine."""

    account: str | None = None
    """Azure: storage account. Default: the one in the URL, AZURE_STORAGE_ACCOUNT_NAME."""
    account_key: Secret | None = None
    """Azure: shared key of the account. Default: AZURE_STORAGE_ACCOUNT_KEY, then the identities below."""
    sas_token: Secret | None = None
    """Azure: shared access signature, the query string that grants access."""
    tenant_id: str | None = None
    """Azure: tenant of client_id. Default: AZURE_TENANT_ID."""
    client_id: str | None = None
    """Azure: service principal, or a user-assigned managed identity. Default: AZURE_CLIENT_ID."""
    client_secret: Secret | None = None
    """Azure: secret of client_id. Without one: workload identity (AZURE_FEDERATED_TOKEN_FILE), or the managed
    identity."""

    ca_certificate_file: PathOrUrl | None = None
    """PEM file with certificates to trust besides those of the system, for a server with a private CA."""
    unsafe_skip_tls_verification: bool = False
    """Accept any certificate. Whoever is on the way can then read and change everything."""

    connect_timeout_s: PositiveFloat = 5
    """Seconds to establish a connection."""
    request_timeout_s: PositiveFloat = 60
    """Seconds for one request, its body included; those with large bodies are given more."""
    max_retries: int = Field(default=10, ge=0)
    """Times that a failed request is sent again, with growing and random pauses."""
    retry_timeout_s: float = Field(default=180, ge=0, le=300)
    """Seconds after which a request is not sent again. At most 300: credentials are not renewed meanwhile."""
    max_requests: PositiveInt = 32
    """Requests in flight at the same time, per process."""

    @field_validator("endpoint")
    @classmethod
    def _is_a_plain_url(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not re.fullmatch(r"https?://[^@?#\s]+", endpoint):
            raise ValueError("an endpoint is http://host:port or https://host, without user and query")
        return endpoint

    @model_validator(mode="after")
    def _fit_together(self) -> StorageOptions:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("access_key_id and secret_access_key go together")
        if self.session_token is not None and self.access_key_id is None:
            raise ValueError("session_token goes with access_key_id and secret_access_key")
        ways = {
            "anonymous": self.anonymous,
            "access_key_id": self.access_key_id,
            "profile": self.profile,
            "service_account_file": self.service_account_file,
            "account_key": self.account_key,
            "sas_token": self.sas_token,
            "client_secret": self.client_secret,
        }
        said = [name for name, value in ways.items() if value]
        if len(said) > 1:
            raise ValueError(f"choose one way to sign requests: {' or '.join(said)}")
        return self


@dataclass(frozen=True, kw_only=True)
class Location:
    """What a URL names: `prefix` is without slashes at its ends, "" for the whole bucket (or container)."""

    cloud: Cloud
    bucket: str
    prefix: str
    account: str | None = None  # Azure: where the URL names one


def is_remote(url: str) -> bool:
    """Whether `url` names a place in an object store that `open_remote` reaches."""
    match = _URL.match(url)
    return match is not None and match[1].lower() in _CLOUDS


def locate(url: str) -> Location:
    """Take the URL of an object store apart. No I/O.

    Raises `StoreError` for what names no bucket, and for credentials in it, which are not repeated.
    """
    match = _URL.match(url)
    if match is None or match[1].lower() not in _CLOUDS:
        schemes = ", ".join(f"{scheme}://" for scheme in _CLOUDS)
        raise StoreError(f"{url}: not the URL of an object store, which starts with one of {schemes}")
    scheme, authority, path = match[1].lower(), match[2], match[3]
    cloud, account = _CLOUDS[scheme], None
    bucket, at, host = authority.partition("@")
    if at and cloud == "azure" and ":" not in authority:
        found = _AZURE_HOST.match(host)
        account = found[1] if found else host
    elif at or ":" in authority:
        raise StoreError(
            f"a {scheme}:// URL holds no credentials and no port, only bucket and path: give them as `storage`"
        )
    if not bucket:
        raise StoreError(f"{url}: names no bucket: {scheme}://bucket/path")
    return Location(cloud=cloud, bucket=bucket, prefix=path.strip("/"), account=account)


def open_remote(
    url: str, options: StorageOptions | None = None, *, timeout_s: float | None = None
) -> ObjectStore:
    """The obstore client of `url`; keys are relative to it. One per process and recipe; thread-safe. No I/O.

    `timeout_s` instead of `options.request_timeout_s`, for large bodies. Raises `StoreError` for options
    that the library or the cloud of `url` does not take, and when credentials that were asked for by name
    cannot be had.
    """
    chosen = options or StorageOptions()
    return _open(url, chosen, timeout_s or chosen.request_timeout_s)


@functools.lru_cache(maxsize=256)
def gate(options: StorageOptions | None = None) -> Gate:
    """What holds all users of `options` in this process to `max_requests` in flight."""
    return Gate((options or StorageOptions()).max_requests)


@functools.lru_cache(maxsize=256)
def _open(url: str, options: StorageOptions, timeout_s: float) -> ObjectStore:
    place = locate(url)
    _refuse_other_clouds(url, place.cloud, options)
    make = {"s3": _s3, "gcs": _gcs, "azure": _azure}[place.cloud]
    with translated(url, "open it"):
        return make(place, options, _shared(place, options, timeout_s))


def _refuse_other_clouds(url: str, cloud: Cloud, options: StorageOptions) -> None:
    strange = [
        name for other, names in _OWN.items() if other != cloud for name in names if getattr(options, name)
    ]
    if strange:
        raise StoreError(
            f"{url}: storage.{strange[0]} is not for this kind of store; it takes {', '.join(_OWN[cloud])}"
        )


def _shared(place: Location, options: StorageOptions, timeout_s: float) -> dict[str, Any]:
    """The arguments that the clients of all clouds take."""
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=options.connect_timeout_s),
        "timeout": timedelta(seconds=timeout_s),
        "allow_http": _endpoint(place.cloud, options).startswith("http://"),
        "allow_invalid_certificates": options.unsafe_skip_tls_verification,
    }
    if options.ca_certificate_file:
        try:
            with open(options.ca_certificate_file, "rb") as file:
                client["root_certificate"] = file.read()
        except OSError as error:
            raise StoreError(
                f"storage.ca_certificate_file {options.ca_certificate_file} cannot be read: {error.strerror}"
            ) from None
    return {
        "prefix": place.prefix or None,
        "client_options": client,
        "retry_config": {
            "max_retries": options.max_retries,
            "retry_timeout": timedelta(seconds=options.retry_timeout_s),
        },
        "credential_provider": provider(place.cloud, options),
    }


def _endpoint(cloud: Cloud, options: StorageOptions) -> str:
    """The endpoint that will be used, "" for the cloud's own."""
    names = {"s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"), "azure": ("AZURE_ENDPOINT",)}
    said = (os.environ.get(name) for name in names.get(cloud, ()))
    return options.endpoint or next((value for value in said if value), "")


def _s3(place: Location, options: StorageOptions, shared: dict[str, Any]) -> ObjectStore:
    from obstore.store import S3Store

    endpoint = _endpoint("s3", options)
    path_style = bool(endpoint) if options.path_style is None else options.path_style
    config: dict[str, Any] = {
        "virtual_hosted_style_request": not path_style,
        # A copy on condition: see `CloudStore.link`
        "copy_if_not_exists": os.environ.get("AWS_COPY_IF_NOT_EXISTS", "multipart"),
        # One DELETE each: every server knows it, and unlike the POST for many it is safe to send again
        "disable_bulk_delete": True,
    }
    if endpoint:
        # Of the host style obstore expects the bucket in the endpoint; users give the server's
        config["aws_endpoint_url_s3"] = endpoint if path_style else _with_bucket(endpoint, place.bucket)
    if options.region:
        config["region"] = options.region
    if options.anonymous:
        config["skip_signature"] = True
    return S3Store(place.bucket, config=config, **shared)  # type: ignore[arg-type]


def _with_bucket(endpoint: str, bucket: str) -> str:
    scheme, _, host = endpoint.partition("://")
    return endpoint if host.startswith(f"{bucket}.") else f"{scheme}://{bucket}.{host}"


def _gcs(place: Location, options: StorageOptions, shared: dict[str, Any]) -> ObjectStore:
    from obstore.store import GCSStore

    config: dict[str, Any] = {}
    if options.endpoint:
        config["base_url"] = options.endpoint.rstrip("/")
    if options.service_account_file:
        config["service_account"] = options.service_account_file
    if options.anonymous:
        config["skip_signature"] = True
    return GCSStore(place.bucket, config=config, **shared)  # type: ignore[arg-type]


def _azure(place: Location, options: StorageOptions, shared: dict[str, Any]) -> ObjectStore:
    from obstore.store import AzureStore

    said = {
        "endpoint": options.endpoint,
        "account_name": options.account or place.account,
        "account_key": options.account_key and options.account_key.get_secret_value(),
        "sas_key": options.sas_token and options.sas_token.get_secret_value().lstrip("?"),
        "tenant_id": options.tenant_id,
        "client_id": options.client_id,
        "client_secret": options.client_secret and options.client_secret.get_secret_value(),
        "skip_signature": options.anonymous or None,
    }
    config: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
    return AzureStore(place.bucket, config=config, **shared)  # type: ignore[arg-type]
