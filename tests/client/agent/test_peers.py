"""Direct links between two nodes on real sockets, and the relay when they fail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from client.agent import peers as peers_module
from client.agent.peers import PeerAddress, PeerCallbacks, Peers, is_local_network, is_loopback, may_take_neighbours
from client.agent.probe_guard import SENDER_BYTES
from client.config import Direct
from protocol import PROTOCOL_VERSION
from protocol.env import Certificate, Connection
from protocol.errors import CloseCode
from protocol.frames import MAX_PROBE_BYTES, probe_frame
from protocol.messages import PeerHello, decode_peer_message, encode_message
from protocol.values import Hop, NodeId
from shell import AsyncioEnv
from shell.tls import make_certificate
from tests.client.agent.samples import LEFT, NODE, RIGHT
from tests.client.agent.waiting import until

HOST = "127.0.0.1"


@dataclass
class Side:
    """One node's peers, and what they reported."""

    peers: Peers = field(init=False)
    frames: list[tuple[bytes, NodeId]] = field(default_factory=list)
    relayed: list[bytes] = field(default_factory=list)
    lost: list[NodeId] = field(default_factory=list)
    refused: list[bytes] = field(default_factory=list)
    at: PeerAddress = PeerAddress()

    @property
    def address(self) -> str:
        assert self.at.url is not None
        return self.at.url

    @classmethod
    async def make(cls, node_id: NodeId, env: AsyncioEnv, certificate: Certificate | None = None) -> Side:
        side = cls()
        callbacks = PeerCallbacks(
            lambda frame, sender: side.frames.append((frame, sender)),
            side.relayed.append,
            side.lost.append,
            side.refused.append,
        )
        side.peers = Peers(node_id, env, callbacks)
        await side.peers.listen(HOST, certificate)
        side.at = side.peers.address_at(HOST)
        return side

    def hop(self, node_id: NodeId = RIGHT, ticket: str | None = None) -> Hop:
        """The way to this side."""
        return Hop(node_id, 1, self.address, self.peers.ticket if ticket is None else ticket, self.at.fingerprint)

    async def greeted(self, **changes: object) -> ClientConnection:
        """A link to this side by hand."""
        fields = {"protocol_version": PROTOCOL_VERSION, "node_id": LEFT, "ticket": self.peers.ticket, **changes}
        connection = await connect(self.address)
        await connection.send(encode_message(PeerHello(**fields)))  # type: ignore[arg-type]
        return connection


@pytest.fixture
async def there(env: AsyncioEnv) -> AsyncIterator[Side]:
    side = await Side.make(RIGHT, env)
    yield side
    await side.peers.close()


@pytest.fixture
async def here(there: Side, env: AsyncioEnv) -> AsyncIterator[Side]:
    """The side that sends; it closes first, so that its links do not break."""
    side = await Side.make(NODE, env)
    yield side
    await side.peers.close()


def ignore(*what: object) -> None:
    """Nothing is asserted about it."""


async def close_code(connection: ClientConnection) -> int | None:
    with pytest.raises(ConnectionClosed):
        async with asyncio.timeout(20):
            await connection.recv()
    return connection.close_code


# ---------------------------------------------------------------- sending


async def test_frames_arrive_directly_in_order_with_their_sender(here: Side, there: Side) -> None:
    frames = [number.to_bytes(4, "big") * 1000 for number in range(100)]
    for frame in frames:
        here.peers.send(there.hop(), frame)
    await until(lambda: len(there.frames) == 100)
    assert there.frames == [(frame, NODE) for frame in frames]
    assert here.relayed == []


async def test_a_neighbour_without_an_address_is_reached_by_the_relay(here: Side) -> None:
    here.peers.send(Hop(RIGHT, 1), b"frame")
    assert here.relayed == [b"frame"]


@pytest.mark.expected_logs("using the relay")
async def test_a_neighbour_that_cannot_be_reached_is_reached_by_the_relay_in_order(here: Side, there: Side) -> None:
    await there.peers.close()
    frames = [bytes([number]) for number in range(1, 20)]
    for frame in frames[:10]:
        here.peers.send(there.hop(), frame)
    await until(lambda: here.relayed)
    for frame in frames[10:]:
        here.peers.send(there.hop(), frame)
    assert here.relayed == frames
    assert here.lost == []


