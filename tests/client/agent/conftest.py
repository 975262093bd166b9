"""The agent's shell under test: a real Env, a worker program, waiting for what must come."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from shell import AsyncioEnv
from tests.client.agent.pool_server import PoolServer, running_pool

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
