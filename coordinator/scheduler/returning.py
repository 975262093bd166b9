"""Nodes that come back with their layers loaded: what they hold is taken as it is, and the plan waits for the others.

A coordinator that was restarted knows no node. If it planned with the first ones that come back, they would be given
other layers, and all would load anew what a moment later is there. So it plans nothing for a while: until nobody has
come back with something for QUIET_S, and no longer than MOST_S after the first one did. A node that this coordinator
has seen before is no sign of a restart.
"""

from __future__ import annotations

import math

from coordinator.scheduler.state import Device, ModelFacts, Signal, Slice
from protocol.values import HeldSlice

QUIET_S = 10.0
"""Nodes try again after 0.25 s to 4 s in the first tries (client/agent/contribution.py, full jitter)."""
MOST_S = 45.0
"""Later tries are up to 30 s apart."""
START_S = 60.0
"""A coordinator that has run for longer than this knows its pool: who comes back to it is one of few."""


class Returning:
    """Whether a coordinator that has just begun waits for nodes that hold something."""

    def __init__(self) -> None:
        self._began_s: float | None = None
        self._first_s = self._last_s = -math.inf

    def began(self, now_s: float) -> None:
        """Something happened; the first time counts."""
        if self._began_s is None:
            self._began_s = now_s

    def came_back(self, now_s: float) -> None:
        """A node that was never here has brought what it holds."""
        if self._began_s is not None and now_s < self._began_s + START_S:
            self._first_s = now_s if self._first_s == -math.inf else self._first_s
            self._last_s = now_s

    def waits(self, now_s: float) -> bool:
        """Whether nothing is to be planned yet."""
        return now_s < min(self._last_s + QUIET_S, self._first_s + MOST_S)


def adopt(device: Device, held: tuple[HeldSlice, ...], models: dict[str, ModelFacts], now_s: float) -> bool:
    """The new device holds what its node says, ready to serve; False if that cannot be used.

    Whatever it holds, the next assignment gets a generation that it has not had."""
    own = [one for one in held if one.device_id == device.key.device_id]
    device.generation = max((device.generation, *(one.generation for one in own)))
    if len(own) != 1 or not _is_usable(device, own[0], models):
        return False
    (one,) = own
    if one.benchmark is not None:
        device.benchmarks[one.manifest_hash] = one.benchmark
    device.move(Signal.MEASURE)
    device.move(Signal.MEASURED)
    device.assign(Slice(one.manifest_hash, one.layers), "it came back with these layers loaded", now_s)
    device.generation = one.generation
    device.num_fetched_bytes = 0.0
    device.move(Signal.LOADED)
    device.num_kv_tokens, device.has_prefix_cache = one.num_kv_tokens, one.has_prefix_cache
    return True


def _is_usable(device: Device, held: HeldSlice, models: dict[str, ModelFacts]) -> bool:
    model, spec = models.get(held.manifest_hash), device.spec
    if model is None or held.layers.stop > model.num_layers or held.variant is not spec.variant:
        return False
    if spec.max_layers is not None and len(held.layers) > spec.max_layers:
        return False
    is_measured = held.benchmark is not None or held.manifest_hash in device.benchmarks
    return is_measured and held.generation > 0 and held.generation >= device.generation