@pytest.mark.expected_logs("using the relay")
async def test_an_address_that_is_none_is_reached_by_the_relay(here: Side) -> None:
    here.peers.send(Hop(RIGHT, 1, "ws://127.0.0.1:99999"), b"frame")
    await until(lambda: here.relayed == [b"frame"])


@pytest.mark.parametrize(
    "address", ["nonsense", "ws://192.168.1.7:4000", "ws://pool.example:4000", "wss://192.168.1.7:4000", "ws://[::1"]
)
async def test_rows_never_leave_this_machine_without_a_certificate_to_expect(here: Side, address: str) -> None:
    here.peers.send(Hop(RIGHT, 1, address, "ticket-1"), b"frame")
    assert here.relayed == [b"frame"]


async def test_a_node_that_takes_no_direct_links_makes_none(there: Side, env: AsyncioEnv) -> None:
    relayed: list[bytes] = []
    peers = Peers(NODE, env, PeerCallbacks(ignore, relayed.append, ignore, ignore))
    assert peers.address_at(HOST) == PeerAddress()
    peers.send(there.hop(), b"frame")
    assert relayed == [b"frame"]
    await peers.close()


async def test_frames_arrive_over_tls_at_the_neighbour_whose_certificate_the_pool_named(
    here: Side, env: AsyncioEnv
) -> None:
    certificate = make_certificate([HOST])
    there = await Side.make(RIGHT, env, certificate)
    assert there.address.startswith(f"wss://{HOST}:")
    assert there.at.fingerprint == certificate.fingerprint
    here.peers.send(there.hop(), b"frame")
    await until(lambda: there.frames == [(b"frame", NODE)])
    await here.peers.close()
    await there.peers.close()


@pytest.mark.expected_logs("using the relay")
async def test_another_certificate_than_the_pool_named_gets_no_frame_and_no_ticket(here: Side, env: AsyncioEnv) -> None:
    there = await Side.make(RIGHT, env, make_certificate([HOST]))
    here.peers.send(Hop(RIGHT, 1, there.address, there.peers.ticket, "0" * 64), b"frame")
    await until(lambda: here.relayed == [b"frame"])
    assert there.frames == []
    await there.peers.close()


@pytest.mark.expected_logs("using the relay")
async def test_the_direct_link_is_tried_again_after_a_while(
    here: Side, there: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_module, "DIRECT_AGAIN_AFTER_S", 0.05)
    here.peers.send(Hop(RIGHT, 1, "ws://127.0.0.1:1"), b"first")
    await until(lambda: here.relayed == [b"first"])
    await asyncio.sleep(0.06)
    here.peers.send(there.hop(), b"second")
    await until(lambda: there.frames == [(b"second", NODE)])


@pytest.mark.expected_logs("broke")
async def test_a_broken_link_is_reported_and_the_relay_takes_over(here: Side, there: Side) -> None:
    here.peers.send(there.hop(), b"first")
    await until(lambda: there.frames)
    await there.peers.close()
    await until(lambda: here.lost == [RIGHT])
    here.peers.send(there.hop(), b"second")
    assert here.relayed == [b"second"]


@pytest.mark.expected_logs("broke")
async def test_a_link_that_the_neighbour_refuses_counts_as_broken(here: Side, there: Side) -> None:
    here.peers.send(there.hop(ticket="wrong-ticket"), b"frame")
    await until(lambda: here.lost == [RIGHT])
    assert there.frames == []


async def test_a_neighbour_that_came_back_elsewhere_is_reached_there(here: Side, there: Side, env: AsyncioEnv) -> None:
    here.peers.send(there.hop(), b"first")
    await until(lambda: there.frames)
    elsewhere = await Side.make(RIGHT, env)
    here.peers.send(elsewhere.hop(), b"second")
    await until(lambda: elsewhere.frames == [(b"second", NODE)])
    await here.peers.close()
    await elsewhere.peers.close()
    assert here.lost == []


