"""What kafka-python is given: options, certificates, tokens; and that it keeps secrets out of logs."""

from __future__ import annotations

import logging
import ssl
from typing import Any

from kafka.errors import SaslAuthenticationFailedError
from kafka.net.sasl.oauth import AbstractTokenProvider

from raybatch.errors import SourceError
from raybatch.sources.kafka.config import KafkaConfig
from raybatch.sources.kafka.security import SecurityConfig
from raybatch.sources.kafka.tokens import TokenRefusedError, Tokens

# An answer may be as large as one record, and brokers decide how large those are; a frame's length has 31 bits
_MAX_FRAME_BYTES = (1 << 31) - 1
_REQUEST_TIMEOUT_MS = 30_000
_CONSUMER_ONLY = (
    "client_rack",
    "fetch_min_bytes",
    "fetch_max_wait_ms",
    "fetch_max_bytes",
    "max_partition_fetch_bytes",
)
# One partition is read at a time, and while an answer is decoded the next one is on its way
_DEFAULTS: dict[str, Any] = {
    "client_id": "raybatch",
    "max_partition_fetch_bytes": 4 << 20,
    "reconnect_backoff_max_ms": 1000,
    "retry_backoff_ms": 20,
}


def connection_options(config: KafkaConfig) -> dict[str, Any]:
    """Options of every kafka-python client. Raises `SourceError` for certificates that cannot be loaded."""
    given = _DEFAULTS | config.client.given()
    security = config.security
    options = {name: value for name, value in given.items() if name not in _CONSUMER_ONLY}
    wait_ms = config.client.fetch_max_wait_ms or 500
    in_time_ms = max(1000, 2 * wait_ms, int(config.read_timeout_s * 1000))
    options.setdefault("request_timeout_ms", min(_REQUEST_TIMEOUT_MS, in_time_ms))
    options |= {
        "bootstrap_servers": config.addresses(),
        "receive_message_max_bytes": _MAX_FRAME_BYTES,
        "security_protocol": security.protocol,
    }
    if security.protocol in ("SSL", "SASL_SSL"):
        options["ssl_context"] = tls_context(security)
    if security.mechanism is not None:
        options |= _sasl(security)
    return options


def consumer_options(config: KafkaConfig) -> dict[str, Any]:
    """Options of a consumer besides those of the connection: those on which exactly-once depends, and fetch sizes."""
    given = _DEFAULTS | config.client.given()
    return {name: value for name, value in given.items() if name in _CONSUMER_ONLY} | {
        "group_id": None,
        "enable_auto_commit": False,
        "isolation_level": "read_committed",
        "auto_offset_reset": "none",
        "check_crcs": True,
        "allow_auto_create_topics": False,
        # Brokers keep a thousand or so of these, for consumers of many partitions that stay
        "enable_incremental_fetch_sessions": False,
        "metrics_enabled": False,
    }


def tls_context(security: SecurityConfig) -> ssl.SSLContext:
    """Which certificates are trusted, and the one we show. Raises `SourceError`."""
    try:
        context = ssl.create_default_context(cafile=security.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SourceError(
            f"source.security.ca_file: {security.ca_file} cannot be loaded: {_said(error)}"
        ) from None
    if security.unsafe_skip_tls_verification:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if security.cert_file is not None:
        password = security.key_password.get_secret_value() if security.key_password else ""
        try:
            # Without a password of ours, OpenSSL would ask for one at the terminal
            context.load_cert_chain(security.cert_file, security.key_file, password=lambda: password)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise SourceError(
                f"source.security.cert_file: {security.cert_file} cannot be loaded with key"
                f" {security.key_file or 'in the same file'}: {_said(error)}; is key_password right?"
            ) from None
    return context


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _sasl(security: SecurityConfig) -> dict[str, Any]:
    if security.oauth is not None:
        return {
            "sasl_mechanism": security.mechanism,
            "sasl_oauth_token_provider": _Provider(Tokens(security.oauth), security.oauth.extensions),
        }
    assert security.password is not None
    return {
        "sasl_mechanism": security.mechanism,
        "sasl_plain_username": security.username,
        "sasl_plain_password": _Unprinted(security.password.get_secret_value()),
    }


class _Unprinted(str):
    """A password in kafka-python's options, which it logs."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'**********'"


class _Provider(AbstractTokenProvider):  # type: ignore[misc]
    def __init__(self, tokens: Tokens, extensions: dict[str, str]) -> None:
        super().__init__()
        self._tokens = tokens
        self._extensions = extensions

    def token(self) -> str:
        try:
            return self._tokens.token()
        except TokenRefusedError as error:
            # Of other errors kafka-python thinks that they may pass
            raise SaslAuthenticationFailedError(f"no token: {error}") from error

    def extensions(self) -> dict[str, str]:
        return self._extensions


class _NoCredentials(logging.Filter):
    """Drops the lines in which kafka-python shows the requests that hold credentials."""

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args if isinstance(record.args, tuple) else ()
        return not any(type(argument).__name__.startswith("Sasl") for argument in arguments)


_NO_CREDENTIALS = _NoCredentials()


def quiet_logs() -> None:
    """Keep kafka-python's many words about connections that come and go to itself, unless somebody asked for them by
    setting the level of the logger `kafka`. Credentials are never logged."""
    logging.getLogger("kafka.net.connection").addFilter(_NO_CREDENTIALS)
    logging.getLogger("kafka.protocol.parser").setLevel(logging.INFO)  # below that it shows every byte
    logger = logging.getLogger("kafka")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)
