"""A network in memory: websockets with latency and back-pressure, HTTP bodies from a dict, faults on request."""

from __future__ import annotations

import asyncio
import functools
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from protocol.env import Access, Certificate, Connection, ConnectionClosed, NetworkError, WrongCertificate

WINDOW = 64
"""Messages under way to a side that does not read: then send() waits, as it does on a real socket."""
PIECE_BYTES = 2**16
TOO_BIG = 1009
LOST = 1006
GOING_AWAY = 1001

Handler = Callable[[Connection], Awaitable[None]]


@dataclass(eq=False)
class _End:
    """One end of a connection: what has arrived, and how it was closed."""

    host: str
    max_size_bytes: int
    inbox: deque[str | bytes] = field(default_factory=deque)
    closed: ConnectionClosed | None = None
    under_way: deque[Callable[[], None]] = field(default_factory=deque)
    num_under_way: int = 0
    arrive_at_s: float = 0.0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def hang_up(self, code: int, reason: str) -> None:
        if self.closed is None:
            self.closed = ConnectionClosed(code, reason)
            self.notify()


class VirtualConnection:
    """Implements protocol.env.OutgoingConnection. Messages arrive in order, each after the network's latency."""

    def __init__(self, network: VirtualNetwork, ours: _End, theirs: _End) -> None:
        self._network = network
        self.ours = ours
        self.theirs = theirs

    async def send(self, data: str | bytes) -> None:
        while self.ours.closed is None and len(self.theirs.inbox) + self.theirs.num_under_way >= WINDOW:
            await self.theirs.changed.wait()
        self._raise_if_closed()
        self.theirs.num_under_way += 1
        self._network.deliver(self.ours, self.theirs, lambda: self._arrive(data))

    async def recv(self) -> str | bytes:
        while not self.ours.inbox:
            self._raise_if_closed()
            await self.ours.changed.wait()
        data = self.ours.inbox.popleft()
        self.ours.notify()
        return data

    async def ping(self) -> float:
        """Both ways take their latency, each behind what was sent before."""
        self._raise_if_closed()
        begin_s = asyncio.get_running_loop().time()
        ponged = asyncio.Event()
        pong = functools.partial(
            self._network.deliver, self.theirs, self.ours, lambda: (ponged.set(), self.ours.notify())
        )
        self._network.deliver(self.ours, self.theirs, pong)
        while not ponged.is_set():
            self._raise_if_closed()
            await self.ours.changed.wait()
        return asyncio.get_running_loop().time() - begin_s

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """The close frame travels behind what was sent before; our side is closed at once."""
        if len(reason.encode()) > 123:
            raise ValueError("RFC 6455, 5.5: a close reason has at most 123 bytes")
        if self.ours.closed is None:
            self.ours.hang_up(code, reason)
            self._network.deliver(self.ours, self.theirs, lambda: self._arrive_close(code, reason))

    def drop(self) -> None:
        """The connection breaks without a word: what is under way is lost."""
        self.ours.hang_up(LOST, "connection lost")
        self.theirs.hang_up(LOST, "connection lost")

    def _arrive(self, data: str | bytes) -> None:
        self.theirs.num_under_way -= 1
        if self.theirs.closed is not None:
            return
        if len(data) > self.theirs.max_size_bytes:
            self.theirs.hang_up(TOO_BIG, "message too big")
            self.ours.hang_up(TOO_BIG, "message too big")
            return
        self.theirs.inbox.append(data)
        self.theirs.notify()

    def _arrive_close(self, code: int, reason: str) -> None:
        self.theirs.hang_up(code, reason)
        self.ours.notify()

    def _raise_if_closed(self) -> None:
        if self.ours.closed is not None:
            raise ConnectionClosed(self.ours.closed.code, self.ours.closed.reason)


@dataclass(frozen=True, slots=True)
class Listening:
    """Who listens at an address. `pin` is the fingerprint of its certificate, "" for one without TLS."""

    handler: Handler
    max_size_bytes: int
    host: str
    pin: str
    accepted: list[VirtualConnection] = field(default_factory=list)


class VirtualListener:
    def __init__(self, network: VirtualNetwork, host: str, port: int) -> None:
        self._network = network
        self._host = host
        self.port = port

    async def close(self) -> None:
        """As a websocket server does, it closes what it has accepted, too."""
        listening = self._network.listeners.pop((self._host, self.port), None)
        for connection in listening.accepted if listening is not None else ():
            await connection.close(GOING_AWAY, "going away")


