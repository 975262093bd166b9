"""The agent as a process: plain lines for people, JSON lines for the GUI, and its end in every way."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from pathlib import Path

import pytest

from client.agent.main import StatusPrinter, describe
from client.status import (
    AgentState,
    DeviceStatus,
    History,
    Pause,
    PauseInfo,
    Status,
    Transition,
    decode_report,
    encode_line,
)
from protocol.messages import Hello, Leaving, Refused, encode_message
from protocol.pause import PauseReason
from protocol.values import LayerRange
from tests.client.agent.pool_server import PoolServer
from tests.client.agent.waiting import LIMIT_S, until, until_dead
from tests.fakes.fake_nvml import SCRIPT_VARIABLE, FakeGpu, FakeProcess, write_script

MakeWorker = Callable[[str], str]


def device(state: AgentState, done: int = 0, total: int = 0) -> DeviceStatus:
    return DeviceStatus("cuda:0", "A card", state, "tiny", LayerRange(0, 12), 24, done, total)


def clock_time(text: str) -> float:
    """Seconds since 1970 of a local time today."""
    return datetime.combine(date.today(), time.fromisoformat(text)).timestamp()


def paused(message: str, **ends: float) -> Status:
    return Status(AgentState.PAUSED, message, pause=PauseInfo((PauseReason.BATTERY,), 0.0, **ends))


IDLE = DeviceStatus("cpu", "A processor", AgentState.WAITING)


# ---------------------------------------------------------------- for people


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (Status(AgentState.STOPPED, "The agent has stopped."), "stopped · The agent has stopped."),
        (Status(AgentState.WAITING, devices=(IDLE,)), "waiting"),
        (
            Status(AgentState.SERVING, devices=(device(AgentState.SERVING, 5, 5),)),
            "serving · cuda:0: layers 0-11 of 24 of tiny",
        ),
        (
            Status(AgentState.DOWNLOADING, devices=(device(AgentState.DOWNLOADING, 419_000_000, 10**9),)),
            "downloading · cuda:0: layers 0-11 of 24 of tiny · 40 % of 1000 MB",
        ),
        (
            Status(AgentState.LOADING, devices=(device(AgentState.LOADING, 0, 0),)),
            "loading · cuda:0: layers 0-11 of 24 of tiny",
        ),
        (
            Status(AgentState.CONNECTING, "The pool does not answer.", devices=(device(AgentState.SERVING),)),
            "connecting · The pool does not answer.",
        ),
        (
            Status(AgentState.SERVING, num_sessions=2, leaves_at_s=clock_time("14:05:09")),
            "serving · takes nothing new, finishes 2 answers until 14:05:09 at most",
        ),
        (paused("Paused: on battery."), "paused · Paused: on battery."),
        (
            paused("Paused.", resumes_at_s=clock_time("14:05:09")),
            "paused · Paused. · goes on at 14:05:09 if nothing stirs",
        ),
        (
            paused("Paused.", until_s=clock_time("14:05:09")),
            "paused · Paused. · until 14:05:09 at least",
        ),
    ],
)
def test_a_status_is_one_plain_line(status: Status, line: str) -> None:
    assert describe(status) == line


def test_a_line_is_printed_only_when_it_says_something_new(capsys: pytest.CaptureFixture[str]) -> None:
    printer = StatusPrinter()
    for done in (0, 1, 5, 10, 11, 19, 20):
        printer.show(encode_line(Status(AgentState.LOADING, devices=(device(AgentState.LOADING, done, 100),))))
    percents = [line.split(" · ")[2].split(" %")[0] for line in capsys.readouterr().out.splitlines()]
    assert percents == ["0", "10", "20"]


def test_the_history_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    StatusPrinter().show(encode_line(History((Transition(1.0, (PauseReason.BATTERY,), "on battery"),))))
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------- as a process


@pytest.fixture
def start(pool: PoolServer, worker_python: MakeWorker, tmp_path: Path) -> Callable:
    """Start `decentllm node run` against the pool server, with the worker program."""

    @contextmanager
    def run(*options: str, **streams: int) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "client", "node", "run", "--join", pool.url]
        command += [] if "--nvml-module" in options else ["--cpu"]
        command += ["--data-dir", str(tmp_path / "data"), "--worker-python", worker_python("good"), *options]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
            try:
                yield process
            finally:
                process.kill()

    return run


async def ended(process: subprocess.Popen[bytes]) -> int:
    await until(lambda: process.poll() is not None)
    return process.returncode


async def says(agent: subprocess.Popen[bytes], state: AgentState) -> None:
    """Read its lines until one has that state."""
    assert agent.stdout is not None
    async with asyncio.timeout(LIMIT_S):
        while True:
            report = decode_report(await asyncio.to_thread(agent.stdout.readline))
            if isinstance(report, Status) and report.state is state:
                return


def worker_of(agent: subprocess.Popen[bytes]) -> int:
    """The process id of the agent's only child."""
    (child,) = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    return int(child)


