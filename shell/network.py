"""Websockets by the websockets library, downloads by httpx. Neither follows a redirect: a token goes to its pool only.

What has a pin is reached directly, never through a proxy of the system's settings: it is on the volunteer's own
network, or has an address of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed as WebsocketClosed
from websockets.exceptions import InvalidMessage, InvalidStatus, WebSocketException
from websockets.protocol import State

from protocol.env import (
    Access,
    Certificate,
    Connection,
    ConnectionClosed,
    NetworkError,
    NotAWebsocket,
    WrongCertificate,
)
from shell.tls import CERTIFICATE_NAME, pinned_context, public_context, server_context, speaks_tls
from shell.unsent import limit_unsent

MAX_WAITING_MESSAGES = 64
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30
PIECE_BYTES = 2**20
PASSING_STATUSES = frozenset({408, 425, 429})
"""Answers of a server, below 500, that another try may change: timeout, too early, too many requests (RFC 9110)."""
DEFAULT_PORTS = {"ws": 80, "http": 80, "wss": 443, "https": 443}


class WebConnection:
    """A websocket of the websockets library behind protocol.env.OutgoingConnection."""

    def __init__(self, websocket: ClientConnection | ServerConnection) -> None:
        self._websocket = websocket

    async def send(self, data: str | bytes) -> None:
        with self._closes():
            await self._websocket.send(data)

    async def recv(self) -> str | bytes:
        try:
            return await self._websocket.recv()
        except WebsocketClosed as error:
            raise _closed(error) from None

    async def ping(self) -> float:
        with self._closes():
            return await (await self._websocket.ping())

    async def close(self, code: int = 1000, reason: str = "") -> None:
        with contextlib.suppress(ConnectionClosed), self._closes():
            await self._websocket.close(code, reason)

    @contextlib.contextmanager
    def _closes(self) -> Iterator[None]:
        """Raises ConnectionClosed for what the library raises once the connection has ended.

        That may be an AttributeError: it aborts the transport then, and asyncio's fails at that if it had been closed
        with data left to be sent (Python 3.11, `_SelectorTransport._force_close` behind `_call_connection_lost`)."""
        try:
            yield
        except WebsocketClosed as error:
            raise _closed(error) from None
        except AttributeError:
            if self._websocket.state is not State.CLOSED:
                raise
            code, reason = self._websocket.close_code, self._websocket.close_reason
            raise ConnectionClosed(code or 1006, reason or "connection lost") from None


class WebListener:
    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def port(self) -> int:
        return int(next(iter(self._server.sockets)).getsockname()[1])

    async def close(self) -> None:
        self._server.close()
        await self._server.wait_closed()


class _ConnectOnce(connect):
    """The library's `connect`, without following redirects."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


@dataclass(frozen=True, slots=True)
class _Trust:
    """How one server's certificate is checked; no context: there is no TLS."""

    context: ssl.SSLContext | None = None
    pin: str = ""


