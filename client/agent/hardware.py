"""Which devices this machine can offer: GPUs by NVML, the CPU when there is none."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from protocol.values import DeviceId, DeviceKind, DeviceSpec, Variant

log = logging.getLogger(__name__)

CPU_MEMORY_SHARE = 0.6
"""Of the memory free now: the machine is its owner's, who is using it."""
GPU_MEMORY_SHARE = 0.9

CPU_FACTS = Path("/proc/cpuinfo")


class Nvml(Protocol):
    """The part of the module `pynvml` that is used here."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...  # noqa: N802 - NVML's names
    def nvmlShutdown(self) -> None: ...  # noqa: N802
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...  # noqa: N802
    def nvmlDeviceGetName(self, handle: Any) -> str | bytes: ...  # noqa: N802
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...  # noqa: N802


@dataclass(frozen=True, slots=True)
class Limits:
    """The volunteer's own limits, per device."""

    max_memory_bytes: int | None = None
    max_layers: int | None = None


def find_devices(nvml: Nvml | None, limits: Limits) -> tuple[DeviceSpec, ...]:
    """The GPUs that NVML lists; without NVML (None), without a driver or without GPUs, the CPU."""
    return _gpus(nvml, limits) or (_cpu(limits),)


def _gpus(nvml: Nvml | None, limits: Limits) -> tuple[DeviceSpec, ...]:
    if nvml is None:
        return ()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        log.info("no NVIDIA driver: %s", error)
        return ()
    try:
        listed = [_gpu_or_none(nvml, index, limits) for index in range(nvml.nvmlDeviceGetCount())]
        nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        log.warning("NVML failed while listing GPUs: %s", error)
        return ()
    return tuple(spec for spec in listed if spec is not None)


def _gpu_or_none(nvml: Nvml, index: int, limits: Limits) -> DeviceSpec | None:
    """One GPU; None for one that does not answer ("GPU is lost"), which must not cost the others."""
    try:
        return _gpu(nvml, index, limits)
    except nvml.NVMLError as error:
        log.warning("GPU %d is left out: %s", index, error)
        return None


def _gpu(nvml: Nvml, index: int, limits: Limits) -> DeviceSpec:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = nvml.nvmlDeviceGetName(handle)
    free = int(nvml.nvmlDeviceGetMemoryInfo(handle).free * GPU_MEMORY_SHARE)
    return DeviceSpec(
        device_id=DeviceId(f"cuda:{index}"),
        kind=DeviceKind.CUDA,
        name=_clean(name.decode(errors="replace") if isinstance(name, bytes) else name),
        memory_bytes=_limited(free, limits.max_memory_bytes),
        variant=Variant.BFLOAT16,
        max_layers=limits.max_layers,
    )


def _cpu(limits: Limits) -> DeviceSpec:
    """bfloat16 is many times slower than float32 on CPUs without AVX-512, so CPUs serve float32."""
    free = int(psutil.virtual_memory().available * CPU_MEMORY_SHARE)
    return DeviceSpec(
        device_id=DeviceId("cpu"),
        kind=DeviceKind.CPU,
        name=_clean(_processor_name()),
        memory_bytes=_limited(free, limits.max_memory_bytes),
        variant=Variant.FLOAT32,
        max_layers=limits.max_layers,
    )


def _processor_name() -> str:
    """What people call their processor; platform.processor() is empty on Debian."""
    try:
        lines = CPU_FACTS.read_text("utf-8", "replace").splitlines()
    except OSError:  # no Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or f"CPU {platform.machine()}"


def _limited(free: int, limit: int | None) -> int:
    return free if limit is None else min(free, limit)


def _clean(name: str) -> str:
    """A name that the wire accepts (protocol.values.Name)."""
    kept = "".join(c for c in name if c.isprintable() and c not in "<>\"'&").strip()
    return kept[:64] or "device"
