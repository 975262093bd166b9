"""Direct links to neighbours: a listener for theirs, one outgoing link per neighbour, the relay when that fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from protocol import PROTOCOL_VERSION, SUPPORTED_VERSIONS
from protocol.env import Connection, ConnectionClosed, Env, Listener, NetworkError
from protocol.errors import CloseCode, MessageError
from protocol.frames import FrameLimits
from protocol.messages import PeerHello, decode_peer_message, encode_message
from protocol.values import Hop, NodeId

log = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0
MAX_REASON_BYTES = 120
"""RFC 6455, section 5.5: a control frame has at most 125 bytes, two of which are the code."""
DIRECT_AGAIN_AFTER_S = 30.0
"""After a direct link failed its neighbour is reached through the relay for this long."""
RELAY_QUIET_S = 2.0
"""Rows that went through the relay have arrived, or never will, after this long."""
MAX_FRAME_BYTES = FrameLimits().max_payload_bytes + 2**20


@dataclass(slots=True)
class _Outgoing:
    hop: Hop
    outbox: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    task: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class PeerCallbacks:
    """What peers report: frames in, frames for the relay, links lost with rows on them."""

    on_frame: Callable[[bytes, NodeId], None]
    relay: Callable[[bytes], None]
    on_lost: Callable[[NodeId], None]


class Peers:
    """This node's direct links."""

    def __init__(self, node_id: NodeId, env: Env, callbacks: PeerCallbacks) -> None:
        self.ticket = env.random.token_hex(16)
        self._node_id = node_id
        self._env = env
        self._callbacks = callbacks
        self._listener: Listener | None = None
        self._outgoing: dict[NodeId, _Outgoing] = {}
        self._relay_until_s: dict[NodeId, float] = {}

    async def listen(self, host: str) -> str:
        """Take neighbours' links on a port of the system's choice; returns this node's address."""
        self._listener = await self._env.network.listen(host, 0, self._serve, MAX_FRAME_BYTES)
        return f"ws://{host}:{self._listener.port}"

    async def close(self) -> None:
        for outgoing in self._outgoing.values():
            if outgoing.task is not None:
                outgoing.task.cancel()
        await asyncio.gather(*(o.task for o in self._outgoing.values() if o.task), return_exceptions=True)
        self._outgoing.clear()
        if self._listener is not None:
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._listener.close()
            except TimeoutError:
                log.info("a neighbour did not close its link in time")

    def send(self, hop: Hop, frame: bytes) -> None:
        """Send towards the neighbour, in order: directly when that works, else through the coordinator."""
        node_id = NodeId(hop.node_id)
        if hop.address is None or self._is_relayed(node_id):
            self._callbacks.relay(frame)
            return
        outgoing = self._outgoing.get(node_id)
        if outgoing is None or outgoing.hop.address != hop.address:
            outgoing = self._open(node_id, hop)
        outgoing.outbox.put_nowait(frame)

    def _is_relayed(self, node_id: NodeId) -> bool:
        """Whether the relay is still in use for this neighbour; if so it stays so until it has been quiet for a while:
        a direct row must not overtake one that is still on its way through the coordinator."""
        now_s, until_s = self._env.clock.monotonic(), self._relay_until_s.get(node_id, 0.0)
        if until_s > now_s:
            self._relay_until_s[node_id] = max(until_s, now_s + RELAY_QUIET_S)
        return until_s > now_s

    def _open(self, node_id: NodeId, hop: Hop) -> _Outgoing:
        old = self._outgoing.get(node_id)
        if old is not None and old.task is not None:
            old.task.cancel()
        outgoing = _Outgoing(hop)
        outgoing.task = asyncio.create_task(self._run(node_id, outgoing))
        self._outgoing[node_id] = outgoing
        return outgoing

    async def _run(self, node_id: NodeId, outgoing: _Outgoing) -> None:
        """Send until the link breaks. Never connected: the relay takes over. Broken later: rows may be lost too."""
        try:
            connection = await self._connect(outgoing.hop)
        except (NetworkError, ConnectionClosed) as error:
            log.warning("no direct link to node %s (%s), using the relay", node_id[:8], error)
            self._use_relay(node_id, outgoing)
            return
        watcher = asyncio.create_task(_until_closed(connection, outgoing.outbox))
        try:
            await _send_all(connection, outgoing.outbox)
        except ConnectionClosed as error:
            log.warning("direct link to node %s broke: %s", node_id[:8], error)
            self._use_relay(node_id, outgoing)
            self._callbacks.on_lost(node_id)
        finally:
            watcher.cancel()
            await connection.close()

    async def _connect(self, hop: Hop) -> Connection:
        assert hop.address is not None, "only hops with an address are connected to"
        connection = await self._env.network.connect(hop.address, MAX_FRAME_BYTES)
        await connection.send(encode_message(PeerHello(PROTOCOL_VERSION, self._node_id, hop.ticket or "")))
        return connection

    def _use_relay(self, node_id: NodeId, outgoing: _Outgoing) -> None:
        if self._outgoing.get(node_id) is outgoing:
            del self._outgoing[node_id]
        self._relay_until_s[node_id] = self._env.clock.monotonic() + DIRECT_AGAIN_AFTER_S
        while not outgoing.outbox.empty():
            if frame := outgoing.outbox.get_nowait():
                self._callbacks.relay(frame)

    async def _serve(self, connection: Connection) -> None:
        """A neighbour's link: its hello with our ticket, then frames."""
        try:
            sender = await self._greeted(connection)
            while sender is not None:
                data = await connection.recv()
                if isinstance(data, str):
                    await connection.close(CloseCode.BAD_MESSAGE, "only data frames here")
                    return
                self._callbacks.on_frame(data, sender)
        except ConnectionClosed:
            return  # the sender notices and tells the coordinator; there is nothing to undo here

    async def _greeted(self, connection: Connection) -> NodeId | None:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                hello = decode_peer_message(await connection.recv())
        except (MessageError, TimeoutError) as error:
            await connection.close(CloseCode.BAD_MESSAGE, _reason(str(error)) or "no hello")
            return None
        if hello.protocol_version not in SUPPORTED_VERSIONS:
            await connection.close(CloseCode.PROTOCOL_VERSION, f"version {hello.protocol_version} is not spoken here")
            return None
        if hello.ticket != self.ticket:
            await connection.close(CloseCode.BAD_TICKET, "the ticket is not this node's")
            return None
        return NodeId(hello.node_id)


def _reason(sentence: str) -> str:
    """As much of it as a close frame holds: it may quote what the other side sent."""
    return sentence.encode(errors="replace")[:MAX_REASON_BYTES].decode(errors="ignore")


async def _send_all(connection: Connection, outbox: asyncio.Queue[bytes]) -> None:
    """Send what comes; raises ConnectionClosed as soon as the link is gone."""
    while frame := await outbox.get():
        await connection.send(frame)
    raise ConnectionClosed(1006, "link closed")


async def _until_closed(connection: Connection, outbox: asyncio.Queue[bytes]) -> None:
    """Notice the end of a link even when there is nothing to send: an empty frame wakes the sender."""
    try:
        while True:
            await connection.recv()
    except ConnectionClosed:
        outbox.put_nowait(b"")
