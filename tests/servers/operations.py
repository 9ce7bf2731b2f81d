"""What a request asks for, in the names of S3's API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from servers.messages import Message


@dataclass(kw_only=True)
class Seen:
    """One request. `status` is None as long as the client has no answer: for ever, if it was lost."""

    operation: str
    method: str
    bucket: str
    key: str
    conditional: bool  # it carries If-None-Match
    status: int | None = None
    struck: bool = False  # a fault was injected


def describe(method: str, target: str, request: Message) -> Seen:
    """A request as S3's API calls it."""
    parts = urlsplit(target)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    copied = request.header("x-amz-copy-source") is not None
    operation = _of_object(method, query, copied=copied) if key else _of_bucket(method, query)
    conditional = request.header("if-none-match") is not None
    return Seen(operation=operation, method=method, bucket=bucket, key=key, conditional=conditional)


def _of_object(method: str, query: Mapping[str, str], *, copied: bool) -> str:
    upload = "uploadId" in query
    if method == "PUT" and upload:
        return "UploadPartCopy" if copied else "UploadPart"
    if method == "PUT":
        return "CopyObject" if copied else "PutObject"
    if method == "POST":
        return "CompleteMultipartUpload" if upload else "CreateMultipartUpload"
    if method == "DELETE":
        return "AbortMultipartUpload" if upload else "DeleteObject"
    return {"GET": "ListParts" if upload else "GetObject", "HEAD": "HeadObject"}.get(method, method)


def _of_bucket(method: str, query: Mapping[str, str]) -> str:
    if method == "POST" and "delete" in query:
        return "DeleteObjects"
    if method == "GET" and "uploads" in query:
        return "ListMultipartUploads"
    if method == "GET" and "list-type" in query:
        return "ListObjectsV2"
    named = {"GET": "ListObjects", "PUT": "CreateBucket", "HEAD": "HeadBucket", "DELETE": "DeleteBucket"}
    return named.get(method, method)
