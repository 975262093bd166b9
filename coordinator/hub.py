"""The asyncio shell around the core: nodes' connections in, effects out, answers to whoever waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from coordinator.core import HEARTBEAT_S, TICK_S, DropNode, Effect, PoolCore, ToNode, ToUser
from coordinator.errors import GenerationFailed, PoolError, RequestRefused
from coordinator.scheduler.state import ModelFacts
from coordinator.sessions import Deliver, Failed, Order, Rerouted
from coordinator.token_log import TokenLog
from protocol import PROTOCOL_VERSION, SUPPORTED_VERSIONS
from protocol.env import Connection, ConnectionClosed, Env
from protocol.errors import CloseCode, MessageError, MessageFault
from protocol.messages import (
    CoordinatorMessage,
    Hello,
    Refused,
    Welcome,
    claimed_version,
    decode_node_message,
    encode_message,
)
from protocol.values import NodeId, SessionId

log = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 10.0
MAX_HELLO_BYTES = 64 * 2**10
"""Sixty-four devices fit several times over; nobody is known yet who says it."""
TRY_AGAIN_LATER = 1013
"""Websocket close code of the IANA registry."""
MAX_OUTBOX = 2048
"""Messages that may wait for one node. A node that falls further behind is dropped: its sessions move elsewhere."""


@dataclass(slots=True)
class _NodeLink:
    connection: Connection
    outbox: asyncio.Queue[str | bytes] = field(default_factory=lambda: asyncio.Queue(MAX_OUTBOX))


@dataclass(frozen=True, slots=True)
class _Ended:
    """Nobody waits for this session any more."""

    session_id: SessionId


Item = Deliver | Rerouted


class Hub:
    """Runs one PoolCore. Every call into the core and the sending of its effects is one step of the event loop."""

    def __init__(self, core: PoolCore, token_log: TokenLog, env: Env, pool_name: str) -> None:
        self.core = core
        self._token_log = token_log
        self._env = env
        self.pool_name = pool_name
        self._links: dict[NodeId, _NodeLink] = {}
        self._readers: dict[SessionId, asyncio.Queue[Item | Failed]] = {}
        self._news: asyncio.Queue[ToUser | _Ended] = asyncio.Queue()
        self._closing: set[asyncio.Task[None]] = set()

    def add_model(self, model: ModelFacts) -> None:
        """Serve this model too, from now on."""
        self._apply(self.core.add_model(model, self._now()))

    async def run(self) -> None:
        """Tick and deliver until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tick())
            tasks.create_task(self._deliver())

    # ------------------------------------------------------------ users

    async def generate(self, order: Order) -> AsyncGenerator[Item, None]:
        """Run one request. Raises RequestRefused or GenerationFailed; leaving the loop early cancels it."""
        reader: asyncio.Queue[Item | Failed] = asyncio.Queue()
        self._readers[order.session_id] = reader
        try:
            self._apply(self.core.request(order, self._now()))
            while True:
                item = await reader.get()
                if isinstance(item, Failed):
                    raise _error_of(item)
                yield item
                if isinstance(item, Deliver) and item.finish_reason is not None:
                    return
        finally:  # nothing is awaited here: whoever left may have been cancelled, and would be again
            del self._readers[order.session_id]
            self._apply(self.core.cancel(order.session_id, self._now()))
            self._news.put_nowait(_Ended(order.session_id))

    # ------------------------------------------------------------ nodes

    async def serve_node(self, connection: Connection) -> None:
        """One node's connection, from its hello to its end."""
        hello = await self._handshake(connection)
        if hello is None:
            return
        node_id, link = NodeId(hello.node_id), _NodeLink(connection)
        self._drop(node_id, "the node connected again", CloseCode.REPLACED)
        self._links[node_id] = link
        link.outbox.put_nowait(encode_message(Welcome(PROTOCOL_VERSION, self.pool_name, HEARTBEAT_S)))
        log.info("node %s (%s) joined with %d device(s)", node_id[:8], hello.name, len(hello.devices))
        self._apply(self.core.node_joined(hello, self._now()))
        writer = asyncio.create_task(_write(link))
        try:
            await self._read(node_id, link)
        except ConnectionClosed as error:
            log.info("node %s: %s", node_id[:8], error)
        except MessageError as error:
            log.warning("node %s: %s", node_id[:8], error)
            await _refuse(connection, CloseCode.BAD_MESSAGE, str(error))
        finally:
            writer.cancel()
            self._gone(node_id, link)

    async def _handshake(self, connection: Connection) -> Hello | None:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):  # wait_for can lose a cancellation on Python 3.11 (gh-86296)
                text = await connection.recv()
        except ConnectionClosed:
            return None
        except TimeoutError:  # a slow machine may try again, so this is no BAD_MESSAGE
            await connection.close(TRY_AGAIN_LATER, f"no hello within {HELLO_TIMEOUT_S:.0f} s")
            return None
        try:
            hello = _checked_hello(text)
        except MessageError as error:
            await _refuse(connection, *_handshake_fault(text, error))
            return None
        if hello.protocol_version not in SUPPORTED_VERSIONS:
            await _refuse(connection, CloseCode.PROTOCOL_VERSION, _version_sentence(hello.protocol_version))
            return None
        return hello

    async def _read(self, node_id: NodeId, link: _NodeLink) -> None:
        while self._links.get(node_id) is link:
            data = await link.connection.recv()
            if self._links.get(node_id) is not link:
                return
            if isinstance(data, bytes):
                self._apply(self.core.node_relayed(node_id, data, self._now()))
            else:
                self._apply(self.core.node_said(node_id, decode_node_message(data), self._now()))

    def _gone(self, node_id: NodeId, link: _NodeLink) -> None:
        if self._links.get(node_id) is link:
            del self._links[node_id]
            log.info("node %s left", node_id[:8])
            self._apply(self.core.node_lost(node_id, self._now()))

    # ------------------------------------------------------------ effects

    def _apply(self, effects: list[Effect]) -> None:
        """Carry effects out in order. What follows from losing a node on the way comes behind the rest: sent earlier,
        a session's close could overtake its open."""
        pending = deque(effects)
        while pending:
            match pending.popleft():
                case ToNode(node_id, data):
                    pending.extend(self._send(node_id, data))
                case ToUser() as news:
                    self._news.put_nowait(news)
                case DropNode(node_id, reason, code):
                    self._drop(node_id, reason, code)

    def _send(self, node_id: NodeId, data: CoordinatorMessage | bytes) -> list[Effect]:
        link = self._links.get(node_id)
        if link is None:
            return []
        try:
            link.outbox.put_nowait(data if isinstance(data, bytes) else encode_message(data))
        except asyncio.QueueFull:
            self._drop(node_id, "it does not take its messages", TRY_AGAIN_LATER)
            return self.core.node_lost(node_id, self._now())
        return []

    def _drop(self, node_id: NodeId, reason: str, code: int) -> None:
        link = self._links.pop(node_id, None)
        if link is not None:
            log.info("node %s dropped: %s", node_id[:8], reason)
            task = asyncio.create_task(link.connection.close(code, reason))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _tick(self) -> None:
        while True:
            await self._env.clock.sleep(TICK_S)
            self._apply(self.core.tick(self._now()))

    async def _deliver(self) -> None:
        """Commit whatever has gathered, all at once, and only then hand it to its readers."""
        while True:
            news = [await self._news.get()]
            while not self._news.empty():
                news.append(self._news.get_nowait())
            await self._token_log.commit(_entries(news))
            for piece in news:
                if isinstance(piece, _Ended):
                    await self._token_log.forget(piece.session_id)
                elif piece.session_id in self._readers:
                    self._readers[piece.session_id].put_nowait(piece.item)

    def _now(self) -> float:
        return self._env.clock.monotonic()


