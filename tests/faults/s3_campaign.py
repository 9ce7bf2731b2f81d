"""Campaigns whose input and output are in buckets of a real S3-compatible server, behind a proxy that fails."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from campaign import Campaign

from servers.faults import answer, delay, lose_answer, reset
from servers.project import S3Project
from servers.proxy import Proxy
from servers.s3 import LAUNCHERS, S3Server

OUTPUT = "out"
# What a store may do to any request, and a client has to live with
TROUBLE = (
    answer(500, "InternalError"),
    answer(503, "SlowDown"),
    answer(429, "TooManyRequests"),
    reset(),
    lose_answer(),
    delay(0.3),
)


class S3Campaign(Campaign):
    """See `Campaign`. Some requests, of one kind or of all, are answered with trouble, as long as it lasts."""

    def __init__(self, folder: Path, choose: random.Random, *, server: S3Server) -> None:
        self.bucket = server.bucket()
        self.proxy = Proxy(server.endpoint, seed=choose.randrange(1 << 32))
        self.proxy.__enter__()
        for fault in choose.sample(TROUBLE, choose.randint(0, 3)):
            share = choose.choice([0.01, 0.05])
            self.proxy.on("*", key=f"{OUTPUT}/*", fault=fault, times=None, share=share)
        reached = self.bucket.at(self.proxy.endpoint)
        super().__init__(folder, choose, project=S3Project(folder, bucket=reached))
        # Ray's workers inherit the credentials from the command that starts them; a cluster's would not
        self.on_cluster = False

    def source_of(self, path: Path) -> str:
        return f"{self.bucket.url}/in/{path.name}"

    def stored(self) -> Path:
        for _ in range(5):
            try:
                return self._fetched()
            except FileNotFoundError:
                continue  # a worker that outlived its run has just deleted the parts of an attempt that lost
        return self._fetched()

    def _fetched(self) -> Path:
        if self.bucket.sizes(f"{OUTPUT}/"):
            return S3Project(self.folder, bucket=self.bucket).fetched()
        empty = self.folder / "empty"
        empty.mkdir(exist_ok=True)
        return empty

    def close(self) -> None:
        super().close()
        self.proxy.__exit__(None, None, None)


@contextmanager
def s3_campaigns(folder: Path) -> Iterator[object]:
    """Gives a function that makes campaigns, on each server in turn."""
    servers = [S3Server(name, folder / name) for name in sorted(LAUNCHERS)]

    def make(at: Path, choose: random.Random) -> S3Campaign:
        return S3Campaign(at, choose, server=choose.choice(servers))

    try:
        yield make
    finally:
        for server in servers:
            server.stop()