async def test_closing_ends_every_link_and_is_quick(here: Side, there: Side) -> None:
    here.peers.send(there.hop(), b"frame")
    await until(lambda: there.frames)
    async with asyncio.timeout(10):
        await here.peers.close()
    assert here.lost == []


async def test_closing_does_not_wait_for_a_neighbour_that_is_stuck(here: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "CLOSE_TIMEOUT_S", 0.1)
    reader, writer = await asyncio.open_connection(HOST, int(here.address.rpartition(":")[2]))
    handshake = (
        "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    writer.write(handshake.encode())
    await reader.readuntil(b"\r\n\r\n")
    async with asyncio.timeout(5):
        await here.peers.close()
    writer.close()


async def test_rows_beyond_the_bound_are_refused_and_those_before_arrive(
    here: Side, there: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_module, "MAX_WAITING_BYTES", 1000)
    frames = [bytes([number]) * 400 for number in range(1, 5)]
    for frame in frames:
        here.peers.send(there.hop(), frame)
    assert here.refused == frames[2:]
    await until(lambda: len(there.frames) == 2)
    here.peers.send(there.hop(), b"later")
    await until(lambda: len(there.frames) == 3)
    assert here.lost == []


@pytest.mark.expected_logs("broke")
async def test_a_neighbour_that_takes_nothing_counts_as_lost(
    here: Side, env: AsyncioEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shell.lanes.STUCK_S", 0.2)
    monkeypatch.setattr("shell.lanes.SLOWEST_BYTES_PER_S", 2**40)

    async def greet_and_sleep(connection: Connection) -> None:
        await asyncio.sleep(600)

    listener = await env.network.listen(HOST, 0, greet_and_sleep, 2**30)
    for _ in range(80):  # more than the library's and the kernel's buffers take
        here.peers.send(Hop(RIGHT, 1, f"ws://{HOST}:{listener.port}", "ticket-1"), bytes(2**20))
    await until(lambda: here.lost == [RIGHT])
    await here.peers.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            await listener.close()


# ---------------------------------------------------------------- taking


async def test_a_link_with_the_right_ticket_is_taken(here: Side) -> None:
    async with await here.greeted() as connection:
        await connection.send(b"frame")
        await until(lambda: here.frames == [(b"frame", LEFT)])


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"ticket": "wrong-ticket"}, CloseCode.BAD_TICKET),
        ({"ticket": "short"}, CloseCode.BAD_MESSAGE),
        ({"ticket": ""}, CloseCode.BAD_MESSAGE),
        ({"protocol_version": 99}, CloseCode.PROTOCOL_VERSION),
        ({"protocol_version": 0}, CloseCode.PROTOCOL_VERSION),
    ],
)
async def test_a_wrong_hello_is_refused_with_its_code(here: Side, changes: dict[str, object], code: int) -> None:
    connection = await here.greeted(**changes)
    await connection.send(b"frame")
    assert await close_code(connection) == code
    assert here.frames == []


@pytest.mark.parametrize(
    "hello",
    [
        "",
        "hello",
        "{}",
        b"\xff\x00",
        '{"type":"peerhello"}',
        '{"type":"peerhello","protocol_version":1,"node_id":"x","ticket":""}',
        '{"type":"peerhello","' + "é" * 500 + '":1}',
        "[" * 100_000,
    ],
)
async def test_a_hello_that_cannot_be_read_is_refused(here: Side, hello: str | bytes) -> None:
    connection = await connect(here.address)
    await connection.send(hello)
    assert await close_code(connection) == CloseCode.BAD_MESSAGE


async def test_a_link_without_a_hello_is_closed(here: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "HELLO_TIMEOUT_S", 0.1)
    connection = await connect(here.address)
    assert await close_code(connection) == CloseCode.BAD_MESSAGE
    assert connection.close_reason == "no hello"


async def test_text_on_a_data_link_closes_it(here: Side) -> None:
    connection = await here.greeted()
    await connection.send("text")
    assert await close_code(connection) == CloseCode.BAD_MESSAGE


