"""One object with everything impure, on asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from shell.clock import SystemClock
from shell.disk import LocalDisk
from shell.network import WebNetwork
from shell.processes import ChildProcesses
from shell.randomness import SystemRandom

T = TypeVar("T")


class AsyncioEnv:
    """The real Env. Make one per process, inside the running event loop, and close it at the end."""

    def __init__(self) -> None:
        self.clock = SystemClock()
        self.random = SystemRandom()
        self.network = WebNetwork()
        self.disk = LocalDisk()
        self.processes = ChildProcesses()

    async def run_blocking(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.to_thread(function, *args)

    async def close(self) -> None:
        """Close what the network part keeps open between downloads."""
        await self.network.close()
