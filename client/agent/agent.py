"""The agent process: contributes while the machine is free, and tells whoever started it how things are.

Two loops: one looks at the machine twice a second and lets the guard decide, the other one contributes while the guard
allows it and rests while it does not. Pausing ends the contribution as a whole: only then is the GPU's memory free.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import msgspec

from client.agent.contribution import Contribution
from client.agent.gpu_use import GpuWatch
from client.agent.guard import Guard
from client.agent.hardware import Limits, find_devices
from client.agent.identity import load_identity
from client.agent.policy import SAMPLE_S, Readings
from client.agent.prepared import worker_python
from client.agent.programs import Programs
from client.agent.readings import MachineSenses, Senses, look_of
from client.agent.report import paused_status
from client.config import NVML_MODULE, NodeConfig
from client.errors import ClientError
from client.status import (
    SOFT_LEAVE_S,
    AgentState,
    Command,
    Pause,
    PauseInfo,
    Quit,
    Resume,
    SessionReading,
    Status,
    decode_command,
    encode_line,
)
from protocol.env import Env
from protocol.pause import PoolDefaults

log = logging.getLogger(__name__)

MIN_STATUS_INTERVAL_S = 0.25
HARD_LEAVE_S = 1.0
"""The memory is wanted back at once: so long running sessions may take to go on elsewhere, mostly a token's time."""
QUIT_LEAVE_S = 8.0
"""Less than the app and the service manager wait for the agent's end. Whoever says it twice is in a hurry."""

WriteLine = Callable[[bytes], None]


