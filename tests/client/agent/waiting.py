"""Waiting for what must come, and never for longer than a slow machine needs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

LIMIT_S = 30.0


async def until(condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Wait for a condition that something else makes true."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until_dead(pid: int) -> None:
    assert pid not in (0, 1, os.getpid())
    await until(lambda: not is_alive(pid))


def our_tasks() -> list[str]:
    """Tasks of the agent that are still there."""
    coroutines = [task.get_coro() for task in asyncio.all_tasks()]
    names = [f"{c.cr_code.co_filename}:{c.cr_code.co_name}" for c in coroutines if hasattr(c, "cr_code")]
    return [name for name in names if "/client/agent/" in name and "/tests/" not in name]
