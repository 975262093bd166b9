"""What is known of nodes that left, for when they come back: a machine that pauses does so many times a day.

A device that comes back is not measured again, and may get the layers back whose weights are on its disk.
"""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.scheduler.state import Device
from protocol.values import DeviceId, DeviceKind, DeviceSpec, NodeId, Variant

MAX_NODES = 10_000
"""Of so many nodes something is kept; then the one that left first is forgotten."""


class Departed:
    """Devices of nodes that are not connected now."""

    def __init__(self) -> None:
        self._nodes: dict[NodeId, dict[DeviceId, Device]] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def keep(self, node_id: NodeId, devices: Iterable[Device]) -> None:
        """The node left; these were its devices."""
        self._nodes.pop(node_id, None)
        self._nodes[node_id] = {device.key.device_id: device for device in devices}
        while len(self._nodes) > MAX_NODES:
            del self._nodes[next(iter(self._nodes))]

    def come_back(self, node_id: NodeId, devices: Iterable[Device]) -> None:
        """The node is here again: its new devices learn what the same old ones knew."""
        old = self._nodes.pop(node_id, {})
        for device in devices:
            before = old.get(device.key.device_id)
            if before is not None and _hardware(before.spec) == _hardware(device.spec):
                device.benchmarks = before.benchmarks
                device.last = before.last
                device.generation = max(device.generation, before.generation)


def _hardware(spec: DeviceSpec) -> tuple[DeviceKind, str, Variant]:
    """What a measurement depends on. Memory is not part of it: what is free on a volunteer's machine changes."""
    return spec.kind, spec.name, spec.variant
