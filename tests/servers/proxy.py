"""A reverse proxy before an S3-compatible server, which does what rules say to the requests that they match.

    with Proxy(server.endpoint) as proxy:
        proxy.on("CompleteMultipartUpload", key="*.parquet", fault=answer(409, "ConditionalRequestConflict"))
        proxy.on("GetObject", share=0.1, times=None, fault=answer(503, "SlowDown"))
        ...
        assert proxy.count("GetObject") < 50

The Host header is passed on as it is, so AWS signatures hold. Operations have the names of S3's API; buckets are
the first part of the path. One connection to the server for each request, bodies whole in memory: for tests.
"""

from __future__ import annotations

import asyncio
import fnmatch
import random
import threading
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import urlsplit

from servers.faults import Exchange, Fault, nothing
from servers.messages import Closed, Message, read_request
from servers.operations import Seen, describe

START_S = 30.0


@dataclass(kw_only=True)
class Rule:
    """Strikes requests of `operation` (a pattern such as `*Upload*`), for keys that match `key`.

    Of the requests that match, it strikes from the `first` on, `times` of them (None: all), each with the
    chance `share`.
    """

    operation: str
    fault: Fault
    key: str = "*"
    conditional: bool | None = None
    first: int = 1
    times: int | None = 1
    share: float = 1.0
    matched: int = 0
    struck: int = 0

    def strikes(self, seen: Seen, chance: random.Random) -> bool:
        """Whether it strikes this one, which it counts."""
        if self.conditional not in (None, seen.conditional):
            return False
        if not fnmatch.fnmatchcase(seen.operation, self.operation):
            return False
        if not fnmatch.fnmatchcase(seen.key, self.key):
            return False
        self.matched += 1
        if self.matched < self.first or (self.times is not None and self.struck >= self.times):
            return False
        if chance.random() >= self.share:
            return False
        self.struck += 1
        return True


@dataclass
class Proxy:
    """`upstream` is the server's endpoint; `endpoint` the proxy's own, while the context is open."""

    upstream: str
    seed: int = 0
    endpoint: str = ""
    requests: list[Seen] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._started = threading.Event()
        self._connections: set[asyncio.Task[None]] = set()

    def on(
        self,
        operation: str,
        *,
        fault: Fault,
        key: str = "*",
        conditional: bool | None = None,
        first: int = 1,
        times: int | None = 1,
        share: float = 1.0,
    ) -> Rule:
        """Add a rule; of several that match, the one that was added first and strikes decides."""
        rule = Rule(
            operation=operation,
            fault=fault,
            key=key,
            conditional=conditional,
            first=first,
            times=times,
            share=share,
        )
        with self._lock:
            self.rules.append(rule)
        return rule

    def clear(self) -> None:
        """No faults from now on, and no requests counted so far."""
        with self._lock:
            self.rules.clear()
            self.requests.clear()

    def count(self, operation: str = "*", *, key: str = "*") -> int:
        """How many requests came whose operation and key match these patterns."""
        return len(self.seen(operation, key=key))

    def seen(self, operation: str = "*", *, key: str = "*") -> list[Seen]:
        """The requests, in the order in which they came."""
        with self._lock:
            found = list(self.requests)
        return [
            one
            for one in found
            if fnmatch.fnmatchcase(one.operation, operation) and fnmatch.fnmatchcase(one.key, key)
        ]

    def __enter__(self) -> Proxy:
        self._thread.start()
        assert self._started.wait(START_S), "the proxy does not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.endpoint = "http://127.0.0.1:{1}".format(*server.sockets[0].getsockname())
        self._started.set()
        try:
            self._loop.run_forever()
        finally:
            server.close()
            for connection in self._connections:
                connection.cancel()
            ended = asyncio.gather(*self._connections, return_exceptions=True)
            self._loop.run_until_complete(ended)
            self._loop.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = self._loop.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(await read_request(reader, writer), writer):
                pass
        except (Closed, ConnectionError):
            pass  # a client, or the server, went away: the other learns it by this end
        finally:
            writer.close()

    async def _exchange(self, request: Message, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; whether the connection can take another."""
        method, target, _ = request.first.decode("latin-1").split(" ", 2)
        seen = describe(method, target, request)
        fault = self._fault(seen)
        where = urlsplit(self.upstream)
        upstream = (where.hostname or "", where.port or 80)
        exchange = Exchange(request, seen=seen, upstream=upstream, writer=writer)
        await fault(exchange)
        return exchange.open

    def _fault(self, seen: Seen) -> Fault:
        with self._lock:
            self.requests.append(seen)
            for rule in self.rules:
                if rule.strikes(seen, self._chance):
                    seen.struck = True
                    return rule.fault
        return nothing
