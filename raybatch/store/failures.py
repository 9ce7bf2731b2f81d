"""What an object store's answers mean to whoever has to do something about them.

obstore tells classes of failures apart by type where the HTTP status does, and else leaves only its text, in
which the cloud's own error code stands: that text is read here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from raybatch.errors import StoreError

# In the dump of structures that obstore appends to its texts: a request that got no whole answer, and how often
# it was sent again
_NO_ANSWER = "HttpError {"
_RETRIES = re.compile(r"\bretries: (\d+),\s+max_retries: (\d+),")

_SIGNATURE = re.compile(r"([?&](?:sig|X-Amz-Signature|X-Goog-Signature)=)[^&\s]+", re.IGNORECASE)

_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")
_KEYS = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "AuthenticationFailed",
    "invalid_grant",
)
_REGION = (
    "PermanentRedirect",
    "redirect without LOCATION",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
)
_NO_CREDENTIALS = (
    "169.254.169.254",  # EC2, Azure
    "169.254.170.2",  # ECS
    "metadata.google.internal",
    "latest/api/token",
    "InstanceCredentials",
)
_NOT_REACHED = ("kind: Connect,", "dns error", "ConnectError")
_SLOW = ("SlowDown", "429 Too Many", "503 Service", "ServerBusy", "Please reduce your request rate")
_TIMED_OUT = ("kind: Timeout,",)
_CERTIFICATE = ("InvalidCertificate", "invalid peer certificate", "UnknownIssuer")
_INTERRUPTED = ("kind: Interrupted,", "IncompleteMessage")


@contextmanager
def translated(url: str, doing: str) -> Iterator[None]:
    """Raise obstore's errors as `StoreError`: "cannot {doing}", and why.

    A missing object stays a `FileNotFoundError`, a key that exists obstore's `AlreadyExistsError`, another
    version than was asked for its `PreconditionError`, an operation that the store lacks `NotSupportedError`:
    what they mean depends on what was asked.
    """
    from obstore import exceptions

    try:
        yield
    except FileNotFoundError as error:
        if any(mark in str(error) for mark in _NO_BUCKET):
            raise StoreError(f"{url}: cannot {doing}: {reason(error)}") from None
        raise
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError, exceptions.NotSupportedError):
        raise
    except (exceptions.BaseError, OSError, ValueError) as error:
        # Not chained: the text of the cause is a long dump, in which a signed URL may stand
        raise StoreError(f"{url}: cannot {doing}: {reason(error)}") from None


def unsettled(error: BaseException) -> bool:
    """Whether a request may or may not have had its effect, and has not been sent again as often as allowed.

    obstore gives up at once where the connection was reset or the time was up during a request that is not
    idempotent by the rules of HTTP: a conditional PUT, or a POST.
    """
    from obstore import exceptions

    text = str(error)
    if not isinstance(error, exceptions.GenericError) or _NO_ANSWER not in text:
        return False
    retries = _RETRIES.search(text)
    return retries is None or int(retries[1]) < int(retries[2])


def reason(error: BaseException) -> str:
    """One sentence for a user: what is wrong, and what to do. The store's own words at the end."""
    from obstore import exceptions

    text = str(error)
    for marks, sentence in _SENTENCES:
        if any(mark in text for mark in marks):
            return f"{sentence}. {_own_words(text)}"
    # By its text as well: a listing that is denied has no type of its own
    if isinstance(error, exceptions.UnauthenticatedError) or "401 Unauthorized" in text:
        return f"{_KEYS_SENTENCE}. {_own_words(text)}"
    if isinstance(error, exceptions.PermissionDeniedError) or "403 Forbidden" in text:
        return f"{_DENIED_SENTENCE}. {_own_words(text)}"
    return _own_words(text)


_KEYS_SENTENCE = "the store does not accept the credentials: they are wrong, expired, or for another store"
_DENIED_SENTENCE = (
    "access denied: whoever signs the requests may not do this. Input needs the right to list and read below"
    " this path, output also to write and delete"
)

# In this order: the text of a failed look-up of credentials also says that a request could not be sent
_SENTENCES = (
    (_NO_BUCKET, "no such bucket: create it, or correct the path"),
    (
        _NO_CREDENTIALS,
        "no credentials found: set the cloud's usual environment variables, give `storage` keys or a profile"
        " (AWS profiles need pip install 'raybatch[aws]'), or run where a machine or pod has an identity",
    ),
    (_REGION, "the bucket is in another region: set storage.region or AWS_REGION to the bucket's"),
    (_KEYS, _KEYS_SENTENCE),
    (_CERTIFICATE, "the server's certificate is not trusted: give storage.ca_certificate_file"),
    (_SLOW, "the store asks for fewer requests, and went on asking: lower storage.max_requests"),
    (_TIMED_OUT, "no answer in time: raise storage.request_timeout_s if the connection is slow"),
    (_INTERRUPTED, "the connection was cut, again and again"),
    (_NOT_REACHED, "the endpoint cannot be reached: check storage.endpoint, the network and the region"),
)


def _own_words(text: str) -> str:
    """obstore's text on one line, without the dump that it appends, and without signatures in URLs."""
    first = text.split("\n\nDebug source:")[0]
    return "The store's words: " + _SIGNATURE.sub(r"\1...", " ".join(first.split()))
