"""A small S3 client of the tests' own: what it says about a server cannot be a library's retry or repair.

Each request is sent once, on a connection of its own, and signed with AWS Signature Version 4 as described in
docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import http.client
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

CREATE = {"If-None-Match": "*"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def texts(self, name: str) -> list[str]:
        """The text of each XML element called `name`, in order, whatever its namespace."""
        found = ElementTree.fromstring(self.body).iter()
        return [element.text or "" for element in found if element.tag.rpartition("}")[2] == name]


class UnexpectedAnswer(Exception):  # noqa: N818
    """An answer that the caller did not allow for."""


@dataclass(frozen=True, kw_only=True)
class Client:
    """`endpoint` is http://host:port; buckets are the first part of the path."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str
    timeout_s: float = 60

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """One request for /`path`. Raises `OSError` or `http.client.HTTPException` when there is no answer."""
        host = urlsplit(self.endpoint).netloc
        target = quote(f"/{path}")
        pairs = sorted((query or {}).items())
        search = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in pairs)
        amazons = {name.lower(): value for name, value in (headers or {}).items() if "x-amz-" in name.lower()}
        signed = self._signed(method, host=host, path=target, search=search, body=body, extra=amazons)
        connection = http.client.HTTPConnection(host, timeout=self.timeout_s)
        try:
            url = f"{target}?{search}" if search else target
            connection.request(method, url, body=body, headers={**(headers or {}), **signed})
            answer = connection.getresponse()
            held = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(status=answer.status, headers=held, body=answer.read())
        finally:
            connection.close()

    def create_bucket(self, bucket: str) -> None:
        """CreateBucket."""
        _expect(self.request("PUT", bucket), 200)

    def put(self, path: str, data: bytes) -> str:
        """PutObject without a condition; gives the ETag. `path` is bucket/key, here and below."""
        return _expect(self.request("PUT", path, body=data), 200).headers["etag"]

    def create(self, path: str, data: bytes) -> int:
        """PutObject with If-None-Match: *; gives the status."""
        return self.request("PUT", path, headers=CREATE, body=data).status

    def get(self, path: str) -> bytes:
        """GetObject."""
        return _expect(self.request("GET", path), 200).body

    def delete(self, path: str) -> None:
        """DeleteObject."""
        _expect(self.request("DELETE", path), 204)

    def begin(self, path: str) -> str:
        """CreateMultipartUpload; gives the upload's id."""
        answer = _expect(self.request("POST", path, query={"uploads": ""}), 200)
        return answer.texts("UploadId")[0]

    def upload_part(self, path: str, upload: str, number: int, data: bytes) -> str:
        """UploadPart; gives its ETag."""
        query = {"uploadId": upload, "partNumber": str(number)}
        return _expect(self.request("PUT", path, query=query, body=data), 200).headers["etag"]

    def complete(
        self, path: str, upload: str, etags: Sequence[str], *, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """CompleteMultipartUpload of parts 1, 2, ...; S3 may answer 200 with an error in the body."""
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
            for number, etag in enumerate(etags, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        return self.request("POST", path, query={"uploadId": upload}, headers=headers, body=body)

    def uploads(self, bucket: str) -> list[str]:
        """ListMultipartUploads: the keys of those under way, up to a thousand."""
        return _expect(self.request("GET", bucket, query={"uploads": ""}), 200).texts("Key")

    def listed(self, bucket: str, prefix: str = "", *, field: str = "Size") -> dict[str, str]:
        """ListObjectsV2, all pages: a field of each key that starts with `prefix`, in the listing's order."""
        return {
            key: value
            for page in self._pages(bucket, prefix)
            for key, value in zip(page.texts("Key"), page.texts(field), strict=True)
        }

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """Every object whose key starts with `prefix`, by the rest of the key."""
        return {key.removeprefix(prefix): self.get(f"{bucket}/{key}") for key in self.listed(bucket, prefix)}

    def _pages(self, bucket: str, prefix: str) -> Iterator[Answer]:
        query = {"list-type": "2", "prefix": prefix}
        while True:
            page = _expect(self.request("GET", bucket, query=query), 200)
            yield page
            if page.texts("IsTruncated") != ["true"]:
                return
            query["continuation-token"] = page.texts("NextContinuationToken")[0]

    def _signed(
        self, method: str, *, host: str, path: str, search: str, body: bytes, extra: Mapping[str, str]
    ) -> dict[str, str]:
        now = datetime.datetime.now(datetime.UTC)
        moment, day = f"{now:%Y%m%dT%H%M%SZ}", f"{now:%Y%m%d}"
        digest = hashlib.sha256(body).hexdigest()
        headers = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": moment, **extra}
        headers = dict(sorted(headers.items()))
        names = ";".join(headers)
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        canonical = "\n".join([method, path, search, lines, names, digest])
        scope = f"{day}/{self.region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = f"AWS4{self.secret_key}".encode()
        for part in (day, self.region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        credential = f"Credential={self.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        return {**headers, "Authorization": f"AWS4-HMAC-SHA256 {credential}"}


def _expect(answer: Answer, status: int) -> Answer:
    if answer.status != status:
        raise UnexpectedAnswer(f"status {answer.status}, not {status}: {answer.body[:500]!r}")
    return answer