def _entries(news: list[ToUser | _Ended]) -> list[tuple[SessionId, int, tuple[int, ...]]]:
    """What of the news is for the token log."""
    items = [(piece.session_id, piece.item) for piece in news if isinstance(piece, ToUser)]
    return [(session_id, item.position, item.tokens) for session_id, item in items if isinstance(item, Deliver)]


async def _write(link: _NodeLink) -> None:
    with contextlib.suppress(ConnectionClosed):  # the reader sees the same and cleans up
        while True:
            await link.connection.send(await link.outbox.get())


async def _refuse(connection: Connection, code: CloseCode, sentence: str) -> None:
    with contextlib.suppress(ConnectionClosed):  # it left before it was told why
        await connection.send(encode_message(Refused(code.name.lower(), sentence[:400])))
        await connection.close(code, sentence[:120])


def _checked_hello(data: str | bytes) -> Hello:
    """The first message of a node. Raises MessageError."""
    if isinstance(data, bytes):
        raise MessageError(MessageFault.UNEXPECTED, "the first message must be a hello in text, not bytes")
    if len(data) > MAX_HELLO_BYTES:
        raise MessageError(MessageFault.TOO_LARGE, f"a hello of {len(data)} bytes, limit {MAX_HELLO_BYTES}")
    message = decode_node_message(data)
    if not isinstance(message, Hello):
        raise MessageError(MessageFault.UNEXPECTED, "the first message must be a hello")
    if len({spec.device_id for spec in message.devices}) < len(message.devices):
        raise MessageError(MessageFault.INVALID, "two devices have the same device_id - at `$.devices`")
    return message


def _handshake_fault(text: str | bytes, error: MessageError) -> tuple[CloseCode, str]:
    """A hello of another version may have other fields: then the version is the answer, not the field."""
    version = claimed_version(text)
    if version is not None and version not in SUPPORTED_VERSIONS:
        return CloseCode.PROTOCOL_VERSION, _version_sentence(version)
    return CloseCode.BAD_MESSAGE, str(error)


def _error_of(failed: Failed) -> PoolError:
    if failed.started:
        return GenerationFailed(failed.code, failed.message)
    return RequestRefused(failed.code, failed.message, failed.retry_after_s)


def _version_sentence(version: int) -> str:
    supported = ", ".join(str(v) for v in sorted(SUPPORTED_VERSIONS))
    return f"This pool speaks protocol version {supported}, the node speaks {version}; update the older one."
