"""Phase 2, first form: the cheapest complete chain of ready slices with room for the request.

Dynamic programming over layer boundaries. A device's cost rises with every request it carries from the moment it is
chosen, so that a burst spreads. The full phase 2 replaces this module behind the same interface.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from coordinator.scheduler.state import Device, DeviceKey, DeviceState
from protocol.values import LayerRange


def cheapest_chain(devices: Sequence[Device], num_layers: int, num_tokens: int) -> list[Device]:
    """Ready devices (of one model and variant) that hold layers 0..num_layers-1 once in order; empty if none do."""
    usable = [d for d in devices if d.state is DeviceState.READY and d.num_free_kv_tokens >= num_tokens]
    best: dict[int, tuple[float, list[Device]]] = {0: (0.0, [])}
    for device in sorted(usable, key=_slice_order):
        start, stop = _bounds(device)
        if start not in best:
            continue
        cost = best[start][0] + _cost(device)
        if stop not in best or cost < best[stop][0]:
            best[stop] = (cost, [*best[start][1], device])
    return best[num_layers][1] if num_layers in best else []


def in_some_chain(holders: Sequence[Device], num_layers: int) -> set[DeviceKey]:
    """The holders (loading ones too) that lie on a path from layer 0 to the last one."""
    whole = on_whole_paths([_layers(d) for d in holders], num_layers)
    return {d.key for d in holders if _layers(d) in whole}


def on_whole_paths(slices: Collection[LayerRange], num_layers: int) -> set[LayerRange]:
    """The slices that lie on a path of slices from layer 0 to the last one."""
    forward, backward = {0}, {num_layers}
    for piece in sorted(slices, key=lambda piece: piece.start):
        if piece.start in forward:
            forward.add(piece.stop)
    for piece in sorted(slices, key=lambda piece: piece.stop, reverse=True):
        if piece.stop in backward:
            backward.add(piece.start)
    return {piece for piece in slices if piece.start in forward and piece.stop in backward}


def missing_layers(devices: Sequence[Device], num_layers: int) -> list[LayerRange]:
    """Runs of layers that none of the devices holds (or is loading)."""
    return _runs([count == 0 for count in _num_holders(devices, num_layers)])


def thinnest_layers(devices: Sequence[Device], num_layers: int) -> list[LayerRange]:
    """Runs of the layers with the fewest holders (in an empty pool that is one run); none if all have as many.

    A run begins and ends where slices do, so that whoever takes it completes chains with the slices beside it."""
    counts = _num_holders(devices, num_layers)
    least = min(counts)
    even = least == max(counts) and least > 0
    return [] if even else _runs([count == least for count in counts])


def _num_holders(devices: Sequence[Device], num_layers: int) -> list[int]:
    counts = [0] * num_layers
    for start, stop in (_bounds(device) for device in devices):
        for layer in range(start, stop):
            counts[layer] += 1
    return counts


def _runs(marked: Sequence[bool]) -> list[LayerRange]:
    """Runs of consecutive marked layers."""
    edges = [i for i, mark in enumerate(marked) if mark != (i > 0 and marked[i - 1])]
    edges += [len(marked)] * (len(edges) % 2)
    return [LayerRange(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _layers(device: Device) -> LayerRange:
    assert device.layers is not None, "a holder has layers"
    return device.layers


def _bounds(device: Device) -> tuple[int, int]:
    layers = _layers(device)
    return layers.start, layers.stop


def _slice_order(device: Device) -> tuple[int, int, object]:
    return (*_bounds(device), device.key)


def _cost(device: Device) -> float:
    """Time of the slice for one token, times the requests that would share the device."""
    start, stop = _bounds(device)
    assert device.model is not None, "a ready device has a model"
    return (stop - start) * device.layer_time_s(device.model) * (1 + device.num_requests)
