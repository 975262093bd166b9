"""Worker processes: real children that behave, misbehave and die."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from client import ipc
from client.agent import workers as workers_module
from client.agent.workers import NOT_STARTED, Callbacks, Workers
from protocol.env import ConnectionClosed
from protocol.values import DeviceId, LayerRange
from shell import AsyncioEnv
from tests.client.agent.conftest import worker_command
from tests.client.agent.waiting import is_alive, until, until_dead

CPU, GPU = DeviceId("cpu"), DeviceId("cuda:0")


@dataclass
class Journal:
    """What the workers did."""

    messages: list[tuple[DeviceId, ipc.WorkerMessage]] = field(default_factory=list)
    frames: list[tuple[DeviceId, int, bytes]] = field(default_factory=list)
    exits: list[tuple[DeviceId, int, str]] = field(default_factory=list)

    def callbacks(self) -> Callbacks:
        return Callbacks(
            lambda *what: self.messages.append(what),
            lambda *what: self.frames.append(what),
            lambda *what: self.exits.append(what),
        )

    def ready(self) -> list[ipc.WorkerReady]:
        return [message for _, message in self.messages if isinstance(message, ipc.WorkerReady)]


class Crew:
    """Workers, and the journal of what they did."""

    def __init__(self, env: AsyncioEnv) -> None:
        self.journal = Journal()
        self._env = env
        self.workers = self.use(worker_command("good"))

    def use(self, command: Sequence[str]) -> Workers:
        self.workers = Workers(command, self._env, self.journal.callbacks())
        return self.workers

    async def exit_of(self, play: str) -> tuple[DeviceId, int, str]:
        self.use(worker_command(play)).start(CPU)
        await until(lambda: self.journal.exits)
        assert self.workers.pids == {}
        return self.journal.exits[0]


@pytest.fixture
async def crew(env: AsyncioEnv) -> AsyncIterator[Crew]:
    crew = Crew(env)
    yield crew
    await crew.workers.kill_all()


async def test_a_worker_says_that_it_is_ready_and_has_its_pid_in_the_list(crew: Crew) -> None:
    crew.workers.start(CPU)
    await until(crew.journal.ready)
    pid = crew.workers.pids[CPU]
    assert crew.journal.ready()[0].device_name == f"{pid} PCI_BUS_ID"


async def test_messages_and_frames_go_there_and_back_in_order(crew: Crew) -> None:
    crew.workers.start(CPU)
    await until(crew.journal.ready)
    for number in range(20):
        crew.workers.tell(CPU, ipc.PlanSlice("{}", LayerRange(number, number + 1), ()))
        crew.workers.pass_frame(CPU, bytes([number]) * 100_000)
    await until(lambda: len(crew.journal.frames) == 20)
    planned = [message.tensor_names for _, message in crew.journal.messages if isinstance(message, ipc.SlicePlanned)]
    assert planned == [(f"model.layers.{number}.weight",) for number in range(20)]
    assert [frame for _, _, frame in crew.journal.frames] == [bytes([number]) * 100_000 for number in range(20)]


async def test_what_the_worker_is_told_overtakes_the_frames_that_wait(crew: Crew) -> None:
    """An end of a session must not wait behind the rows that it makes needless."""
    crew.workers.start(CPU)
    await until(crew.journal.ready)
    for _ in range(20):
        assert crew.workers.pass_frame(CPU, bytes(2**20))
    crew.workers.tell(CPU, ipc.PlanSlice("{}", LayerRange(7, 8), ()))
    await until(lambda: [m for _, m in crew.journal.messages if isinstance(m, ipc.SlicePlanned)])
    assert len(crew.journal.frames) < 20
    await until(lambda: len(crew.journal.frames) == 20)


async def test_frames_beyond_the_bound_are_refused(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "MAX_ROW_BYTES", 1000)
    crew.workers.start(CPU)
    await until(crew.journal.ready)
    taken = [crew.workers.pass_frame(CPU, bytes(400)) for _ in range(5)]
    assert taken == [True, True, False, False, False]
    await until(lambda: len(crew.journal.frames) == 2)
    assert crew.workers.pass_frame(CPU, bytes(400))


@pytest.mark.expected_logs("takes no messages")
async def test_a_worker_that_takes_no_messages_is_ended_with_the_reason(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "MAX_CONTROL_BYTES", 2**20)
    crew.use(worker_command("deaf")).start(CPU)
    await until(crew.journal.ready)
    for number in range(100):
        crew.workers.tell(CPU, ipc.PlanSlice("{}" * 2**16, LayerRange(number, number + 1), ()))
    await until(lambda: crew.journal.exits)
    assert crew.journal.exits == [(CPU, -signal.SIGKILL, "The worker took none of its messages any more")]


async def test_two_devices_have_two_workers(crew: Crew) -> None:
    crew.workers.start(CPU)
    crew.workers.start(GPU)
    await until(lambda: len(crew.journal.ready()) == 2)
    assert len(set(crew.workers.pids.values())) == 2
    crew.workers.pass_frame(GPU, b"frame")
    await until(lambda: crew.journal.frames)
    assert crew.journal.frames == [(GPU, 0, b"frame")]


async def test_a_worker_that_ends_is_reported_with_its_status(crew: Crew) -> None:
    assert await crew.exit_of("short") == (CPU, 3, "")


async def test_a_killed_worker_is_reported_with_its_signal(crew: Crew) -> None:
    crew.workers.start(CPU)
    await until(crew.journal.ready)
    os.kill(crew.workers.pids[CPU], signal.SIGKILL)
    await until(lambda: crew.journal.exits)
    assert crew.journal.exits == [(CPU, -signal.SIGKILL, "")]


async def test_a_worker_that_is_told_to_end_is_reported_with_the_reason(crew: Crew) -> None:
    crew.workers.start(CPU)
    await until(crew.journal.ready)
    crew.workers.end(CPU, "Its memory is needed")
    await until(lambda: crew.journal.exits)
    assert crew.journal.exits == [(CPU, -signal.SIGKILL, "Its memory is needed")]
    crew.workers.end(CPU, "again")


@pytest.mark.expected_logs("worker cpu: ")
@pytest.mark.parametrize("play", ["garbage", "other"])
async def test_a_worker_of_another_build_is_ended_with_the_reason(crew: Crew, play: str) -> None:
    reason = "The worker is of another build than the agent"
    assert await crew.exit_of(play) == (CPU, -signal.SIGKILL, reason)
    assert crew.journal.messages == []


async def test_a_worker_that_closes_its_socket_and_lives_on_is_ended(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "END_GRACE_S", 0.1)
    assert await crew.exit_of("stubborn") == (CPU, -signal.SIGKILL, "")


@pytest.mark.expected_logs("said nothing")
async def test_a_worker_that_never_gets_ready_is_ended(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "START_LIMIT_S", 0.3)
    device_id, status, reason = await crew.exit_of("silent")
    assert (device_id, status) == (CPU, -signal.SIGKILL)
    assert reason.startswith("The worker did not come up within")


class QuickWorker:
    """A worker in memory: ready at once, then silent until it is killed."""

    pid = 0

    def __init__(self) -> None:
        self.channel = self
        self._packets = [ipc.pack_message(ipc.WorkerReady(ipc.IPC_VERSION, "", "", 0))]
        self._killed = asyncio.Event()

    async def read(self) -> bytes:
        if self._packets:
            return self._packets.pop()
        await self._killed.wait()
        raise ConnectionClosed(1000, "end of file")

    async def wait(self) -> int:
        await self._killed.wait()
        return -signal.SIGKILL

    def kill(self) -> None:
        self._killed.set()


async def test_a_worker_that_is_ready_may_be_silent_for_as_long_as_it_likes(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def spawn(*arguments: object) -> QuickWorker:
        return QuickWorker()

    monkeypatch.setattr(workers_module, "START_LIMIT_S", 0.05)
    monkeypatch.setattr(crew._env.processes, "spawn", spawn)
    crew.workers.start(CPU)
    await until(crew.journal.ready)
    await asyncio.sleep(0.15)
    assert crew.journal.exits == []


@pytest.mark.expected_logs("cannot be started")
async def test_a_command_that_does_not_exist_is_reported_with_the_reason(crew: Crew, tmp_path: Path) -> None:
    crew.use((str(tmp_path / "no-such-python"),)).start(CPU)
    await until(lambda: crew.journal.exits)
    reason = "The worker cannot be started (No such file or directory)"
    assert crew.journal.exits == [(CPU, NOT_STARTED, reason)]


async def test_telling_a_worker_that_is_gone_does_nothing(crew: Crew) -> None:
    await crew.exit_of("short")
    crew.workers.tell(CPU, ipc.EndSession("1" * 32, 1))
    crew.workers.pass_frame(CPU, b"frame")
    crew.workers.pass_frame(GPU, b"frame")


async def test_a_worker_can_be_started_again_after_its_end(crew: Crew) -> None:
    await crew.exit_of("short")
    crew.workers.start(CPU)
    await until(lambda: len(crew.journal.exits) == 2)


@pytest.mark.parametrize("play", ["good", "deaf", "silent"])
async def test_kill_all_ends_every_worker_and_reports_nothing(crew: Crew, play: str) -> None:
    workers = crew.use(worker_command(play))
    workers.start(CPU)
    workers.start(GPU)
    await until(lambda: len(workers.pids) == 2)
    pids = list(workers.pids.values())
    workers.pass_frame(CPU, bytes(4 * 2**20))
    await workers.kill_all()
    assert [is_alive(pid) for pid in pids] == [False, False]
    assert (workers.pids, crew.journal.exits) == ({}, [])


async def test_a_worker_that_is_just_being_started_does_not_escape(crew: Crew) -> None:
    spawned: list[int] = []
    spawn = crew._env.processes.spawn

    async def spawn_and_note(*arguments: object) -> object:
        process = await spawn(*arguments)  # type: ignore[arg-type]
        spawned.append(process.pid)
        return process

    crew._env.processes.spawn = spawn_and_note  # type: ignore[assignment]
    crew.workers.start(CPU)
    await asyncio.sleep(0)
    await crew.workers.kill_all()
    assert [is_alive(pid) for pid in spawned] == [False]
    assert crew.journal.messages == []


async def test_after_kill_all_none_can_be_started(crew: Crew) -> None:
    await crew.workers.kill_all()
    crew.workers.start(CPU)
    await asyncio.sleep(0.05)
    assert crew.workers.pids == {}


PARENT = """
import asyncio, sys
from client.agent.workers import Callbacks, Workers
from shell import AsyncioEnv

async def main():
    nothing = lambda *what: None
    said = lambda device_id, message: print(workers.pids[device_id], flush=True)
    workers = Workers(sys.argv[1:], AsyncioEnv(), Callbacks(said, nothing, nothing))
    workers.start("cpu")
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_worker_ends_by_itself_when_its_agent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, *worker_command("good")], stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        pid = int(await asyncio.to_thread(agent.stdout.readline))
        assert is_alive(pid)
        agent.kill()
        await until_dead(pid)
