"""How a Kafka client shows who it is, and finds out whom it talks to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from raybatch.config import Config, PathOrUrl, Secret

Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]

_OF_TLS = ("ca_file", "cert_file", "key_file", "key_password", "unsafe_skip_tls_verification")
_OF_SASL = ("mechanism", "username", "password", "oauth")


class OAuthConfig(Config):
    """Where the token of OAUTHBEARER comes from: a token endpoint, a file, or the environment."""

    token_url: str | None = None
    """Endpoint that gives a token for client_id and client_secret (grant type client_credentials): an https:// URL.
    A new token is fetched before the last one expires."""
    client_id: str | None = None
    """token_url: whom to ask for."""
    client_secret: Secret | None = None
    """token_url: the secret of client_id."""
    scope: str | None = None
    """token_url: what the token is to be good for, as the endpoint spells it."""
    ca_file: PathOrUrl | None = None
    """token_url: PEM file with the certificates to trust; by default those of the system."""
    token_file: PathOrUrl | None = None
    """File that holds a token and is renewed by others, such as a projected service account token; it is read again
    for each connection."""
    token: Secret | None = None
    """A token that outlives the run."""
    extensions: dict[str, str] = Field(default_factory=dict)
    """SASL extensions to send along, such as {logicalCluster: ..., identityPoolId: ...}."""

    @field_validator("token_url")
    @classmethod
    def _is_encrypted(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith("https://"):
            raise ValueError("the client's secret is sent there: it has to be an https:// URL")
        return url

    @model_validator(mode="after")
    def _one_way(self) -> OAuthConfig:
        ways = {"token_url": self.token_url, "token_file": self.token_file, "token": self.token}
        said = [name for name, value in ways.items() if value]
        if len(said) != 1:
            got = f"; got {' and '.join(said)}" if said else ""
            raise ValueError(f"give one of token_url, token_file and token{got}")
        if self.token_url and not (self.client_id and self.client_secret):
            raise ValueError("token_url goes with client_id and client_secret")
        for name in ("client_id", "client_secret", "scope", "ca_file"):
            if getattr(self, name) is not None and not self.token_url:
                raise ValueError(f"{name} goes with token_url")
        return self


class SecurityConfig(Config):
    """How brokers are reached: in the open by default."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """SSL: TLS, and with cert_file mutual TLS. SASL: the client shows who it is by `mechanism`."""
    mechanism: Mechanism | None = None
    """SASL: how the client shows who it is."""
    username: str | None = Field(default=None, min_length=1)
    """PLAIN and SCRAM: the user."""
    password: Secret | None = None
    """PLAIN and SCRAM: the user's password."""
    oauth: OAuthConfig | None = None
    """OAUTHBEARER: where the token comes from."""

    ca_file: PathOrUrl | None = None
    """TLS: PEM file with the certificates to trust; by default those of the system."""
    cert_file: PathOrUrl | None = None
    """Mutual TLS: PEM file with the client's certificate, and those that lead to one the brokers trust."""
    key_file: PathOrUrl | None = None
    """Mutual TLS: PEM file with the key of cert_file, unless it is in there too."""
    key_password: Secret | None = None
    """Mutual TLS: password of an encrypted key."""
    unsafe_skip_tls_verification: bool = False
    """Accept any certificate. Whoever is on the way can then read and change everything."""

    @model_validator(mode="after")
    def _fit_together(self) -> SecurityConfig:
        self._fit_protocol(_OF_TLS, ("SSL", "SASL_SSL"))
        self._fit_protocol(_OF_SASL, ("SASL_PLAINTEXT", "SASL_SSL"))
        if (self.key_file or self.key_password) and not self.cert_file:
            raise ValueError("key_file and key_password go with cert_file")
        if self.unsafe_skip_tls_verification and self.ca_file:
            raise ValueError(
                "with unsafe_skip_tls_verification nothing is compared with ca_file; leave one out"
            )
        if self.protocol.startswith("SASL"):
            self._fit_mechanism()
        return self

    def _fit_protocol(self, names: tuple[str, ...], protocols: tuple[str, ...]) -> None:
        if self.protocol in protocols:
            return
        for name in names:
            if getattr(self, name):
                raise ValueError(f"{name} goes with protocol {' or '.join(protocols)}, not {self.protocol}")

    def _fit_mechanism(self) -> None:
        if self.mechanism is None:
            raise ValueError(f"protocol {self.protocol} goes with a mechanism: {_MECHANISMS}")
        by_token = self.mechanism == "OAUTHBEARER"
        if by_token and not self.oauth:
            raise ValueError("mechanism OAUTHBEARER goes with oauth: {token_url, token_file or token}")
        if by_token and (self.username or self.password):
            raise ValueError("mechanism OAUTHBEARER goes with oauth, not with username and password")
        if not by_token and not (self.username and self.password):
            raise ValueError(f"mechanism {self.mechanism} goes with username and password")
        if not by_token and self.oauth:
            raise ValueError(f"oauth goes with mechanism OAUTHBEARER, not {self.mechanism}")


_MECHANISMS = "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
