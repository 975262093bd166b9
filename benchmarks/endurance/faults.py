"""Faults for a pool of real processes, drawn by seed, one after another. A node has one fault at a time."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

from benchmarks.endurance.pool import NodeProcess, ToyPool


class Fault(StrEnum):
    KILL_AGENT = "agent killed, started again up to 5 s later"
    STOP_AGENT = "agent stopped for up to 6 s (SIGSTOP, SIGCONT)"
    KILL_WORKER = "worker killed"
    STOP_WORKER = "worker stopped for up to 6 s"
    CUT = "all connections of a node cut"
    SILENCE = "a node's line passes nothing on for up to 6 s"
    SLOW = "a node's line is slow for up to 6 s"
    NAN = "a worker computes what is no number for 0.3 s"
    FRAME = "a worker's frame is broken, sent twice or left out"
    KILL_COORDINATOR = "coordinator killed and started again"


WEIGHTS = {
    Fault.KILL_AGENT: 6,
    Fault.STOP_AGENT: 8,
    Fault.KILL_WORKER: 8,
    Fault.STOP_WORKER: 8,
    Fault.CUT: 12,
    Fault.SILENCE: 8,
    Fault.SLOW: 10,
    Fault.NAN: 8,
    Fault.FRAME: 12,
    Fault.KILL_COORDINATOR: 1,
}
MAX_LASTING_S = 6.0
MAX_AWAY_S = 5.0
MAX_DELAY_S = 0.1
SLOW_PIECE_BYTES = 4096

Play = Callable[["Faults", NodeProcess], Awaitable[bool]]
"""Whether there was something to do it to."""


@dataclass
class Faults:
    """Plays them on a pool. Agents of `survivors` are never killed, so that their memory can be watched.

    `on_restart` is called when the coordinator is there again."""

    pool: ToyPool
    seed: int
    survivors: frozenset[str]
    on_restart: Callable[[], None]
    counts: Counter[str] = field(default_factory=Counter)
    kills_coordinator: bool = True
    draw: random.Random = field(init=False)
    _busy: set[str] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _is_restarting: bool = False

    def __post_init__(self) -> None:
        self.draw = random.Random(f"faults {self.seed}")

    def inject(self) -> None:
        """Begin one; it ends by itself."""
        (fault,) = self.draw.choices(list(WEIGHTS), list(WEIGHTS.values()))
        if fault is Fault.KILL_COORDINATOR:
            if self.kills_coordinator and not self._is_restarting:
                self._start(self._restart())
            return
        able = [node for node in self.pool.nodes if node.is_up and node.name not in self._busy]
        if fault is Fault.KILL_AGENT:
            able = [node for node in able if node.name not in self.survivors]
        if able:
            self._start(self._play(fault, self.draw.choice(able)))

    async def end(self) -> None:
        """Wait until everything is well again."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _play(self, fault: Fault, node: NodeProcess) -> None:
        self._busy.add(node.name)
        try:
            if await _PLAYS[fault](self, node):
                self.counts[fault] += 1
        finally:
            self._busy.discard(node.name)

    async def _restart(self) -> None:
        self._is_restarting = True
        self.counts[Fault.KILL_COORDINATOR] += 1
        await self.pool.kill_coordinator()
        await self.pool.start_coordinator()
        self._is_restarting = False
        self.on_restart()

    async def last(self) -> None:
        await asyncio.sleep(self.draw.uniform(0.5, MAX_LASTING_S))


async def _kill_agent(faults: Faults, node: NodeProcess) -> bool:
    await asyncio.to_thread(node.kill)
    await asyncio.sleep(faults.draw.uniform(0.0, MAX_AWAY_S))
    node.start()
    return True


async def _stop_agent(faults: Faults, node: NodeProcess) -> bool:
    return await _stopped(faults, node.pid)


async def _kill_worker(_: Faults, node: NodeProcess) -> bool:
    return _signalled(node, signal.SIGKILL)


async def _stop_worker(faults: Faults, node: NodeProcess) -> bool:
    pids = node.worker_pids()
    return bool(pids) and await _stopped(faults, pids[0])


async def _stopped(faults: Faults, pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        try:
            await faults.last()
        finally:
            os.kill(pid, signal.SIGCONT)
        return True
    return False


async def _cut(_: Faults, node: NodeProcess) -> bool:
    node.line.cut()
    return True


async def _silence(faults: Faults, node: NodeProcess) -> bool:
    node.line.passes.clear()
    await faults.last()
    node.line.passes.set()
    return True


async def _slow(faults: Faults, node: NodeProcess) -> bool:
    line, usual_bytes = node.line, node.line.piece_bytes
    line.delay_s, line.piece_bytes = faults.draw.uniform(0.01, MAX_DELAY_S), SLOW_PIECE_BYTES
    await faults.last()
    line.delay_s, line.piece_bytes = 0.0, usual_bytes
    return True


async def _nan(_: Faults, node: NodeProcess) -> bool:
    return _signalled(node, signal.SIGUSR1)


async def _frame(_: Faults, node: NodeProcess) -> bool:
    return _signalled(node, signal.SIGUSR2)


def _signalled(node: NodeProcess, number: int) -> bool:
    """A worker that has not set its handlers yet dies of any signal, which is a fault as well."""
    pids = node.worker_pids()
    for pid in pids[:1]:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            return True
    return False


_PLAYS: dict[Fault, Play] = {
    Fault.KILL_AGENT: _kill_agent,
    Fault.STOP_AGENT: _stop_agent,
    Fault.KILL_WORKER: _kill_worker,
    Fault.STOP_WORKER: _stop_worker,
    Fault.CUT: _cut,
    Fault.SILENCE: _silence,
    Fault.SLOW: _slow,
    Fault.NAN: _nan,
    Fault.FRAME: _frame,
}
