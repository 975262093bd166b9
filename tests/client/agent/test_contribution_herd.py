"""Three hundred agents whose coordinator vanishes and comes back: all in virtual time, with the real two sides."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from client.agent.contribution import MAX_RECONNECT_S, Contribution
from client.agent.identity import Identity
from client.config import Direct, NodeConfig
from client.ipc import IPC_VERSION, WorkerReady, pack_message
from coordinator.core import LEASE_S, PoolCore
from coordinator.gate import OpenGate
from coordinator.hub import Hub
from coordinator.token_log import MemoryTokenLog
from protocol.env import Connection, ConnectionClosed
from protocol.join_link import JoinLink
from protocol.values import NodeId
from tests.client.agent.samples import CPU
from tests.fakes.virtual_env import VirtualWorld
from tests.fakes.virtual_loop import VirtualLoop, on_virtual_time
from tests.fakes.virtual_processes import VirtualChannel

NUM_NODES = 300
POOL = "10.0.0.1:8000"
QUIET = ("not connected to the pool",)


async def worker(argv: Sequence[str], environment: Mapping[str, str], channel: VirtualChannel) -> int:
    """Ready, and then nothing to do."""
    await channel.write(pack_message(WorkerReady(IPC_VERSION, "none", "A processor", 10**9)))
    with contextlib.suppress(ConnectionClosed):
        while True:
            await channel.read()
    return 0


class Coordinator:
    """A coordinator that can be killed and started again; `joined_s` is when nodes joined this one."""

    def __init__(self, world: VirtualWorld) -> None:
        self._world = world
        self.hub: Hub
        self.joined_s: list[float] = []
        self.lost: list[NodeId] = []
        self._running: asyncio.Task[None]

    async def start(self) -> None:
        env = self._world.env("coordinator")
        core = NotingCore(self)
        self.joined_s, self.lost = [], []
        self.hub = Hub(core, MemoryTokenLog(), env, "pool", OpenGate())
        self._running = asyncio.create_task(self.hub.run())
        await env.network.listen("10.0.0.1", 8000, self._serve, 2**20)

    async def _serve(self, connection: Connection) -> None:
        await self.hub.serve_node(connection, POOL)

    async def kill(self) -> None:
        del self._world.network.listeners["10.0.0.1", 8000]
        self._world.network.cut("coordinator")
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    @property
    def num_nodes(self) -> int:
        return len(self.hub.core.nodes)


class NotingCore(PoolCore):
    def __init__(self, coordinator: Coordinator) -> None:
        super().__init__()
        self._coordinator = coordinator

    def node_joined(self, hello: object, now_s: float) -> list:  # type: ignore[override,type-arg]
        self._coordinator.joined_s.append(now_s)
        return super().node_joined(hello, now_s)  # type: ignore[arg-type]

    def node_lost(self, node_id: NodeId, now_s: float) -> list:  # type: ignore[type-arg]
        if node_id in self.nodes:
            self._coordinator.lost.append(node_id)
        return super().node_lost(node_id, now_s)


def contribution(world: VirtualWorld, number: int) -> Contribution:
    config = NodeConfig(
        join=JoinLink(f"http://{POOL}"), data_dir=Path(f"/data/{number}"), name=f"node {number}", direct=Direct.OFF
    )
    identity = Identity.of(hashlib.sha256(str(number).encode()).digest())
    return Contribution(config, identity, (CPU,), world.env(f"node {number}", worker), lambda: None)


async def until(coordinator: Coordinator, num_nodes: int) -> None:
    async with asyncio.timeout(600):
        while coordinator.num_nodes < num_nodes:
            await asyncio.sleep(0.05)


def busiest(times_s: Sequence[float], window_s: float) -> int:
    """The most joins within a window."""
    return max(sum(start <= at < start + window_s for at in times_s) for start in times_s)


@pytest.mark.allowed_logs(*QUIET)
@pytest.mark.parametrize("away_s", [0.0, 120.0])
@on_virtual_time
async def test_all_nodes_are_back_soon_after_the_coordinator_and_not_all_at_once(away_s: float) -> None:
    world = VirtualWorld(3, (0.01, 0.08))
    coordinator = Coordinator(world)
    await coordinator.start()
    tasks = [asyncio.create_task(contribution(world, number).run()) for number in range(NUM_NODES)]
    await until(coordinator, NUM_NODES)
    await coordinator.kill()
    await asyncio.sleep(away_s)
    await coordinator.start()
    begin_s = asyncio.get_running_loop().time()
    await until(coordinator, NUM_NODES)
    assert asyncio.get_running_loop().time() - begin_s < MAX_RECONNECT_S + 5
    spread_s = min(max(away_s, 0.75), MAX_RECONNECT_S)
    assert busiest(coordinator.joined_s, spread_s / 10) < NUM_NODES / 3, "full jitter spreads them over the back-off"
    await asyncio.sleep(20)
    assert (coordinator.num_nodes, coordinator.lost) == (NUM_NODES, [])
    await end(tasks)


@pytest.mark.allowed_logs(*QUIET)
@on_virtual_time
async def test_a_coordinator_that_stands_still_with_all_nodes_connected_loses_none() -> None:
    """As when its machine is overloaded: nothing is read meanwhile, and time goes on for everybody."""
    world = VirtualWorld(4, (0.01, 0.08))
    coordinator = Coordinator(world)
    await coordinator.start()
    tasks = [asyncio.create_task(contribution(world, number).run()) for number in range(NUM_NODES)]
    await until(coordinator, NUM_NODES)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    for stall_s in (3.0, LEASE_S + 1):
        await asyncio.sleep(7.3)
        loop._jumping.now_s += stall_s
    await asyncio.sleep(15)
    assert (coordinator.num_nodes, coordinator.lost) == (NUM_NODES, [])
    await end(tasks)


async def end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
