"""Why a Kafka client gets no answer: it does not say, so each broker is called on without it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence

_TIMEOUT_S = 3


def why_unreachable(addresses: Sequence[str], tls: ssl.SSLContext | None) -> tuple[str, bool]:
    """What is wrong with the first of `addresses`, and whether something is with all of them that will not pass; ""
    if one accepts connections."""
    found = [_why(address, tls) for address in addresses]
    if not all(why for why, _ in found):
        return "", False
    where = f"{addresses[0]}: " if len(addresses) > 1 else ""  # of one, whoever tells this has said it
    return where + found[0][0], all(final for _, final in found)


def _why(address: str, tls: ssl.SSLContext | None) -> tuple[str, bool]:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.create_connection((host, int(port)), _TIMEOUT_S) as plain:
            if tls is not None:
                tls.wrap_socket(plain, server_hostname=host).close()
        return "", False
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not trusted: {error.verify_message}", True
    except ssl.SSLError as error:
        return f"TLS fails: {error.reason or error}; does security.protocol fit the port?", True
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__, False
