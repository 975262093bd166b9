"""What devices are ordered to download, and the least that anybody would have to; changes.py says why that is least."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.cost import ModelCost, model_cost
from coordinator.scheduler.pieces import Piece, on_paths
from coordinator.scheduler.state import DeviceKey, Fetched, State
from coordinator.simulate import engine
from coordinator.simulate.fleet import EMBEDDING, HEAD
from coordinator.simulate.hardware import VARIANT
from coordinator.simulate.world import SimDevice
from protocol.values import LayerRange

GB = 1e9

Parts = dict[int, float]
"""Layers, and the ends' own parts, with their bytes."""


@dataclass(frozen=True, slots=True)
class Order:
    """A device is to download so much; `cause` is what the scheduler had been told (engine.cause_of)."""

    key: DeviceKey
    at_s: float
    num_bytes: float
    cause: str
    reason: str


@dataclass(frozen=True, slots=True)
class Layout:
    """Who holds what, and whose disks have what, of the devices that are here."""

    held: Mapping[DeviceKey, Piece]
    disks: Mapping[DeviceKey, Collection[int]]


def piece_of(layers: LayerRange) -> Piece:
    """As a pair of layer numbers."""
    return layers.start, layers.stop


def parts_of(cost: ModelCost, piece: Piece) -> Parts:
    """What a slice consists of."""
    parts = {i: cost.weights[i + 1] - cost.weights[i] for i in range(*piece)}
    if piece[0] == 0:
        parts[EMBEDDING] = cost.embedding_bytes
    if piece[1] == cost.num_layers:
        parts[HEAD] = cost.head_bytes
    return parts


def serving(cost: ModelCost, held: Mapping[DeviceKey, Piece]) -> dict[DeviceKey, Piece]:
    """Devices on whole chains."""
    whole = on_paths(set(held.values()), cost.num_layers)
    return {key: piece for key, piece in held.items() if piece in whole}


def num_copies(cost: ModelCost, held: Mapping[DeviceKey, Piece]) -> int:
    """So many holders on whole chains has every layer at least."""
    counts = Counter(part for piece in serving(cost, held).values() for part in parts_of(cost, piece))
    return min((counts[part] for part in parts_of(cost, (0, cost.num_layers))), default=0)


def lacking_bytes(cost: ModelCost, piece: Piece, disk: Collection[int]) -> float:
    return sum(size for part, size in parts_of(cost, piece).items() if part not in disk)


def copies_bytes(cost: ModelCost, disks: Iterable[Collection[int]], copies: int) -> float:
    """What must be downloaded, by whomever, before every layer can have so many holders."""
    there = Counter(part for disk in disks for part in disk)
    whole = parts_of(cost, (0, cost.num_layers))
    return sum(size * max(0, copies - there[part]) for part, size in whole.items())


def least_bytes(cost: ModelCost, before: Layout, after: Layout, newcomer: DeviceKey | None) -> tuple[float, float]:
    """(strictly, with survivors used), for what is served `after`; `before` is right after the change."""
    serves_after = serving(cost, after.held)
    least = copies_bytes(cost, before.disks.values(), num_copies(cost, after.held))
    own = {key: lacking_bytes(cost, piece, before.disks.get(key, ())) for key, piece in serves_after.items()}
    if newcomer is not None:
        least = max(least, own.get(newcomer, 0.0))
    served_before = serving(cost, before.held)
    used = sum(size for key, size in own.items() if key not in served_before) if served_before else 0.0
    return least, max(least, used)


def forget_what_was_never_loaded(simulation: engine.Simulation, state: State) -> None:
    """A pool that has long been there is founded in no time, and its disks have what was ordered in that time. Of that
    only slices that were ready at some time count, as if what was taken back at once had never been downloaded."""
    for device in simulation.fleet.devices.values():
        known = state.devices.get(device.key)
        if known is None:
            continue
        own = [Fetched(known.last, known.lacking_bytes)] if known.last else []
        for digest, disk in device.node.disk.items():
            cost = model_cost(simulation.fleet.models[digest].facts, VARIANT)
            slices = [f.slice for f in (*own, *known.earlier) if f.slice[0] == digest and not f.lacking_bytes]
            disk &= {part for held in slices for part in parts_of(cost, piece_of(held.layers))}


class Ledger:
    """Stands between the scheduler and the fleet, and writes down what is to be downloaded."""

    def __init__(self, simulation: engine.Simulation, *, is_last_only: bool) -> None:
        self.orders: list[Order] = []
        self._simulation, self._is_last_only = simulation, is_last_only
        self._last: dict[DeviceKey, Piece] = {}
        self._obey, simulation.timeline.obey = simulation.timeline.obey, self._note

    def disk(self, device: SimDevice, digest: str) -> set[int]:
        """Parts of the model that the device need not download; with `is_last_only` those of its last slice."""
        fleet, disk = self._simulation.fleet, device.node.disk.setdefault(digest, set())
        if self._is_last_only and device.key in self._last:
            disk &= parts_of(model_cost(fleet.models[digest].facts, VARIANT), self._last[device.key]).keys()
        return disk

    def _note(self, command: cmd.Command, event: ev.Event) -> None:
        if isinstance(command, cmd.Assign):
            self._assigned(command, event)
        self._obey(command, event)

    def _assigned(self, command: cmd.Assign, event: ev.Event) -> None:
        fleet, key = self._simulation.fleet, command.device
        cost = model_cost(fleet.models[command.manifest_hash].facts, VARIANT)
        size = lacking_bytes(cost, piece_of(command.layers), self.disk(fleet.devices[key], command.manifest_hash))
        self._last[key] = piece_of(command.layers)
        if fleet.devices[key].node.is_up and not fleet.is_instant:
            now_s = self._simulation.timeline.now_s
            self.orders.append(Order(key, now_s, size, engine.cause_of(event), command.reason))
