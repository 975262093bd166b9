"""The device a worker computes on: its name, its free memory, and the dtype of a variant."""

from __future__ import annotations

import gc
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from client.pace import Pace
from protocol.values import Variant

DTYPES = {Variant.FLOAT32: torch.float32, Variant.BFLOAT16: torch.bfloat16}
"""A variant is the dtype of weights, KV cache, residual stream and wire alike."""

FREE_SHARE_FOR_KV = 0.9
"""The rest is for activations and for whoever else uses the card."""


@dataclass(frozen=True)
class Device:
    """A torch device such as `cpu` or `cuda:0`. With a `pace` its forwards take at least so long."""

    torch_device: torch.device
    pace: Pace | None = None

    @classmethod
    def open(cls, name: str, pace: Pace | None = None) -> Device:
        """The device of this name, once it answers. Raises RuntimeError if it does not."""
        device = torch.device(name)
        torch.zeros(1, device=device)
        return cls(device, pace)

    @property
    def is_cpu(self) -> bool:
        return self.torch_device.type == "cpu"

    @property
    def name(self) -> str:
        return _cpu_name() if self.is_cpu else torch.cuda.get_device_name(self.torch_device)

    def free_bytes(self) -> int:
        """Memory that could be allocated now."""
        if self.is_cpu:
            return int(psutil.virtual_memory().available)
        return torch.cuda.mem_get_info(self.torch_device)[0]

    def kv_bytes(self, wanted_bytes: int) -> int:
        """What of the wanted KV room the device can give now: others may have taken memory since it was planned.

        A CPU commits memory only as it is written, and a process that runs out of it is the system's to judge."""
        if self.is_cpu:
            return wanted_bytes
        self.release_cached()
        return min(wanted_bytes, int(self.free_bytes() * FREE_SHARE_FOR_KV))

    def synchronize(self) -> None:
        """Wait until the device has done what it was given: before a clock is read."""
        if not self.is_cpu:
            torch.cuda.synchronize(self.torch_device)

    def release_cached(self) -> None:
        """Give memory that torch keeps for later back to the driver."""
        if not self.is_cpu:
            gc.collect()  # captured and compiled forwards hold their stage in cycles
            torch.cuda.empty_cache()


def default_num_threads() -> int:
    """Physical cores less one: with a busy core, one thread too many spins and costs a factor, not a percent."""
    return max(1, (psutil.cpu_count(logical=False) or 1) - 1)


def tensor_on(device: torch.device, values: Sequence[object], dtype: torch.dtype) -> Tensor:
    """A few numbers on the device, without waiting for what it computes: copies from memory that is not pinned do."""
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "CPU"