class VirtualNetwork:
    """What all hosts of one world share. `host(name)` is the protocol.env.Network of one of them."""

    def __init__(self, rng: random.Random, latency_s: tuple[float, float] = (0.0, 0.0)) -> None:
        self.rng = rng
        self.latency_s = latency_s
        self.pages: dict[str, bytes] = {}
        self.listeners: dict[tuple[str, int], Listening] = {}
        self.required_tokens: dict[str, str] = {}
        """Pages that need a bearer token, by the beginning of their URL."""
        self.connections: list[VirtualConnection] = []
        self._held: dict[str, list[Callable[[], None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def host(self, name: str) -> VirtualHost:
        return VirtualHost(self, name)

    def hold(self, host: str) -> None:
        """From now on nothing reaches or leaves this host, though its connections stay open (a hung machine)."""
        self._held.setdefault(host, [])

    def release(self, host: str) -> None:
        """What was held back arrives now."""
        for arrive in self._held.pop(host, []):
            arrive()

    def cut(self, host: str) -> None:
        """Break every connection of this host."""
        for connection in self.connections:
            if host in (connection.ours.host, connection.theirs.host):
                connection.drop()

    def deliver(self, sender: _End, receiver: _End, arrive: Callable[[], None]) -> None:
        """Call `arrive` after the latency, never before what was sent earlier on the same connection.

        Timers of the same moment fire in any order, so each takes whatever is first in line."""
        loop = asyncio.get_running_loop()
        receiver.arrive_at_s = max(receiver.arrive_at_s, loop.time() + self.rng.uniform(*self.latency_s))
        receiver.under_way.append(arrive)
        loop.call_at(receiver.arrive_at_s, self._arrive_unless_held, sender.host, receiver)

    def _arrive_unless_held(self, sender: str, receiver: _End) -> None:
        arrive = receiver.under_way.popleft()
        held = self._held.get(sender, self._held.get(receiver.host))
        if held is None:
            arrive()
        else:
            held.append(arrive)

    def open(self, host: str, port: int, caller: str, max_size_bytes: int) -> VirtualConnection | None:
        """A connection to whoever listens there; its handler runs as a task."""
        if (host, port) not in self.listeners:
            return None
        listening = self.listeners[host, port]
        ours, theirs = _End(caller, max_size_bytes), _End(listening.host, listening.max_size_bytes)
        accepted = VirtualConnection(self, theirs, ours)
        listening.accepted.append(accepted)
        task = asyncio.get_running_loop().create_task(_serve(listening.handler, accepted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections.append(VirtualConnection(self, ours, theirs))
        return self.connections[-1]


class VirtualHost:
    """Implements protocol.env.Network for one host of a VirtualNetwork."""

    def __init__(self, network: VirtualNetwork, name: str) -> None:
        self._network = network
        self._name = name

    async def connect(
        self, url: str, max_size_bytes: int, access: Access = Access(), *, is_mixed: bool = False
    ) -> VirtualConnection:
        parts = urlsplit(url)
        is_secure = parts.scheme == "wss"
        await asyncio.sleep(self._network.rng.uniform(*self._network.latency_s))
        host, port = parts.hostname or "", parts.port or (443 if is_secure else 80)
        listening = self._network.listeners.get((host, port))
        if listening is not None:
            _check_certificate(url, is_secure, listening.pin, access.pin)
        connection = self._network.open(host, port, self._name, max_size_bytes)
        if connection is None:
            raise NetworkError(f"cannot connect to {url}: nobody listens")
        return connection

    async def listen(
        self, host: str, port: int, handler: Handler, max_size_bytes: int, certificate: Certificate | None = None
    ) -> VirtualListener:
        """Listening on 0.0.0.0 takes connections to this host's own name."""
        host = self._name if host == "0.0.0.0" else host
        taken = {number for address, number in self._network.listeners if address == host}
        if port in taken:
            raise NetworkError(f"cannot listen on {host} port {port}: Address already in use")
        port = port or next(number for number in range(40_000, 65_536) if number not in taken)
        pin = certificate.fingerprint if certificate is not None else ""
        self._network.listeners[host, port] = Listening(handler, max_size_bytes, self._name, pin)
        return VirtualListener(self._network, host, port)

    async def get(
        self, url: str, start: int | None = None, stop: int | None = None, access: Access = Access()
    ) -> AsyncIterator[bytes]:
        await asyncio.sleep(self._network.rng.uniform(*self._network.latency_s))
        needed = next((token for prefix, token in self._network.required_tokens.items() if url.startswith(prefix)), "")
        if needed and access.token != needed:
            raise NetworkError(f"download of {url} failed: status 401, expected 200")
        page = self._network.pages.get(url)
        if page is None:
            raise NetworkError(f"download of {url} failed: status 404, expected 200")
        body = page if start is None or stop is None else page[start:stop]
        for offset in range(0, len(body), PIECE_BYTES):
            yield body[offset : offset + PIECE_BYTES]

    async def local_host_towards(self, url: str) -> str:
        """A virtual host's address is its name."""
        return self._name


def _check_certificate(url: str, is_secure: bool, shown: str, expected: str) -> None:
    """As TLS does: no authority knows a virtual listener's certificate, so only its own pin opens it."""
    if is_secure != bool(shown):
        raise NetworkError(f"cannot connect to {url}: one side speaks TLS and the other does not")
    if shown != expected:
        raise WrongCertificate(f"the server at {url} shows another certificate than the one that is expected there")


async def _serve(handler: Handler, connection: VirtualConnection) -> None:
    """As a server does: the connection closes when its handler returns."""
    try:
        await handler(connection)
    finally:
        await connection.close()
