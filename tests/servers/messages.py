"""Messages of HTTP/1.1 on asyncio streams, as they are on the wire: what a proxy passes on must stay signed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

Headers = list[tuple[bytes, bytes]]
_WITHOUT_BODY = {204, 304}


class Closed(Exception):  # noqa: N818
    """The other side has closed the connection, between messages or amid one."""


@dataclass
class Message:
    """`first` is the request line or the status line; `body` is decoded, `raw` as it came."""

    first: bytes
    headers: Headers
    body: bytes = b""
    raw: bytes = b""

    def header(self, name: str) -> str | None:
        """The value of the first header of that name."""
        wanted = name.lower().encode()
        return next((value.decode("latin-1") for key, value in self.headers if key.lower() == wanted), None)

    @property
    def status(self) -> int:
        return int(self.first.split(b" ", 2)[1])

    def head(self) -> bytes:
        lines = [self.first, *(name + b": " + value for name, value in self.headers)]
        return b"\r\n".join(lines) + b"\r\n\r\n"


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Message:
    """The next request of a client, with its body. Raises `Closed` when there is none."""
    request = await _read_head(reader)
    if (request.header("expect") or "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
    if request.header("transfer-encoding"):
        await _read_chunks(reader, request)
    elif length := request.header("content-length"):
        request.body = request.raw = await _exactly(reader, int(length))
    return request


async def read_response(reader: asyncio.StreamReader, *, method: str) -> Message:
    """The response to a request of `method`, with its body. Raises `Closed`."""
    response = await _read_head(reader)
    while 100 <= response.status < 200:
        response = await _read_head(reader)
    if method == "HEAD" or response.status in _WITHOUT_BODY:
        return response
    if response.header("transfer-encoding"):
        await _read_chunks(reader, response)
        response.headers = list(_without(response.headers, b"transfer-encoding"))
        response.headers.append((b"Content-Length", b"%d" % len(response.body)))
    elif length := response.header("content-length"):
        response.body = await _exactly(reader, int(length))
    else:
        response.body = await reader.read()
        response.headers.append((b"Content-Length", b"%d" % len(response.body)))
    return response


def _without(headers: Headers, name: bytes) -> Iterator[tuple[bytes, bytes]]:
    return (header for header in headers if header[0].lower() != name)


async def _read_head(reader: asyncio.StreamReader) -> Message:
    try:
        text = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise Closed from error
    first, *lines = text[:-4].split(b"\r\n")
    fields = (line.partition(b":") for line in lines)
    return Message(first=first, headers=[(name, value.strip()) for name, _, value in fields])


async def _read_chunks(reader: asyncio.StreamReader, message: Message) -> None:
    raw, body = bytearray(), bytearray()
    while True:
        line = await _line(reader)
        raw += line
        size = int(line.split(b";")[0], 16)
        if size == 0:
            break
        chunk = await _exactly(reader, size + 2)
        raw += chunk
        body += chunk[:-2]
    while (line := await _line(reader)) != b"\r\n":  # trailers
        raw += line
    message.raw, message.body = bytes(raw + b"\r\n"), bytes(body)


async def _exactly(reader: asyncio.StreamReader, length: int) -> bytes:
    try:
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise Closed from error


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n")
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise Closed from error
