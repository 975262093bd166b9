"""What a slice costs: memory and time. Decode is bound by memory bandwidth, so time is what was measured, not FLOPs."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.scheduler.state import ITEM_BYTES, Device, ModelFacts

MEMORY_FOR_ACTIVATIONS = 0.1
"""Share of a device's memory that is neither weights nor KV: activations, the allocator's own."""
MIN_KV_TOKENS = 4096
"""KV room that every slice must leave, so that a stage that holds its layers can also serve somebody."""


@dataclass(frozen=True, slots=True)
class Place:
    """A device's possible part in a pipeline: how many layers fit, and what its time is made of."""

    device: Device
    max_layers: int
    layer_s: float
    extra_s: float


def place(device: Device, model: ModelFacts, *, first: bool, last: bool) -> Place:
    """What `device` can take of `model` at the given end(s) of a pipeline."""
    item_bytes = ITEM_BYTES[device.spec.variant]
    usable = device.spec.memory_bytes * (1 - MEMORY_FOR_ACTIVATIONS)
    usable -= item_bytes * (model.embedding_numel * first + model.head_numel * last)
    kv_tokens = min(model.context_length, MIN_KV_TOKENS)
    layer_bytes = item_bytes * (max(model.layer_numels) + model.kv_numel_per_token * kv_tokens)
    fitting = max(0, int(usable // layer_bytes))
    limit = device.spec.max_layers if device.spec.max_layers is not None else model.num_layers
    head_s = device.benchmarks[model.manifest_hash].head_s if last else 0.0
    return Place(device, min(fitting, limit, model.num_layers), device.layer_time_s(model.manifest_hash), head_s)
