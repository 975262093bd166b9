"""Calls an ASGI application in this event loop: streams chunk by chunk, disconnects when the test wants it to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Scope

JSON = {"content-type": "application/json"}


@dataclass
class Reply:
    """A response, as far as it has come."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str, str | None]:
        """Status, code and param of an error object."""
        fault = self.json()["error"]
        assert set(fault) == {"message", "type", "param", "code"}
        assert fault["message"]
        return self.status, fault["code"], fault["param"]


class Exchange:
    """One request and its response."""

    def __init__(self, app: ASGIApp, scope: Scope, pieces: Iterable[bytes], gone_after: int | None) -> None:
        self.reply = Reply()
        self._pieces = list(pieces)
        self._gone_after = gone_after
        self._num_read = 0
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._started = asyncio.Event()
        self.reads = asyncio.Event()
        """Cleared: the client takes nothing, and sending to it waits."""
        self.reads.set()
        self.delay_s = 0.0
        """What the client takes for each piece of the body."""
        self._gone = asyncio.Event()
        self._task = asyncio.ensure_future(app(scope, self._receive, self._send))
        self._task.add_done_callback(self._ended)

    async def started(self) -> Reply:
        """Until status and headers are there."""
        waits = [asyncio.ensure_future(self._started.wait()), self._task]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        waits[0].cancel()
        return self.reply

    async def chunks(self) -> AsyncIterator[bytes]:
        while (chunk := await self._chunks.get()) is not None:
            yield chunk

    async def finished(self) -> Reply:
        """The whole response. What the application raised is raised here."""
        await self._task
        return self.reply

    async def disconnect(self) -> None:
        """The client goes away; returns when the application has noticed."""
        self._gone.set()
        await asyncio.wait({self._task}, timeout=60)
        assert self._task.done(), "the application went on for a client that had left"

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._chunks.put_nowait(None)

    async def _receive(self) -> Message:
        if self._gone_after is not None and self._num_read >= self._gone_after:
            return {"type": "http.disconnect"}
        if self._num_read < len(self._pieces):
            self._num_read += 1
            return {
                "type": "http.request",
                "body": self._pieces[self._num_read - 1],
                "more_body": self._num_read < len(self._pieces),
            }
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.reply.status = message["status"]
            self.reply.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
            self._started.set()
        elif body := message.get("body", b""):
            await self.reads.wait()
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            self.reply.body += body
            self._chunks.put_nowait(body)


class AsgiClient:
    """A client of one application, at this address. `base_url` gives scheme and Host header."""

    def __init__(self, app: ASGIApp, base_url: str = "http://127.0.0.1:8000", address: str = "127.0.0.1") -> None:
        self._app = app
        self.base_url = base_url
        self.address = address

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> Reply:
        return await self.request("GET", path, headers=headers)

    async def post(self, path: str, data: object, headers: Mapping[str, str] | None = None) -> Reply:
        return await self.request("POST", path, json.dumps(data).encode(), JSON | dict(headers or {}))

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Reply:
        async with self.exchange(method, path, [body], headers) as exchange:
            return await exchange.finished()

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        path: str,
        pieces: Iterable[bytes] = (b"",),
        headers: Mapping[str, str] | None = None,
        gone_after: int | None = None,
    ) -> AsyncIterator[Exchange]:
        """A request under way. `gone_after`: the client leaves after that many pieces of its body."""
        exchange = Exchange(self._app, self._scope(method, path, headers or {}), pieces, gone_after)
        try:
            yield exchange
        finally:
            if not exchange._task.done():
                await exchange.disconnect()

    def _scope(self, method: str, path: str, headers: Mapping[str, str]) -> Scope:
        """As uvicorn makes it for HTTP/1.1 (its ASGI spec version included, which decides how disconnects are seen)."""
        plain, _, query = path.partition("?")
        scheme, _, host = self.base_url.partition("://")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": scheme,
            "path": plain,
            "raw_path": plain.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [
                (name.lower().encode(), value.encode("latin-1"))
                for name, value in ({"host": host} | dict(headers)).items()
            ],
            "client": (self.address, 50_000),
            "server": ("127.0.0.1", 8000),
        }
