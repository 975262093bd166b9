"""Entry of the agent process: `decentllm node run`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys

from client.agent.agent import Agent, listen_to_signals, obey_lines
from client.config import NodeConfig
from client.status import AgentState, Status, decode_status
from shell import AsyncioEnv

MAX_LINE_BYTES = 64 * 1024


def run_node(config: NodeConfig) -> int:
    """Contribute until Ctrl-C, or (attached) until standard input ends. Returns the exit status.

    Raises ClientError when it cannot go on and nobody is there to be asked."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    asyncio.run(_main(config))
    return 0


async def _main(config: NodeConfig) -> None:
    env = AsyncioEnv()
    agent = Agent(config, env, write_line_to_stdout if config.attached else StatusPrinter().show)
    listen_to_signals(agent)
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


class StatusPrinter:
    """For people without a GUI: a line whenever something worth reading changes."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, line: bytes) -> None:
        text = describe(decode_status(line))
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
            percent = 100 * device.done_bytes // device.total_bytes
            parts.append(f"{percent // 10 * 10} % of {device.total_bytes / 1e6:.0f} MB")
    return " · ".join([*parts, *([status.message] if status.message else [])])