async def test_probes_are_thrown_away_and_rows_beside_them_arrive(here: Side) -> None:
    async with await here.greeted() as connection:
        for _ in range(3):
            await connection.send(probe_frame(bytes(MAX_PROBE_BYTES)))
        await connection.send(b"frame")
        await until(lambda: here.frames == [(b"frame", LEFT)])


async def test_a_sender_of_too_many_probes_is_hung_up_on(here: Side) -> None:
    connection = await here.greeted()
    for _ in range(SENDER_BYTES // MAX_PROBE_BYTES + 1):
        await connection.send(probe_frame(bytes(MAX_PROBE_BYTES)))
    assert await close_code(connection) == CloseCode.TOO_MANY_FAULTS
    assert here.frames == []


@pytest.mark.parametrize("damage", [lambda probe: probe[:-1], lambda probe: probe + b"x", lambda probe: probe[:8]])
async def test_what_only_claims_to_be_a_probe_is_none(here: Side, damage: Callable[[bytes], bytes]) -> None:
    connection = await here.greeted()
    await connection.send(damage(probe_frame(bytes(64))))
    assert await close_code(connection) == CloseCode.TOO_MANY_FAULTS
    assert here.frames == []


async def test_a_neighbour_of_the_version_before_is_spoken_to_in_its_own(env: AsyncioEnv) -> None:
    heard: list[str | bytes] = []

    async def listen(connection: Connection) -> None:
        heard.append(await connection.recv())

    listener = await env.network.listen(HOST, 0, listen, 2**20)
    here = await Side.make(NODE, env)
    connection = await here.peers.connect(Hop(RIGHT, 1, f"ws://{HOST}:{listener.port}", "ticket-1"))
    await until(lambda: heard)
    assert decode_peer_message(heard[0]) == PeerHello(PROTOCOL_VERSION - 1, NODE, "ticket-1")
    await connection.close()
    await here.peers.close()
    await listener.close()


async def test_rows_wait_until_the_neighbour_has_taken_them(here: Side, there: Side) -> None:
    assert not here.peers.has_waiting
    here.peers.send(there.hop(), bytes(2**20))
    assert here.peers.has_waiting
    await until(lambda: there.frames)
    await until(lambda: not here.peers.has_waiting)


async def test_a_frame_that_is_too_large_closes_the_link(here: Side) -> None:
    connection = await here.greeted()
    await connection.send(bytes(peers_module.MAX_FRAME_BYTES + 1))
    assert await close_code(connection) == 1009
    assert here.frames == []


async def test_a_neighbour_that_leaves_early_is_no_trouble(here: Side) -> None:
    connection = await connect(here.address)
    await connection.close()
    async with await here.greeted() as connection:
        await connection.send(b"frame")
        await until(lambda: here.frames)


# ---------------------------------------------------------------- who may connect


def test_an_address_for_neighbours_names_scheme_host_and_port(here: Side) -> None:
    port = here.address.rpartition(":")[2]
    assert here.peers.address_at("fd00::7") == PeerAddress(f"ws://[fd00::7]:{port}")


@pytest.mark.parametrize(
    ("url", "auto"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost:8000", True),
        ("http://[::1]:8000", True),
        ("https://192.168.1.2:8000", True),
        ("https://10.0.0.2", True),
        ("https://172.31.0.1", True),
        ("https://169.254.1.1", True),
        ("https://[fd00::1]:8000", True),
        ("https://[fe80::1]:8000", True),
        ("https://172.32.0.1", False),
        ("https://203.0.113.1", False),
        ("https://[2001:db8::1]", False),
        ("https://pool.example", False),
        ("https://pool.local", False),
    ],
)
def test_by_itself_a_node_takes_neighbours_on_this_machine_and_the_local_network(url: str, auto: bool) -> None:
    assert may_take_neighbours(Direct.AUTO, url) is auto
    assert may_take_neighbours(Direct.ON, url)
    assert not may_take_neighbours(Direct.OFF, url)


def test_what_is_no_address_is_neither_this_machine_nor_the_local_network() -> None:
    assert not is_loopback("ws://[::1")
    assert not is_loopback("nonsense")
    assert not is_local_network("10.example")
