"""Tokens of OAUTHBEARER: from an endpoint (RFC 6749, client credentials), a file, or the environment."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from raybatch.sources.kafka.security import OAuthConfig

_TIMEOUT_S = 10
_MAX_ANSWER_BYTES = 1 << 20
# A new token is asked for when so much of the old one's life is over: connections are made with it until then
_USED_SHARE = 0.8
_UNKNOWN_LIFE_S = 60  # of a token whose endpoint does not say how long it lives


class TokenRefusedError(Exception):
    """There will be no token, however often it is asked for."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The secret goes where the configuration says, and nowhere else."""

    def redirect_request(self, *_: object) -> None:
        return None


class Tokens:
    """Gives a token that is valid now. For any thread."""

    def __init__(self, config: OAuthConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._token = ""
        self._good_until = 0.0

    def token(self) -> str:
        """Raises `TokenRefusedError`, or `OSError` for what may pass. Waits for the endpoint for 10 s at most."""
        config = self._config
        if config.token is not None:
            return config.token.get_secret_value()
        if config.token_file is not None:
            return Path(config.token_file).read_text(encoding="utf-8").strip()
        with self._lock:
            if time.monotonic() >= self._good_until:
                self._token, life_s = self._fetched()
                self._good_until = time.monotonic() + _USED_SHARE * life_s
            return self._token

    def _fetched(self) -> tuple[str, float]:
        config = self._config
        url = config.token_url
        assert url is not None
        form = {"grant_type": "client_credentials"} | ({"scope": config.scope} if config.scope else {})
        request = urllib.request.Request(url, data=urllib.parse.urlencode(form).encode(), method="POST")
        request.add_header("Authorization", f"Basic {self._credentials()}")
        request.add_header("Accept", "application/json")
        context = ssl.create_default_context(cafile=config.ca_file)
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _NoRedirects)
        try:
            with opener.open(request, timeout=_TIMEOUT_S) as answer:
                said = json.loads(answer.read(_MAX_ANSWER_BYTES))
            return str(said["access_token"]), float(said.get("expires_in", _UNKNOWN_LIFE_S))
        except urllib.error.HTTPError as error:
            why = f"{url} answers {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                raise TokenRefusedError(f"{why}; client_id is '{config.client_id}'") from None
            raise OSError(why) from None
        except (ValueError, KeyError, TypeError) as error:
            raise TokenRefusedError(f"{url} does not answer with a token: {type(error).__name__}") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise TokenRefusedError(f"{url}: {error.reason}") from None
            raise OSError(f"{url}: {error.reason}") from None

    def _credentials(self) -> str:
        # RFC 6749, 2.3.1: both are encoded as in a form before they are joined
        config = self._config
        assert config.client_id is not None
        assert config.client_secret is not None
        pair = (config.client_id, config.client_secret.get_secret_value())
        return base64.b64encode(":".join(map(urllib.parse.quote_plus, pair)).encode()).decode()
