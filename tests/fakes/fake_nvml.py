"""NVML without a GPU: a script says what the cards and the processes on them do.

In a test, as an object: `FakeNvml([FakeGpu(processes=[FakeProcess(4711, sm=80)])])`. For whole processes, as a module,
`--nvml-module tests.fakes.fake_nvml`: the script is then the JSON file that the variable FAKE_NVML_SCRIPT names, which
the test may replace at any time:

    {"gpus": [{"is_offered": false, "processes": [{"pid": 4711, "sm": 80, "memory_bytes": 3000000000}]}]}

A GPU that `is_offered` false keeps its name to itself: the node leaves it out and contributes the CPU, but watches it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

SCRIPT_VARIABLE = "FAKE_NVML_SCRIPT"
NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, GPU_IS_LOST = 3, 4, 6, 15
SAMPLE_US = 500_000


class NVMLError(Exception):
    """What pynvml raises; `value` is NVML's code."""

    def __init__(self, value: int) -> None:
        super().__init__(f"fake NVML error {value}")
        self.value = value


@dataclass
class FakeProcess:
    """`sm` and `dec` since the sample before; `sm_of_buffer` is the average that a caller without a time stamp gets."""

    pid: int
    sm: int = 0
    dec: int = 0
    memory_bytes: int | None = 0
    draws: bool = False
    sm_of_buffer: int = 0


@dataclass
class FakeGpu:
    """`fails`: names of functions that this GPU answers with that error. Used memory is `base_bytes` and processes'."""

    name: str = "NVIDIA GeForce RTX 4090"
    total_bytes: int = 24 * 10**9
    base_bytes: int = 500_000_000
    temperature_c: int = 45
    utilization: int = 0
    decoder: int = 0
    energy_mj: int = 0
    is_offered: bool = True
    processes: list[FakeProcess] = field(default_factory=list)
    fails: dict[str, int] = field(default_factory=dict)
    now_us: int = 1_700_000_000_000_000

    @property
    def used_bytes(self) -> int:
        return self.base_bytes + sum(process.memory_bytes or 0 for process in self.processes)


class FakeNvml:
    """The part of pynvml in use. `calls` are the names of what was called, in order."""

    NVMLError = NVMLError

    def __init__(self, gpus: list[FakeGpu] | None = None, fails: dict[str, int] | None = None) -> None:
        self.gpus = gpus or []
        self.fails = fails or {}
        self.num_open = 0
        self.calls: list[str] = []

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names
        self._called("nvmlInit")
        self.num_open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.num_open -= 1
        self._called("nvmlShutdown")

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        return 13_000

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._called("nvmlDeviceGetCount")
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        self._called("nvmlDeviceGetHandleByIndex", index)
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        gpu = self._called("nvmlDeviceGetName", handle)
        if not gpu.is_offered:
            raise NVMLError(NOT_SUPPORTED)
        return gpu.name

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        gpu = self._called("nvmlDeviceGetMemoryInfo", handle)
        return SimpleNamespace(total=gpu.total_bytes, used=gpu.used_bytes, free=gpu.total_bytes - gpu.used_bytes)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802
        assert sensor == 0
        return self._called("nvmlDeviceGetTemperature", handle).temperature_c

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpu=self._called("nvmlDeviceGetUtilizationRates", handle).utilization, memory=0)

    def nvmlDeviceGetDecoderUtilization(self, handle: int) -> list[int]:  # noqa: N802
        return [self._called("nvmlDeviceGetDecoderUtilization", handle).decoder, 100_000]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        return self._called("nvmlDeviceGetTotalEnergyConsumption", handle).energy_mj

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: int) -> list[SimpleNamespace]:  # noqa: N802
        return self._running("nvmlDeviceGetComputeRunningProcesses_v3", handle, draws=False)

    def nvmlDeviceGetGraphicsRunningProcesses_v3(self, handle: int) -> list[SimpleNamespace]:  # noqa: N802
        return self._running("nvmlDeviceGetGraphicsRunningProcesses_v3", handle, draws=True)

    def nvmlDeviceGetProcessUtilization(self, handle: int, time_stamp: int) -> list[SimpleNamespace]:  # noqa: N802
        """Time goes on by one sample with each call. NotFound where nothing ran, as the driver says it."""
        gpu = self._called("nvmlDeviceGetProcessUtilization", handle)
        gpu.now_us += SAMPLE_US
        busy = [(p, p.sm if time_stamp else p.sm_of_buffer or p.sm) for p in gpu.processes]
        samples = [
            SimpleNamespace(pid=p.pid, timeStamp=gpu.now_us, smUtil=sm, memUtil=0, encUtil=0, decUtil=p.dec)
            for p, sm in busy
            if (sm or p.dec) and gpu.now_us > time_stamp
        ]
        if not samples:
            raise NVMLError(NOT_FOUND)
        return samples

    def _running(self, name: str, handle: int, *, draws: bool) -> list[SimpleNamespace]:
        gpu = self._called(name, handle)
        listed = [p for p in gpu.processes if p.draws is draws and p.memory_bytes != 0]
        return [SimpleNamespace(pid=p.pid, usedGpuMemory=p.memory_bytes) for p in listed]

    def _called(self, name: str, handle: int | None = None) -> Any:
        self.calls.append(name)
        gpu = None if handle is None else self.gpus[handle]
        code = self.fails.get(name) or (gpu.fails.get(name) if gpu is not None else None)
        if code is not None:
            raise NVMLError(code)
        return gpu


# ---------------------------------------------------------------- as a module


class _ScriptedNvml(FakeNvml):
    """Follows its script file: read again whenever it was replaced."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._read_at: tuple[int, int] | None = None

    def _called(self, name: str, handle: int | None = None) -> Any:
        stat = self._path.stat()
        if (stat.st_mtime_ns, stat.st_ino) != self._read_at:
            self._read_at = stat.st_mtime_ns, stat.st_ino
            written = msgspec.json.decode(self._path.read_bytes(), type=dict[str, list[FakeGpu]])["gpus"]
            for before, after in zip(self.gpus, written, strict=False):
                after.now_us = before.now_us
            self.gpus = written
        self.calls.clear()
        return super()._called(name, handle)


def write_script(path: Path, *gpus: FakeGpu) -> None:
    """Replace the script in one step, so that nobody reads a half of it."""
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode({"gpus": gpus}))
    new.replace(path)


_scripted: list[_ScriptedNvml] = []


def __getattr__(name: str) -> Any:
    if not name.startswith("nvml"):
        raise AttributeError(name)
    if not _scripted:
        _scripted.append(_ScriptedNvml(Path(os.environ[SCRIPT_VARIABLE])))
    return getattr(_scripted[0], name)
