"""Brokers that want to know who comes, and a client that wants to know whom it talks to."""

from __future__ import annotations

import base64
import json
import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType
from kafka_records import connected, offsets_in, read
from pydantic import SecretStr

from raybatch.errors import SourceError
from raybatch.sources.kafka.client import AccessDeniedError, BrokersUnreachableError, Client, Partition
from raybatch.sources.kafka.security import OAuthConfig
from raybatch.sources.kafka.tokens import TokenRefusedError, Tokens
from servers.kafka import KafkaCluster
from servers.kafka_security import PASSWORD, USER, token
from servers.topics import Topic

pytestmark = pytest.mark.kafka

CLIENT_SECRET = "canary/+&=%"


@pytest.fixture
def topic(kafka: KafkaCluster) -> Topic:
    made = kafka.topic()
    made.produce([b"a", b"b"])
    return made


def _sasl(kafka: KafkaCluster, **said: Any) -> Client:
    security = {"protocol": "SASL_PLAINTEXT", "username": USER, "password": SecretStr(PASSWORD), **said}
    return connected([kafka.secured.sasl], security=security, read_timeout_s=20)


def _by_token(kafka: KafkaCluster, oauth: dict[str, Any]) -> Client:
    security = {"protocol": "SASL_PLAINTEXT", "mechanism": "OAUTHBEARER", "oauth": oauth}
    return connected([kafka.secured.sasl], security=security, read_timeout_s=20)


def _tls(kafka: KafkaCluster, address: str, **said: Any) -> Client:
    security = {"protocol": "SSL", "ca_file": str(kafka.secured.certificates.ca), **said}
    return connected([address], security=security, read_timeout_s=5)


