"""What the machine is doing, put together: only what is wanted, nothing that is stale, nothing that hangs."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from client.agent import readings as readings_module
from client.agent.gpu_use import GpuLook, GpuWatch
from client.agent.policy import Readings
from client.agent.programs import Programs, RunningPrograms
from client.agent.readings import (
    SLOW_S,
    STALE_S,
    Look,
    MachineSenses,
    is_on_battery,
    look_of,
    on_battery_of,
    second_of_day,
)
from client.status import AgentState, DeviceStatus, SessionReading, Status
from protocol.pause import PauseMode, PauseRules, with_defaults
from tests.fakes.fake_nvml import FakeGpu, FakeNvml, FakeProcess

LOOK = look_of(None, PauseRules())


class Env:
    """A clock that the test moves; blocking calls are counted and run in threads."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.clock = SimpleNamespace(monotonic=lambda: self.now_s, wall=lambda: self.now_s + 1.7e9)

    async def run_blocking(self, function: Callable[..., Any], *arguments: object) -> Any:
        return await asyncio.to_thread(function, *arguments)


class Desk:
    """Senses on a fake NVML, a clock that the test moves and a list of programs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *gpus: FakeGpu) -> None:
        self.env = Env()
        self.nvml = FakeNvml(list(gpus))
        self.senses = MachineSenses(GpuWatch(self.nvml, Programs(os.getpid())), self.env)  # type: ignore[arg-type]
        self.programs: list[str] = []
        self.num_slow = {"programs": 0, "power": 0}
        self.on_battery: bool | None = False
        monkeypatch.setattr(RunningPrograms, "find", lambda programs, chosen: self._running(chosen))
        monkeypatch.setattr(readings_module, "is_on_battery", self._power)

    async def read(self, look: Look = LOOK, after_s: float = 0.5) -> Readings:
        self.env.now_s += after_s
        return await self.senses.read(look)

    def _running(self, chosen: frozenset[str]) -> frozenset[str]:
        self.num_slow["programs"] += 1
        return chosen & set(self.programs)

    def _power(self) -> bool | None:
        self.num_slow["power"] += 1
        return self.on_battery


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(monkeypatch, FakeGpu(temperature_c=50))


async def test_gpus_power_time_and_the_desktop_come_together(desk: Desk) -> None:
    desk.on_battery = True
    desk.senses.hear(SessionReading(idle_s=12.0, is_fullscreen=True, is_locked=False))
    readings = await desk.read()
    assert (readings.at_s, readings.gpus[0].temperature_c, readings.on_battery) == (100.5, 50, True)
    assert (readings.idle_s, readings.is_fullscreen, readings.is_locked) == (12.0, True, False)
    assert readings.second_of_day == second_of_day(100.5 + 1.7e9)
    await desk.senses.close()
    assert desk.nvml.num_open == 0


async def test_nvml_is_opened_once(desk: Desk) -> None:
    for _ in range(5):
        await desk.read()
    assert desk.nvml.calls.count("nvmlInit") == 1


async def test_what_the_desktop_told_long_ago_is_not_known(desk: Desk) -> None:
    assert (await desk.read()).idle_s is None
    desk.senses.hear(SessionReading(idle_s=12.0, is_fullscreen=True))
    assert (await desk.read(after_s=STALE_S - 1)).idle_s == 12.0
    readings = await desk.read(after_s=1)
    assert (readings.idle_s, readings.is_fullscreen) == (None, None)


async def test_programs_are_listed_only_if_some_are_chosen_and_not_every_time(desk: Desk) -> None:
    await desk.read()
    assert desk.num_slow["programs"] == 0
    desk.programs = ["steam", "bash"]
    look = look_of(None, PauseRules(programs=("Steam.exe", "obs")))
    found = [(await desk.read(look)).programs for _ in range(8)]
    assert found == [frozenset({"steam"})] * 8
    assert desk.num_slow["programs"] == 8 * 0.5 / SLOW_S


async def test_other_programs_in_the_rules_are_looked_for_at_once(desk: Desk) -> None:
    desk.programs = ["steam", "obs"]
    assert (await desk.read(look_of(None, PauseRules(programs=("steam",))))).programs == {"steam"}
    assert (await desk.read(look_of(None, PauseRules(programs=("obs",))))).programs == {"obs"}


async def test_power_is_asked_for_only_if_it_matters(desk: Desk) -> None:
    desk.on_battery = True
    assert (await desk.read(look_of(None, PauseRules(run_on_battery=True)))).on_battery is None
    assert desk.num_slow["power"] == 0


async def test_in_the_mode_always_others_use_is_not_asked_for(desk: Desk) -> None:
    await desk.read(look_of(None, PauseRules(mode=PauseMode.ALWAYS)))
    assert "nvmlDeviceGetProcessUtilization" not in desk.nvml.calls


@pytest.mark.expected_logs("take longer than")
async def test_a_driver_that_hangs_leaves_everything_unknown_and_is_not_asked_again_until_it_answers(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readings_module, "HANG_S", 0.01)
    go_on, num_calls = threading.Event(), []

    def hang(look: GpuLook) -> tuple[()]:
        num_calls.append(look)
        go_on.wait(30)
        return ()

    monkeypatch.setattr(GpuWatch, "read", lambda self, look: hang(look))
    assert [await desk.read(after_s=1) for _ in range(2)] == [Readings(101.0), Readings(102.0)]
    assert len(num_calls) == 1
    await desk.senses.close()
    assert desk.nvml.num_open == 1, "nothing is shut down under a call that hangs"
    go_on.set()
    monkeypatch.setattr(readings_module, "HANG_S", 30.0)
    assert (await desk.read()).on_battery is False
    assert len(num_calls) == 1
    await desk.senses.close()
    assert desk.nvml.num_open == 0


async def test_a_defect_is_raised_and_the_next_round_is_a_new_one(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(GpuWatch, "read", lambda self, look: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await desk.read()
    assert (await desk.read()).gpus
    await desk.senses.close()


async def test_real_processes_are_told_from_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(processes=[FakeProcess(os.getpid(), sm=70), FakeProcess(os.getppid(), sm=20)])
    desk = Desk(monkeypatch, gpu)
    await desk.read()
    reading = (await desk.read()).gpus[0]
    assert (reading.others_percent, reading.others_program) == (20, psutil.Process(os.getppid()).name()[:32])
    await desk.senses.close()


# ---------------------------------------------------------------- what to look for


def status(state: AgentState, num_sessions: int = 0) -> Status:
    device = DeviceStatus("cuda:0", "A card", state)
    return Status(state, devices=(device,), num_sessions=num_sessions, worker_pids=(4711,))


def test_without_a_contribution_nothing_of_ours_computes() -> None:
    assert Look(with_defaults(PauseRules()), GpuLook()) == LOOK


@pytest.mark.parametrize(
    ("state", "num_sessions", "is_idle", "is_serving"),
    [
        (AgentState.WAITING, 0, True, False),
        (AgentState.DOWNLOADING, 0, True, False),
        (AgentState.SERVING, 0, True, True),
        (AgentState.SERVING, 1, False, True),
        (AgentState.CONNECTING, 0, False, False),
        (AgentState.MEASURING, 0, False, False),
        (AgentState.LOADING, 0, False, False),
        (AgentState.FAILED, 0, False, False),
    ],
)
def test_whether_ours_computes_follows_from_the_status(
    state: AgentState, num_sessions: int, is_idle: bool, is_serving: bool
) -> None:
    serving = frozenset({"cuda:0"}) if is_serving else frozenset()
    assert look_of(status(state, num_sessions), PauseRules()).gpu == GpuLook(True, is_idle, (4711,), serving)


# ---------------------------------------------------------------- power

MAINS_ON, MAINS_OFF = {"type": "Mains", "online": "1"}, {"type": "Mains", "online": "0"}
USB_ON, USB_OFF = {"type": "USB", "online": "1"}, {"type": "USB", "online": "0"}
BATTERY = {"type": "Battery", "present": "1", "status": "Discharging"}
CHARGING = {**BATTERY, "status": "Charging"}
MOUSE = {"type": "Battery", "scope": "Device", "status": "Discharging"}


@pytest.mark.parametrize(
    ("supplies", "is_on_battery"),
    [
        ([], False),
        ([MAINS_ON], False),
        ([MAINS_OFF], False),
        ([MOUSE], False),
        ([MOUSE, MAINS_ON], False),
        ([MAINS_ON, BATTERY], False),
        ([MAINS_OFF, BATTERY], True),
        ([MAINS_OFF, CHARGING], True),
        ([MAINS_OFF, USB_ON, BATTERY], False),
        ([USB_OFF, BATTERY], True),
        ([BATTERY], True),
        ([CHARGING], False),
        ([{"type": "Battery", "status": "Full"}], False),
        ([{"type": "Battery", "status": "Unknown"}], None),
        ([{"type": "Battery"}], None),
        ([{"type": "Battery", "present": "0", "status": "Discharging"}, MAINS_OFF], False),
        ([{"type": "UPS", "online": "0"}], False),
        ([{"online": "1"}, {}], False),
    ],
)
def test_linux_power_supplies(supplies: list[dict[str, str]], is_on_battery: bool | None) -> None:
    assert on_battery_of(supplies) is is_on_battery


def test_power_supplies_are_read_from_files_and_what_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    for name, properties in {"AC": MAINS_OFF, "BAT0": BATTERY, "hidpp_battery_0": MOUSE}.items():
        (tmp_path / name).mkdir()
        for key, value in properties.items():
            (tmp_path / name / key).write_text(f"{value}\n")
    assert is_on_battery(tmp_path) is True
    (tmp_path / "AC" / "online").write_text("1\n")
    assert is_on_battery(tmp_path) is False
    (tmp_path / "AC" / "online").unlink()
    (tmp_path / "AC" / "online").mkdir()
    (tmp_path / "BAT0" / "status").write_bytes(b"\xff\n")
    assert is_on_battery(tmp_path) is False


@pytest.mark.parametrize(
    ("battery", "is_battery"),
    [
        (None, None),
        (SimpleNamespace(power_plugged=None), None),
        (SimpleNamespace(power_plugged=True), False),
        (SimpleNamespace(power_plugged=False), True),
    ],
)
def test_elsewhere_psutil_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, battery: object, is_battery: bool | None
) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert is_on_battery(tmp_path / "none") is is_battery
    monkeypatch.delattr(psutil, "sensors_battery")
    assert is_on_battery(tmp_path / "none") is None


def test_the_second_of_the_day_is_local() -> None:
    morning = datetime(2026, 3, 1, 6, 30, 15, 500_000)
    assert second_of_day(morning.timestamp()) == 6 * 3600 + 30 * 60 + 15.5
