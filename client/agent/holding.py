"""What a node keeps for the pool while the pool is away: loaded layers, so that a coordinator which was restarted finds
them as they were. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from client.agent.device import Device, Stage
from protocol.messages import AssignSlice
from protocol.values import HeldSlice

KEEP_S = 600.0
"""A coordinator that is started again is back within seconds, a machine within minutes. After this the memory is worth
more to the volunteer."""


def held_slices(devices: Iterable[Device]) -> tuple[HeldSlice, ...]:
    """What the hello tells: every slice that serves, and still may."""
    return tuple(held for device in devices if (held := _held(device)) is not None)


def _held(device: Device) -> HeldSlice | None:
    """None also for what was loaded under other limits than those of now: the pool decides anew about such a device."""
    job, loaded = device.job, device.loaded
    if device.stage is not Stage.SERVING or not isinstance(job, AssignSlice) or loaded is None:
        return None
    if device.spec != device.loaded_as:
        return None
    return HeldSlice(
        device.spec.device_id,
        loaded.manifest_hash,
        loaded.variant,
        loaded.layers,
        job.generation,
        loaded.num_kv_tokens,
        loaded.can_truncate,
        device.benchmarks.get(loaded.manifest_hash),
        loaded.has_prefix_cache,
    )
