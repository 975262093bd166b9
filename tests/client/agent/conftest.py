"""The agent's shell under test: a real Env, a worker program, waiting for what must come."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.agent import agent as agent_module
from client.config import NodeConfig
from shell import AsyncioEnv
from tests.client.agent.pool_server import PoolServer, running_pool
from tests.client.agent.watched_agent import Running

REPOSITORY = Path(__file__).parents[3]
WORKER_PROGRAM = Path(__file__).with_name("worker_program.py")


@pytest.fixture
async def env() -> AsyncIterator[AsyncioEnv]:
    env = AsyncioEnv()
    yield env
    await env.close()


@pytest.fixture(autouse=True)
def _no_task_outlives(request: pytest.FixtureRequest) -> Iterator[None]:
    """Errors that asyncio only logs (a task's lost exception, a task destroyed while pending) fail the test."""
    caplog = request.getfixturevalue("caplog")
    yield
    lines = [record.getMessage() for record in caplog.get_records("call") if record.name == "asyncio"]
    errors = [line for line in lines if "never retrieved" in line or "destroyed" in line]
    assert not errors, errors


def worker_command(play: str) -> tuple[str, ...]:
    return (sys.executable, str(WORKER_PROGRAM), play)


@pytest.fixture
def worker_python(tmp_path: Path) -> Callable[[str], str]:
    """An "interpreter" that is the worker program, whatever module it is asked to run."""

    def make(play: str) -> str:
        path = tmp_path / f"python-{play}"
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{WORKER_PROGRAM}" {play} "$@"\n')
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture(autouse=True)
def _children_find_our_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


@pytest.fixture
async def pool() -> AsyncIterator[PoolServer]:
    async with running_pool() as pool:
        yield pool


@pytest.fixture
def config(pool: PoolServer, worker_python: Callable[[str], str], tmp_path: Path) -> NodeConfig:
    python = worker_python("good")
    return NodeConfig(pool.link, tmp_path / "data", "node", use_gpu=False, worker_python=python, attached=True)


@pytest.fixture
def running(config: NodeConfig, env: AsyncioEnv, monkeypatch: pytest.MonkeyPatch) -> Callable:
    monkeypatch.setattr(agent_module, "MIN_STATUS_INTERVAL_S", 0.01)
    monkeypatch.setattr(agent_module, "SAMPLE_S", 0.01)

    @asynccontextmanager
    async def run(shown: dict[str, Any] | None = None, **changes: Any) -> AsyncIterator[Running]:
        running = Running(replace(config, **changes), env, shown or {})
        try:
            yield running
        finally:
            await running.end()

    return run