class WebNetwork:
    """The network. permessage-deflate is off: tensors do not compress, and it costs memory per connection."""

    def __init__(self) -> None:
        self._clients: dict[str, httpx.AsyncClient] = {}
        self._public: ssl.SSLContext | None = None

    async def connect(
        self, url: str, max_size_bytes: int, access: Access = Access(), *, is_mixed: bool = False
    ) -> WebConnection:
        try:
            trust = await self._trust(urlsplit(url), access.pin)
            websocket = await _ConnectOnce(
                url,
                compression=None,
                max_size=max_size_bytes,
                max_queue=MAX_WAITING_MESSAGES,
                open_timeout=CONNECT_TIMEOUT_S,
                close_timeout=2,
                additional_headers=_bearer(access.token),
                **_tls_arguments(trust),
            )
        except ssl.SSLCertVerificationError as error:
            raise _wrong_certificate(url, error) from None
        except InvalidStatus as error:
            raise _refusal(url, error.response.status_code) from None
        except InvalidMessage as error:
            raise await _no_http(url, error) from None
        except (OSError, WebSocketException, TimeoutError, ValueError) as error:  # ValueError: a port like 99999
            raise NetworkError(f"cannot connect to {url}: {error}") from None
        if is_mixed:
            limit_unsent(websocket.transport)
        return WebConnection(websocket)

    async def listen(
        self,
        host: str,
        port: int,
        handler: Callable[[Connection], Awaitable[None]],
        max_size_bytes: int,
        certificate: Certificate | None = None,
    ) -> WebListener:
        async def serve_one(websocket: ServerConnection) -> None:
            await handler(WebConnection(websocket))

        context = await asyncio.to_thread(server_context, certificate) if certificate is not None else None
        try:
            server = await serve(
                serve_one,
                host,
                port,
                compression=None,
                max_size=max_size_bytes,
                max_queue=MAX_WAITING_MESSAGES,
                ssl=context,
            )
        except OSError as error:
            raise NetworkError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
        return WebListener(server)

    async def get(
        self, url: str, start: int | None = None, stop: int | None = None, access: Access = Access()
    ) -> AsyncIterator[bytes]:
        headers = {"Accept-Encoding": "identity", **_bearer(access.token)}
        if start is not None and stop is not None:
            headers["Range"] = f"bytes={start}-{stop - 1}"
        try:
            parts = urlsplit(url)
            _ = parts.port  # raises ValueError where httpx would fail in one of its tasks
            client = self._client(await self._trust(parts, access.pin))
            name = {"sni_hostname": CERTIFICATE_NAME} if access.pin else {}
            async with client.stream("GET", url, headers=headers, extensions=name) as response:
                _check_status(response, url, start)
                async for piece in response.aiter_bytes(PIECE_BYTES):
                    yield piece
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            if (refused := _certificate_error(error)) is not None:
                raise _wrong_certificate(url, refused) from None
            raise NetworkError(f"download of {url} failed: {error or type(error).__name__}") from None

    async def local_host_towards(self, url: str) -> str:
        """Connecting a UDP socket sends nothing: it asks the system's routing table."""
        try:
            parts = urlsplit(url)
            port = parts.port or DEFAULT_PORTS.get(parts.scheme, 80)
            found = await asyncio.get_running_loop().getaddrinfo(parts.hostname or "", port, type=socket.SOCK_DGRAM)
            family, kind, _, _, address = found[0]
            with socket.socket(family, kind) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise NetworkError(f"no way from this machine to {url}: {reason}") from None

    async def close(self) -> None:
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()

    async def _trust(self, parts: SplitResult, pin: str) -> _Trust:
        """Raises ValueError for a pin on a connection without TLS: it could not be checked."""
        if parts.scheme not in ("wss", "https"):
            if pin:
                raise ValueError(f"a certificate is expected, which a {parts.scheme} address has not")
            return _Trust()
        if pin:
            return _Trust(await pinned_context(parts.hostname or "", parts.port or 443, pin), pin)
        if self._public is None:
            self._public = await asyncio.to_thread(public_context)  # reads some hundred certificates
        return _Trust(self._public)

    def _client(self, trust: _Trust) -> httpx.AsyncClient:
        """One per pin, and one for everything without: a connection that trusts one server serves no other's URL."""
        if trust.pin not in self._clients:
            self._clients[trust.pin] = httpx.AsyncClient(
                timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
                follow_redirects=False,
                verify=trust.context or public_context(),
                trust_env=not trust.pin,
            )
        return self._clients[trust.pin]


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _tls_arguments(trust: _Trust) -> dict[str, Any]:
    if trust.context is None:
        return {}
    return {"ssl": trust.context, **({"server_hostname": CERTIFICATE_NAME, "proxy": None} if trust.pin else {})}


def _certificate_error(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """httpx wraps what httpcore wrapped of what the system said; behind that may be another attempt's error."""
    for _ in range(3):
        if error is None or isinstance(error, ssl.SSLCertVerificationError):
            return error
        error = error.__cause__ or error.__context__
    return None


async def _no_http(url: str, error: InvalidMessage) -> NetworkError:
    """What a server with TLS says to a plain connection is no HTTP: then the address lacks what to expect there."""
    parts = urlsplit(url)
    if parts.scheme == "ws" and await speaks_tls(parts.hostname or "", parts.port or DEFAULT_PORTS["ws"]):
        return WrongCertificate(f"cannot connect to {url}: the server takes secure connections only")
    return NetworkError(f"cannot connect to {url}: {error}")


def _refusal(url: str, status: int) -> NetworkError:
    kind = NetworkError if status >= 500 or status in PASSING_STATUSES else NotAWebsocket
    return kind(f"cannot connect to {url}: the server answers with status {status}")


def _wrong_certificate(url: str, error: ssl.SSLCertVerificationError) -> WrongCertificate:
    return WrongCertificate(f"the certificate of {url} is refused: {error.verify_message}")


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
