"""Which layers are held how often, and which slices make whole chains: questions about layers only, not about time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from coordinator.scheduler.state import Device, DeviceKey
from protocol.values import LayerRange


def in_some_chain(holders: Sequence[Device], num_layers: int) -> set[DeviceKey]:
    """The holders (loading ones too) that lie on a path from layer 0 to the last one."""
    whole = on_whole_paths({_layers(d) for d in holders}, num_layers)
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


def roomiest_chain(holders: Iterable[Device], num_layers: int) -> list[Device]:
    """The chain whose tightest stage has the most KV room when nothing runs; empty if there is no whole chain.

    The widest path: dynamic programming over layer boundaries."""
    roomiest: dict[tuple[int, int], Device] = {}
    for device in holders:
        piece = _bounds(device)
        if piece not in roomiest or device.num_kv_tokens > roomiest[piece].num_kv_tokens:
            roomiest[piece] = device
    widest: dict[int, tuple[float, Device | None]] = {0: (float("inf"), None)}
    for start, stop in sorted(roomiest):
        device = roomiest[start, stop]
        if start in widest:
            width = min(widest[start][0], device.num_kv_tokens)
            if stop not in widest or width > widest[stop][0]:
                widest[stop] = (width, device)
    return _traced(widest, num_layers)


def _traced(last: dict[int, tuple[float, Device | None]], num_layers: int) -> list[Device]:
    chain: list[Device] = []
    at = num_layers
    while at in last and (device := last[at][1]) is not None:
        chain.append(device)
        at = _layers(device).start
    return chain[::-1]


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
    """Per layer; by counting where slices begin and end, so that 10,000 long slices cost no more than short ones."""
    steps = [0] * (num_layers + 1)
    for start, stop in map(_bounds, devices):
        steps[start] += 1
        steps[stop] -= 1
    counts, count = [], 0
    for step in steps[:num_layers]:
        count += step
        counts.append(count)
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
