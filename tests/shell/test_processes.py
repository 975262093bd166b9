"""Child processes: a channel, an exit status, an end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from protocol.env import ConnectionClosed, Process
from shell.processes import ChildProcesses

LIMIT_S = 60
ECHO = "import os,socket,sys; s=socket.socket(fileno=int(sys.argv[1])); s.sendall(os.environ['GREETING'].encode())\n"
ECHO += "while data := s.recv(65536): s.sendall(data[::-1])"
EXIT = "import sys; sys.exit(int(sys.argv[1]))"
SLEEP = "import time; time.sleep(600)"


async def spawn(program: str, *arguments: str) -> Process:
    return await ChildProcesses().spawn([sys.executable, "-c", program, *arguments], {"GREETING": "hello"})


async def end_of(child: Process) -> int:
    async with asyncio.timeout(LIMIT_S):
        return await child.wait()


async def read_exactly(child: Process, num_bytes: int) -> bytes:
    data = b""
    async with asyncio.timeout(LIMIT_S):
        while len(data) < num_bytes:
            data += await child.channel.read()
    return data


async def test_a_child_shares_a_channel_and_gets_its_environment() -> None:
    child = await spawn(ECHO, "{channel}")
    assert await read_exactly(child, 5) == b"hello"
    await child.channel.write(b"abc")
    assert await read_exactly(child, 3) == b"cba"
    child.kill()
    assert await end_of(child) == -signal.SIGKILL


async def test_a_large_message_passes_whole() -> None:
    child = await spawn(ECHO, "{channel}")
    await read_exactly(child, 5)
    writing = asyncio.ensure_future(child.channel.write(b"x" * 3_000_000))
    assert await read_exactly(child, 3_000_000) == b"x" * 3_000_000
    await writing
    child.kill()
    await end_of(child)


@pytest.mark.parametrize("status", [0, 3])
async def test_the_exit_status_is_the_childs(status: int) -> None:
    child = await spawn(EXIT, str(status))
    assert await end_of(child) == status


async def test_a_killed_child_says_so_every_time() -> None:
    """Not 255: that is what asyncio says when somebody else has reaped the child before it."""
    for _ in range(8):
        child = await spawn(SLEEP)
        child.kill()
        child.kill()
        assert await end_of(child) == -signal.SIGKILL
        child.kill()


async def test_no_zombie_is_left() -> None:
    child = await spawn(EXIT, "0")
    await end_of(child)
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


async def test_the_end_of_a_child_is_the_end_of_its_channel() -> None:
    child = await spawn(EXIT, "0")
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(ConnectionClosed):
            while True:
                await child.channel.read()
    await end_of(child)
    with pytest.raises(ConnectionClosed):
        for _ in range(100):
            await child.channel.write(b"x" * 65536)
            await asyncio.sleep(0)


async def test_a_child_ends_by_itself_when_our_end_closes() -> None:
    child = await spawn(ECHO, "{channel}")
    await read_exactly(child, 5)
    child.channel.close()  # type: ignore[attr-defined]
    assert await end_of(child) == 0


async def test_a_program_that_is_not_there_is_an_error_of_the_system() -> None:
    with pytest.raises(FileNotFoundError):
        await ChildProcesses().spawn(["/nowhere/program"], {})


BUSY = "import os,socket,sys,time; s=socket.socket(fileno=int(sys.argv[1]))\n"
BUSY += "while time.process_time() < 0.5: pass\n"
BUSY += "s.sendall(b'done'); time.sleep(600)"
PARENT = "import subprocess,sys; fd = sys.argv[1]; argv = [sys.executable, '-c', sys.argv[2], fd]\n"
PARENT += "subprocess.run(argv, pass_fds=[int(fd)])"


@pytest.mark.parametrize("argv", [(BUSY, "{channel}"), (PARENT, "{channel}", BUSY)], ids=["itself", "its child"])
async def test_a_child_says_what_it_and_its_children_have_used_of_the_processor(argv: tuple[str, ...]) -> None:
    child = await spawn(*argv)
    await read_exactly(child, 4)
    used_s = child.cpu_s()
    assert used_s is not None
    assert 0.4 <= used_s < 30.0
    again_s = child.cpu_s()
    assert again_s is not None
    assert again_s >= used_s
    child.kill()
    await end_of(child)
    assert child.cpu_s() is None
