"""A Ray cluster of several raylets on this machine, made as its operator would: `ray start`, and a token."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

import psutil

from pipelines import PLUGIN, wait_until

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


class Node:
    """One `ray start --block`, and the raylet below it."""

    def __init__(self, folder: Path, name: str, *args: str, env: Mapping[str, str]) -> None:
        self.log = folder / f"{name}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*RAY, "start", "--block", "--disable-usage-stats", *args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                start_new_session=True,
            )
        wait_until(self._started, what=f"a node has started: {self.log}")

    def _started(self) -> bool:
        text = self.log.read_text()
        assert self.process.poll() is None, text
        return "block forever" in text  # the last line that `--block` prints: what it says before is there

    @property
    def raylet(self) -> psutil.Process:
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if child.name() == "raylet")

    def titles(self) -> list[str]:
        """What its workers are called, such as "ray::Replica.run"."""
        found = []
        for worker in self.raylet.children():
            try:
                found.append(" ".join(worker.cmdline()))
            except psutil.Error:
                continue
        return found

    def kill(self) -> None:
        """SIGKILL to the raylet: its workers notice and go, as when a machine is lost."""
        self.raylet.kill()

    def stop(self) -> None:
        """End it and whatever is below it."""
        if self.process.poll() is None:
            node = psutil.Process(self.process.pid)
            for process in [node, *node.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait(20)


class Cluster:
    """A head and any number of further nodes. Nodes have loopback addresses of their own, so that a driver,
    whose address is none of them, connects to the head, and so that a message can tell them apart."""

    def __init__(self, folder: Path, *, head_cpus: int) -> None:
        self.folder = folder
        self._token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
        self._env = {**os.environ, **self._token, "PYTHONPATH": str(PLUGIN)}
        self._env.pop("RAY_ADDRESS", None)
        self._count = 0
        # The port of Ray's client server, which nobody here uses, would be the same for every cluster
        ports = (f"--port={_free_port()}", f"--ray-client-server-port={_free_port()}")
        self.head = self._start(f"--num-cpus={head_cpus}", "--head", "--include-dashboard=false", *ports)
        self.nodes = [self.head]
        found = re.search(r"--address='([\d.:]+)'", self.head.log.read_text())
        assert found, self.head.log.read_text()
        self.address = found[1]

    @property
    def env(self) -> dict[str, str]:
        """What a user sets to run there."""
        return {"RAY_ADDRESS": self.address, **self._token}

    def add(self, *args: str) -> Node:
        """One more node."""
        node = self._start(f"--address={self.address}", *args)
        self.nodes.append(node)
        return node

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.stop()

    def _start(self, *args: str) -> Node:
        self._count += 1
        here = f"--node-ip-address=127.0.0.{self._count + 1}"
        memory = "--object-store-memory=200000000"
        return Node(self.folder, f"node-{self._count}", here, memory, *args, env=self._env)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])
