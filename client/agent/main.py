"""Entry of the agent process: `decentllm node run`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from datetime import datetime

from client.agent.agent import Agent, listen_to_pauses, listen_to_signals, nvml_of, obey_lines
from client.agent.hardware import Limits, find_devices
from client.agent.prepared import worker_python
from client.config import NodeConfig
from client.status import AgentState, PauseInfo, Status, decode_report
from shell import AsyncioEnv

MAX_LINE_BYTES = 64 * 1024


def run_node(config: NodeConfig) -> int:
    """Contribute until Ctrl-C, or (attached) until standard input ends. Returns the exit status.

    Raises ClientError when it cannot go on and nobody is there to be asked."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    asyncio.run(_main(config))
    return 0


def prepare_runtime(config: NodeConfig) -> str:
    """Get the workers' interpreter ready now; progress goes to standard error. Raises ClientError."""
    return asyncio.run(_prepare(config))


async def _prepare(config: NodeConfig) -> str:
    nvml = nvml_of(config)
    devices = find_devices(nvml, Limits(config.max_memory_bytes, config.max_layers))
    env = AsyncioEnv()
    try:
        return await worker_python(config, devices, nvml, env, ProgressPrinter().show)
    finally:
        await env.close()


async def _main(config: NodeConfig) -> None:
    env = AsyncioEnv()
    agent = Agent(config, env, write_line_to_stdout if config.attached else StatusPrinter().show)
    listen_to_signals(agent)
    if not config.attached:
        listen_to_pauses(agent)
    listener = asyncio.create_task(obey_lines(agent, await _standard_input())) if config.attached else None
    try:
        await agent.run()
    finally:
        if listener is not None:
            listener.cancel()
        await env.close()


async def _standard_input() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def write_line_to_stdout(line: bytes) -> None:
    """The whole line, unbuffered; a GUI that is gone is noticed on standard input."""
    rest = memoryview(line)
    with contextlib.suppress(OSError):
        while rest:
            rest = rest[os.write(1, rest) :]


class ProgressPrinter:
    """A line whenever another tenth is there."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, what: str, done_bytes: int, total_bytes: int) -> None:
        percent = 100 * done_bytes // total_bytes // 10 * 10 if total_bytes else 0
        line = f"{what}: {percent} % of {total_bytes / 1e6:,.0f} MB"
        if line != self._last:
            self._last = line
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is the program's output


class StatusPrinter:
    """For people without a GUI: a line whenever something worth reading changes."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, line: bytes) -> None:
        report = decode_report(line)
        if not isinstance(report, Status):
            return
        text = describe(report)
        if text != self._last:
            self._last = text
            self._print(text)

    def _print(self, text: str) -> None:
        try:
            print(text, flush=True)  # noqa: T201 - this is the program's output
        except BrokenPipeError:  # the reader has seen enough (`| head`); the node goes on, and says no more
            sys.stdout = None


def describe(status: Status) -> str:
    """One plain line: state, what it is about, how far it is."""
    parts = [status.state.value]
    for device in status.devices:
        if device.layers is not None and status.state is not AgentState.CONNECTING:
            parts.append(f"{device.device_id}: layers {device.layers} of {device.num_layers} of {device.model_name}")
        if device.state in (AgentState.DOWNLOADING, AgentState.LOADING) and device.total_bytes:
            parts.append(_share(device.done_bytes, device.total_bytes))
    if status.state is AgentState.PREPARING and status.total_bytes:
        parts.append(_share(status.done_bytes, status.total_bytes))
    said = [status.message, _finishing(status), _when(status.pause) if status.pause is not None else ""]
    return " · ".join([*parts, *(part for part in said if part)])


def _share(done_bytes: int, total_bytes: int) -> str:
    return f"{100 * done_bytes // total_bytes // 10 * 10} % of {total_bytes / 1e6:.0f} MB"


def _finishing(status: Status) -> str:
    if status.leaves_at_s is None:
        return ""
    answers = "1 answer" if status.num_sessions == 1 else f"{status.num_sessions} answers"
    return f"takes nothing new, finishes {answers} until {_clock_time(status.leaves_at_s)} at most"


def _when(pause: PauseInfo) -> str:
    """When the node goes on, in local time; empty when nobody knows."""
    if pause.resumes_at_s is not None:
        return f"goes on at {_clock_time(pause.resumes_at_s)} if nothing stirs"
    return f"until {_clock_time(pause.until_s)} at least" if pause.until_s is not None else ""


def _clock_time(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s).strftime("%H:%M:%S")
