"""Devices that people have, and how long they take: from data sheets and a calibration, by the roofline model.

Decode is bound by memory bandwidth, prefill by arithmetic (Williams et al. 2009). Bandwidth in bytes per second,
arithmetic in dense half-precision operations per second with accumulation in single precision, as data sheets have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from msgspec import Struct
from numpy.random import Generator

from coordinator.scheduler.cost import PREFILL_CHUNK_TOKENS, Speed, model_cost
from coordinator.scheduler.state import ITEM_BYTES
from coordinator.simulate.models import SimModel
from protocol.values import BatchTime, DeviceId, DeviceKind, DeviceSpec, LayerBenchmark, Variant

GB = 10**9
GIB = 2**30
VARIANT = Variant.BFLOAT16
"""All devices of a simulated pool: a chain never mixes variants."""
BATCHES = (1, 4, 16)
"""Batch sizes that a node measures."""


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """A kind of device. `memory_bytes` is what an owner gives, without what the desktop and the driver take."""

    name: str
    memory_bytes: int
    bytes_per_s: float
    flops: float
    kind: DeviceKind = DeviceKind.CUDA


def _card(name: str, memory_gib: float, gb_per_s: float, tflops: float) -> DeviceClass:
    return DeviceClass(name, int(memory_gib * 0.95 * GIB), gb_per_s * GB, tflops * 1e12)


CLASSES: dict[str, DeviceClass] = {
    device.name: device
    for device in (
        _card("laptop-8g", 8, 256, 29),  # GeForce RTX 4060 Laptop: 24 of the 4090's 128 units, 128-bit GDDR6
        _card("rtx3060-12g", 12, 360, 25.6),  # NVIDIA GeForce RTX 3060 data sheet
        _card("rtx3090-24g", 24, 936, 71),  # NVIDIA Ampere GA102 whitepaper, table 2
        _card("rtx4090-24g", 24, 1008, 165.2),  # NVIDIA Ada GPU architecture whitepaper, table 2
        _card("rtx5090-32g", 32, 1792, 209.5),  # NVIDIA RTX Blackwell whitepaper, table 2
        _card("a100-80g", 80, 2039, 312),  # NVIDIA A100 80GB data sheet (SXM)
        _card("h100-80g", 80, 3350, 989),  # NVIDIA H100 data sheet (SXM, dense)
        _card("apple-64g", 48, 400, 28),  # Apple M3 Max, 64 GB of which Metal gives 3/4 to the GPU
        DeviceClass("cpu-32g", 24 * GIB, 60 * GB, 1.5e12, DeviceKind.CPU),  # dual-channel DDR5-5600, two thirds usable
    )
}


class Calibration(Struct, frozen=True, forbid_unknown_fields=True):
    """What turns data sheets into times. Shares of the data sheet's figures, and seconds.

    The first four are what layers of four models of 8B to 70B took on an H100 as kernels alone, without the host's part
    (0.94, 0.48, 155 us and 106 us over the dense ones, 0.87, 0.49, 163 us and 56 us over all). A node's measurement
    with the host in it is docs/calibration.md (benchmarks/scheduling/calibrate.py): decode is as fast, but prompts in
    chunks of 512 rows wait for the host. What is published of single-stream engines is near: decode at 60 to 80 % of
    bandwidth, prefill at 40 to 76 % of peak (Pope et al. 2023, section 4). A real pool's measurements replace them."""

    bandwidth_share: float = 0.87
    flops_share: float = 0.49
    layer_overhead_s: float = 160e-6
    """Kernels of one layer that read next to nothing, and what lies between kernels."""
    head_overhead_s: float = 60e-6
    """Sampling one token."""
    hop_overhead_s: float = 1e-3
    """Turning rows to bytes and back, sockets and processes' wake-ups, for each hop (docs/overhead.md)."""
    context_tokens: int = 1024
    """KV length of the rows that the row's time is reckoned with."""
    measure_s: float = 6.0
    """A device's benchmark of one model."""
    load_bytes_per_s: float = 2e9
    """From disk to a device."""
    speed_noise: float = 0.1
    """Standard deviation, relative, of a device's measured speed."""
    rtt_noise: float = 0.3
    """Standard deviation of the logarithm of one measured round trip."""


def device_spec(device: DeviceClass, device_id: str = "gpu:0") -> DeviceSpec:
    """As its node offers it."""
    return DeviceSpec(DeviceId(device_id), device.kind, device.name, device.memory_bytes, VARIANT)


@lru_cache(maxsize=4096)
def true_speed(device: DeviceClass, model: SimModel, calibration: Calibration) -> Speed:
    """How fast the device really is, per unit of the cost model's work: one layer from the model's middle.

    A step reads the layer's active weights once; each row adds its KV, its arithmetic, and the experts that only it
    chose; a prompt chunk is bound by arithmetic or, where it is small for the layer, by reading all weights."""
    cost = model_cost(model.facts, VARIANT)
    middle = model.facts.num_layers // 2
    weight_bytes, kv_bytes = cost.weight_item_bytes, ITEM_BYTES[VARIANT]
    bandwidth = device.bytes_per_s * calibration.bandwidth_share
    flops = device.flops * calibration.flops_share
    active = model.facts.active_numels[middle]
    kv_tokens = min(calibration.context_tokens, model.facts.windows[middle] or calibration.context_tokens)
    first_s = active * weight_bytes / bandwidth + calibration.layer_overhead_s
    row_bytes = model.facts.kv_numels[middle] * kv_bytes * kv_tokens + model.row_numels[middle] * weight_bytes
    row_s = row_bytes / bandwidth + 2 * active / flops
    chunk_read_s = model.facts.layer_numels[middle] * weight_bytes / bandwidth / PREFILL_CHUNK_TOKENS
    head_s = cost.head_bytes / bandwidth + calibration.head_overhead_s
    return Speed(first_s, row_s, max(2 * active / flops, chunk_read_s), head_s)


def measured(speed: Speed, noise: float, rng: Generator) -> LayerBenchmark:
    """What a node would report of this speed: off by one factor for the whole run, and by a little at each point."""
    factor = max(0.5, 1.0 + noise * float(rng.standard_normal()))
    wobble = 1.0 + 0.02 * rng.standard_normal(len(BATCHES))
    times = tuple(
        BatchTime(rows, speed.step_time_s(1.0, rows, last=False) * factor * max(0.5, float(near)))
        for rows, near in zip(BATCHES, wobble, strict=True)
    )
    return LayerBenchmark(times, speed.prefill_s * factor, speed.head_s * factor)
