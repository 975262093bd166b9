"""The machines of the pool: their clocks, and volunteers' nodes with the real agent on them."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

from client.agent import contribution as contribution_module
from client.agent.contribution import Contribution
from client.agent.identity import Identity
from client.config import Direct, NodeConfig
from client.errors import JoinError
from protocol.join_link import JoinLink
from protocol.values import DeviceSpec, NodeId
from tests.fakes import pool_facts as facts
from tests.fakes.virtual_env import VirtualClock, VirtualEnv
from tests.fakes.virtual_processes import VirtualChannel
from tests.simulation.door import WatchedWorkers
from tests.simulation.history import History
from tests.simulation.network import SimNetwork
from tests.simulation.worker import KILLED, Traits, Worker

POOL_URL = "http://127.0.0.1:8000"
"""Everybody is on one loopback, so that neighbours need no certificates for each other."""
AUDIENCE = "127.0.0.1:8000"


class SimClock(VirtualClock):
    """A clock that is wrong by an offset and goes wrong by a rate; a machine that is stopped sleeps on."""

    def __init__(self, offset_s: float = 0.0, rate: float = 1.0) -> None:
        self.offset_s = offset_s
        self.wall_offset_s = 0.0
        self.rate = rate
        self.stopped_until_s = 0.0

    def monotonic(self) -> float:
        return self.offset_s + super().monotonic() * self.rate

    def wall(self) -> float:
        return super().wall() + self.wall_offset_s

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s / self.rate)
        while (rest_s := self.stopped_until_s - super().monotonic()) > 0:
            await asyncio.sleep(rest_s)


@dataclass(frozen=True)
class NodePlan:
    """What a node is before anything happens to it."""

    number: int
    devices: tuple[DeviceSpec, ...]
    layer_s: float = 0.01
    num_kv_tokens: int = 320
    max_batch: int = 6
    direct: bool = True
    can_truncate: bool = True
    has_prefix_cache: bool = True
    clock_offset_s: float = 0.0
    clock_rate: float = 1.0

    @property
    def host(self) -> str:
        return f"node {self.number}"


@dataclass
class SimNode:
    """One volunteer's machine. `is_up`: its agent runs (it need not be connected)."""

    plan: NodePlan
    network: SimNetwork
    history: History
    seed: str
    traits: Traits = field(init=False)
    env: VirtualEnv = field(init=False)
    workers: dict[str, Worker] = field(default_factory=dict)
    contribution: Contribution | None = None
    is_turned_away: bool = False
    _task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        plan = self.plan
        self.traits = Traits(plan.layer_s, plan.num_kv_tokens, plan.max_batch, plan.can_truncate, plan.has_prefix_cache)
        self.env = VirtualEnv(self.network, plan.host, random.Random(f"{self.seed} {plan.host}"), self._work)
        self.clock = SimClock(plan.clock_offset_s, plan.clock_rate)
        self.env.clock = self.clock
        self.env.processes.cpu_s = lambda: 0.0 if self.traits.is_hung else None
        self._identity = Identity.of(facts.private_key(plan.number))
        self._config = NodeConfig(
            JoinLink(POOL_URL), Path("/data"), plan.host, direct=Direct.ON if plan.direct else Direct.OFF
        )

    @property
    def host(self) -> str:
        return self.plan.host

    @property
    def node_id(self) -> NodeId:
        return self._identity.node_id

    @property
    def is_up(self) -> bool:
        return self._task is not None

    def start(self) -> None:
        assert self._task is None, "it runs already"
        self.history.note("%s: starts", self.host)
        self.is_turned_away = False
        self.traits = replace(self.traits, is_hung=False, slowness=1.0, nan=False, leaks_nan=False)
        self._task = asyncio.get_running_loop().create_task(self._contribute())

    async def hand_over(self, reason: str, within_s: float) -> None:
        """The pool is asked to move what runs here first."""
        if self.contribution is not None:
            self.contribution.good_bye = reason
            await self.contribution.hand_over(within_s)

    def stay(self) -> None:
        """It does not leave after all."""
        if self.contribution is not None:
            self.contribution.stay()

    async def stop(self, good_bye: str = "quit") -> None:
        """As the volunteer does it: the pool is told."""
        task, self._task = self._task, None
        if task is not None:
            if self.contribution is not None:
                self.contribution.good_bye = good_bye
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self.contribution = None

    async def crash(self, *, silently: bool) -> None:
        """Its process is killed, or (silently) its power fails: nobody hears of it."""
        if silently:
            self.network.power_off(self.host)
        else:
            self.network.cut(self.host)
        await self.stop()

    def restart(self) -> None:
        self.network.power_on(self.host)
        self.start()

    def kill_worker(self) -> None:
        for process in self.env.processes.started[-len(self.plan.devices) :]:
            process.kill()

    async def _contribute(self) -> None:
        with mock.patch.object(contribution_module, "Workers", WatchedWorkers):
            contribution = Contribution(
                self._config, self._identity, self.plan.devices, self.env, lambda: None, has_joined=True
            )
        assert isinstance(contribution._workers, WatchedWorkers), "as it was told"
        contribution._workers.watch(self.host, self.history)
        self.contribution = contribution
        try:
            await contribution.run()
        except JoinError as error:
            self.history.note("%s: turned away (%s)", self.host, error.code)
            self.is_turned_away = True

    async def _work(self, argv: object, environment: object, channel: VirtualChannel) -> int:
        assert isinstance(argv, list), "as Workers gives it"
        device = argv[argv.index("--device") + 1]
        worker = Worker(f"{self.host} {device}", self.traits, channel, self.history)
        self.workers[device] = worker
        try:
            return await worker.run()
        except asyncio.CancelledError:
            return KILLED
        finally:
            if self.workers.get(device) is worker:
                del self.workers[device]
