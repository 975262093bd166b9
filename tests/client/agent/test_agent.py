"""The agent: what it is told, what it says, and that nothing stays behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from client.agent import agent as agent_module
from client.agent.agent import Agent, load_nvml, obey_lines
from client.agent.contribution import Contribution
from client.agent.policy import Readings
from client.agent.readings import Look
from client.config import NodeConfig
from client.errors import JoinError
from client.status import (
    AgentState,
    Command,
    Pause,
    PauseInfo,
    Quit,
    Resume,
    SessionReading,
    Status,
    decode_report,
    encode_line,
)
from protocol.messages import Hello, Leaving, Refused, encode_message
from protocol.pause import PauseReason
from shell import AsyncioEnv
from tests.client.agent.pool_server import PoolServer, welcome
from tests.client.agent.waiting import is_alive, our_tasks, until

MakeWorker = Callable[[str], str]


class FreeMachine:
    """Senses that see nobody but us."""

    def __init__(self, env: AsyncioEnv) -> None:
        self._env = env

    async def read(self, look: Look) -> Readings:
        return Readings(self._env.clock.monotonic())

    def hear(self, told: SessionReading) -> None:
        return

    async def close(self) -> None:
        return


class Running:
    """An agent at work on a machine that nobody else uses, and the lines it wrote."""

    def __init__(self, config: NodeConfig, env: AsyncioEnv) -> None:
        self.lines: list[bytes] = []
        self.agent = Agent(config, env, self.lines.append, FreeMachine(env))
        self.task = asyncio.create_task(self.agent.run())

    @property
    def statuses(self) -> list[Status]:
        reports = [decode_report(line) for line in self.lines]
        return [report for report in reports if isinstance(report, Status)]

    @property
    def last(self) -> Status:
        return self.statuses[-1]

    def command(self, *commands: Command) -> None:
        for command in commands:
            self.agent.command(command)

    async def until(self, state: AgentState) -> Status:
        await until(lambda: self.lines and self.last.state is state)
        return self.last

    async def end(self) -> None:
        self.agent.command(Quit())
        async with asyncio.timeout(20):
            await asyncio.gather(self.task, return_exceptions=True)
        assert our_tasks() == []


@pytest.fixture
def config(pool: PoolServer, worker_python: MakeWorker, tmp_path: Path) -> NodeConfig:
    return NodeConfig(
        pool.link, tmp_path / "data", "node", use_gpu=False, worker_python=worker_python("good"), attached=True
    )


@pytest.fixture
def running(config: NodeConfig, env: AsyncioEnv, monkeypatch: pytest.MonkeyPatch) -> Callable:
    monkeypatch.setattr(agent_module, "MIN_STATUS_INTERVAL_S", 0.01)

    @asynccontextmanager
    async def run(**changes: object) -> AsyncIterator[Running]:
        settings = {name: getattr(config, name) for name in config.__slots__}
        running = Running(NodeConfig(**{**settings, **changes}), env)
        try:
            yield running
        finally:
            await running.end()

    return run


# ---------------------------------------------------------------- pause, resume, quit


async def test_the_first_line_comes_at_once_and_the_last_says_stopped(running: Callable) -> None:
    async with running() as run:
        await until(lambda: run.lines)
        assert run.statuses[0] == Status(AgentState.CONNECTING, "Starting.")
        await run.until(AgentState.WAITING)
    assert run.last == Status(AgentState.STOPPED, "The agent has stopped.")


async def test_quitting_tells_the_pool_and_leaves_no_worker(pool: PoolServer, running: Callable) -> None:
    async with running() as run:
        status = await run.until(AgentState.WAITING)
        run.command(Quit())
        await run.task
        assert await pool.hears(Leaving) == Leaving("quit")
        assert not any(map(is_alive, status.worker_pids))


async def test_pausing_kills_the_worker_and_leaves_the_pool(pool: PoolServer, running: Callable) -> None:
    async with running() as run:
        before = await run.until(AgentState.WAITING)
        run.command(Pause())
        status = await run.until(AgentState.PAUSED)
        since_s = status.pause.since_s
        info = PauseInfo((PauseReason.MANUAL,), since_s)
        assert status == Status(AgentState.PAUSED, "Paused. The GPU's memory is free.", pause=info)
        assert not any(map(is_alive, before.worker_pids))
        assert await pool.hears(Leaving) == Leaving("manual")
        await until(lambda: pool.closed)
        assert all("agent/agent.py" in name for name in our_tasks())


async def test_resuming_joins_again_as_the_same_node_with_a_new_worker(pool: PoolServer, running: Callable) -> None:
    async with running() as run:
        before = await run.until(AgentState.WAITING)
        first = await pool.hears(Hello)
        run.command(Pause())
        await run.until(AgentState.PAUSED)
        run.command(Resume())
        second = await pool.hears(Hello)
        after = await run.until(AgentState.WAITING)
        assert first.node_id == second.node_id
        assert set(before.worker_pids).isdisjoint(after.worker_pids)


async def test_after_resume_no_line_says_paused(running: Callable) -> None:
    async with running() as run:
        await run.until(AgentState.WAITING)
        run.command(Pause())
        await run.until(AgentState.PAUSED)
        num_lines = len(run.lines)
        run.command(Resume())
        await run.until(AgentState.WAITING)
        assert AgentState.PAUSED not in {status.state for status in run.statuses[num_lines:]}


async def test_pausing_twice_is_pausing_once(running: Callable) -> None:
    async with running() as run:
        await run.until(AgentState.WAITING)
        run.command(Pause(), Pause())
        await run.until(AgentState.PAUSED)
        run.command(Resume())
        await run.until(AgentState.WAITING)


async def test_what_ends_in_resume_while_contributing_changes_nothing(pool: PoolServer, running: Callable) -> None:
    async with running() as run:
        await run.until(AgentState.WAITING)
        run.command(Resume(), Pause(), Resume())
        await asyncio.sleep(0.05)
        assert len(pool.connections) == 1


async def test_quitting_while_paused_ends_the_agent(running: Callable) -> None:
    async with running() as run:
        run.command(Pause())
        await run.until(AgentState.PAUSED)
        run.command(Quit())
        async with asyncio.timeout(20):
            await run.task


@pytest.mark.expected_logs("not connected to the pool")
async def test_pausing_while_the_pool_is_away_works(pool: PoolServer, running: Callable) -> None:
    await pool.stop()
    async with running() as run:
        await until(lambda: run.lines and "does not answer" in run.last.message)
        assert run.last.state is AgentState.CONNECTING
        run.command(Pause())
        await run.until(AgentState.PAUSED)


async def test_many_hasty_clicks_end_in_the_last_ones_state(running: Callable) -> None:
    async with running() as run:
        run.command(*[Pause(), Resume()] * 10, Pause())
        await run.until(AgentState.PAUSED)
        run.command(*[Resume(), Pause()] * 10, Resume())
        await run.until(AgentState.WAITING)


async def test_an_agent_that_is_cancelled_cleans_up(running: Callable) -> None:
    async with running() as run:
        status = await run.until(AgentState.WAITING)
        run.task.cancel()
        await asyncio.gather(run.task, return_exceptions=True)
        assert not any(map(is_alive, status.worker_pids))


# ---------------------------------------------------------------- what it cannot go on with


async def refuse(connection: object, hello: Hello) -> None:
    await connection.send(encode_message(Refused("protocol_version", "This pool speaks version 9.")))  # type: ignore[attr-defined]


async def test_a_refused_version_is_failed_with_the_pools_sentence(pool: PoolServer, running: Callable) -> None:
    pool.greet = refuse
    async with running() as run:
        status = await run.until(AgentState.FAILED)
        assert status == Status(AgentState.FAILED, "This pool speaks version 9.")


@pytest.mark.parametrize("commands", [(Resume(),), (Pause(), Resume())])
async def test_after_a_failure_one_can_try_again(
    pool: PoolServer, running: Callable, commands: tuple[Command, ...]
) -> None:
    pool.greet = refuse
    async with running() as run:
        await run.until(AgentState.FAILED)
        pool.greet = welcome
        run.command(*commands)
        await run.until(AgentState.WAITING)


async def test_a_pause_after_a_failure_is_shown(pool: PoolServer, running: Callable) -> None:
    pool.greet = refuse
    async with running() as run:
        await run.until(AgentState.FAILED)
        run.command(Pause())
        await run.until(AgentState.PAUSED)


async def test_without_anybody_to_ask_a_failure_ends_the_agent_with_its_error(
    pool: PoolServer, running: Callable
) -> None:
    pool.greet = refuse
    async with running(attached=False) as run:
        with pytest.raises(JoinError, match=r"This pool speaks version 9\."):
            await run.task


@pytest.mark.expected_logs("the contribution failed")
async def test_a_defect_of_ours_is_failed_with_a_sentence_and_not_the_end(
    running: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: Contribution) -> None:
        raise KeyError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(Contribution, "run", fail)
        async with running() as run:
            status = await run.until(AgentState.FAILED)
            assert status.message == "The agent failed unexpectedly (KeyError); see its log."
            patch.undo()
            run.command(Resume())
            await run.until(AgentState.WAITING)


@pytest.mark.expected_logs("the contribution failed")
async def test_a_defect_while_leaving_does_not_stop_a_pause(running: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    leave = Contribution._leave

    async def leave_badly(self: Contribution) -> None:
        await leave(self)
        raise KeyError("a defect")

    monkeypatch.setattr(Contribution, "_leave", leave_badly)
    async with running() as run:
        await run.until(AgentState.WAITING)
        run.command(Pause())
        await run.until(AgentState.PAUSED)


async def test_a_folder_that_cannot_be_used_is_failed_with_a_sentence(running: Callable, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    async with running(data_dir=in_the_way) as run:
        status = await run.until(AgentState.FAILED)
        assert status.message.startswith(f"The folder {in_the_way} cannot be used: ")


# ---------------------------------------------------------------- identity


async def test_the_node_id_is_made_once_and_kept(pool: PoolServer, running: Callable) -> None:
    ids = []
    for _ in range(2):
        async with running():
            ids.append((await pool.hears(Hello)).node_id)
    assert ids[0] == ids[1]


# ---------------------------------------------------------------- status lines


async def test_lines_are_no_more_frequent_than_agreed(
    pool: PoolServer, running: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running() as run:
        await run.until(AgentState.WAITING)
        monkeypatch.setattr(agent_module, "MIN_STATUS_INTERVAL_S", 0.2)
        await asyncio.sleep(0.05)
        num_lines = len(run.lines)
        for _ in range(50):
            run.agent._changed.set()
            await asyncio.sleep(0.001)
        assert len(run.lines) <= num_lines + 2


# ---------------------------------------------------------------- lines on standard input


class Recorder:
    """An agent that only remembers what it is told."""

    def __init__(self) -> None:
        self.commands: list[Command] = []

    def command(self, command: Command) -> None:
        self.commands.append(command)


async def obeyed(*chunks: bytes) -> list[Command]:
    reader, recorder = asyncio.StreamReader(limit=1000), Recorder()
    task = asyncio.create_task(obey_lines(recorder, reader))  # type: ignore[arg-type]
    for chunk in chunks:
        reader.feed_data(chunk)
        await asyncio.sleep(0)
    reader.feed_eof()
    async with asyncio.timeout(10):
        await task
    return recorder.commands


async def test_commands_are_obeyed_in_order_and_the_end_of_file_means_quit() -> None:
    assert await obeyed(encode_line(Pause()), encode_line(Resume())[:5], encode_line(Resume())[5:]) == [
        Pause(),
        Resume(),
        Quit(at_once=True),
    ]


@pytest.mark.expected_logs("is no command")
@pytest.mark.parametrize("garbage", [b"\n", b"pause\n", b'{"type":"status"}\n', b"\xff\xfe\n", b"x" * 5000 + b"\n"])
async def test_what_is_no_command_is_skipped(garbage: bytes) -> None:
    assert await obeyed(garbage, encode_line(Pause())) == [Pause(), Quit(at_once=True)]


@pytest.mark.expected_logs("is no command")
async def test_half_a_line_at_the_end_is_no_command() -> None:
    assert await obeyed(encode_line(Pause())[:-2]) == [Quit(at_once=True)]


async def test_standard_input_that_breaks_means_quit() -> None:
    reader, recorder = asyncio.StreamReader(), Recorder()
    reader.set_exception(ConnectionResetError("gone"))
    with pytest.raises(ConnectionResetError):
        await obey_lines(recorder, reader)  # type: ignore[arg-type]
    assert recorder.commands == [Quit(at_once=True)]


def test_a_machine_without_pynvml_has_no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", fail)
    assert load_nvml() is None
