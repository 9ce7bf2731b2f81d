"""Connections to brokers by kafka-python, and questions that are asked until somebody answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import kafka.errors as errors
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager

from raybatch.sources.kafka.addresses import why_unreachable
from raybatch.sources.kafka.client import AccessDeniedError, BrokersUnreachableError, ClientError
from raybatch.sources.kafka.config import KafkaConfig
from raybatch.sources.kafka.kafka_python_options import connection_options, consumer_options, quiet_logs

PAUSE_S = 0.2  # before something is asked again
_BOOTSTRAP_MS = 3000  # then it is looked into why nobody answers, and tried again for longer
_CALLS = 5  # a broker that refuses credentials says so and hangs up, and half of the time only that is heard

T = TypeVar("T")


class Waiting:
    """How long nothing has come."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def ended(self) -> None:
        """Something has."""
        self._since = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._since


class GroupUnknownError(ClientError):
    """Newer brokers say so instead of giving no offsets."""


class Connection:
    """One pool of connections for an admin client and a consumer; made when first needed, and again after `close`.

    `reading` is set while the consumer is at work: questions then leave connections as they are, and share its wait.
    """

    def __init__(self, config: KafkaConfig) -> None:
        quiet_logs()
        self.where = ", ".join(config.addresses())
        self.reading: Waiting | None = None
        self._config = config
        self._options = connection_options(config)
        self._net: KafkaNetClient | None = None
        self._admin: KafkaAdminClient | None = None
        self._consumer: KafkaConsumer | None = None

    def ask(self, what: str, question: Callable[[KafkaAdminClient], T]) -> T:
        """The answer to a question that may be asked again, until `read_timeout_s` are over."""
        waiting = self.reading or Waiting()
        while True:
            try:
                return question(self._connected(waiting))
            except errors.KafkaError as error:
                if not may_pass(error):
                    raise translated(error, what) from error
                if waiting.seconds() > self._config.read_timeout_s:
                    raise BrokersUnreachableError(self.where, f"{what}: {error}") from error
                if self.reading is None:
                    self.close()  # and forget whom we took for the leader or coordinator
            time.sleep(PAUSE_S)

    def consumer(self) -> KafkaConsumer:
        """The one consumer, which has no partition yet or an old one."""
        self._connected(self.reading or Waiting())
        if self._consumer is None:
            options = self._options | consumer_options(self._config)
            self._consumer = KafkaConsumer(**options, kafka_client=lambda **_: self._net)
            # Who leads a partition is asked when it is assigned, and the library would not ask again for 100 ms
            assert self._net is not None
            self._net.cluster.config["retry_backoff_ms"] = self._options["retry_backoff_ms"]
        return self._consumer

    def forget_consumer(self) -> None:
        """Leave it with what it holds, and has asked for; there will be another one."""
        self._consumer = None

    def close(self) -> None:
        """Close connections, and end the library's thread."""
        net, self._net, self._admin, self._consumer = self._net, None, None, None
        if net is not None:
            net.close()

    def _connected(self, waiting: Waiting) -> KafkaAdminClient:
        tries = 0
        while self._admin is None:
            self._net, tries = self._net or KafkaNetClient(**self._options), tries + 1
            try:
                self._admin = KafkaAdminClient(
                    **self._options,
                    kafka_client=lambda **_: self._net,
                    bootstrap_timeout_ms=_BOOTSTRAP_MS * tries,
                )
            except errors.KafkaError as error:
                self.close()
                if not may_pass(error):
                    raise translated(error, "connecting") from error
                why, final = why_unreachable(self._config.addresses(), self._options.get("ssl_context"))
                why = why or self._why_refused()
                if final or waiting.seconds() > self._config.read_timeout_s:
                    raise BrokersUnreachableError(self.where, why) from error
        return self._admin

    def _why_refused(self) -> str:
        """What brokers say that accept connections. The library keeps it to itself while it tries again.

        Raises `AccessDeniedError` if that is it.
        """
        calls = _CALLS if self._config.security.mechanism else 1
        said = [self._call_on_all() for _ in range(calls)]
        return said[-1] or "they accept connections, and tell of no brokers"

    def _call_on_all(self) -> str:
        net, found = KafkaNetClient(**self._options), ""
        net._net.start()
        try:
            for node in net.cluster.bootstrap_brokers():
                try:
                    net._net.run(_reach, net._manager, node.node_id)
                except errors.KafkaError as error:
                    if not may_pass(error):
                        raise translated(error, f"{node.host}:{node.port}") from error
                    found = found or str(error)
        finally:
            net.close()
        return found


async def _reach(manager: KafkaConnectionManager, node: str) -> None:
    await manager.get_connection(node, timeout_ms=_BOOTSTRAP_MS)


def may_pass(error: errors.KafkaError) -> bool:
    """Whether it makes sense to ask again."""
    if isinstance(error, errors.UnknownTopicOrPartitionError):
        return False
    return isinstance(error, (errors.RetriableError, errors.UnknownBrokerIdError))


def translated(error: errors.KafkaError, what: str) -> ClientError:
    """The error of the contract that says it."""
    denied = (
        errors.AuthorizationError,
        errors.SaslAuthenticationFailedError,
        errors.UnsupportedSaslMechanismError,
        errors.IllegalSaslStateError,
    )
    if isinstance(error, denied):
        return AccessDeniedError(what, str(error))
    kind = GroupUnknownError if isinstance(error, errors.GroupIdNotFoundError) else ClientError
    return kind(f"{what}: {error}")
