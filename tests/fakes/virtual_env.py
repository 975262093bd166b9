"""protocol.env on virtual time: a world of hosts that share one network and one clock, all from one seed.

    world = VirtualWorld(seed=7)
    env = world.env("coordinator")          # an Env; another name is another machine, with a disk of its own

Use it inside `run_virtual` or under `on_virtual_time` (virtual_loop.py). It also runs on a real event loop, where
time is real: for tests of what needs threads or sockets.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TypeVar

from tests.fakes.virtual_disk import VirtualDisk
from tests.fakes.virtual_network import VirtualNetwork
from tests.fakes.virtual_processes import Program, VirtualProcesses

T = TypeVar("T")

WALL_AT_START_S = 1_800_000_000.0


class VirtualClock:
    """Implements protocol.env.Clock on the running loop's time."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return WALL_AT_START_S + self.monotonic()

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)


class SeededRandom:
    """Implements protocol.env.Random."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def token_hex(self, num_bytes: int) -> str:
        return self._rng.randbytes(num_bytes).hex()

    def below(self, limit: int) -> int:
        return self._rng.randrange(limit)

    def uniform(self, low: float, high: float) -> float:
        return self._rng.uniform(low, high)


class VirtualEnv:
    """Implements protocol.env.Env for one host."""

    def __init__(self, network: VirtualNetwork, host: str, rng: random.Random, program: Program | None) -> None:
        self.clock = VirtualClock()
        self.random = SeededRandom(rng)
        self.network = network.host(host)
        self.disk = VirtualDisk(rng)
        self.processes = VirtualProcesses(program)

    async def run_blocking(self, function: Callable[..., T], *args: object) -> T:
        """Inline: a blocking call takes no virtual time."""
        await asyncio.sleep(0)
        return function(*args)


class VirtualWorld:
    """Hosts and what lies between them. Everything random in it follows from `seed`."""

    def __init__(self, seed: int = 0, latency_s: tuple[float, float] = (0.0, 0.0)) -> None:
        self._seed = seed
        self.network = VirtualNetwork(random.Random(f"{seed} network"), latency_s)
        self._envs: dict[str, VirtualEnv] = {}

    def env(self, host: str = "coordinator", program: Program | None = None) -> VirtualEnv:
        """The machine of this name; the same one when asked again."""
        if host not in self._envs:
            self._envs[host] = VirtualEnv(self.network, host, random.Random(f"{self._seed} {host}"), program)
        return self._envs[host]
