"""What the machine is doing, twice a second: GPUs, power, programs, the time of day, and what the desktop tells.

Only what the rules need is read, and what costs more (programs, power) less often. Blocking calls run off the event
loop, one round at a time; a driver that hangs leaves everything unknown until it answers, and stops nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import psutil

from client.agent.gpu_use import GpuLook, GpuWatch
from client.agent.policy import GpuReading, Readings, program_key
from client.agent.programs import RunningPrograms
from client.status import AgentState, SessionReading, Status
from protocol.env import Env
from protocol.pause import PauseMode, PauseRules, with_defaults

log = logging.getLogger(__name__)

SLOW_S = 2.0
"""Between two looks at programs and power."""
STALE_S = 10.0
"""What the desktop session told so long ago is not known any more: its program may have died."""
HANG_S = 5.0
POWER_SUPPLIES = Path("/sys/class/power_supply")
"""Linux: Documentation/ABI/testing/sysfs-class-power."""
_IDLE_STATES = (AgentState.WAITING, AgentState.DOWNLOADING, AgentState.SERVING)


@dataclass(frozen=True, slots=True)
class Look:
    """What is wanted, and what we do ourselves."""

    rules: PauseRules
    gpu: GpuLook


class Senses(Protocol):
    """Where the agent's readings come from; in tests, from a script."""

    async def read(self, look: Look) -> Readings:
        """The machine now. Raises nothing that can be foreseen: what cannot be read is unknown."""

    def hear(self, told: SessionReading) -> None:
        """What the desktop session tells."""

    async def close(self) -> None: ...


def look_of(status: Status | None, rules: PauseRules) -> Look:
    """What to look for under these rules, while the agent's contribution is as in `status` (None: there is none)."""
    rules = with_defaults(rules)
    wants_use = rules.mode is not PauseMode.ALWAYS
    if status is None:
        return Look(rules, GpuLook(wants_use))
    serving = frozenset(device.device_id for device in status.devices if device.state is AgentState.SERVING)
    is_idle = not status.num_sessions and all(device.state in _IDLE_STATES for device in status.devices)
    return Look(rules, GpuLook(wants_use, is_idle, status.worker_pids, serving))


@dataclass(frozen=True, slots=True)
class _Slow:
    """What is read less often. Times are monotonic."""

    at_s: float
    wanted: tuple[frozenset[str], bool]
    programs: frozenset[str] = frozenset()
    on_battery: bool | None = None


class MachineSenses:
    """This machine's readings. The first round opens the GPU watch; `close` shuts it down."""

    def __init__(self, gpus: GpuWatch, env: Env) -> None:
        self._gpus = gpus
        self._env = env
        self._programs = RunningPrograms()
        self._slow: _Slow | None = None
        self._told = SessionReading()
        self._told_at_s = 0.0
        self._round: asyncio.Future[tuple[tuple[GpuReading, ...], _Slow]] | None = None

    def hear(self, told: SessionReading) -> None:
        self._told, self._told_at_s = told, self._env.clock.monotonic()

    async def read(self, look: Look) -> Readings:
        if self._round is None:
            self._round = asyncio.ensure_future(self._env.run_blocking(self._read, look, self._env.clock.monotonic()))
        await asyncio.wait({self._round}, timeout=HANG_S)
        if not self._round.done():
            log.warning("the machine's readings take longer than %.0f s", HANG_S)
            return Readings(self._env.clock.monotonic())
        finished, self._round = self._round, None
        gpus, self._slow = finished.result()
        return self._combine(gpus, self._slow)

    async def close(self) -> None:
        """Waits for the round at work, unless it hangs: then there is no shutting down either."""
        if self._round is not None:
            await asyncio.wait({self._round}, timeout=HANG_S)
        if self._round is None or self._round.done():
            await self._env.run_blocking(self._gpus.close)

    # ------------------------------------------------------------ off the loop

    def _read(self, look: Look, now_s: float) -> tuple[tuple[GpuReading, ...], _Slow]:
        self._gpus.open()
        return self._gpus.read(look.gpu), self._slowly(look.rules, now_s)

    def _slowly(self, rules: PauseRules, now_s: float) -> _Slow:
        wanted = frozenset(map(program_key, rules.programs)), not rules.run_on_battery
        kept = self._slow
        if kept is not None and kept.wanted == wanted and now_s - kept.at_s < SLOW_S:
            return kept
        programs, wants_power = wanted
        return _Slow(
            at_s=now_s,
            wanted=wanted,
            programs=self._programs.find(programs) if programs else frozenset(),
            on_battery=is_on_battery() if wants_power else None,
        )

    # ------------------------------------------------------------ on the loop

    def _combine(self, gpus: tuple[GpuReading, ...], slow: _Slow) -> Readings:
        now_s = self._env.clock.monotonic()
        told = self._told if now_s - self._told_at_s < STALE_S else SessionReading()
        return Readings(
            at_s=now_s,
            gpus=gpus,
            on_battery=slow.on_battery,
            programs=slow.programs,
            second_of_day=second_of_day(self._env.clock.wall()),
            idle_s=told.idle_s,
            is_fullscreen=told.is_fullscreen,
            is_locked=told.is_locked,
        )


def second_of_day(wall_s: float) -> float:
    """Of the local day; a day of 23 or 25 hours is read off the clock, as people do."""
    local = datetime.fromtimestamp(wall_s)
    return 3600 * local.hour + 60 * local.minute + local.second + local.microsecond / 1e6


# ---------------------------------------------------------------- power


def is_on_battery(folder: Path = POWER_SUPPLIES) -> bool | None:
    """Whether this machine runs on its battery; None where nobody knows."""
    if folder.is_dir():
        return on_battery_of([_properties(supply) for supply in sorted(folder.iterdir())])
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return None if battery is None or battery.power_plugged is None else not battery.power_plugged


def on_battery_of(supplies: list[Mapping[str, str]]) -> bool | None:
    """By Linux's power supplies. A mouse's battery (scope Device) is not the machine's: psutil would take it for it."""
    own = [supply for supply in supplies if supply.get("scope") != "Device"]
    batteries = [supply for supply in own if supply.get("type") == "Battery" and supply.get("present") != "0"]
    plugs = [supply["online"] for supply in own if supply.get("type") in ("Mains", "USB") and "online" in supply]
    if not batteries:
        return False
    if plugs:
        return all(online == "0" for online in plugs)
    statuses = {battery.get("status") for battery in batteries}
    return None if statuses <= {None, "Unknown"} else "Discharging" in statuses


def _properties(supply: Path) -> dict[str, str]:
    values = {name: _read_line(supply / name) for name in ("type", "scope", "present", "online", "status")}
    return {name: value for name, value in values.items() if value is not None}


def _read_line(path: Path) -> str | None:
    """A property that is not there, or whose driver does not answer (EIO, ENODEV), is not known."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
