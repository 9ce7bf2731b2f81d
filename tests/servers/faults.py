"""What a proxy can do to one exchange. A fault is a coroutine of an `Exchange`; these make the usual ones.

answer(503, "SlowDown")     answered without the server ever knowing
reset()                     the connection is reset, and the server never knows
lose_answer()               the server has done it, and the connection is reset before its answer
delay(2.0)                  done, two seconds later
hold(gate)                  done when the test opens the gate
truncate(100)               100 bytes of the body, though the headers promise all, and the connection ends
flip_bit(1000)              a bit of the body's byte 1000 is wrong, and the headers do not show it
ignore_condition()          412 becomes 200: a store that claims to have written what it has not
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from xml.sax.saxutils import escape

from servers.messages import Message, read_response
from servers.operations import Seen

# A gate that nobody opens must not hold a test for ever
GATE_S = 120.0


class Exchange:
    """One request, and what becomes of it. A fault calls any of the methods, in any order."""

    def __init__(
        self,
        request: Message,
        *,
        seen: Seen,
        upstream: tuple[str, int],
        writer: asyncio.StreamWriter,
    ) -> None:
        self.request = request
        self.seen = seen
        self.open = True  # whether the client's connection can be used again
        self._upstream = upstream
        self._writer = writer

    async def forward(self) -> Message:
        """Let the server do it; gives its answer, which the client has not seen."""
        reader, writer = await asyncio.open_connection(*self._upstream)
        try:
            writer.write(self.request.head() + self.request.raw)
            await writer.drain()
            return await read_response(reader, method=self.seen.method)
        finally:
            writer.close()

    async def reply(self, response: Message) -> None:
        """Give the client an answer."""
        self.seen.status = response.status
        self._writer.write(response.head() + response.body)
        await self._writer.drain()
        if (response.header("connection") or "").lower() == "close":
            self.open = False

    async def end(self) -> None:
        """Close the client's connection in good order."""
        self.open = False
        self._writer.close()

    def reset(self) -> None:
        """Reset the client's connection: what was sent and not read is lost."""
        self.open = False
        connection: socket.socket = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Fault = Callable[[Exchange], Awaitable[None]]


async def nothing(exchange: Exchange) -> None:
    """No fault: the server's answer."""
    await exchange.reply(await exchange.forward())


def answer(status: int, code: str, *, retry_after_s: int | None = None) -> Fault:
    """An error in S3's words, such as (503, "SlowDown"), (409, "ConditionalRequestConflict").

    With status 200 it is the error that S3 sends in the body of a copy, or of completing an upload, that failed
    after the headers were sent.
    """

    async def fault(exchange: Exchange) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{escape(code)}</Code><Message>injected</Message></Error>"
        body = b"" if exchange.seen.method == "HEAD" else text.encode()
        headers = [(b"Content-Type", b"application/xml"), (b"Content-Length", b"%d" % len(body))]
        if retry_after_s is not None:
            headers.append((b"Retry-After", b"%d" % retry_after_s))
        first = f"HTTP/1.1 {status} {code}".encode()
        await exchange.reply(Message(first=first, headers=headers, body=body))

    return fault


def reset() -> Fault:
    """Reset the connection before the server learns of the request."""

    async def fault(exchange: Exchange) -> None:
        exchange.reset()

    return fault


def lose_answer() -> Fault:
    """Reset the connection after the server has done it."""

    async def fault(exchange: Exchange) -> None:
        await exchange.forward()
        exchange.reset()

    return fault


def delay(seconds: float) -> Fault:
    """Let the server know only after a while."""

    async def fault(exchange: Exchange) -> None:
        await asyncio.sleep(seconds)
        await nothing(exchange)

    return fault


class Gate:
    """Where `hold` keeps requests until the test opens it; then, and from then on, all pass."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def open(self) -> None:
        """Let them pass."""
        self._open.set()

    async def passed(self) -> None:
        async with asyncio.timeout(GATE_S):
            while not self._open.is_set():
                await asyncio.sleep(0.01)


def hold(gate: Gate) -> Fault:
    """Keep the request from the server until the gate is open."""

    async def fault(exchange: Exchange) -> None:
        await gate.passed()
        await nothing(exchange)

    return fault


def truncate(length: int) -> Fault:
    """End the connection after `length` bytes of the body, whose whole length the headers promise."""

    async def fault(exchange: Exchange) -> None:
        response = await exchange.forward()
        response.body = response.body[:length]
        await exchange.reply(response)
        await exchange.end()

    return fault


def flip_bit(byte: int, *, bit: int = 0) -> Fault:
    """Invert a bit of the body; the byte is counted modulo the body's length."""

    async def fault(exchange: Exchange) -> None:
        response = await exchange.forward()
        body = bytearray(response.body)
        if body:
            body[byte % len(body)] ^= 1 << bit
        response.body = bytes(body)
        await exchange.reply(response)

    return fault


def ignore_condition() -> Fault:
    """Say 200 where the server said 412."""

    async def fault(exchange: Exchange) -> None:
        response = await exchange.forward()
        if response.status == 412:
            headers = [(b"ETag", b'"00000000000000000000000000000000"'), (b"Content-Length", b"0")]
            response = Message(first=b"HTTP/1.1 200 OK", headers=headers)
        await exchange.reply(response)

    return fault
