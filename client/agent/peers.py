"""Direct links to neighbours: a listener for theirs, one outgoing link per neighbour, the relay when that fails.

Off this machine a direct link is TLS, and the neighbour's certificate is the one that the pool names with the hop. A
node that takes no direct links makes none either: its neighbours do not learn its address.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from client.agent.probe_guard import ProbeGuard
from client.config import Direct
from protocol import PEER_VERSION, SUPPORTED_VERSIONS
from protocol.env import (
    Access,
    Certificate,
    Connection,
    ConnectionClosed,
    Env,
    Listener,
    NetworkError,
    OutgoingConnection,
)
from protocol.errors import CloseCode, FrameError, MessageError
from protocol.frames import FrameLimits, decode_frame, is_probe
from protocol.messages import PeerHello, decode_peer_message, encode_message
from protocol.values import Hop, NodeId
from shell.lanes import Lanes, Stuck, send_or_give_up

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
MAX_WAITING_BYTES = 256 * 2**20
"""Rows that may wait for one neighbour. Prompts of 32,000 tokens, at 8 KiB a row."""
LINK_ENDED = ""
"""Wakes a sender that has nothing to send."""

LOOPBACK = "127.0.0.1"
EVERYWHERE = {False: "0.0.0.0", True: "::"}  # noqa: S104 - neighbours are elsewhere; TLS and a ticket guard the door
"""All addresses of the machine, of IPv4 or (True) of IPv6."""
_LOCAL_NETWORKS = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10")
)
"""RFC 1918, RFC 3927, RFC 4193, RFC 4291."""


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where neighbours reach a node directly, and its certificate there. No URL: only the relay reaches it."""

    url: str | None = None
    fingerprint: str | None = None


@dataclass(slots=True)
class _Outgoing:
    hop: Hop
    outbox: Lanes = field(default_factory=lambda: Lanes(0, MAX_WAITING_BYTES))
    is_sending: bool = False
    task: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class PeerCallbacks:
    """What peers report: frames in, frames for the relay, links lost with rows on them, frames there is no room for."""

    on_frame: Callable[[bytes, NodeId], None]
    relay: Callable[[bytes], None]
    on_lost: Callable[[NodeId], None]
    on_refused: Callable[[bytes], None]


