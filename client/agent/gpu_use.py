"""What other processes do with the GPUs, from NVML. Blocking; called off the event loop, about every 0.5 s.

Mechanics, as measured on an H100 with driver 580: `nvmlDeviceGetProcessUtilization` averages over its whole buffer
unless it gets the newest time stamp seen; it has one entry per process, and none (NotFound) when nothing ran. A whole
reading takes 2 to 4 ms of a CPU. That a process is listed means little: every desktop's programs are.

Where the driver does not say who computes (containers, WSL, MIG), the device's own utilisation is somebody else's for
certain only while no worker of ours computes; while one does, the growth of the memory in use is what is left.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from client.agent.hardware import Nvml
from client.agent.policy import LOW_MEMORY_GROWTH_BYTES, GpuReading
from client.agent.programs import Programs
from protocol.values import DeviceId

log = logging.getLogger(__name__)

TEMPERATURE_GPU = 0
"""NVML_TEMPERATURE_GPU."""
_NOTHING = (0, 6)
"""NVML_SUCCESS (the wrapper raises it for an empty list) and NVML_ERROR_NOT_FOUND."""
_NEVER = (3, 4, 13)
"""NVML_ERROR_NOT_SUPPORTED, _NO_PERMISSION, _FUNCTION_NOT_FOUND: this will not change while we run."""
NUM_IDLE_READINGS = 3
"""The device's utilisation is an average over up to a second: ours must have been idle for so many readings."""


class UsageNvml(Nvml, Protocol):
    """The part of the module `pynvml` that is used here."""

    def nvmlDeviceGetProcessUtilization(self, handle: Any, timeStamp: int) -> Sequence[Any]: ...  # noqa: N802, N803
    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any) -> Sequence[Any]: ...  # noqa: N802
    def nvmlDeviceGetGraphicsRunningProcesses_v3(self, handle: Any) -> Sequence[Any]: ...  # noqa: N802
    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any: ...  # noqa: N802
    def nvmlDeviceGetDecoderUtilization(self, handle: Any) -> Sequence[int]: ...  # noqa: N802
    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int: ...  # noqa: N802
    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int: ...  # noqa: N802


@dataclass(frozen=True, slots=True)
class GpuLook:
    """What to look for, and what we do ourselves."""

    wants_use: bool = True
    is_idle: bool = True
    """No worker of ours computes."""
    worker_pids: tuple[int, ...] = ()
    serving: frozenset[str] = frozenset()
    """Devices whose layers are loaded."""


@dataclass(frozen=True, slots=True)
class _Use:
    """Others' share of the time of one of a device's units, and which program has most of it."""

    percent: int | None = None
    program: str = ""


class GpuWatch:
    """All GPUs that NVML lists, in its order: `cuda:0`, `cuda:1`... Without NVML (None) or a driver, none."""

    def __init__(self, nvml: UsageNvml | None, programs: Programs) -> None:
        self._nvml = nvml
        self._programs = programs
        self._devices: tuple[_Device, ...] = ()
        self._is_open = False

    def open(self) -> None:
        """Initialise NVML; harmless when that is done."""
        if self._nvml is None or self._is_open:
            return
        try:
            self._nvml.nvmlInit()
            self._is_open = True
            num_gpus = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as error:
            log.info("GPUs are not watched: %s", error)
            return
        self._devices = tuple(_Device(index, self._nvml, self._programs) for index in range(num_gpus))

    def read(self, look: GpuLook) -> tuple[GpuReading, ...]:
        """Each GPU now. What a GPU does not tell, and all of a lost one, is None; nothing is raised."""
        self._programs.remember(look.worker_pids)
        return tuple(device.read(look) for device in self._devices)

    def energy_j(self) -> float | None:
        """Used since the driver was loaded, by all GPUs together; None where one of them does not count."""
        counts = [device.energy_mj() for device in self._devices]
        known = [count for count in counts if count is not None]
        return sum(known) / 1000 if known and len(known) == len(counts) else None

    def close(self) -> None:
        """Shut NVML down; harmless when it is not initialised."""
        if self._nvml is None or not self._is_open:
            return
        self._is_open, self._devices = False, ()
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError as error:
            log.info("NVML did not shut down: %s", error)


