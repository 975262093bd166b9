"""A small HTTP client for server-sent events: hundreds of streams in one process cost it little, and it can stop
reading whenever it wants to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

CONNECT_S = 10.0


class Broken(Exception):  # noqa: N818 - reads as what happened
    """The connection ended before the answer did."""


@dataclass
class Response:
    """Status and headers (names in lower case); the body is read from `reader`, which a timeout in `read_s` guards."""

    status: int
    headers: Mapping[str, str]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def lines(self, silence_s: float = 60.0) -> AsyncGenerator[bytes, None]:
        """Lines of a chunked body, without their ends. Raises Broken."""
        rest = b""
        async for chunk in self._chunks(silence_s):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line

    async def body(self) -> bytes:
        """All of it. Raises Broken."""
        if "content-length" in self.headers:
            with _breaks():
                return await self.reader.readexactly(int(self.headers["content-length"]))
        return b"".join([chunk async for chunk in self._chunks(60.0)])

    def close(self) -> None:
        self.writer.transport.abort()

    async def _chunks(self, silence_s: float) -> AsyncGenerator[bytes, None]:
        while True:
            with _breaks():
                async with asyncio.timeout(silence_s):
                    size = int(await self.reader.readline() or b"-1", 16)
                    if size < 0:
                        raise Broken("the connection ended")
                    data = await self.reader.readexactly(size + 2)
            if not size:
                return
            yield data[:-2]


async def request(
    port: int, method: str, path: str, body: object = None, headers: Mapping[str, str] = {}, receive_bytes: int = 0
) -> Response:
    """Ask a server on this machine. `receive_bytes`: the socket's receive buffer (0: the system's). Raises Broken."""
    data = json.dumps(body).encode() if body is not None else b""
    head = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: close"]
    head += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        head += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    with _breaks():
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await _connect(port, receive_bytes)
        writer.write("\r\n".join([*head, "", ""]).encode() + data)
        return await _response(reader, writer)


async def _connect(port: int, receive_bytes: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    made = socket.socket()
    made.setblocking(False)
    if receive_bytes:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    try:
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
    except BaseException:
        made.close()
        raise
    return await asyncio.open_connection(sock=made, limit=2**18)


async def _response(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Response:
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except BaseException:
        writer.transport.abort()
        raise
    pairs = (line.partition(":") for line in lines[1:] if line)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    return Response(int(lines[0].split()[1]), headers, reader, writer)


@contextlib.contextmanager
def _breaks() -> Any:
    try:
        yield
    except (OSError, EOFError, ValueError, TimeoutError) as error:
        raise Broken(str(error) or type(error).__name__) from None
