"""Real Apache Kafka brokers in KRaft mode, as processes of a test run.

    PYTHONPATH=tests python -m servers.kafka COMMAND...

runs a command beside a broker, with its address in KAFKA_BROKERS and `kafka-consumer-groups` on PATH.
"""

from __future__ import annotations

import base64
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from servers.certificates import make_certificates
from servers.kafka_jars import installed, java
from servers.kafka_security import PASSWORD, SECURED, USER, Secured, settings_of
from servers.s3 import START_S, die_with_parent
from servers.topics import Producer, Topic

TOOLS = {"kafka-consumer-groups": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"}

_PORT_TRIES = 5
# Below the ports that outgoing connections are given, so that nobody takes one while its broker is down, and
# above those that Ray's workers listen on
_PORTS = range(20_000, 32_000)
_PLAIN = "PLAINTEXT"
_CONTROLLER = "CONTROLLER"

# What makes a broker small, and does at once what it would do in minutes
_SETTINGS = {
    "auto.create.topics.enable": "false",
    "background.threads": "2",
    "num.network.threads": "1",
    "num.io.threads": "2",
    "num.recovery.threads.per.data.dir": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    # How long it takes until a broker that was killed loses its partitions, or is let in again
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "300",
    "log.initial.task.delay.ms": "100",
    "log.retention.check.interval.ms": "200",
    "log.segment.delete.delay.ms": "0",
    "log.cleaner.backoff.ms": "100",
    "log.cleaner.dedupe.buffer.size": "4194304",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "300",
}


@dataclass(frozen=True, kw_only=True)
class GroupOffset:
    """A line of `kafka-consumer-groups --describe`; `current` and `lag` are None where it prints a dash."""

    current: int | None
    end: int | None
    lag: int | None


class Broker:
    """One process, which is broker and controller. Its data stay in its folder until that is removed."""

    def __init__(self, *, node: int, folder: Path, ports: Mapping[str, int]) -> None:
        self.node, self.folder, self.ports = node, folder, ports
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)

    def address(self, listener: str = _PLAIN) -> str:
        return f"127.0.0.1:{self.ports[listener]}"

    @property
    def data(self) -> Path:
        """A folder for each partition, `topic-partition`, and Kafka's checkpoints."""
        return self.folder / "data"

    def start(self) -> None:
        """Start it; it answers some seconds later."""
        command = java("kafka.Kafka", str(self._properties), memory="320m")
        self.process = self._run(command)

    def format(self, cluster_id: str, properties: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Write its properties, and start to prepare its folder for data. Wait for what this gives."""
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
        users = [f"{kind}=[name={USER},password={PASSWORD}]" for kind in ("SCRAM-SHA-256", "SCRAM-SHA-512")]
        args = ["format", f"--cluster-id={cluster_id}", "--config", str(self._properties)]
        scram = [arg for user in users for arg in ("--add-scram", user)]
        return self._run(java("kafka.tools.StorageTool", *args, *scram, memory="128m"))

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(30)

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    def _run(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                preexec_fn=die_with_parent,
            )


class KafkaCluster:
    """One broker, or three, on the loopback interface, from construction until `stop`.

    They die with the thread that made them, however that ends. As a context manager it stops at the end.
    """

    def __init__(
        self,
        folder: Path,
        *,
        brokers: int = 1,
        secured: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`folder` is made, and must not exist. `settings` are brokers' own, as in Kafka's documentation.

        Raises `BuildError`, or `AssertionError` if it does not start.
        """
        installed()
        self._settings = dict(settings or {})
        self._producers: list[Producer] = []
        self._certificates = make_certificates(folder / "certificates") if secured else None
        self._id = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        self.brokers: list[Broker] = []
        try:
            for attempt in range(_PORT_TRIES):
                self.brokers = self._formatted(folder / str(attempt), brokers)
                for broker in self.brokers:
                    broker.start()
                if self._answers(brokers):
                    return
                self._kill_all()
            raise AssertionError(f"Kafka does not start:\n{self.brokers[0].last_words()}")
        except BaseException:
            self._kill_all()
            raise

    def __enter__(self) -> KafkaCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def addresses(self) -> list[str]:
        """`host:port` of each broker's listener without security."""
        return [broker.address() for broker in self.brokers]

    @property
    def secured(self) -> Secured:
        """The listeners with security, of a cluster that was made with them."""
        assert self._certificates is not None
        at = self.brokers[0].address
        return Secured(
            sasl=at("SASL"),
            sasl_tls=at("SASLTLS"),
            tls=at("TLS"),
            mutual=at("MUTUAL"),
            certificates=self._certificates,
        )

    @cached_property
    def admin(self) -> KafkaAdminClient:
        """kafka-python's, which finds its brokers again after a restart."""
        return self._connect()

    def topic(self, name: str | None = None, *, partitions: int = 1, **options: Any) -> Topic:
        """A new topic, of a name of its own by default; options as of `Topic.create`."""
        made = Topic(cluster=self, name=name or f"topic-{uuid.uuid4().hex[:8]}")
        made.create(partitions=partitions, **options)
        return made

    def producer(self, transactional_id: str | None = None, **options: Any) -> Producer:
        """A new producer, closed with the cluster; `options` are kafka-python's."""
        made = Producer(self.addresses, transactional_id=transactional_id, **options)
        self._producers.append(made)
        return made

    def consumer_groups(self, group: str) -> dict[tuple[str, int], GroupOffset]:
        """What `kafka-consumer-groups --describe` prints of a group, by topic and partition; empty without it."""
        text = self.tool(
            TOOLS["kafka-consumer-groups"], "--describe", "--group", group, "--offsets", fails=True
        )
        if "GroupIdNotFoundException" in text:
            return {}
        rows = [line.split() for line in text.splitlines() if line.strip()]
        heads = [i for i, row in enumerate(rows) if row[0] == "GROUP"]
        assert heads, text
        head = rows[heads[0]]
        lines = [dict(zip(head, row, strict=False)) for row in rows[heads[0] + 1 :] if row[0] == group]
        return {
            (line["TOPIC"], int(line["PARTITION"])): GroupOffset(
                current=_number(line["CURRENT-OFFSET"]),
                end=_number(line["LOG-END-OFFSET"]),
                lag=_number(line["LAG"]),
            )
            for line in lines
        }

    def tool(self, main: str, *args: str, fails: bool = False) -> str:
        """Run one of Kafka's own commands; what it printed. Unless it `fails`, it must succeed."""
        command = java(main, "--bootstrap-server", ",".join(self.addresses), *args, memory="128m")
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_S * 2, check=False)
        assert fails or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def restart(self, node: int = 0) -> None:
        """Start the broker at that place of `brokers` again, killed or not, and wait until all answer."""
        self.brokers[node].kill()
        self.brokers[node].start()
        alive = [broker for broker in self.brokers if broker.process and broker.process.poll() is None]
        assert self._answers(len(alive)), self.brokers[node].last_words()

    def stop(self) -> None:
        """End it, and wait until it has ended: by SIGKILL, for nobody wants its data any more."""
        for producer in self._producers:
            producer.abandon()
        if "admin" in self.__dict__:
            self.admin.close()
        self._kill_all()

    def _kill_all(self) -> None:
        for broker in self.brokers:
            broker.kill()

    def _formatted(self, folder: Path, count: int) -> list[Broker]:
        secured = list(SECURED) if self._certificates else []
        listeners = [_PLAIN, _CONTROLLER, *secured]
        ports = iter(_free_ports(count * len(listeners)))
        brokers = [
            Broker(
                node=node, folder=folder / f"broker-{node}", ports={name: next(ports) for name in listeners}
            )
            for node in range(1, count + 1)
        ]
        formats = [broker.format(self._id, self._properties(broker, brokers)) for broker in brokers]
        for broker, process in zip(brokers, formats, strict=True):
            assert process.wait(START_S) == 0, broker.last_words()
        return brokers

    def _properties(self, broker: Broker, brokers: Sequence[Broker]) -> dict[str, str]:
        at = {name: f"{name}://{broker.address(name)}" for name in broker.ports}
        protocols = {_CONTROLLER: _PLAIN, _PLAIN: _PLAIN, **SECURED}
        voters = (f"{voter.node}@{voter.address(_CONTROLLER)}" for voter in brokers)
        copies = str(len(brokers))
        return {
            "process.roles": "broker,controller",
            "node.id": str(broker.node),
            "controller.quorum.voters": ",".join(voters),
            "listeners": ",".join(at.values()),
            "advertised.listeners": ",".join(at[name] for name in at if name != _CONTROLLER),
            "controller.listener.names": _CONTROLLER,
            "inter.broker.listener.name": _PLAIN,
            "listener.security.protocol.map": ",".join(f"{name}:{protocols[name]}" for name in at),
            "log.dirs": str(broker.data),
            "default.replication.factor": copies,
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            **_SETTINGS,
            **(settings_of(self._certificates) if self._certificates else {}),
            **self._settings,
        }

    def _answers(self, count: int) -> bool:
        """Wait until `count` brokers are known; False when one of them ends instead (its port was taken)."""
        end = time.monotonic() + START_S
        started = [broker for broker in self.brokers if broker.process is not None]
        running = [broker for broker in started if broker.process and broker.process.poll() is None]
        while all(broker.process and broker.process.poll() is None for broker in running):
            if all(_listens(broker.ports[_PLAIN]) for broker in running) and self._known() >= count:
                return True
            words = running[0].last_words()
            assert time.monotonic() < end, f"Kafka does not answer after {START_S} s:\n{words}"
            time.sleep(0.1)
        return False

    def _known(self) -> int:
        """How many brokers of this cluster take requests."""
        try:
            client = self._connect()
        except KafkaError:
            return 0
        try:
            found = client.describe_cluster()
        except KafkaError:
            return 0
        finally:
            client.close()
        # Another cluster may have been faster to take the port
        return sum(not broker["is_fenced"] for broker in found["brokers"] if found["cluster_id"] == self._id)

    def _connect(self) -> KafkaAdminClient:
        return KafkaAdminClient(
            bootstrap_servers=self.addresses,
            bootstrap_timeout_ms=10_000,
            reconnect_backoff_max_ms=500,
            metadata_max_age_ms=1000,
        )


def _free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on now."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            break
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _number(text: str) -> int | None:
    return None if text == "-" else int(text)


def main() -> int:
    """Run a command beside a new broker, with its address and Kafka's own commands in the environment."""
    with tempfile.TemporaryDirectory() as folder, KafkaCluster(Path(folder) / "kafka") as cluster:
        commands = Path(folder) / "bin"
        commands.mkdir()
        for name, tool in TOOLS.items():
            script = commands / name
            script.write_text(f'#!/bin/sh\nexec {shlex.join(java(tool, memory="128m"))} "$@"\n')
            script.chmod(0o755)
        env = {"KAFKA_BROKERS": ",".join(cluster.addresses), "PATH": f"{commands}:{os.environ['PATH']}"}
        return subprocess.run(sys.argv[1:], env=os.environ | env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