class _Device:
    def __init__(self, index: int, nvml: UsageNvml, programs: Programs) -> None:
        self._index = index
        self._device_id = DeviceId(f"cuda:{index}")
        self._nvml = nvml
        self._programs = programs
        self._handle: Any = None
        self._unanswered: set[str] = set()
        self._complaints: set[str] = set()
        self._newest_us: int | None = None
        self._num_idle_readings = NUM_IDLE_READINGS  # nothing of ours has run yet
        self._growth = MemoryGrowth()

    def read(self, look: GpuLook) -> GpuReading:
        self._num_idle_readings = self._num_idle_readings + 1 if look.is_idle else 0
        use, video = self._use() if look.wants_use else (_Use(), _Use())
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        growth = None if memory is None else self._memory_growth(int(memory.used), look)
        has_grown = growth is not None and growth >= LOW_MEMORY_GROWTH_BYTES
        return GpuReading(
            device_id=self._device_id,
            others_percent=use.percent,
            others_program=use.program,
            video_percent=video.percent,
            video_program=video.program,
            free_bytes=None if memory is None else int(memory.free),
            others_growth_bytes=growth,
            growth_program=self._largest_other() if has_grown else "",
            temperature_c=self._ask("nvmlDeviceGetTemperature", TEMPERATURE_GPU),
        )

    def energy_mj(self) -> int | None:
        """Since the driver was loaded."""
        energy_mj = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if energy_mj is None else int(energy_mj)

    # ------------------------------------------------------------ computing and video

    def _use(self) -> tuple[_Use, _Use]:
        """Others' computing and video since the reading before; the first reading only finds out when that was."""
        is_first = self._newest_us is None
        listed = self._ask("nvmlDeviceGetProcessUtilization", self._newest_us or 0, nothing=())
        if listed is None:
            return _Use(self._percent_of_device()), _Use(self._decoder_percent())
        self._newest_us = max((int(sample.timeStamp) for sample in listed), default=self._newest_us or 0)
        if is_first:
            return _Use(), _Use()
        samples = [sample for sample in listed if _percent(sample.smUtil) or _percent(sample.decUtil)]
        if not samples or not all(self._programs.is_visible(sample.pid) for sample in samples):
            return _Use(self._percent_of_device()), _Use(self._decoder_percent())
        others = [sample for sample in samples if not self._programs.is_own(sample.pid)]
        return self._sum(others, "smUtil"), self._sum(others, "decUtil")

    def _sum(self, samples: Sequence[Any], unit: str) -> _Use:
        percents = {sample.pid: _percent(getattr(sample, unit)) for sample in samples}
        percent = min(100, sum(percents.values()))
        return _Use(percent, self._programs.name(max(percents, key=percents.__getitem__)) if percent else "")

    def _percent_of_device(self) -> int | None:
        """All of it is somebody else's, if ours has been idle for long enough; else nobody can tell."""
        if self._num_idle_readings < NUM_IDLE_READINGS:
            return None
        rates = self._ask("nvmlDeviceGetUtilizationRates")
        return None if rates is None else _percent(rates.gpu)

    def _decoder_percent(self) -> int | None:
        """All of it: our workers decode no video."""
        answer = self._ask("nvmlDeviceGetDecoderUtilization")
        return None if answer is None else _percent(answer[0])

    # ------------------------------------------------------------ memory

    def _memory_growth(self, used_bytes: int, look: GpuLook) -> int | None:
        is_serving = self._device_id in look.serving
        own_bytes = self._own_bytes() if is_serving else None
        return self._growth.see(used_bytes, own_bytes, is_serving=is_serving, has_workers=bool(look.worker_pids))

    def _own_bytes(self) -> int | None:
        """None where the driver does not say: it does not list our workers, or not what they use (Windows)."""
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses_v3", nothing=()) or ()
        own = [process.usedGpuMemory for process in processes if self._programs.is_own(process.pid)]
        return sum(own) if own and None not in own else None

    def _largest_other(self) -> str:
        """The program that holds most of the memory."""
        computing = self._ask("nvmlDeviceGetComputeRunningProcesses_v3", nothing=()) or ()
        drawing = self._ask("nvmlDeviceGetGraphicsRunningProcesses_v3", nothing=()) or ()
        others = {p.pid: p.usedGpuMemory or 0 for p in (*computing, *drawing) if not self._programs.is_own(p.pid)}
        return self._programs.name(max(others, key=others.__getitem__)) if others else ""

    # ------------------------------------------------------------ NVML

    def _ask(self, name: str, *arguments: Any, nothing: Any = None) -> Any:
        """The answer; `nothing` when NVML has nothing to tell; None when it does not answer."""
        if name in self._unanswered:
            return None
        try:
            if self._handle is None:
                self._handle = self._nvml.nvmlDeviceGetHandleByIndex(self._index)
            return getattr(self._nvml, name)(self._handle, *arguments)
        except self._nvml.NVMLError as error:
            code = getattr(error, "value", None)
            if code in _NOTHING:
                return nothing
            self._complain(name, error, is_final=code in _NEVER)
            return None

    def _complain(self, name: str, error: Exception, *, is_final: bool) -> None:
        """Once: a lost GPU does not answer twice a second."""
        if is_final:
            self._unanswered.add(name)
            log.info("GPU %d does not answer %s: %s", self._index, name, error)
        elif str(error) not in self._complaints:
            self._complaints.add(str(error))
            log.warning("GPU %d cannot be watched: %s", self._index, error)


class MemoryGrowth:
    """How much more GPU memory others use than when our layers were last loaded.

    Where the driver does not say what is ours, everything is taken for others': our own hardly changes once loaded."""

    def __init__(self) -> None:
        self._at_start: int | None = None
        self._knows_own = False
        self._was_serving = False

    def see(self, used_bytes: int, own_bytes: int | None, *, is_serving: bool, has_workers: bool) -> int | None:
        """None before we ever served, and while a worker of ours loads. While paused, others' memory is all of it."""
        others_bytes = used_bytes - (own_bytes or 0)
        knows_own = own_bytes is not None
        if is_serving and (not self._was_serving or knows_own != self._knows_own):
            self._at_start, self._knows_own = others_bytes, knows_own
        self._was_serving = is_serving
        if self._at_start is None or (has_workers and not is_serving):
            return None
        return others_bytes - self._at_start


def _percent(value: int) -> int:
    """NVML's value; 0 for one that cannot be: some drivers leave entries unfilled."""
    return int(value) if 0 <= value <= 100 else 0
