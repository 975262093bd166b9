"""A worker process without torch: the simulation's worker (tests/simulation/worker.py) on the socket that a real agent
has given it. Agents start it through the script that `worker_script` writes, as their `--worker-python`.

Signals make it go wrong: SIGUSR1, for a moment nothing that it computes is a number; SIGUSR2, the next frame that it
passes on is broken, repeated or left out, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from client import ipc
from protocol.env import ConnectionClosed
from protocol.values import SessionId
from tests.simulation.history import History
from tests.simulation.worker import Traits, Worker

LAYER_S_VARIABLE = "ENDURANCE_LAYER_S"
KV_TOKENS_VARIABLE = "ENDURANCE_KV_TOKENS"
LOADED = "toy worker: loaded layers"
"""Begins the line that it prints at each load: with it loads are counted."""
WRONG = "toy worker: WRONG"
NAN_S = 0.3
READ_BYTES = 2**18
ROOT = Path(__file__).parents[2]


def worker_script(path: Path) -> Path:
    """Write an executable that agents take for a worker's Python."""
    text = (
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from benchmarks.endurance.toy_worker import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


class LoudHistory(History):
    """Keeps nothing, and says what is wrong where the agent's log has it."""

    def note(self, text: str, *values: object) -> None:
        pass

    def blame(self, sentence: str) -> None:
        print(f"{WRONG}: {sentence}", flush=True)


class Mail:
    """The inherited socket, with what has arrived on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._inbox: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._pump = asyncio.create_task(self._receive())

    @property
    def has_mail(self) -> bool:
        return bool(self._inbox)

    async def read(self) -> bytes:
        while not self._inbox:
            if self._pump.done():
                raise ConnectionClosed(1000, "end of file")
            self._news.clear()
            await self._news.wait()
        return self._inbox.popleft()

    async def write(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except (ConnectionError, RuntimeError) as error:
            raise ConnectionClosed(1006, str(error)) from None

    async def _receive(self) -> None:
        try:
            while data := await self._reader.read(READ_BYTES):
                self._inbox.append(data)
                self._news.set()
        except ConnectionError:  # an agent that was killed: the end, like any other
            return
        finally:
            asyncio.get_running_loop().call_soon(self._news.set)


class ToyWorker(Worker):
    """Says what it loads; takes the tensors of its layers as the checkpoint names them."""

    def __init__(self, traits: Traits, mail: Mail) -> None:
        super().__init__("toy", traits, mail, LoudHistory())  # type: ignore[arg-type]
        self._handlers[ipc.PlanSlice] = _plan
        self._harms = itertools.cycle(("broken", "repeated", "left out"))
        self._harm = ""

    def _tenant_of(self, session_id: SessionId) -> str:
        """Real sessions have names that tell nothing."""
        return ""

    def harm_next_frame(self) -> None:
        self._harm = next(self._harms)

    def _load(self, message: ipc.LoadSlice) -> list[ipc.WorkerMessage]:
        print(f"{LOADED} {message.layers}", flush=True)
        return super()._load(message)

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        for link, frame in super()._frames():
            harm, self._harm = self._harm, ""
            if harm == "broken":
                yield link, bytes(byte ^ 0xFF for byte in frame[:8]) + frame[8:]
            elif harm != "left out":
                yield from [(link, frame)] * (2 if harm == "repeated" else 1)


def _plan(message: ipc.PlanSlice) -> list[ipc.WorkerMessage]:
    beginnings = tuple(f"model.layers.{number}." for number in range(message.layers.start, message.layers.stop))
    return [ipc.SlicePlanned(tuple(name for name in message.tensor_names if name.startswith(beginnings)))]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--channel", type=int, required=True)
    arguments, _ = parser.parse_known_args(argv)
    return asyncio.run(_run(arguments.channel))


async def _run(channel: int) -> int:
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=channel))
    traits = Traits(
        layer_s=float(os.environ.get(LAYER_S_VARIABLE, "0.003")),
        num_kv_tokens=int(os.environ.get(KV_TOKENS_VARIABLE, "4000")),
        max_batch=64,
    )
    worker = ToyWorker(traits, Mail(reader, writer))
    _listen(worker, traits)
    try:
        return await worker.run()
    except ConnectionClosed:  # the agent was killed before it could be told that this worker is there
        return 0


def _listen(worker: ToyWorker, traits: Traits) -> None:
    loop = asyncio.get_running_loop()

    def no_numbers() -> None:
        traits.set(nan=True)
        loop.call_later(NAN_S, _numbers_again)

    def _numbers_again() -> None:
        traits.set(nan=False)

    handlers: dict[int, Any] = {signal.SIGUSR1: no_numbers, signal.SIGUSR2: worker.harm_next_frame}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
