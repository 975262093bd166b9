"""One object with everything impure."""

from __future__ import annotations

import threading

from protocol.env import Env
from shell import AsyncioEnv


async def test_it_is_an_env_and_closes() -> None:
    made = AsyncioEnv()
    env: Env = made
    assert env.clock.monotonic() <= env.clock.monotonic()
    assert len(env.random.token_hex(4)) == 8
    await made.close()


async def test_blocking_work_runs_off_the_event_loop() -> None:
    env = AsyncioEnv()
    assert await env.run_blocking(threading.get_ident) != threading.get_ident()
    assert await env.run_blocking(max, 1, 2) == 2
    await env.close()
