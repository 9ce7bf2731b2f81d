"""The listeners of a Kafka broker that want to know who comes, and the one user there is."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass

from servers.certificates import Certificates

USER = "raybatch-tests"
PASSWORD = "only-on-loopback"

# By the name of the listener
SECURED = {"SASL": "SASL_PLAINTEXT", "SASLTLS": "SASL_SSL", "TLS": "SSL", "MUTUAL": "SSL"}


@dataclass(frozen=True, kw_only=True)
class Secured:
    """How the secured listeners are reached: `host:port` of one broker each, and the one user there is."""

    sasl: str
    """SASL_PLAINTEXT, with PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 and OAUTHBEARER (any token of `token`)."""
    sasl_tls: str
    """SASL_SSL, with the same mechanisms."""
    tls: str
    """SSL, for whoever comes."""
    mutual: str
    """SSL, for who has a certificate of the authority."""
    certificates: Certificates
    user: str = USER
    password: str = PASSWORD


def token(user: str = USER) -> str:
    """A token that Kafka's own, unsecured OAUTHBEARER takes: unsigned, of `user`, for an hour from now."""
    now = int(time.time())
    parts = [{"alg": "none"}, {"sub": user, "iat": now, "exp": now + 3600}]
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*coded, ""])


def settings_of(certificates: Certificates) -> dict[str, str]:
    """Settings of the secured listeners."""
    module = "org.apache.kafka.common.security"
    logins = {
        "plain": f'{module}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";',
        "scram-sha-256": f"{module}.scram.ScramLoginModule required;",
        "scram-sha-512": f"{module}.scram.ScramLoginModule required;",
        "oauthbearer": f'{module}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="kafka";',
    }
    found = {}
    for listener, protocol in SECURED.items():
        prefix = f"listener.name.{listener.lower()}."
        if protocol.startswith("SASL"):
            found[f"{prefix}sasl.enabled.mechanisms"] = ",".join(name.upper() for name in logins)
            found |= {f"{prefix}{name}.sasl.jaas.config": login for name, login in logins.items()}
        if protocol.endswith("SSL"):
            found |= {
                f"{prefix}ssl.keystore.type": "PEM",
                f"{prefix}ssl.keystore.location": str(certificates.server),
                f"{prefix}ssl.truststore.type": "PEM",
                f"{prefix}ssl.truststore.location": str(certificates.ca),
                f"{prefix}ssl.client.auth": "required" if listener == "MUTUAL" else "none",
            }
    return found
