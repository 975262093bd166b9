"""Websockets by the websockets library, downloads by httpx."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed as WebsocketClosed
from websockets.exceptions import WebSocketException

from protocol.env import Connection, ConnectionClosed, NetworkError

MAX_WAITING_MESSAGES = 64
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30
PIECE_BYTES = 2**20


class WebConnection:
    """A websocket of the websockets library behind protocol.env.Connection."""

    def __init__(self, websocket: ClientConnection | ServerConnection) -> None:
        self._websocket = websocket

    async def send(self, data: str | bytes) -> None:
        try:
            await self._websocket.send(data)
        except WebsocketClosed as error:
            raise _closed(error) from None

    async def recv(self) -> str | bytes:
        try:
            return await self._websocket.recv()
        except WebsocketClosed as error:
            raise _closed(error) from None

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self._websocket.close(code, reason)


class WebListener:
    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def port(self) -> int:
        return int(next(iter(self._server.sockets)).getsockname()[1])

    async def close(self) -> None:
        self._server.close()
        await self._server.wait_closed()


class WebNetwork:
    """The network. permessage-deflate is off: tensors do not compress, and it costs memory per connection."""

    def __init__(self) -> None:
        self._client: httpx.AsyncClient | None = None

    async def connect(self, url: str, max_size_bytes: int) -> Connection:
        try:
            websocket = await connect(
                url,
                compression=None,
                max_size=max_size_bytes,
                max_queue=MAX_WAITING_MESSAGES,
                open_timeout=CONNECT_TIMEOUT_S,
                close_timeout=2,
            )
        except (OSError, WebSocketException, TimeoutError, ValueError) as error:  # ValueError: a port like 99999
            raise NetworkError(f"cannot connect to {url}: {error}") from None
        return WebConnection(websocket)

    async def listen(
        self, host: str, port: int, handler: Callable[[Connection], Awaitable[None]], max_size_bytes: int
    ) -> WebListener:
        async def serve_one(websocket: ServerConnection) -> None:
            await handler(WebConnection(websocket))

        try:
            server = await serve(
                serve_one, host, port, compression=None, max_size=max_size_bytes, max_queue=MAX_WAITING_MESSAGES
            )
        except OSError as error:
            raise NetworkError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
        return WebListener(server)

    async def get(self, url: str, start: int | None = None, stop: int | None = None) -> AsyncIterator[bytes]:
        headers = {"Accept-Encoding": "identity"}
        if start is not None and stop is not None:
            headers["Range"] = f"bytes={start}-{stop - 1}"
        try:
            _ = urlsplit(url).port  # raises ValueError where httpx would fail in one of its tasks
            async with self._http().stream("GET", url, headers=headers) as response:
                _check_status(response, url, start)
                async for piece in response.aiter_bytes(PIECE_BYTES):
                    yield piece
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise NetworkError(f"download of {url} failed: {error or type(error).__name__}") from None

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
            self._client = httpx.AsyncClient(timeout=timeout, follow_redirects=False)
        return self._client


def _check_status(response: httpx.Response, url: str, start: int | None) -> None:
    """A server that ignores Range answers 200 with the whole body; taking that for the range would be wrong bytes."""
    expected = 200 if start is None else 206
    if response.status_code != expected:
        raise NetworkError(f"download of {url} failed: status {response.status_code}, expected {expected}")
    if start is not None and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise NetworkError(f"download of {url} failed: the server sent another range than asked for")


def _closed(error: WebsocketClosed) -> ConnectionClosed:
    frame = error.rcvd or error.sent
    return ConnectionClosed(frame.code, frame.reason) if frame else ConnectionClosed(1006, "connection lost")
