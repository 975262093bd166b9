"""What a slice costs: memory and time. Decode is bound by memory bandwidth, so time is what was measured, not FLOPs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from coordinator.scheduler.state import ITEM_BYTES, Device, ModelFacts
from protocol.values import MEMORY_FOR_ACTIVATIONS, Variant

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
    fitting = max(0, int(usable // _layer_bytes(model, item_bytes)))
    limit = device.spec.max_layers if device.spec.max_layers is not None else model.num_layers
    head_s = device.benchmarks[model.manifest_hash].head_s if last else 0.0
    return Place(device, min(fitting, limit, model.num_layers), device.layer_time_s(model.manifest_hash), head_s)


def memory_for(model: ModelFacts, variant: Variant, num_layers: int) -> int:
    """The least memory, in bytes, with which a device can hold that many layers anywhere in a pipeline of two or more.

    The reverse of `place`: for demos and tests that make one machine play several small ones."""
    item_bytes = ITEM_BYTES[variant]
    ends_bytes = item_bytes * max(model.embedding_numel, model.head_numel)
    layers_bytes = num_layers * _layer_bytes(model, item_bytes)
    return math.ceil((ends_bytes + layers_bytes) / (1 - MEMORY_FOR_ACTIVATIONS)) + 1


def _layer_bytes(model: ModelFacts, item_bytes: int) -> int:
    """A layer's weights and the KV room that it must leave."""
    kv_tokens = min(model.context_length, MIN_KV_TOKENS)
    return item_bytes * (max(model.layer_numels) + model.kv_numel_per_token * kv_tokens)
