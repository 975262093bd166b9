"""Child processes played by coroutines, with an in-memory channel."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

from protocol.env import ConnectionClosed


class VirtualChannel:
    """Implements protocol.env.ByteChannel; `pair()` makes the two ends."""

    def __init__(self) -> None:
        self._inbox: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._peer = self
        self.is_closed = False

    @classmethod
    def pair(cls) -> tuple[VirtualChannel, VirtualChannel]:
        one, other = cls(), cls()
        one._peer, other._peer = other, one
        return one, other

    async def read(self) -> bytes:
        while not self._inbox:
            if self.is_closed:
                raise ConnectionClosed(1000, "end of file")
            self._changed.clear()
            await self._changed.wait()
        return self._inbox.popleft()

    @property
    def has_mail(self) -> bool:
        """Whether `read` returns at once."""
        return bool(self._inbox)

    async def write(self, data: bytes) -> None:
        if self.is_closed:
            raise ConnectionClosed(1006, "broken pipe")
        self._peer._inbox.append(bytes(data))
        self._peer._changed.set()

    def close(self) -> None:
        """Both ends see the end of the stream behind what was written."""
        for end in (self, self._peer):
            end.is_closed = True
            end._changed.set()


Program = Callable[[Sequence[str], Mapping[str, str], VirtualChannel], Awaitable[int]]
"""What a process does: its arguments, its additional environment, its end of the channel; returns the exit status."""


class VirtualProcess:
    """Implements protocol.env.Process."""

    def __init__(
        self, pid: int, channel: VirtualChannel, task: asyncio.Task[int], cpu_s: Callable[[], float | None]
    ) -> None:
        self.pid = pid
        self.channel = channel
        self._task = task
        self._killed = False
        self._cpu_s = cpu_s
        task.add_done_callback(lambda _: channel.close())

    async def wait(self) -> int:
        await asyncio.wait({self._task})
        if self._killed or self._task.cancelled():
            return -signal.SIGKILL
        return 1 if self._task.exception() else self._task.result()

    def kill(self) -> None:
        if not self._task.done():
            self._killed = True
            self._task.cancel()

    def cpu_s(self) -> float | None:
        return self._cpu_s()


class VirtualProcesses:
    """Implements protocol.env.Processes: every child runs `program`."""

    def __init__(self, program: Program | None = None) -> None:
        self.program = program
        self.started: list[VirtualProcess] = []
        self.cpu_s: Callable[[], float | None] = lambda: None
        """What every child says of its use of the processor."""

    async def spawn(self, argv: Sequence[str], extra_environment: Mapping[str, str]) -> VirtualProcess:
        if self.program is None:
            raise FileNotFoundError(argv[0])
        ours, theirs = VirtualChannel.pair()
        task = asyncio.get_running_loop().create_task(_run(self.program, argv, extra_environment, theirs))
        self.started.append(VirtualProcess(1000 + len(self.started), ours, task, lambda: self.cpu_s()))
        return self.started[-1]


async def _run(program: Program, argv: Sequence[str], environment: Mapping[str, str], channel: VirtualChannel) -> int:
    return await program(argv, environment, channel)
