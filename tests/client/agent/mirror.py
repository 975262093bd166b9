"""A weight mirror on a real port that tells the truth or lies, request by request."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from protocol.manifest import MIN_CHUNK_BYTES
from tests.client.agent.samples import Model, model

_RANGE = re.compile(rb"range: bytes=(\d+)-(\d+)", re.IGNORECASE)
HALF = 700_000


class Span(NamedTuple):
    """A request for bytes [start, stop) of a file."""

    path: str
    start: int
    stop: int


@dataclass(repr=False)
class Mirror:
    """Serves one model. `tricks` are played one per request for a file's bytes, then `habit`:

    honest, whole (200 for a Range), other-range, less (a shorter range than asked for), short (ends early),
    drips (ends after a chunk and a bit), reset,
    missing (404), error (500), corrupt (one bit of the first chunk), endless, stalls (after HALF bytes)."""

    model: Model = field(default_factory=model)
    manifest_bytes: bytes = b""
    tricks: deque[str] = field(default_factory=deque)
    habit: str = "honest"
    spans: list[Span] = field(default_factory=list)
    num_manifests: int = 0
    token: str = ""
    """Without it in the Authorization header everything is 401, unless it is empty."""
    stalled: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await _request(reader):
                await self._answer(request, writer)
        except ConnectionError:
            pass  # the client left in the middle, as some tests want it
        finally:
            writer.close()

    async def _answer(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        if self.token and f"authorization: bearer {self.token}".encode() not in request.lower():
            await _send(writer, "401 Unauthorized", b"")
            return
        path = request.split(b" ", 2)[1].decode()
        if path == f"/weights/{self.model.digest}/manifest":
            self.num_manifests += 1
            await _send(writer, "200 OK", self.manifest_bytes or self.model.manifest_bytes)
            return
        body = self.model.files.get(path.removeprefix(f"/weights/{self.model.digest}/files/"))
        asked = _RANGE.search(request)
        if body is None or asked is None:
            await _send(writer, "404 Not Found", b"")
            return
        span = Span(path.rpartition("/")[2], int(asked[1]), int(asked[2]) + 1)
        self.spans.append(span)
        await self._play(self.tricks.popleft() if self.tricks else self.habit, span, body, writer)

    async def _play(self, trick: str, span: Span, body: bytes, writer: asyncio.StreamWriter) -> None:
        part, start = body[span.start : span.stop], span.start
        match trick:
            case "whole":
                await _send(writer, "200 OK", body)
            case "missing":
                await _send(writer, "404 Not Found", b"")
            case "error":
                await _send(writer, "500 Internal Server Error", b"")
            case "other-range":
                await _send(writer, "206 Partial Content", part, _range(start + 1, part, body))
            case "corrupt":
                await _send(writer, "206 Partial Content", bytes([part[0] ^ 1]) + part[1:], _range(start, part, body))
            case "less":
                await _send(writer, "206 Partial Content", part[:-HALF], _range(start, part[:-HALF], body))
            case "endless":
                await _endless(writer, part, _range(start, part, body))
            case "drips":
                await self._break_off(trick, span, body, MIN_CHUNK_BYTES + 100, writer)
            case "short" | "reset" | "stalls":
                await self._break_off(trick, span, body, len(part) - HALF, writer)
            case _:
                await _send(writer, "206 Partial Content", part, _range(start, part, body))

    async def _break_off(
        self, trick: str, span: Span, body: bytes, num_bytes: int, writer: asyncio.StreamWriter
    ) -> None:
        part = body[span.start : span.stop]
        writer.write(_head("206 Partial Content", len(part), _range(span.start, part, body)) + part[:num_bytes])
        await writer.drain()
        if trick == "stalls":
            self.stalled.set()
            await asyncio.sleep(600)
        if trick == "reset":
            writer.transport.abort()
        writer.close()


async def _request(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


async def _send(writer: asyncio.StreamWriter, status: str, body: bytes, extra: str = "") -> None:
    writer.write(_head(status, len(body), extra) + body)
    await writer.drain()


async def _endless(writer: asyncio.StreamWriter, body: bytes, extra: str) -> None:
    """More than was asked for, without end, as long as somebody reads."""
    writer.write(f"HTTP/1.1 206 Partial Content\r\n{extra}Connection: close\r\n\r\n".encode() + body)
    while True:
        writer.write(bytes(2**20))
        await writer.drain()


def _head(status: str, num_bytes: int, extra: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {num_bytes}\r\n{extra}\r\n".encode()


def _range(start: int, part: bytes, body: bytes) -> str:
    return f"Content-Range: bytes {start}-{start + len(part) - 1}/{len(body)}\r\n"


@asynccontextmanager
async def running_mirror() -> AsyncIterator[Mirror]:
    mirror, tasks = Mirror(), set[asyncio.Task[None]]()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(mirror.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    mirror.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield mirror
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