def statuses(output: bytes) -> list[Status]:
    reports = [decode_report(line) for line in output.splitlines()]
    return [report for report in reports if isinstance(report, Status)]


async def test_end_of_file_on_standard_input_leaves_the_pool_and_ends_the_agent(
    pool: PoolServer, start: Callable
) -> None:
    with start("--attached") as agent:
        await pool.hears(Hello)
        worker = worker_of(agent)
        agent.stdin.close()
        assert await ended(agent) == 0
        assert await pool.hears(Leaving)
        assert statuses(agent.stdout.read())[-1].state is AgentState.STOPPED
        await until_dead(worker)


async def test_a_pause_over_standard_input_is_obeyed(pool: PoolServer, start: Callable) -> None:
    with start("--attached") as agent:
        await pool.hears(Hello)
        agent.stdin.write(encode_line(Pause()))
        agent.stdin.flush()
        assert await pool.hears(Leaving)
        await says(agent, AgentState.PAUSED)
        agent.stdin.close()
        assert await ended(agent) == 0


async def test_when_another_process_takes_the_gpu_the_agent_leaves_and_says_why(
    pool: PoolServer, start: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "gpus.json"
    monkeypatch.setenv(SCRIPT_VARIABLE, str(script))
    write_script(script, FakeGpu(is_offered=False))
    with start("--nvml-module", "tests.fakes.fake_nvml", stdin=subprocess.DEVNULL) as agent:
        await pool.hears(Hello)
        worker = worker_of(agent)
        write_script(script, FakeGpu(is_offered=False, processes=[FakeProcess(os.getpid(), sm=80)]))
        assert await pool.hears(Leaving) == Leaving("other_gpu_use")
        await until_dead(worker)
        lines = iter(lambda: agent.stdout.readline().decode(), "")
        line = await asyncio.to_thread(lambda: next(line for line in lines if line.startswith("paused")))
        assert line.endswith(" uses 80 % of the GPU. The GPU's memory is free.\n")
        agent.terminate()
        assert await ended(agent) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_leaves_the_pool_and_ends_the_agent(pool: PoolServer, start: Callable, number: int) -> None:
    with start(stdin=subprocess.DEVNULL) as agent:
        await pool.hears(Hello)
        worker = worker_of(agent)
        agent.send_signal(number)
        assert await ended(agent) == 0
        assert await pool.hears(Leaving)
        await until_dead(worker)
        assert agent.stdout.read().decode().splitlines()[-1] == "stopped · The agent has stopped."
        assert b"Traceback" not in agent.stderr.read()


async def test_a_node_without_a_window_is_paused_and_resumed_by_signals(pool: PoolServer, start: Callable) -> None:
    with start(stdin=subprocess.DEVNULL) as agent:
        await pool.hears(Hello)
        worker = worker_of(agent)
        agent.send_signal(signal.SIGUSR1)
        assert await pool.hears(Leaving) == Leaving("manual")
        await until_dead(worker)
        lines = iter(lambda: agent.stdout.readline().decode(), "")
        line = await asyncio.to_thread(lambda: next(line for line in lines if line.startswith("paused")))
        assert line == "paused · Paused. The GPU's memory is free.\n"
        agent.send_signal(signal.SIGUSR2)
        await pool.hears(Hello)
        agent.terminate()
        assert await ended(agent) == 0


async def test_an_agent_that_is_killed_leaves_no_worker(pool: PoolServer, start: Callable) -> None:
    with start("--attached") as agent:
        await pool.hears(Hello)
        worker = worker_of(agent)
        agent.kill()
        await until_dead(worker)


async def test_a_refused_agent_without_a_gui_ends_with_the_sentence(pool: PoolServer, start: Callable) -> None:
    async def refuse(connection: object, hello: Hello) -> None:
        await connection.send(encode_message(Refused("no", "This pool speaks version 9.")))  # type: ignore[attr-defined]

    pool.greet = refuse
    with start(stdin=subprocess.DEVNULL) as agent:
        assert await ended(agent) == 2
        errors = agent.stderr.read().decode()
        assert errors.endswith("decentllm: This pool speaks version 9.\n")
        assert "Traceback" not in errors


@pytest.mark.parametrize("options", [("--attached",), ()])
async def test_a_reader_that_has_gone_is_no_trouble(
    pool: PoolServer, start: Callable, options: tuple[str, ...]
) -> None:
    reading, writing = os.pipe()
    with start(*options, stdout=writing) as agent:
        os.close(writing)
        os.close(reading)
        await pool.hears(Hello)
        agent.stdin.close() if options else agent.terminate()
        assert await ended(agent) == 0
        errors = agent.stderr.read()
        assert b"Traceback" not in errors
        assert b"BrokenPipe" not in errors
