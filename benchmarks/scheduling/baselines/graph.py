"""Phase 2's view of one model in one variant: the ready slices, indexed by their boundaries, and paths through them.

Kept up to date by the scheduler's notifications, so that a route costs one sweep over the boundaries. Delays between
the holders at a boundary are kept for `LINK_AGE_S`: other systems read them from a table that is refreshed as rarely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from coordinator.scheduler.cost import Speed, device_speed, model_cost
from coordinator.scheduler.links import Floats, Ints, LinkMap
from coordinator.scheduler.policy import RouteRequest
from coordinator.scheduler.state import Device, DeviceKey, DeviceState, State
from protocol.values import NodeId, Variant

LINK_AGE_S = 10.0
MAX_EXACT_PAIRS = 1_024
"""At a boundary with more pairs than this, delays come from coordinates, all at once."""

SliceCost = Callable[[Speed, float, bool, Device], float]
"""Seconds that a request is expected to spend in a slice: speed, work, whether it is the last one, the device."""


class SliceGraph:
    """Ready devices in slots; a slot keeps its number as long as its device stays ready with the same layers."""

    def __init__(self, links: LinkMap, num_layers: int) -> None:
        self.num_layers = num_layers
        self.version = 0
        """Rises whenever a slice comes or goes."""
        self._links = links
        self._slots: dict[DeviceKey, int] = {}
        self._devices: list[Device | None] = []
        self._spans: list[tuple[int, int]] = []
        self._free: list[int] = []
        self._costs: Floats = np.full(16, np.inf)
        self._rooms: Floats = np.full(16, -1.0)
        self._starts: dict[int, list[int]] = {}
        self._stops: dict[int, list[int]] = {}
        self._hops: dict[int, tuple[float, Ints, Ints, Floats]] = {}

    def __len__(self) -> int:
        return len(self._slots)

    # ------------------------------------------------------------ what is ready

    def put(self, device: Device, cost_s: float) -> None:
        """The device is ready, or its cost or room is another."""
        assert device.layers is not None, "a ready device has layers"
        span = (device.layers.start, device.layers.stop)
        slot = self._slots.get(device.key)
        if slot is not None and (self._spans[slot] != span or self._devices[slot] is not device):
            self.remove(device.key)
            slot = None
        if slot is None:
            slot = self._add(device, span)
        self._costs[slot] = cost_s
        self._rooms[slot] = device.num_free_kv_tokens

    def remove(self, key: DeviceKey) -> None:
        """Harmless when it is not there."""
        slot = self._slots.pop(key, None)
        if slot is None:
            return
        start, stop = self._spans[slot]
        self._starts[start].remove(slot)
        self._stops[stop].remove(slot)
        self._devices[slot] = None
        self._costs[slot], self._rooms[slot] = np.inf, -1.0
        self._free.append(slot)
        self._changed(start, stop)

    def device(self, slot: int) -> Device:
        device = self._devices[slot]
        assert device is not None, "an empty slot is in no list"
        return device

    def devices(self, slots: Iterable[int]) -> tuple[Device, ...]:
        return tuple(self.device(slot) for slot in slots)

    def start(self, slot: int) -> int:
        return self._spans[slot][0]

    def stop(self, slot: int) -> int:
        return self._spans[slot][1]

    def beginning_at(self, boundary: int) -> Sequence[int]:
        return self._starts.get(boundary, ())

    def slots(self) -> Iterator[int]:
        return iter(self._slots.values())

    def slot(self, key: DeviceKey) -> int | None:
        return self._slots.get(key)

    def costs(self) -> Floats:
        """Per slot; inf where there is nobody. A copy."""
        return self._costs.copy()

    def usable(self, request: RouteRequest, state: State) -> Floats:
        """Costs per slot; inf where the request cannot run: no room, to be avoided, or draining."""
        costs = np.where(self._rooms >= max(0, request.num_reserved_tokens), self._costs, np.inf)
        for key in request.avoid:
            if (slot := self._slots.get(key)) is not None:
                costs[slot] = np.inf
        if state.draining:
            for key, slot in self._slots.items():
                if key.node_id in state.draining:
                    costs[slot] = np.inf
        return costs

    def _add(self, device: Device, span: tuple[int, int]) -> int:
        if self._free:
            slot = self._free.pop()
            self._devices[slot], self._spans[slot] = device, span
        else:
            slot = len(self._devices)
            self._devices.append(device)
            self._spans.append(span)
            if slot >= len(self._costs):
                self._costs = np.concatenate((self._costs, np.full(len(self._costs), np.inf)))
                self._rooms = np.concatenate((self._rooms, np.full(len(self._rooms), -1.0)))
        self._slots[device.key] = slot
        self._starts.setdefault(span[0], []).append(slot)
        self._stops.setdefault(span[1], []).append(slot)
        self._changed(*span)
        return slot

    def _changed(self, start: int, stop: int) -> None:
        self.version += 1
        self._hops.pop(start, None)
        self._hops.pop(stop, None)

    # ------------------------------------------------------------ paths

    def shortest(self, costs: Floats, now_s: float) -> list[int]:
        """Slots of the whole chain with the least sum of costs and delays between stages; empty if there is none.

        A sweep over the boundaries in order: the graph has no cycles, so that this is what Dijkstra would find."""
        best = np.full(len(costs), np.inf)
        before = np.full(len(costs), -1, dtype=np.intp)
        for boundary in sorted(self._starts):
            outs = self._starts[boundary]
            if boundary == 0:
                best[outs] = costs[outs]
            elif outs and self._stops.get(boundary):
                _, ins, targets, delays = self.hops(boundary, now_s)
                totals = best[ins][:, None] + delays
                chosen = totals.argmin(axis=0)
                best[targets] = totals[chosen, np.arange(len(targets))] + costs[targets]
                before[targets] = ins[chosen]
        ends = self._stops.get(self.num_layers)
        if not ends:
            return []
        last = min(ends, key=lambda slot: (best[slot], slot))
        return _path(before, last) if np.isfinite(best[last]) else []

    def delays_from(self, node_id: NodeId, boundary: int, *, ending: bool) -> tuple[Ints, Floats]:
        """Slots that begin (or end) at the boundary, and the one-way delays between each and this node, in seconds."""
        slots = np.array((self._stops if ending else self._starts).get(boundary, ()), dtype=np.intp)
        rows = np.array([self._links.row(self.device(int(slot)).key.node_id) for slot in slots], dtype=np.intp)
        here = np.array([self._links.row(node_id)], dtype=np.intp)
        return slots, self._links.delays_s(here, rows)[0]

    def hops(self, boundary: int, now_s: float) -> tuple[float, Ints, Ints, Floats]:
        """When this was looked up, the slots that end and begin here, and the delays between them in seconds."""
        known = self._hops.get(boundary)
        if known is not None and now_s - known[0] < LINK_AGE_S:
            return known
        ins, outs = self._stops[boundary], self._starts[boundary]
        hops = (now_s, np.array(ins, dtype=np.intp), np.array(outs, dtype=np.intp), self._delays(ins, outs))
        self._hops[boundary] = hops
        return hops

    def _delays(self, ins: Sequence[int], outs: Sequence[int]) -> Floats:
        sources = [self.device(slot).key.node_id for slot in ins]
        targets = [self.device(slot).key.node_id for slot in outs]
        if len(ins) * len(outs) <= MAX_EXACT_PAIRS:
            return np.array([[self._links.delay_s(a, b) for b in targets] for a in sources])
        rows, columns = (np.array([self._links.row(n) for n in nodes], dtype=np.intp) for nodes in (sources, targets))
        return self._links.delays_s(rows, columns)


def _path(before: Ints, last: int) -> list[int]:
    path = [last]
    while before[path[-1]] >= 0:
        path.append(int(before[path[-1]]))
    return path[::-1]


# ---------------------------------------------------------------- all models


class SliceGraphs:
    """One graph per model and variant, fed by the router's notifications."""

    def __init__(self, state: State, cost: SliceCost) -> None:
        self._state = state
        self._cost = cost
        self._graphs: dict[tuple[str, Variant], SliceGraph] = {}
        self._graph_of: dict[DeviceKey, SliceGraph] = {}
        for device in state.devices.values():
            self.changed(device)

    def get(self, manifest_hash: str, variant: Variant) -> SliceGraph | None:
        return self._graphs.get((manifest_hash, variant))

    def changed(self, device: Device) -> None:
        known = self._graph_of.get(device.key)
        graph = self._wanted(device)
        if known is not None and known is not graph:
            known.remove(device.key)
            del self._graph_of[device.key]
        if graph is not None:
            self._graph_of[device.key] = graph
            graph.put(device, self._cost_of(device))

    def gone(self, key: DeviceKey) -> None:
        if graph := self._graph_of.pop(key, None):
            graph.remove(key)

    def _wanted(self, device: Device) -> SliceGraph | None:
        model = self._state.models.get(device.model or "")
        if device.state is not DeviceState.READY or model is None or device.layers is None:
            return None
        name = (model.manifest_hash, device.spec.variant)
        if name not in self._graphs:
            self._graphs[name] = SliceGraph(self._state.links, model.num_layers)
        return self._graphs[name]

    def _cost_of(self, device: Device) -> float:
        assert device.model is not None and device.layers is not None, "a ready device has a slice"
        model = model_cost(self._state.models[device.model], device.spec.variant)
        is_last = device.layers.stop == model.num_layers
        return self._cost(device_speed(device, device.model), model.work_of(device.layers), is_last, device)


def idle_step_s(speed: Speed, work: float, last: bool, device: Device) -> float:
    """One decode step of one request alone."""
    return speed.step_time_s(work, 1, last=last)
