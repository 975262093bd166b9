"""A hub on a virtual world, and fake nodes that connect to it over the virtual network."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from coordinator.core import HEARTBEAT_S, PoolCore
from coordinator.gate import NodeGate, OpenGate
from coordinator.hub import Hub
from coordinator.journal import Journal, JournalLog
from coordinator.scheduler.state import ModelFacts
from coordinator.sessions import Order
from coordinator.token_log import MemoryTokenLog, TokenLog
from protocol.env import Connection, ConnectionClosed
from protocol.messages import (
    Challenge,
    CoordinatorMessage,
    Heartbeat,
    Hello,
    NodeMessage,
    Refused,
    Welcome,
    decode_coordinator_message,
    encode_message,
)
from protocol.values import Sampling
from tests.fakes import pool_facts as facts
from tests.fakes.fake_node import FakeNode
from tests.fakes.virtual_env import VirtualWorld

URL = "ws://10.0.0.1:8000/node"
MAX_BYTES = 2**25


class HubDriver:
    """Everything a test needs to play nodes and users."""

    def __init__(
        self,
        world: VirtualWorld,
        token_log: TokenLog | None = None,
        gate: NodeGate | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.world = world
        env = world.env("coordinator")
        self.token_log = token_log or (JournalLog(journal, env) if journal is not None else MemoryTokenLog())
        self.hub = Hub(PoolCore(), self.token_log, world.env("coordinator"), "test pool", gate or OpenGate())
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self, host: str = "node") -> Connection:
        return await self.world.env(host).network.connect(URL, MAX_BYTES)

    async def challenged(self, host: str = "node") -> tuple[Connection, Challenge]:
        """A connection on which the coordinator has spoken and the node has not."""
        connection = await self.connect(host)
        challenge = await hear(connection)
        assert isinstance(challenge, Challenge)
        return connection, challenge

    async def greeted(self, hello: Hello, host: str = "node") -> Connection:
        """A connection on which the node has answered the challenge well."""
        connection, challenge = await self.challenged(host)
        await connection.send(encode_message(facts.signed(hello, challenge.nonce)))
        return connection

    async def welcomed(self, hello: Hello, host: str = "node") -> tuple[Connection, Welcome]:
        """A connection of a node that is in."""
        connection = await self.greeted(hello, host)
        welcome = await hear(connection)
        assert isinstance(welcome, Welcome)
        return connection, welcome

    async def join(self, node: FakeNode, host: str = "") -> Connection:
        """The node connects and plays its part until its connection ends."""
        connection, _ = await self.welcomed(node.hello, host or node.hello.name)
        self._start(_play(node, connection))
        self._start(_beat(node, connection))
        return connection

    async def until_ready(self) -> None:
        while not self.hub.core.scheduler.is_ready(facts.DIGEST):
            await asyncio.sleep(0.1)

    async def until(self, condition: object) -> None:
        """Until the callable says true; a condition that never comes ends in a timeout."""
        async with asyncio.timeout(600):
            while not condition():  # type: ignore[operator]
                await asyncio.sleep(0.01)

    def _start(self, work: object) -> None:
        task = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def running_hub(
    *nodes: FakeNode,
    seed: int = 0,
    latency_s: tuple[float, float] = (0.001, 0.01),
    model: ModelFacts | None = None,
    token_log: TokenLog | None = None,
    gate: NodeGate | None = None,
    journal: Journal | None = None,
) -> AsyncIterator[HubDriver]:
    """A hub that runs and listens, with these nodes ready to serve, and what is in the journal."""
    driver = HubDriver(VirtualWorld(seed, latency_s), token_log, gate, journal)
    driver.hub.add_model(model or facts.model())
    driver.hub.restore(journal.take_kept() if journal is not None else ())
    server = driver.world.env("coordinator").network
    await server.listen("10.0.0.1", 8000, driver.hub.serve_node, MAX_BYTES)
    running = asyncio.create_task(driver.hub.run())
    try:
        for node in nodes:
            await driver.join(node)
        if nodes:
            await driver.until_ready()
        yield driver
        assert not running.done(), "the hub's own tasks never end"
        driver.hub.core.validate()
    finally:
        await driver.close()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def order(number: int = 1, prompt: tuple[int, ...] = (5, 6, 7), num_tokens: int = 8) -> Order:
    return Order(facts.session_id(number), facts.DIGEST, prompt, num_tokens, Sampling(), (2,))


async def hear(connection: Connection) -> CoordinatorMessage | bytes:
    data = await connection.recv()
    return data if isinstance(data, bytes) else decode_coordinator_message(data)


async def refusal(connection: Connection) -> tuple[Refused, ConnectionClosed]:
    """What a connection that is refused is told, and how it is closed."""
    told = await hear(connection)
    assert isinstance(told, Refused)
    try:
        await connection.recv()
    except ConnectionClosed as closed:
        return told, closed
    raise AssertionError("the connection was not closed")


async def _play(node: FakeNode, connection: Connection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            for answer in node.hear(await hear(connection)):
                await say(connection, answer)


async def _beat(node: FakeNode, connection: Connection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if not node.silent:
                await say(connection, Heartbeat(len(node.legs), node.num_tokens, 0))


async def say(connection: Connection, data: NodeMessage | bytes) -> None:
    await connection.send(data if isinstance(data, bytes) else encode_message(data))
