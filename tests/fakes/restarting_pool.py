"""A pool on virtual time whose coordinator is killed and started again. The journal is a real file.

What a killed coordinator still held in memory is gone: nothing of it runs on, and nothing more comes into its journal.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import msgspec

from coordinator.answers import AnswerTimes
from coordinator.core import HEARTBEAT_S, PoolCore
from coordinator.gate import OpenGate
from coordinator.hub import Hub
from coordinator.journal import JOURNAL_NAME, Journal, JournalLog
from coordinator.sessions import Deliver, Order
from coordinator.token_log import Claim
from protocol.env import Connection, ConnectionClosed, NetworkError
from protocol.messages import Challenge, Heartbeat, Welcome, decode_coordinator_message, encode_message
from tests.fakes import pool_facts as facts
from tests.fakes.fake_node import FakeNode
from tests.fakes.virtual_env import VirtualWorld

URL = "ws://10.0.0.1:8000/node"
MAX_BYTES = 2**25
STEP_S = 0.05
"""How long a node takes for each thing that it says."""


class RestartingPool:
    """`hub` is the coordinator of the moment."""

    def __init__(
        self, folder: Path, nodes: Sequence[FakeNode], seed: int = 0, times: AnswerTimes = AnswerTimes()
    ) -> None:
        self.world = VirtualWorld(seed, (0.001, 0.01))
        self.env = self.world.env("coordinator")
        self.nodes = list(nodes)
        self.hub: Hub
        self._path = folder / JOURNAL_NAME
        self._times = times
        self._journal: Journal
        self._running: asyncio.Task[None] | None = None
        self._node_tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """A coordinator, with what the one before it left."""
        self._journal = Journal.open(self._path)
        log = JournalLog(self._journal, self.env)
        self.hub = Hub(PoolCore(), log, self.env, "test pool", OpenGate(), times=self._times)
        self.hub.add_model(facts.model())
        self.hub.restore(self._journal.take_kept())
        await self.env.network.listen("10.0.0.1", 8000, self.hub.serve_node, MAX_BYTES)
        self._running = asyncio.create_task(self.hub.run())

    async def kill(self) -> None:
        """Without a word, and without a last write."""
        assert self._running is not None
        self.world.network.listeners.clear()
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        self._journal.close()
        self.world.network.cut("coordinator")

    def join(self) -> None:
        """All nodes come, and come back whenever they lose the coordinator."""
        for node in self.nodes:
            self._node_tasks.append(asyncio.create_task(self._stay(node)))

    def stop_node(self, number: int) -> None:
        """This node never comes back."""
        index = [node.node_id for node in self.nodes].index(facts.node_id(number))
        self._node_tasks[index].cancel()

    async def until_ready(self) -> None:
        async with asyncio.timeout(600):
            while not self.hub.core.scheduler.is_ready(facts.DIGEST):
                await asyncio.sleep(0.05)

    async def close(self) -> None:
        for task in self._node_tasks:
            task.cancel()
        await asyncio.gather(*self._node_tasks, return_exceptions=True)
        await self.kill()

    async def _stay(self, node: FakeNode) -> None:
        host = self.world.env(node.hello.name)
        while True:
            with contextlib.suppress(NetworkError, ConnectionClosed):
                connection = await host.network.connect(URL, MAX_BYTES)
                async with asyncio.TaskGroup() as tasks:
                    with contextlib.suppress(ConnectionClosed):
                        await self._serve(node, connection, tasks)
            node.legs.clear()  # as an agent does: what runs here is nobody's any more
            await asyncio.sleep(host.random.uniform(0.25, 2.0))

    async def _serve(self, node: FakeNode, connection: Connection, tasks: asyncio.TaskGroup) -> None:
        challenge = decode_coordinator_message(await connection.recv())
        assert isinstance(challenge, Challenge)
        hello = msgspec.structs.replace(node.hello, held=tuple(node.held.values()))
        await connection.send(encode_message(facts.signed(hello, challenge.nonce)))
        assert isinstance(decode_coordinator_message(await connection.recv()), Welcome)
        beating = tasks.create_task(_beat(node, connection))
        try:
            while True:
                data = await connection.recv()
                said = node.hear(data if isinstance(data, bytes) else decode_coordinator_message(data))
                for answer in said:
                    await asyncio.sleep(STEP_S)
                    await connection.send(answer if isinstance(answer, bytes) else encode_message(answer))
        finally:
            beating.cancel()


async def _beat(node: FakeNode, connection: Connection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await connection.send(encode_message(Heartbeat(len(node.legs), node.num_tokens, 0)))


@asynccontextmanager
async def restarting_pool(
    folder: Path, *nodes: FakeNode, seed: int = 0, times: AnswerTimes = AnswerTimes()
) -> AsyncIterator[RestartingPool]:
    """It runs, and its nodes are ready."""
    pool = RestartingPool(folder, nodes, seed, times)
    await pool.start()
    pool.join()
    try:
        await pool.until_ready()
        yield pool
        pool.hub.core.validate()
    finally:
        await pool.close()


class Follower:
    """Somebody who reads an answer, over restarts too. `tokens` is what has been seen."""

    def __init__(self, pool: RestartingPool, order: Order) -> None:
        self.tokens: list[int] = []
        self.is_complete = False
        self._pool = pool
        self._order = order
        self._claim = Claim(answer_id=f"answer {order.session_id}", is_resumable=True)
        self._task: asyncio.Task[None] | None = None

    def ask(self) -> None:
        self._follow(self._pool.hub.generate(self._order, self._claim))

    def come_back(self) -> bool:
        """Read on; False if there is nothing to read."""
        answer = self._pool.hub.answers.find(self._claim.answer_id, lambda _: True)
        if answer is not None:
            self._follow(self._pool.hub.read(answer))
        return answer is not None

    async def leave(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def done(self) -> list[int]:
        assert self._task is not None
        await self._task
        return self.tokens

    def _follow(self, items: object) -> None:
        self._task = asyncio.create_task(self._read(items))

    async def _read(self, items: object) -> None:
        async with aclosing(items) as stream:  # type: ignore[type-var]
            async for item in stream:  # type: ignore[attr-defined]
                if isinstance(item, Deliver):
                    self._see(item)

    def _see(self, item: Deliver) -> None:
        begin = item.position - len(self._order.prompt)
        assert begin <= len(self.tokens), "tokens are missing"
        again = self.tokens[begin : begin + len(item.tokens)]
        assert list(item.tokens[: len(again)]) == again, "what was seen has changed"
        self.tokens += item.tokens[len(again) :]
        self.is_complete = item.finish_reason is not None
