"""What is known of nodes that left, for when they come back: a machine that pauses does so many times a day.

A device that comes back is not measured again, and may get the layers back whose weights are on its disk. How often a
node has left lately says how far to trust it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from coordinator.scheduler.state import Device
from protocol.backoff import doubled_s
from protocol.values import DeviceId, DeviceKind, DeviceSpec, NodeId, Variant

MAX_NODES = 10_000
"""Of so many nodes something is kept; then the one that left first is forgotten."""
HALF_LIFE_S = 3600.0
"""A leave counts half after this."""
FLAPPING_LEAVES = 2.5
"""More leaves than this, counted so, and the node flaps: three within about an hour."""
FLAPPING_PER_S = FLAPPING_LEAVES * math.log(2) / HALF_LIFE_S
PROBATION_S = 5.0
"""How long a device of a flapping node waits before it gets anything that is not missing; doubled with each leave."""
MAX_PROBATION_S = 600.0


class Departed:
    """Devices of nodes that are not connected now, and how often all nodes have left."""

    def __init__(self) -> None:
        self._nodes: dict[NodeId, dict[DeviceId, Device]] = {}
        self._leaves: dict[NodeId, tuple[float, float]] = {}
        """(leaves, when they were that many), the node that left last is last."""

    def __len__(self) -> int:
        return len(self._nodes)

    def keep(self, node_id: NodeId, devices: Iterable[Device], now_s: float) -> None:
        """The node left; these were its devices."""
        leaves = self.num_leaves(node_id, now_s) + 1.0
        self._leaves.pop(node_id, None)
        self._leaves[node_id] = leaves, now_s
        self._nodes.pop(node_id, None)
        self._nodes[node_id] = {device.key.device_id: device for device in devices}
        _forget_first(self._nodes)
        _forget_first(self._leaves)

    def num_leaves(self, node_id: NodeId, now_s: float) -> float:
        """Decayed: each counts half after `HALF_LIFE_S`."""
        leaves, at_s = self._leaves.get(node_id, (0.0, now_s))
        return leaves * math.exp2((at_s - now_s) / HALF_LIFE_S)

    def knows(self, node_id: NodeId) -> bool:
        """Whether it was here before."""
        return node_id in self._leaves

    def come_back(self, node_id: NodeId, devices: Iterable[Device], now_s: float) -> None:
        """The node is here again: its new devices learn what the same old ones knew, and what their node is like.

        Of a node that leaves at a constant rate the decayed count is that rate times the mean life of a count."""
        old = self._nodes.pop(node_id, {})
        leaves = self.num_leaves(node_id, now_s)
        for device in devices:
            device.leaves_per_s = leaves * math.log(2) / HALF_LIFE_S
            if leaves > FLAPPING_LEAVES:
                excess = math.ceil(leaves - FLAPPING_LEAVES) - 1
                device.probation_until_s = now_s + doubled_s(PROBATION_S, excess, MAX_PROBATION_S)
            before = old.get(device.key.device_id)
            if before is not None and _hardware(before.spec) == _hardware(device.spec):
                device.benchmarks = before.benchmarks
                device.last, device.lacking_bytes, device.earlier = before.last, before.lacking_bytes, before.earlier
                device.generation = max(device.generation, before.generation)
                device.slowdown = before.slowdown
                device.fetch_bytes_per_s = before.fetch_bytes_per_s


def _forget_first(known: dict[NodeId, Any]) -> None:
    while len(known) > MAX_NODES:
        del known[next(iter(known))]


def _hardware(spec: DeviceSpec) -> tuple[DeviceKind, str, Variant]:
    """What a measurement depends on. Memory is not part of it: what is free on a volunteer's machine changes."""
    return spec.kind, spec.name, spec.variant
