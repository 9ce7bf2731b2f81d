"""What a pipeline file may say of a Kafka source, and what it is told otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from raybatch.errors import SpecError
from raybatch.runtime.planning import fingerprint
from raybatch.sources.kafka.config import AvroValue, KafkaConfig
from raybatch.spec.load import load_pipeline
from raybatch.spec.pipeline import Pipeline
from raybatch.spec.schema import pipeline_schema

SECRET = SecretStr("hunter2")
SASL = {"protocol": "SASL_SSL", "mechanism": "SCRAM-SHA-512", "username": "ada", "password": SECRET}
OAUTH = {"protocol": "SASL_SSL", "mechanism": "OAUTHBEARER"}


def _config(**said: Any) -> KafkaConfig:
    given = {"type": "kafka", "brokers": ["a:9092"], "topics": ["tickets"], **said}
    return KafkaConfig.model_validate({key: value for key, value in given.items() if value is not None})


def _refused(**said: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        _config(**said)
    return "; ".join(error["msg"] for error in caught.value.errors())


@pytest.mark.parametrize(
    ("brokers", "addresses"),
    [
        (["a:9092", "b.example.com:9093"], ["a:9092", "b.example.com:9093"]),
        ("a:9092, b:9092", ["a:9092", "b:9092"]),
        ("[::1]:9092", ["[::1]:9092"]),
    ],
)
def test_brokers_are_a_list_or_stand_between_commas(brokers: Any, addresses: list[str]) -> None:
    assert _config(brokers=brokers).addresses() == addresses


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"brokers": []}, "names no broker"),
        ({"brokers": " , "}, "names no broker"),
        ({"brokers": ["broker-1"]}, "a broker is host:port, as in broker-1:9092; got 'broker-1'"),
        ({"brokers": ["http://a:9092"]}, "a broker is host:port"),
        ({"brokers": ["a:70000"]}, "a broker is host:port"),
        ({"topics": []}, "has to name at least one topic"),
        ({"topics": ["a", "a"]}, "each only once"),
        ({"topics": ["tickets-*"]}, "'tickets-*' is no name of a topic"),
        ({"topics": [".."]}, "'..' is no name of a topic"),
        ({"topics": None}, "give either topics or topic_pattern"),
        ({"topic_pattern": "tickets-.*"}, "give either topics or topic_pattern"),
        ({"topics": None, "topic_pattern": "("}, "is no regular expression"),
        ({"max_records": 0}, "greater than 0"),
        ({"read_timeout_s": 0}, "greater than 0"),
        ({"value": "avro"}, "'json', 'text' or 'bytes'"),
        ({"on_lost_range": "ignore"}, "'fail' or 'skip'"),
    ],
)
def test_what_makes_no_sense_is_refused_and_said(said: dict[str, Any], problem: str) -> None:
    assert problem in _refused(**said)


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("committed", "committed"),
        ("2026-11-01T00:00:00Z", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T02:00:00+02:00", datetime(2026, 11, 1, tzinfo=UTC)),
        ({"tickets": {"0": 120, "1": 7}}, {"tickets": {0: 120, 1: 7}}),
    ],
)
def test_a_start_is_a_name_a_time_or_offsets(said: Any, read: Any) -> None:
    assert _config(start=said).start == read


@pytest.mark.parametrize("field", ["start", "end"])
@pytest.mark.parametrize("said", ["soon", "2026-11-01T00:00:00", "2026-11-01", 1762000000, ""])
def test_another_start_or_end_is_answered_with_what_is_possible(field: str, said: Any) -> None:
    problem = _refused(**{field: said})
    assert "a time with its zone (2026-11-01T00:00:00Z), or offsets by topic and partition" in problem
    assert repr(said) in problem


def test_offsets_of_a_topic_that_is_not_read_are_refused() -> None:
    assert "end: 'orders' is none of the topics: tickets" in _refused(end={"orders": {0: 1}})
    assert _config(topics=None, topic_pattern="o.*", end={"orders": {0: 1}}).end == {"orders": {0: 1}}


@pytest.mark.parametrize(("end", "possible"), [("now", True), ("2026-11-01T00:00:00Z", False)])
def test_only_what_has_no_named_end_can_be_continuous(end: str, possible: bool) -> None:
    assert _config(end=end).continuous is possible


def test_included_parts_are_columns_of_their_names_or_of_given_ones() -> None:
    assert _config(include=["key", "offset"]).included() == {"key": "key", "offset": "offset"}
    assert _config(include={"key": "ticket_id"}).included() == {"key": "ticket_id"}


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"include": ["keys"]}, "'key', 'headers', 'timestamp'"),
        ({"include": ["key", "key"]}, "a second column 'key'"),
        ({"include": {"key": "k", "offset": "k"}}, "a second column 'k'"),
        ({"include": ["key"], "schema": {"key": "string"}}, "a second column 'key'"),
        ({"include": {"key": "value"}, "value": "text"}, "a second column 'value'"),
        ({"include": {"key": ""}}, "a second column ''"),
        ({"include": {"key": "_row"}}, "'_row' is the name of a row id"),
        ({"schema": {"_source": "string"}}, "'_source' is the name of a row id"),
        ({"schema": {"n": "number"}}, "n: "),
        ({"schema": {"n": "int64"}, "value": "text"}, "schema is an option of json values"),
        ({"columns": ["n"], "value": "text"}, "a text value is one column, 'value'"),
        ({"columns": ["n", "n"]}, "has to name at least one field, and each only once"),
        ({"columns": []}, "has to name at least one field, and each only once"),
        ({"columns": ["n"], "schema": {"m": "int64"}}, "schema declares 'm', which columns leaves out"),
        ({"columns": ["key"], "include": ["key"]}, "a second column 'key'"),
        ({"columns": ["_row"]}, "'_row' is the name of a row id"),
    ],
)
def test_columns_that_clash_are_refused(said: dict[str, Any], problem: str) -> None:
    assert problem in _refused(**said)


def test_a_value_may_be_avro_with_a_schema_beside_the_pipeline() -> None:
    text = {"type": "kafka", "brokers": "a:1", "topics": ["t"], "value": {"avro": "ticket.avsc"}}
    config = KafkaConfig.model_validate(text, context={"base_dir": "/pipelines"})
    assert config.value == AvroValue(avro="/pipelines/ticket.avsc")


def test_security_is_off_by_default_and_certificates_are_verified() -> None:
    security = _config().security
    assert (security.protocol, security.unsafe_skip_tls_verification) == ("PLAINTEXT", False)


@pytest.mark.parametrize(
    "security",
    [
        SASL,
        {**SASL, "protocol": "SASL_PLAINTEXT", "mechanism": "PLAIN"},
        {"protocol": "SSL"},
        {"protocol": "SSL", "ca_file": "/ca", "cert_file": "/c", "key_file": "/k", "key_password": SECRET},
        {**OAUTH, "oauth": {"token_url": "https://idp/token", "client_id": "rb", "client_secret": SECRET}},
        {**OAUTH, "oauth": {"token_file": "/var/token"}},
        {**OAUTH, "oauth": {"token": SECRET, "extensions": {"logicalCluster": "lkc-1"}}},
    ],
)
def test_each_way_to_show_who_we_are_is_understood(security: dict[str, Any]) -> None:
    assert _config(security=security).security.protocol == security["protocol"]


@pytest.mark.parametrize(
    ("security", "problem"),
    [
        ({"protocol": "TLS"}, "'PLAINTEXT', 'SSL', 'SASL_PLAINTEXT' or 'SASL_SSL'"),
        ({"ca_file": "/ca"}, "ca_file goes with protocol SSL or SASL_SSL, not PLAINTEXT"),
        ({"username": "ada"}, "username goes with protocol SASL_PLAINTEXT or SASL_SSL, not PLAINTEXT"),
        ({"protocol": "SASL_SSL"}, "protocol SASL_SSL goes with a mechanism: PLAIN, SCRAM-SHA-256,"),
        ({**SASL, "password": None}, "mechanism SCRAM-SHA-512 goes with username and password"),
        ({**SASL, "mechanism": "GSSAPI"}, "'PLAIN', 'SCRAM-SHA-256', 'SCRAM-SHA-512' or 'OAUTHBEARER'"),
        ({**SASL, "mechanism": "OAUTHBEARER"}, "goes with oauth"),
        ({**SASL, "oauth": {"token": SECRET}}, "oauth goes with mechanism OAUTHBEARER"),
        ({"protocol": "SSL", "key_file": "/k"}, "key_file and key_password go with cert_file"),
        (
            {"protocol": "SSL", "ca_file": "/ca", "unsafe_skip_tls_verification": True},
            "nothing is compared with ca_file",
        ),
        ({**OAUTH, "oauth": {}}, "give one of token_url, token_file and token"),
        ({**OAUTH, "oauth": {"token": SECRET, "token_file": "/t"}}, "got token_file and token"),
        ({**OAUTH, "oauth": {"token_url": "https://idp"}}, "token_url goes with client_id and client_secret"),
        ({**OAUTH, "oauth": {"token_url": "http://idp"}}, "it has to be an https:// URL"),
        ({**OAUTH, "oauth": {"token": SECRET, "scope": "x"}}, "scope goes with token_url"),
    ],
)
def test_security_that_does_not_fit_together_is_refused(security: dict[str, Any], problem: str) -> None:
    assert problem in _refused(security=security)


@pytest.mark.parametrize(
    "security",
    [
        {**SASL, "password": "hunter2"},
        {"protocol": "SSL", "cert_file": "/c", "key_password": "hunter2"},
        {**OAUTH, "oauth": {"token": "hunter2"}},
        {**OAUTH, "oauth": {"token_url": "https://i", "client_id": "r", "client_secret": "hunter2"}},
    ],
)
def test_a_secret_that_is_written_down_is_refused_and_not_repeated(security: dict[str, Any]) -> None:
    problem = _refused(security=security)
    assert "a secret is never written down: use ${env:NAME}" in problem
    assert "hunter2" not in problem


def test_a_secret_is_shown_nowhere() -> None:
    config = _config(security=SASL)
    assert "hunter2" not in f"{config!r} {config.model_dump_json()}"


def test_client_options_are_those_of_the_list() -> None:
    assert _config(client={"client_rack": "a", "fetch_max_wait_ms": 100}).client.given() == {
        "client_rack": "a",
        "fetch_max_wait_ms": 100,
    }
    for option in (
        {"isolation_level": "read_uncommitted"},
        {"enable_auto_commit": True},
        {"check_crcs": False},
    ):
        assert "Extra inputs are not permitted" in _refused(client=option)


def test_waits_that_the_client_would_refuse_are_refused_with_their_values() -> None:
    problem = _refused(client={"request_timeout_ms": 400})
    assert "fetch_max_wait_ms (500) has to be less than request_timeout_ms (400)" in problem


TEXT = """name: ticket-summaries
source:
  type: kafka
  brokers: ${env:BROKERS}
  topics: [tickets]
  security: {protocol: SASL_SSL, mechanism: PLAIN, username: ada, password: "${env:PASSWORD}"}
