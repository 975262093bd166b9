"""Child processes that share a socket with us: the child ends by itself when the socket closes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Mapping, Sequence

import psutil

from protocol.env import ConnectionClosed, Process

READ_BYTES = 2**20


class SocketChannel:
    """Our end of the socket pair."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        try:
            data = await self._reader.read(READ_BYTES)
        except ConnectionError as error:
            raise ConnectionClosed(1006, str(error)) from None
        if not data:
            raise ConnectionClosed(1000, "end of file")
        return data

    async def write(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except (ConnectionError, RuntimeError) as error:
            raise ConnectionClosed(1006, str(error)) from None

    def close(self) -> None:
        self._writer.close()


class ChildProcess:
    def __init__(self, process: asyncio.subprocess.Process, channel: SocketChannel) -> None:
        self._process = process
        self.channel = channel

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        status = await self._process.wait()
        self.channel.close()
        return status

    def kill(self) -> None:
        """By number, not by Popen.kill: that polls first, and would reap the child before asyncio's watcher does."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, which is what was asked for
                os.kill(self._process.pid, signal.SIGKILL)

    def cpu_s(self) -> float | None:
        """Children count as well: kernels are compiled in them."""
        try:
            process = psutil.Process(self._process.pid)
            return sum(_cpu_s(one) for one in (process, *process.children(recursive=True)))
        except psutil.Error:
            return None


def _cpu_s(process: psutil.Process) -> float:
    """Of one that has ended meanwhile nothing is lost: its parent's times have it."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


class ChildProcesses:
    """Starts children. Their standard output goes to our standard error: ours may carry a protocol."""

    async def spawn(self, argv: Sequence[str], extra_environment: Mapping[str, str]) -> Process:
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            words = [word.replace("{channel}", str(theirs.fileno())) for word in argv]
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=2,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C is for us: we end the child, after leaving the pool cleanly
                env={**os.environ, **extra_environment},
            )
            undo.pop_all()
        reader, writer = await asyncio.open_connection(sock=ours, limit=2 * READ_BYTES)
        return ChildProcess(process, SocketChannel(reader, writer))
