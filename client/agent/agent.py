"""The agent process: contributes until told to pause or quit, and tells whoever started it how things are."""

from __future__ import annotations

import asyncio
import importlib
import logging
import re
import signal
from collections.abc import Callable
from types import ModuleType

import msgspec

from client.agent.contribution import Contribution
from client.agent.hardware import Limits, find_devices
from client.config import NodeConfig
from client.errors import ClientError, JoinError
from client.status import AgentState, Command, Pause, Quit, Resume, Status, decode_command, encode_line
from protocol.env import Env
from protocol.values import NodeId

log = logging.getLogger(__name__)

MIN_STATUS_INTERVAL_S = 0.1
_NODE_ID = re.compile(rb"[0-9a-f]{32}")

WriteLine = Callable[[bytes], None]


class Agent:
    """One node. `write_line` gets a Status line at every change, at most every MIN_STATUS_INTERVAL_S."""

    def __init__(self, config: NodeConfig, env: Env, write_line: WriteLine) -> None:
        self._config = config
        self._env = env
        self._write_line = write_line
        self._changed = asyncio.Event()
        self._commands: asyncio.Queue[Command] = asyncio.Queue()
        self._contribution: Contribution | None = None
        self._idle_status = Status(AgentState.CONNECTING, "Starting.")

    def command(self, command: Command) -> None:
        """Pause, resume or quit; carried out in order."""
        self._commands.put_nowait(command)

    async def run(self) -> None:
        """Contribute until told to quit. On return no worker is left and the pool knows that we are gone."""
        publisher = asyncio.create_task(self._publish())
        command: Command = Resume()
        try:
            while not isinstance(command, Quit):
                command = await (self._contribute() if isinstance(command, Resume) else self._rest())
        finally:
            publisher.cancel()
            await asyncio.gather(publisher, return_exceptions=True)
        self._show(Status(AgentState.STOPPED, "The agent has stopped."))
        self._write_line(encode_line(self._idle_status))

    async def _contribute(self) -> Command:
        """Be in the pool until a command other than Resume comes, or it turns out that we cannot be."""
        self._show(Status(AgentState.CONNECTING, "Starting."))
        work = asyncio.create_task(self._work())
        order = asyncio.create_task(self._next_command(ignore=Resume))
        try:
            await asyncio.wait({work, order}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            order.cancel()  # harmless when it has come
            self._contribution = None
        failure = None if work.cancelled() else _failure(work.exception())
        if order.done():
            return order.result()
        assert failure is not None, "a contribution ends by being cancelled or by an error"
        return await self._fail(failure)

    async def _work(self) -> None:
        devices = find_devices(load_nvml() if self._config.use_gpu else None, self._limits())
        self._contribution = Contribution(self._config, self._node_id(), devices, self._env, self._changed.set)
        await self._contribution.run()

    async def _fail(self, failure: ClientError) -> Command:
        """Say why until told what to do. Nobody can tell an agent that is not attached: it raises the ClientError."""
        if not self._config.attached:
            raise failure
        self._show(Status(AgentState.FAILED, str(failure)))
        return await self._next_command()

    async def _rest(self) -> Command:
        self._show(Status(AgentState.PAUSED, "Paused. The GPU's memory is free."))
        return await self._next_command(ignore=Pause)

    async def _next_command(self, ignore: type | None = None) -> Command:
        """The next command that changes anything."""
        while isinstance(command := await self._commands.get(), ignore or ()):
            continue
        return command

    # ------------------------------------------------------------ status

    def _show(self, status: Status) -> None:
        self._idle_status = status
        self._changed.set()

    async def _publish(self) -> None:
        while True:
            status = self._contribution.status() if self._contribution else self._idle_status
            self._write_line(encode_line(status))
            await self._env.clock.sleep(MIN_STATUS_INTERVAL_S)
            await self._changed.wait()
            self._changed.clear()

    # ------------------------------------------------------------ parts

    def _limits(self) -> Limits:
        return Limits(self._config.max_memory_bytes, self._config.max_layers)

    def _node_id(self) -> NodeId:
        """Made once and kept: the pool knows this installation by it. Raises JoinError where it cannot be kept."""
        path = self._config.data_dir / "node-id"
        try:
            kept = (self._env.disk.read(path) or b"").strip()
            if _NODE_ID.fullmatch(kept):
                return NodeId(kept.decode("ascii"))
            node_id = NodeId(self._env.random.token_hex(16))
            self._env.disk.write_atomic(path, node_id.encode())
        except OSError as error:
            reason = error.strerror or str(error)
            raise JoinError("bad_folder", f"The folder {path.parent} cannot be used: {reason}.") from None
        return node_id


def _failure(error: BaseException | None) -> ClientError | None:
    """For people: an error that was not foreseen is a defect of ours, whose traceback goes to the log only."""
    if error is None or isinstance(error, ClientError):
        return error
    log.error("the contribution failed", exc_info=error)
    return ClientError("internal_error", f"The agent failed unexpectedly ({type(error).__name__}); see its log.")


def load_nvml() -> ModuleType | None:
    """The module pynvml, or None where it is not installed."""
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        log.info("pynvml is not installed: GPUs are not looked for")
        return None


def listen_to_signals(agent: Agent) -> None:
    """Ctrl-C and a service manager's stop mean: leave the pool cleanly."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, agent.command, Quit())


async def obey_lines(agent: Agent, reader: asyncio.StreamReader) -> None:
    """Commands from whoever started us; end-of-file means that it is gone, and so are we (ARCHITECTURE.md)."""
    try:
        while (command := await _read_command(reader)) is not None:
            agent.command(command)
    finally:
        agent.command(Quit())


async def _read_command(reader: asyncio.StreamReader) -> Command | None:
    """The next command, None at the end of file. What is no command is skipped: it must not end the agent."""
    while True:
        try:
            line = await reader.readline()
            return decode_command(line) if line else None
        except (msgspec.DecodeError, ValueError) as error:  # ValueError: longer than the reader's limit
            log.warning("a line on standard input is no command: %s", error)