stages: []
sink: {type: parquet, path: out}
"""


def _load(folder: Path, text: str = TEXT) -> Pipeline:
    file = folder / "pipeline.yaml"
    file.write_text(text, encoding="utf-8")
    return load_pipeline(str(file), env={"BROKERS": "a:9092,b:9092", "PASSWORD": "hunter2"})


def test_the_group_is_called_as_the_pipeline_unless_it_has_a_name(tmp_path: Path) -> None:
    named = TEXT.replace("topics: [tickets]", "topics: [tickets]\n  group: billing")
    groups = [_load(tmp_path, text).source.group for text in (TEXT, named)]  # type: ignore[attr-defined]
    assert groups == ["ticket-summaries", "billing"]


def test_what_an_unfinished_plan_does_not_depend_on_may_be_changed_before_it_is_resumed(
    tmp_path: Path,
) -> None:
    other = (
        TEXT.replace("${env:BROKERS}", "c:9092")
        .replace("ada", "grace")
        .replace(
            "topics: [tickets]",
            "topics: [tickets]\n  on_lost_range: skip\n  max_records: 7\n  client: {client_rack: b}",
        )
    )
    before = fingerprint(_load(tmp_path))
    assert fingerprint(_load(tmp_path, other)) == before
    assert fingerprint(_load(tmp_path, TEXT.replace("[tickets]", "[orders]"))) != before
    assert "hunter2" not in json.dumps(before)


def test_a_mistake_is_answered_with_its_line_and_what_is_valid(tmp_path: Path) -> None:
    text = TEXT.replace(
        "topics: [tickets]", "topics: [tickets]\n  client: {isolation_level: read_uncommitted}"
    )
    with pytest.raises(SpecError) as caught:
        _load(tmp_path, text)
    (line,) = str(caught.value).splitlines()
    assert "pipeline.yaml:6: source.client.isolation_level: unknown key; valid keys: client_id" in line


def test_a_run_with_an_end_cannot_be_continuous(tmp_path: Path) -> None:
    mode = "run: {mode: continuous}\n"
    assert _load(tmp_path, TEXT + mode).run.mode == "continuous"
    ends = TEXT.replace("topics: [tickets]", "topics: [tickets]\n  end: 2026-11-01T00:00:00Z")
    with pytest.raises(SpecError, match=r"run\.mode"):
        _load(tmp_path, ends + mode)


def test_an_editor_is_told_of_every_field() -> None:
    kafka = pipeline_schema()["$defs"]["KafkaConfig"]
    assert all("description" in field for field in kafka["properties"].values())


def test_a_config_loads_no_client_library() -> None:
    code = (
        "import sys; from raybatch.sources.kafka.config import KafkaConfig;"
        " KafkaConfig(type='kafka', brokers='a:1', topics=['t']);"
        " print([m for m in ('kafka', 'ray', 'fastavro') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
