"""Which devices are offered, with a driver that lies, fails or is not there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.agent import hardware
from client.agent.hardware import Limits, find_devices
from protocol.values import DeviceKind, DeviceSpec, Variant

GB = 10**9


class FakeNvmlError(Exception):
    """What pynvml raises."""


@dataclass
class FakeNvml:
    """The part of pynvml in use. A GPU that is an exception raises it; `fails` names functions that do."""

    gpus: list[tuple[str | bytes, int] | FakeNvmlError] = field(default_factory=list)
    fails: tuple[str, ...] = ()
    num_open: int = 0
    NVMLError: type[Exception] = FakeNvmlError

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names
        self._check("nvmlInit")
        self.num_open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.num_open -= 1
        self._check("nvmlShutdown")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._check("nvmlDeviceGetCount")
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[str | bytes, int]:  # noqa: N802
        gpu = self.gpus[index]
        if isinstance(gpu, FakeNvmlError):
            raise gpu
        return gpu

    def nvmlDeviceGetName(self, handle: tuple[str | bytes, int]) -> str | bytes:  # noqa: N802
        return handle[0]

    def nvmlDeviceGetMemoryInfo(self, handle: tuple[str | bytes, int]) -> SimpleNamespace:  # noqa: N802
        self._check("nvmlDeviceGetMemoryInfo")
        return SimpleNamespace(free=handle[1])

    def _check(self, name: str) -> None:
        if name in self.fails:
            raise FakeNvmlError(name)


def kinds(nvml: FakeNvml | None) -> list[tuple[str, DeviceKind]]:
    return [(spec.device_id, spec.kind) for spec in find_devices(nvml, Limits())]


ONLY_CPU = [("cpu", DeviceKind.CPU)]


def test_two_gpus_are_offered_with_nine_tenths_of_their_free_memory() -> None:
    nvml = FakeNvml([("NVIDIA GeForce RTX 4090", 20 * GB), (b"NVIDIA H100", 70 * GB)])
    assert find_devices(nvml, Limits()) == (
        DeviceSpec("cuda:0", DeviceKind.CUDA, "NVIDIA GeForce RTX 4090", 18 * GB, Variant.BFLOAT16),
        DeviceSpec("cuda:1", DeviceKind.CUDA, "NVIDIA H100", 63 * GB, Variant.BFLOAT16),
    )
    assert nvml.num_open == 0


@pytest.mark.parametrize(
    "nvml", [None, FakeNvml(), FakeNvml([("GPU", GB)], fails=("nvmlInit",))], ids=["no module", "no GPU", "no driver"]
)
def test_without_a_gpu_the_cpu_is_offered_in_float32(nvml: FakeNvml | None) -> None:
    (cpu,) = find_devices(nvml, Limits())
    assert (cpu.device_id, cpu.kind, cpu.variant) == ("cpu", DeviceKind.CPU, Variant.FLOAT32)
    assert cpu.memory_bytes > 0


@pytest.mark.expected_logs(": nvml")
@pytest.mark.parametrize("name", ["nvmlDeviceGetCount", "nvmlDeviceGetMemoryInfo", "nvmlShutdown"])
def test_a_driver_that_fails_while_listing_leaves_the_cpu(name: str) -> None:
    assert kinds(FakeNvml([("GPU", GB)], fails=(name,))) == ONLY_CPU


@pytest.mark.expected_logs("GPU 1 is left out: GPU is lost")
def test_a_lost_gpu_does_not_cost_the_others_and_numbers_stay() -> None:
    nvml = FakeNvml([("GPU", GB), FakeNvmlError("GPU is lost"), ("GPU", GB)])
    assert kinds(nvml) == [("cuda:0", DeviceKind.CUDA), ("cuda:2", DeviceKind.CUDA)]
    assert nvml.num_open == 0


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("<b>GPU</b> & \"co\"", "bGPU/b  co"),
        ("\x00\x1b[31mGPU\u202e", "[31mGPU"),
        (b"\xff\xfeGPU", "\ufffd\ufffdGPU"),
        ("", "device"),
        ("x" * 500, "x" * 64),
    ],
)  # fmt: skip
def test_a_weird_name_is_made_fit_for_the_wire(raw: str | bytes, shown: str) -> None:
    (spec,) = find_devices(FakeNvml([(raw, GB)]), Limits())
    assert spec.name == shown


@given(st.text(max_size=100) | st.binary(max_size=100), st.integers(0, 2**40))
def test_any_name_and_size_gives_a_device_that_the_wire_takes(name: str | bytes, free: int) -> None:
    (spec,) = find_devices(FakeNvml([(name, free)]), Limits())
    assert msgspec.json.decode(msgspec.json.encode(spec), type=DeviceSpec) == spec


def test_the_volunteers_limits_hold_per_device() -> None:
    nvml = FakeNvml([("GPU", 20 * GB), ("GPU", 2 * GB)])
    specs = find_devices(nvml, Limits(max_memory_bytes=6 * GB, max_layers=7))
    assert [(spec.memory_bytes, spec.max_layers) for spec in specs] == [(6 * GB, 7), (int(1.8 * GB), 7)]
    (cpu,) = find_devices(None, Limits(max_memory_bytes=1000, max_layers=2))
    assert (cpu.memory_bytes, cpu.max_layers) == (1000, 2)


def test_the_processor_has_the_name_that_people_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = tmp_path / "cpuinfo"
    facts.write_text("processor\t: 0\nmodel name\t: AMD Ryzen 7 5800X <8> Cores\nmodel name\t: another\n")
    monkeypatch.setattr(hardware, "CPU_FACTS", facts)
    assert find_devices(None, Limits())[0].name == "AMD Ryzen 7 5800X 8 Cores"


def test_a_processor_without_a_name_has_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "CPU_FACTS", tmp_path / "none")
    monkeypatch.setattr(hardware.platform, "processor", lambda: "")
    assert find_devices(None, Limits())[0].name.startswith("CPU ")
