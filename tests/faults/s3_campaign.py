"""Campaigns whose input and output are in buckets of a real S3-compatible server, behind a proxy that fails."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from campaign import Campaign

from servers.faults import answer, delay, lose_answer, reset
from servers.project import S3Project
from servers.proxy import Proxy
from servers.s3 import LAUNCHERS, S3Server

OUTPUT = "out"
# What a store may do to any request, and a client has to live with
TROUBLE = {
    "500": answer(500, "InternalError"),
    "503 SlowDown": answer(503, "SlowDown"),
    "429": answer(429, "TooManyRequests"),
    "connection reset": reset(),
    "answer lost": lose_answer(),
    "answer late": delay(0.3),
}
# What a server may say to two who complete an upload at a time
CONFLICT = answer(409, "ConditionalRequestConflict")


class S3Campaign(Campaign):
    """See `Campaign`. Some requests for the output, of any kind, are answered with trouble."""

    def __init__(self, folder: Path, choose: random.Random, *, engine: bool, server: S3Server) -> None:
        self.bucket = server.bucket()
        self.proxy = Proxy(server.endpoint, seed=choose.randrange(1 << 32))
        self.proxy.__enter__()
        share, every = choose.choice([0.01, 0.03]), {"key": f"{OUTPUT}/*", "times": None}
        self._rules = {
            name: self.proxy.on("*", fault=TROUBLE[name], share=share, **every)
            for name in choose.sample(sorted(TROUBLE), choose.randint(1, 4))
        }
        self._rules["409 to a conditional write"] = self.proxy.on(
            "*", fault=CONFLICT, conditional=True, share=share, **every
        )
        reached = self.bucket.at(self.proxy.endpoint)
        super().__init__(folder, choose, engine=engine, project=S3Project(folder, bucket=reached))
        # Ray's workers inherit the credentials from the command that starts them; a cluster's would not
        self.on_cluster = False

    def source_of(self, path: Path) -> str:
        return f"{self.bucket.url}/in/{path.name}"

    def sink_path(self) -> str:
        return f"{self.bucket.url}/{OUTPUT}"

    def put_input(self, rows: Sequence[Mapping[str, Any]], name: str) -> Path:
        return self.project.lines(rows, file=name)  # an object is whole, or not there

    def struck(self) -> Counter[str]:
        return Counter({name: rule.struck for name, rule in self._rules.items()})

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

    def make(at: Path, choose: random.Random, *, engine: bool) -> S3Campaign:
        return S3Campaign(at, choose, engine=engine, server=choose.choice(servers))

    try:
        yield make
    finally:
        for server in servers:
            server.stop()
