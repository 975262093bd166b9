"""A route that was chosen: what is counted at its devices, and what its stages are called."""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.scheduler.commands import ChainStage
from coordinator.scheduler.policy import Route
from coordinator.scheduler.state import Device, Load, Running, Waiting

LOAD_STEP = 2.0**-20
"""Loads are whole multiples of this. Sums of such floats are exact, so that an idle device's load is exactly zero."""
MAX_ROWS_PER_S, MAX_PROMPT_TOKENS_PER_S = 2.0**20, 2.0**24


def chain_of(devices: Iterable[Device]) -> tuple[ChainStage, ...]:
    """Stages on these devices, head first, with what they hold now."""
    return tuple(_stage(device) for device in devices)


def running_of(waiting: Waiting, route: Route, now_s: float) -> Running:
    """The request on this route."""
    rows_per_s = _in_steps(route.rows_per_s, MAX_ROWS_PER_S)
    load = Load(rows_per_s, _in_steps(route.prompt_tokens_per_s, MAX_PROMPT_TOKENS_PER_S))
    keys = tuple(device.key for device in route.devices)
    return Running(waiting.manifest_hash, keys, waiting.num_tokens, now_s, load, waiting.tenant)


def _in_steps(rate: float, most: float) -> float:
    return round(min(rate, most) / LOAD_STEP) * LOAD_STEP


def _stage(device: Device) -> ChainStage:
    assert device.layers is not None, "a chain has ready devices only"
    return ChainStage(device.key, device.generation, device.layers, device.has_prefix_cache)
