"""The system's clocks."""

from __future__ import annotations

import time

from protocol.env import Clock
from shell.clock import SystemClock


async def test_the_monotonic_clock_passes_while_sleeping() -> None:
    clock: Clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(0.02)
    assert clock.monotonic() - before >= 0.019


def test_the_wall_clock_is_the_systems() -> None:
    assert abs(SystemClock().wall() - time.time()) < 60
