"""A pool's websocket, in this process and on a real port: it remembers what nodes say, and says what a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from protocol import PROTOCOL_VERSION
from protocol.env import Certificate
from protocol.join_link import JoinLink
from protocol.messages import (
    Challenge,
    CoordinatorMessage,
    Heartbeat,
    Hello,
    NodeMessage,
    Welcome,
    decode_node_message,
    encode_message,
)
from shell.tls import server_context
from tests.client.agent.waiting import LIMIT_S

M = TypeVar("M")
NONCE = "5" * 64
WEIGHTS_TOKEN = "weights-token"
CHALLENGE = Challenge((PROTOCOL_VERSION,), NONCE, "The pool")
WELCOME = Welcome(PROTOCOL_VERSION, "The pool", 30.0, WEIGHTS_TOKEN)
Greeter = Callable[[ServerConnection, Hello], Awaitable[None]]


async def welcome(connection: ServerConnection, hello: Hello) -> None:
    await connection.send(encode_message(WELCOME))


class PoolServer:
    """What nodes said is in `messages` and `frames`, in order; `challenge` is said first (None: nothing), `greet` is
    the answer to a hello. With a certificate it speaks TLS."""

    def __init__(self, certificate: Certificate | None = None) -> None:
        self.challenge: CoordinatorMessage | str | bytes | None = CHALLENGE
        self.greet: Greeter = welcome
        self.certificate = certificate
        self.messages: asyncio.Queue[NodeMessage] = asyncio.Queue()
        self.frames: asyncio.Queue[bytes] = asyncio.Queue()
        self.connections: list[ServerConnection] = []
        self.closed: list[tuple[int | None, str | None]] = []
        self.port = 0
        self._server: Server | None = None

    @property
    def url(self) -> str:
        return f"{'http' if self.certificate is None else 'https'}://127.0.0.1:{self.port}"

    @property
    def link(self) -> JoinLink:
        return JoinLink(self.url, self.certificate.fingerprint if self.certificate is not None else "")

    async def start(self) -> None:
        """Listen; on the port of the last time, if there was one."""
        context = server_context(self.certificate) if self.certificate is not None else None
        self._server = await serve(self._serve, "127.0.0.1", self.port, compression=None, max_size=2**25, ssl=context)
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def crash(self) -> None:
        """Every connection is gone at once, without a close frame."""
        for connection in self.connections:
            connection.transport.abort()

    async def say(self, message: CoordinatorMessage | str | bytes) -> None:
        """To the node that came last."""
        await self.connections[-1].send(_encoded(message))

    async def hears(self, kind: type[M]) -> M:
        """The next message of that kind; what comes before it is passed over."""
        async with asyncio.timeout(LIMIT_S):
            while not isinstance(message := await self.messages.get(), kind):
                continue
        return message

    async def hears_next(self) -> NodeMessage:
        """The very next message but heartbeats."""
        async with asyncio.timeout(LIMIT_S):
            while isinstance(message := await self.messages.get(), Heartbeat):
                continue
        return message

    async def _serve(self, connection: ServerConnection) -> None:
        try:
            if self.challenge is not None:
                await connection.send(_encoded(self.challenge))
            await self._listen(connection)
        except ConnectionClosed:
            self.closed.append((connection.close_code, connection.close_reason))

    async def _listen(self, connection: ServerConnection) -> None:
        while True:
            data = await connection.recv()
            if isinstance(data, bytes):
                self.frames.put_nowait(data)
                continue
            message = decode_node_message(data)
            self.messages.put_nowait(message)
            if isinstance(message, Hello):
                self.connections.append(connection)
                await self.greet(connection, message)


def _encoded(message: CoordinatorMessage | str | bytes) -> str | bytes:
    return message if isinstance(message, str | bytes) else encode_message(message)


@asynccontextmanager
async def running_pool(certificate: Certificate | None = None) -> AsyncIterator[PoolServer]:
    pool = PoolServer(certificate)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.stop()
