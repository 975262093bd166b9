"""An agent on a machine that shows what the test says, and on a clock that it moves."""

from __future__ import annotations

import asyncio
from typing import Any

from client.agent.agent import Agent
from client.agent.policy import Readings
from client.agent.readings import Look
from client.config import NodeConfig
from client.status import AgentState, Command, History, Quit, SessionReading, Status, decode_report
from protocol.pause import PauseReason
from shell import AsyncioEnv
from tests.client.agent.machine import seen
from tests.client.agent.waiting import our_tasks, until


class MovedClock:
    """The system's, but for jumps that the test makes."""

    def __init__(self) -> None:
        self._clock = AsyncioEnv().clock
        self._ahead_s = 0.0
        self.sleep = self._clock.sleep

    def monotonic(self) -> float:
        return self._clock.monotonic() + self._ahead_s

    def wall(self) -> float:
        return self._clock.wall() + self._ahead_s

    def jump(self, for_s: float) -> None:
        self._ahead_s += for_s


class Script:
    """Senses that see what the test says, half a second after each other."""

    def __init__(self, clock: MovedClock) -> None:
        self._clock = clock
        self.shown: dict[str, Any] = {}
        self.fails: Exception | None = None
        self.looks: list[Look] = []
        self.told: list[SessionReading] = []
        self.is_closed = False

    async def read(self, look: Look) -> Readings:
        self.looks.append(look)
        self._clock.jump(0.5)
        if self.fails is not None:
            raise self.fails
        return seen(self._clock.monotonic(), **self.shown)

    def hear(self, told: SessionReading) -> None:
        self.told.append(told)

    async def close(self) -> None:
        self.is_closed = True


class Running:
    """An agent at work, what its machine shows, and the lines it wrote."""

    def __init__(self, config: NodeConfig, env: AsyncioEnv, shown: dict[str, Any]) -> None:
        self.clock = env.clock = MovedClock()  # type: ignore[assignment]
        self.machine = Script(self.clock)
        self.machine.shown = shown
        self.lines: list[bytes] = []
        self.agent = Agent(config, env, self.lines.append, self.machine)
        self.task = asyncio.create_task(self.agent.run())

    def shows(self, **what: Any) -> None:
        self.machine.shown = what

    def command(self, *commands: Command) -> None:
        for command in commands:
            self.agent.command(command)

    @property
    def statuses(self) -> list[Status]:
        return [report for report in map(decode_report, self.lines) if isinstance(report, Status)]

    @property
    def history(self) -> History:
        reports = [report for report in map(decode_report, self.lines) if isinstance(report, History)]
        return reports[-1] if reports else History(())

    async def until(self, state: AgentState) -> Status:
        await until(lambda: self.lines and self.statuses[-1].state is state)
        return self.statuses[-1]

    async def paused_for(self, *reasons: PauseReason) -> Status:
        await until(lambda: any(s.pause is not None and s.pause.reasons == reasons for s in self.statuses[-1:]))
        return self.statuses[-1]

    async def looked_again(self, num_times: int = 3) -> None:
        num_looks = len(self.machine.looks)
        await until(lambda: len(self.machine.looks) >= num_looks + num_times)

    async def end(self) -> None:
        self.agent.command(Quit())
        async with asyncio.timeout(20):
            await asyncio.gather(self.task, return_exceptions=True)
        assert our_tasks() == []
        assert self.machine.is_closed