class Agent:
    """One node. `write_line` gets a Status line at every change, at most every MIN_STATUS_INTERVAL_S, and a History
    line when the machine was paused or went on. `senses` are this machine's, unless others are given."""

    def __init__(self, config: NodeConfig, env: Env, write_line: WriteLine, senses: Senses | None = None) -> None:
        self._config = config
        self._env = env
        self._write_line = write_line
        self._senses = senses or machine_senses(config, env)
        self._guard = Guard(config.rules)
        self._changed = asyncio.Event()
        self._turned = asyncio.Event()
        self._is_quitting = False
        self._is_in_a_hurry = False
        self._is_asked_again = False
        self._contribution: Contribution | None = None
        self._idle_status = Status(AgentState.CONNECTING, "Starting.")
        self._has_joined = False

    def command(self, command: Command) -> None:
        """Carried out at once: the last one counts. What the desktop session tells shows in the next readings."""
        match command:
            case Quit(at_once):
                self._is_in_a_hurry = at_once or self._is_quitting
                self._is_quitting = True
            case SessionReading():
                self._senses.hear(command)
            case _:
                self._guard.obey(command, *self._now())
                self._is_asked_again |= isinstance(command, Resume)
        self._turn()

    @property
    def is_paused_by_hand(self) -> bool:
        """Also while what runs here is still being handed over."""
        return self._guard.is_paused_by_hand

    async def run(self) -> None:
        """Contribute, when the machine is free, until told to quit. On return no worker is left and the pool knows
        that we are gone."""
        loops = [asyncio.create_task(self._publish()), asyncio.create_task(self._watch())]
        for loop in loops:
            loop.add_done_callback(self._loop_ended)
        try:
            while not self._is_quitting:
                await (self._contribute() if self._guard.verdict.serve else self._rest())
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await self._senses.close()
        self._show(Status(AgentState.STOPPED, "The agent has stopped."))
        self._write_line(encode_line(self._idle_status))

    def _loop_ended(self, loop: asyncio.Task[None]) -> None:
        """A defect of ours: an agent that does not watch the machine must not serve on it."""
        if not loop.cancelled() and loop.exception() is not None:
            log.error("the agent cannot go on", exc_info=loop.exception())
            self.command(Quit())

    def _may_serve(self) -> bool:
        return self._guard.verdict.serve and not self._is_quitting

    # ------------------------------------------------------------ watching

    async def _watch(self) -> None:
        """Twice a second, also while paused: what the machine does, and what the guard says to it."""
        while True:
            self._guard.see(await self._sense(), *self._now())
            self._turn()
            await self._env.clock.sleep(SAMPLE_S)

    async def _sense(self) -> Readings:
        look = look_of(self._contribution.status() if self._contribution else None, self._guard.rules)
        try:
            return await self._senses.read(look)
        except Exception:  # a defect of ours in a sensor: what it would have seen is unknown, and the rest goes on
            log.exception("the machine's readings failed")
            return Readings(self._env.clock.monotonic())

    def _turn(self) -> None:
        """Whoever waits looks again whether it still should."""
        self._turned.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._next_turn()

    async def _next_turn(self) -> None:
        self._turned.clear()
        await self._turned.wait()

    def _now(self) -> tuple[float, float]:
        return self._env.clock.monotonic(), self._env.clock.wall()

    # ------------------------------------------------------------ contributing and resting

    async def _contribute(self) -> None:
        """Be in the pool while the guard allows it, or until it turns out that we cannot be."""
        self._show(Status(AgentState.CONNECTING, "Starting."))
        work = asyncio.create_task(self._work())
        try:
            await self._while_wanted(work)
        finally:
            self._say_why()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            self._contribution = None
        failure = None if work.cancelled() else _failure(work.exception())
        if failure is not None and self._may_serve():
            await self._fail(failure)

    async def _while_wanted(self, work: asyncio.Task[None]) -> None:
        """Until the work ends by itself, or has to end and what runs here was handed over. Whoever takes that back in
        time ends nothing: what is loaded stays."""
        while not work.done():
            await self._first_of(lambda: not self._may_serve(), work)
            if self._contribution is None:
                return
            if not (self._may_serve() or work.done()):
                await self._hand_over(self._contribution, work)
                if not self._may_serve():
                    return
                self._contribution.stay()

    async def _first_of(self, condition: Callable[[], bool], *tasks: asyncio.Task[None]) -> None:
        """Until the condition holds or one of the tasks has ended."""
        turned = asyncio.create_task(self._until(condition))
        try:
            await asyncio.wait({turned, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            turned.cancel()
            await asyncio.gather(turned, return_exceptions=True)

    def _say_why(self) -> None:
        if self._contribution is not None and self._guard.verdict.reasons:
            self._contribution.good_bye = ", ".join(self._guard.verdict.reasons)

    async def _hand_over(self, contribution: Contribution, work: asyncio.Task[None]) -> None:
        """What runs here goes on elsewhere before its memory is freed, as far as there is time."""
        self._say_why()
        within_s = self._leave_within_s
        handing = asyncio.create_task(contribution.hand_over(within_s))
        try:
            await self._first_of(lambda: self._may_serve() or self._leave_within_s < within_s, work, handing)
            is_cut_short = not (handing.done() or work.done())
        finally:
            handing.cancel()
            await asyncio.gather(handing, return_exceptions=True)
        if is_cut_short and not self._may_serve():
            self._say_why()
            await contribution.hand_over(self._leave_within_s)

    @property
    def _leave_within_s(self) -> float:
        """How long whatever ends the contribution can wait."""
        if self._is_quitting:
            return HARD_LEAVE_S if self._is_in_a_hurry else QUIT_LEAVE_S
        return SOFT_LEAVE_S if self._guard.verdict.is_soft else HARD_LEAVE_S

    async def _work(self) -> None:
        """What one contribution takes, in order: devices, what their workers run in, who we are, the stay in the pool.

        Cancelled at any of these when the machine is needed; a ClientError is shown to the volunteer."""
        nvml = nvml_of(self._config)
        devices = find_devices(nvml, self._limits())
        identity = load_identity(self._config.data_dir, self._env)
        python = await worker_python(self._config, devices, nvml, self._env, self._show_preparing)
        config = replace(self._config, worker_python=python)
        self._contribution = Contribution(
            config, identity, devices, self._env, self._changed.set, self._on_defaults, self._has_joined
        )
        try:
            await self._contribution.run()
        finally:
            self._has_joined = self._contribution.has_joined

    async def _fail(self, failure: ClientError) -> None:
        """Say why until told what to do. Nobody can tell an agent that is not attached: it raises the ClientError."""
        if not self._config.attached:
            raise failure
        self._show(Status(AgentState.FAILED, str(failure)))
        self._is_asked_again = False
        await self._until(lambda: self._is_asked_again or self._is_quitting or self._guard.is_paused_by_hand)

    async def _rest(self) -> None:
        """Say why we pause; before the first verdict there is nothing to say."""
        shown: PauseInfo | None = None
        while not (self._is_quitting or self._guard.verdict.serve):
            if self._guard.pause is not None and self._guard.pause is not shown:
                shown = self._guard.pause
                self._show(paused_status(shown))
            await self._next_turn()

    # ------------------------------------------------------------ status

    def _show_preparing(self, what: str, done_bytes: int, total_bytes: int) -> None:
        self._show(Status(AgentState.PREPARING, f"{what}.", done_bytes=done_bytes, total_bytes=total_bytes))

    def _show(self, status: Status) -> None:
        self._idle_status = status
        self._changed.set()

    async def _publish(self) -> None:
        told = self._guard.history
        while True:
            status = self._contribution.status() if self._contribution else self._idle_status
            self._write_line(encode_line(status))
            if told is not self._guard.history:
                told = self._guard.history
                self._write_line(encode_line(told))
            await self._env.clock.sleep(MIN_STATUS_INTERVAL_S)
            await self._changed.wait()
            self._changed.clear()

    # ------------------------------------------------------------ parts

    def _limits(self) -> Limits:
        return Limits(self._config.max_memory_bytes, self._config.max_layers)

    def _on_defaults(self, defaults: PoolDefaults) -> None:
        """The pool's operator wants this of every machine."""
        self._guard.take_pool_rules(defaults.rules, *self._now())
        self._turn()


def _failure(error: BaseException | None) -> ClientError | None:
    """For people: an error that was not foreseen is a defect of ours, whose traceback goes to the log only."""
    if error is None or isinstance(error, ClientError):
        return error
    log.error("the contribution failed", exc_info=error)
    return ClientError("internal_error", f"The agent failed unexpectedly ({type(error).__name__}); see its log.")


def machine_senses(config: NodeConfig, env: Env) -> MachineSenses:
    """What this machine's GPUs, power and programs say; GPUs only if they are contributed."""
    return MachineSenses(GpuWatch(nvml_of(config), Programs(os.getpid())), env)


def nvml_of(config: NodeConfig) -> Any | None:
    """NVML's module, unless GPUs are not to be used."""
    return load_nvml(config.nvml_module) if config.use_gpu else None


def load_nvml(name: str = NVML_MODULE) -> ModuleType | None:
    """The module, or None where it is not installed. Tests name one of the same interface."""
    try:
        return importlib.import_module(name)
    except ImportError:
        log.info("%s is not installed: GPUs are not looked for", name)
        return None


def listen_to_signals(agent: Agent) -> None:
    """Ctrl-C and a service manager's stop mean: leave the pool cleanly."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, agent.command, Quit())


def listen_to_pauses(agent: Agent) -> None:
    """For a node without a window: SIGUSR1 pauses after the answers that run, a second one at once, SIGUSR2 ends it."""
    if sys.platform == "win32":
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, lambda: agent.command(Pause(after_answers=not agent.is_paused_by_hand)))
    loop.add_signal_handler(signal.SIGUSR2, agent.command, Resume())


async def obey_lines(agent: Agent, reader: asyncio.StreamReader) -> None:
    """Commands from whoever started us; end-of-file means that it is gone, and so are we (ARCHITECTURE.md)."""
    try:
        while (command := await _read_command(reader)) is not None:
            agent.command(command)
    finally:
        agent.command(Quit(at_once=True))


async def _read_command(reader: asyncio.StreamReader) -> Command | None:
    """The next command, None at the end of file. What is no command is skipped: it must not end the agent."""
    while True:
        try:
            line = await reader.readline()
            return decode_command(line) if line else None
        except (msgspec.DecodeError, ValueError) as error:  # ValueError: longer than the reader's limit
            log.warning("a line on standard input is no command: %s", error)