@contextmanager
def _endpoint(
    kafka: KafkaCluster, answers: list[tuple[int, dict[str, Any]]]
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A token endpoint, which gives these answers, and the last one for ever; its URL, and what it was asked."""
    asked: list[dict[str, str]] = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            asked.append({"authorization": self.headers["Authorization"], "body": body})
            code, answer = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(code)
            if code == 302:
                self.send_header("Location", f"https://127.0.0.1:{self.server.server_port}/other")  # type: ignore[attr-defined]
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(kafka.secured.certificates.server)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}/token", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _expired() -> str:
    parts = [{"alg": "none"}, {"sub": USER, "iat": 1_700_000_000, "exp": 1_700_003_600}]
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*coded, ""])


def _client_credentials(kafka: KafkaCluster, url: str, **said: Any) -> dict[str, Any]:
    given = {"token_url": url, "client_id": "ray batch", "client_secret": SecretStr(CLIENT_SECRET)}
    return {**given, "ca_file": str(kafka.secured.certificates.ca), **said}


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_password_opens_the_door(kafka: KafkaCluster, topic: Topic, mechanism: str) -> None:
    with _sasl(kafka, mechanism=mechanism) as client:
        assert offsets_in(read(client, topic)) == [0, 1]


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
def test_a_wrong_password_is_said_and_not_repeated(kafka: KafkaCluster, topic: Topic, mechanism: str) -> None:
    with (
        pytest.raises(AccessDeniedError) as caught,
        _sasl(kafka, mechanism=mechanism, password=SecretStr("hunter2")) as client,
    ):
        client.topics(names=[topic.name])
    assert "uthentication" in caught.value.why
    assert "hunter2" not in str(caught.value)


def test_credentials_that_are_wrong_are_said_though_other_brokers_are_away(kafka: KafkaCluster) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        brokers = [f"127.0.0.1:{taken.getsockname()[1]}", kafka.secured.sasl]
        security = {"mechanism": "PLAIN", "username": USER, "password": SecretStr("hunter2")}
        with (
            pytest.raises(AccessDeniedError),
            connected(brokers, security={"protocol": "SASL_PLAINTEXT", **security}) as client,
        ):
            client.topics(pattern=".*")


def test_a_token_of_the_environment_opens_the_door(kafka: KafkaCluster, topic: Topic) -> None:
    with _by_token(kafka, {"token": SecretStr(token())}) as client:
        assert offsets_in(read(client, topic)) == [0, 1]


def test_a_token_file_is_read_anew_for_each_connection(
    kafka: KafkaCluster, topic: Topic, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(_expired())
    with _by_token(kafka, {"token_file": str(file)}) as client:
        with pytest.raises(AccessDeniedError):
            client.topics(names=[topic.name])
        file.write_text(token() + "\n")
        assert offsets_in(read(client, topic)) == [0, 1]


def test_a_token_endpoint_is_asked_once_for_many_connections(kafka: KafkaCluster, topic: Topic) -> None:
    answers = [(200, {"access_token": token(), "expires_in": 3600})]
    with (
        _endpoint(kafka, answers) as (url, asked),
        _by_token(kafka, _client_credentials(kafka, url, scope="kafka read")) as client,
    ):
        assert offsets_in(read(client, topic)) == [0, 1]
    (only,) = asked
    assert only["body"] == "grant_type=client_credentials&scope=kafka+read"
    sent = base64.b64decode(only["authorization"].removeprefix("Basic ")).decode()
    assert sent == "ray+batch:canary%2F%2B%26%3D%25"


def test_a_token_is_renewed_before_it_expires(kafka: KafkaCluster) -> None:
    answers = [
        (200, {"access_token": "first", "expires_in": 0}),
        (200, {"access_token": "second", "expires_in": 60}),
    ]
    with _endpoint(kafka, answers) as (url, asked):
        tokens = Tokens(OAuthConfig.model_validate(_client_credentials(kafka, url)))
        assert [tokens.token() for _ in range(3)] == ["first", "second", "second"]
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("answer", "error", "why"),
    [
        ((401, {"error": "invalid_client"}), TokenRefusedError, "answers 401"),
        ((503, {}), OSError, "answers 503"),
        ((200, {"error": "no"}), TokenRefusedError, "does not answer with a token"),
        ((302, {}), TokenRefusedError, "answers 302"),  # the secret does not follow
    ],
)
def test_an_endpoint_that_gives_no_token_is_said_without_the_secret(
    kafka: KafkaCluster, answer: tuple[int, dict[str, Any]], error: type[Exception], why: str
) -> None:
    with _endpoint(kafka, [answer]) as (url, asked), pytest.raises(error, match=why) as caught:
        Tokens(OAuthConfig.model_validate(_client_credentials(kafka, url))).token()
    assert len(asked) == 1
    assert "canary" not in str(caught.value)


def test_an_endpoint_that_refuses_is_not_asked_for_ever(kafka: KafkaCluster, topic: Topic) -> None:
    with (
        _endpoint(kafka, [(401, {})]) as (url, _asked),
        _by_token(kafka, _client_credentials(kafka, url)) as client,
        pytest.raises(AccessDeniedError, match="answers 401"),
    ):
        client.topics(names=[topic.name])


def test_an_endpoint_with_an_unknown_certificate_gets_no_secret(kafka: KafkaCluster) -> None:
    other = str(kafka.secured.certificates.other_ca)
    with (
        _endpoint(kafka, [(200, {"access_token": "x"})]) as (url, asked),
        pytest.raises(TokenRefusedError, match="certificate verify failed"),
    ):
        Tokens(OAuthConfig.model_validate(_client_credentials(kafka, url, ca_file=other))).token()
    assert asked == []


def test_a_broker_with_a_certificate_of_the_authority_is_trusted(kafka: KafkaCluster, topic: Topic) -> None:
    with _tls(kafka, kafka.secured.tls) as client:
        assert offsets_in(read(client, topic)) == [0, 1]


def test_a_certificate_of_somebody_else_is_refused_at_once(kafka: KafkaCluster, topic: Topic) -> None:
    other = str(kafka.secured.certificates.other_ca)
    with (
        pytest.raises(BrokersUnreachableError, match="its certificate is not trusted"),
        _tls(kafka, kafka.secured.tls, ca_file=other) as client,
    ):
        client.topics(names=[topic.name])


def test_only_a_field_that_says_unsafe_accepts_any_certificate(kafka: KafkaCluster, topic: Topic) -> None:
    with _tls(kafka, kafka.secured.tls, ca_file=None, unsafe_skip_tls_verification=True) as client:
        assert offsets_in(read(client, topic)) == [0, 1]


def test_a_client_with_a_certificate_is_let_in(kafka: KafkaCluster, topic: Topic) -> None:
    files = kafka.secured.certificates
    with _tls(
        kafka, kafka.secured.mutual, cert_file=str(files.client_cert), key_file=str(files.client_key)
    ) as client:
        assert offsets_in(read(client, topic)) == [0, 1]


def test_a_client_without_a_certificate_is_not(kafka: KafkaCluster, topic: Topic) -> None:
    # What brokers answer is called differently from one version of TLS to the next
    with (
        pytest.raises(BrokersUnreachableError, match="certificate"),
        _tls(kafka, kafka.secured.mutual) as client,
    ):
        client.topics(names=[topic.name])


def test_passwords_travel_inside_of_tls(kafka: KafkaCluster, topic: Topic) -> None:
    security = {
        "protocol": "SASL_SSL",
        "mechanism": "SCRAM-SHA-512",
        "username": USER,
        "password": SecretStr(PASSWORD),
        "ca_file": str(kafka.secured.certificates.ca),
    }
    with connected([kafka.secured.sasl_tls], security=security) as client:
        assert offsets_in(read(client, topic)) == [0, 1]


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("ca_file", {"ca_file": "/nowhere/ca.pem"}),
        ("cert_file", {"cert_file": "/nowhere/cert.pem"}),
    ],
)
def test_a_certificate_that_cannot_be_loaded_is_said_by_its_field(field: str, said: dict[str, str]) -> None:
    with pytest.raises(SourceError, match=rf"source\.security\.{field}: /nowhere.*No such file"):
        connected(["a:1"], security={"protocol": "SSL", **said})


def test_an_encrypted_key_needs_its_password(tmp_path: Path, kafka: KafkaCluster) -> None:
    from cryptography.hazmat.primitives import serialization as form

    files = kafka.secured.certificates
    key = form.load_pem_private_key(files.client_key.read_bytes(), None)
    locked = tmp_path / "key.pem"
    locked.write_bytes(
        key.private_bytes(
            form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"canary")
        )
    )
    said = {"cert_file": str(files.client_cert), "key_file": str(locked)}
    with pytest.raises(SourceError, match="is key_password right"):
        _tls(kafka, kafka.secured.mutual, **said)
    with _tls(kafka, kafka.secured.mutual, **said, key_password=SecretStr("canary")) as client:
        assert client.topics(pattern="no-such-topic") == []


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_no_secret_is_logged_however_much_is(
    kafka: KafkaCluster, topic: Topic, mechanism: str, caplog: pytest.LogCaptureFixture
) -> None:
    logged = caplog.at_level(logging.DEBUG, logger="kafka")
    with caplog.at_level(logging.DEBUG), logged, _sasl(kafka, mechanism=mechanism) as client:
        read(client, topic)
    assert "SaslHandshake" not in caplog.text
    assert "FetchRequest" in caplog.text
    assert PASSWORD not in caplog.text


def test_what_may_not_be_asked_is_left_out(tmp_path: Path) -> None:
    settings = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    with KafkaCluster(tmp_path / "kafka", secured=True, settings=settings) as cluster:
        topic, hidden = cluster.topic(), cluster.topic()
        topic.produce([b"a"])
        cluster.admin.create_acls(
            [
                ACL(
                    principal=f"User:{USER}",
                    host="*",
                    operation=ACLOperation.READ,
                    permission_type=ACLPermissionType.ALLOW,
                    resource_pattern=ResourcePattern(ResourceType.TOPIC, topic.name),
                )
            ]
        )
        with _sasl(cluster, mechanism="PLAIN") as client:
            assert offsets_in(read(client, topic)) == [0]
            assert client.retention([topic.name]) == {}
            assert [found.name for found in client.topics(pattern=".*")] == [topic.name]
            with pytest.raises(AccessDeniedError):
                client.topics(names=[hidden.name])
            with pytest.raises(AccessDeniedError):
                client.set_group_offsets("some-group", {Partition(topic.name, 0): 1})