class Peers:
    """This node's direct links."""

    def __init__(self, node_id: NodeId, env: Env, callbacks: PeerCallbacks) -> None:
        self.ticket = env.random.token_hex(16)
        self._node_id = node_id
        self._env = env
        self._callbacks = callbacks
        self._listener: Listener | None = None
        self._certificate: Certificate | None = None
        self._outgoing: dict[NodeId, _Outgoing] = {}
        self._relay_until_s: dict[NodeId, float] = {}
        self._probe_guard = ProbeGuard()

    @property
    def has_waiting(self) -> bool:
        """Whether rows wait here for a neighbour to take them."""
        return any(outgoing.is_sending or not outgoing.outbox.is_empty for outgoing in self._outgoing.values())

    @property
    def takes_neighbours(self) -> bool:
        return self._listener is not None

    async def listen(self, host: str, certificate: Certificate | None = None) -> None:
        """Take neighbours' links on a port of the system's choice, from where `host`, an address of this machine, can
        be reached; without a certificate from this machine only. Raises NetworkError."""
        bound = LOOPBACK if certificate is None else EVERYWHERE[":" in host]
        self._listener = await self._env.network.listen(bound, 0, self._serve, MAX_FRAME_BYTES, certificate)
        self._certificate = certificate

    def address_at(self, host: str) -> PeerAddress:
        """What neighbours reach this node by when its address is `host`; nothing when it does not listen."""
        if self._listener is None:
            return PeerAddress()
        authority = f"[{host}]:{self._listener.port}" if ":" in host else f"{host}:{self._listener.port}"
        if self._certificate is None:
            return PeerAddress(f"ws://{authority}")
        return PeerAddress(f"wss://{authority}", self._certificate.fingerprint)

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
        if not self.may_connect(hop) or self._is_relayed(node_id):
            self._callbacks.relay(frame)
            return
        outgoing = self._outgoing.get(node_id)
        if outgoing is None or outgoing.hop.address != hop.address:
            outgoing = self._open(node_id, hop)
        if not outgoing.outbox.put_bulk(frame):
            self._callbacks.on_refused(frame)

    def may_connect(self, hop: Hop) -> bool:
        """Whether rows would go there directly.

        Without TLS rows and ticket would be readable on the way: that is for this machine's own addresses only."""
        if hop.address is None or self._listener is None:
            return False
        return hop.fingerprint is not None or is_loopback(hop.address)

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
            connection = await self.connect(outgoing.hop)
        except (NetworkError, ConnectionClosed) as error:
            log.warning("no direct link to node %s (%s), using the relay", node_id[:8], error)
            self._use_relay(node_id, outgoing)
            return
        watcher = asyncio.create_task(_until_closed(connection, outgoing.outbox))
        try:
            await _send_all(connection, outgoing)
        except (ConnectionClosed, Stuck) as error:
            log.warning("direct link to node %s broke: %s", node_id[:8], error)
            self._use_relay(node_id, outgoing)
            self._callbacks.on_lost(node_id)
        finally:
            watcher.cancel()
            await connection.close()

    async def connect(self, hop: Hop) -> OutgoingConnection:
        """A new link to a neighbour that `may_connect` allows. Raises NetworkError or ConnectionClosed."""
        assert hop.address is not None, "only hops with an address are connected to"
        access = Access(pin=hop.fingerprint or "")
        connection = await self._env.network.connect(hop.address, MAX_FRAME_BYTES, access)
        await connection.send(encode_message(PeerHello(PEER_VERSION, self._node_id, hop.ticket or "")))
        return connection

    def _use_relay(self, node_id: NodeId, outgoing: _Outgoing) -> None:
        if self._outgoing.get(node_id) is outgoing:
            del self._outgoing[node_id]
        self._relay_until_s[node_id] = self._env.clock.monotonic() + DIRECT_AGAIN_AFTER_S
        for frame in outgoing.outbox.take_bulk():
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
                if not is_probe(data):
                    self._callbacks.on_frame(data, sender)
                elif not self._takes_probe(data, sender):
                    await connection.close(CloseCode.TOO_MANY_FAULTS, "too many or too large probes")
                    return
        except ConnectionClosed:
            return  # the sender notices and tells the coordinator; there is nothing to undo here

    def _takes_probe(self, data: bytes, sender: NodeId) -> bool:
        """A probe is checked and thrown away."""
        try:
            decode_frame(data)
        except FrameError as error:
            log.info("a probe of node %s: %s", sender[:8], error)
            return False
        return self._probe_guard.takes(sender, len(data), self._env.clock.monotonic())

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
        if not hmac.compare_digest(hello.ticket, self.ticket):
            await connection.close(CloseCode.BAD_TICKET, "the ticket is not this node's")
            return None
        return NodeId(hello.node_id)


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine itself."""
    host = _host(url)
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def is_local_network(host: str) -> bool:
    """Whether it is an address of a private network; a name is not (it may lead anywhere)."""
    address = _address(host)
    return address is not None and any(address in network for network in _LOCAL_NETWORKS)


def may_take_neighbours(direct: Direct, pool_url: str) -> bool:
    """Whether this node may be reached by its neighbours without the coordinator, with that pool."""
    return {
        Direct.OFF: False,
        Direct.ON: True,
        Direct.AUTO: is_loopback(pool_url) or is_local_network(_host(pool_url)),
    }[direct]


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _reason(sentence: str) -> str:
    """As much of it as a close frame holds: it may quote what the other side sent."""
    return sentence.encode(errors="replace")[:MAX_REASON_BYTES].decode(errors="ignore")


async def _send_all(connection: Connection, outgoing: _Outgoing) -> None:
    """Send what comes; raises ConnectionClosed as soon as the link is gone, Stuck if the neighbour takes nothing."""
    while (frame := await outgoing.outbox.get()) != LINK_ENDED:
        outgoing.is_sending = True
        await send_or_give_up(connection.send, frame)
        outgoing.is_sending = False
    raise ConnectionClosed(1006, "link closed")


async def _until_closed(connection: Connection, outbox: Lanes) -> None:
    """Notice the end of a link even when there is nothing to send, and before what waits."""
    try:
        while True:
            await connection.recv()
    except ConnectionClosed:
        outbox.put_urgent(LINK_ENDED)
