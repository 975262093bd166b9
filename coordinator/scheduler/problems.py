"""From the state to what phase 1 is asked: who may hold layers of a model, and what each of them could hold."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, cast

from coordinator.scheduler.cost import MIN_KV_TOKENS, Workload, device_speed, model_cost, usable_bytes
from coordinator.scheduler.division import Claim, Part, divide
from coordinator.scheduler.plan import Offer, Problem
from coordinator.scheduler.policy import SchedulerConfig
from coordinator.scheduler.state import HOLDING, Device, DeviceKey, DeviceState, Fetched, State
from protocol.values import LayerRange, Variant

PLANNABLE = (DeviceState.FREE, DeviceState.ASSIGNED, DeviceState.READY)


class Demand(Protocol):
    """What is known of the requests to each model (workload.py)."""

    def workload(self, manifest_hash: str) -> Workload: ...


def problem_of(
    state: State,
    manifest_hash: str,
    variant: Variant,
    workloads: Demand,
    config: SchedulerConfig,
    among: Collection[DeviceKey] | None = None,
) -> Problem:
    """One model, and every usable device of the variant that has measured it and holds nothing of another model.

    With `among` (a set) exactly those of them count, whatever they hold. Offers are in the order of their keys: who
    came first must not matter."""
    devices = _candidates(state, manifest_hash) if among is None else _among(state, among)
    usable = [d for d in devices if d.spec.variant is variant and manifest_hash in d.benchmarks]
    usable = [d for d in usable if d.disk_layers.get(manifest_hash) != 0]
    usable.sort(key=lambda d: d.key)
    model, workload = state.models[manifest_hash], workloads.workload(manifest_hash)
    num_reserved = max(workload.num_reserved_tokens, float(model.min_session_tokens))
    return Problem(
        model=model_cost(model, variant),
        offers=tuple([offer_of(device, manifest_hash) for device in usable]),
        links=state.links,
        workload=replace(workload, num_reserved_tokens=num_reserved),
        bound=config.bound,
    )


def offer_of(device: Device, manifest_hash: str) -> Offer:
    """The device as phase 1 sees it for this model: made anew only when something of it has changed."""
    made_of = (
        manifest_hash,
        device.model,
        device.layers,
        device.last,
        device.state,
        device.num_requests > 0,
        device.slowdown,
        device.leaves_per_s,
        device.benchmarks[manifest_hash],
        device.lacking_bytes,
        device.earlier,
        device.fetch_bytes_per_s,
        device.disk_layers.get(manifest_hash),
    )
    if device.offer is None or device.offer[0] != made_of:
        device.offer = made_of, _new_offer(device, manifest_hash)
    return cast(Offer, device.offer[1])


def _new_offer(device: Device, manifest_hash: str) -> Offer:
    limit, is_loading = device.max_layers(manifest_hash), device.state is DeviceState.ASSIGNED
    stored, partly = _on_disk(device, manifest_hash)
    return Offer(
        device.key,
        usable_bytes(device),
        limit if limit is not None else 1 << 30,
        device_speed(device, manifest_hash),
        device.layers if device.model == manifest_hash else None,
        stored,
        device.leaves_per_s,
        device.num_requests > 0,
        is_loading,
        device.lacking_bytes if is_loading else 0.0,
        device.fetch_bytes_per_s,
        partly,
    )


def _on_disk(device: Device, manifest_hash: str) -> tuple[tuple[LayerRange, ...], tuple[tuple[LayerRange, float], ...]]:
    """Slices that are there, the last one first (what it holds or loads is one of them: `Offer.lacking_bytes` says
    what is still to come); and those of which something is missing."""
    lacking_bytes = 0.0 if device.state in HOLDING else device.lacking_bytes
    last = () if device.last is None else (Fetched(device.last, lacking_bytes),)
    known = [(f.slice.layers, f.lacking_bytes) for f in (*last, *device.earlier) if f.slice[0] == manifest_hash]
    stored = dict.fromkeys(layers for layers, lacking_bytes in known if not lacking_bytes)
    return tuple(stored), tuple(part for part in known if part[1])


def _candidates(state: State, manifest_hash: str) -> list[Device]:
    return [*state.usable(DeviceState.FREE), *state.holders(manifest_hash)]


def _among(state: State, keys: Iterable[DeviceKey]) -> list[Device]:
    found = (state.devices.get(key) for key in keys)
    return [d for d in found if d and d.state in PLANNABLE and d.key.node_id not in state.draining]


# ---------------------------------------------------------------- what fits


@dataclass(frozen=True, slots=True)
class Fit:
    """Which layers an offer could hold: weights, the ends' own parts, and the KV floor. Make it with `fit_of`."""

    need: tuple[float, ...]
    """Bytes of the layers before layer i, with their KV floor."""
    head_bytes: float
    embedding_bytes: float

    @property
    def num_layers(self) -> int:
        return len(self.need) - 1

    def fits(self, offer: Offer, start: int, stop: int) -> bool:
        """Whether it could hold [start, stop)."""
        return stop - start <= offer.max_layers and self.need_bytes(start, stop) <= offer.memory_bytes

    def need_bytes(self, start: int, stop: int) -> float:
        """What [start, stop) takes."""
        ends = self.embedding_bytes * (start == 0) + self.head_bytes * (stop == self.num_layers)
        return self.need[stop] - self.need[start] + ends

    def reach(self, offer: Offer, start: int) -> int:
        """The largest stop with which [start, stop) fits; `start` itself if no layer does."""
        room = offer.memory_bytes - self.embedding_bytes * (start == 0)
        stop = bisect_right(self.need, self.need[start] + room, lo=start) - 1
        stop = min(max(stop, start), start + offer.max_layers, self.num_layers)
        while stop > start and not self.fits(offer, start, stop):
            stop -= 1
        return stop

    def reach_back(self, offer: Offer, stop: int) -> int:
        """The smallest start with which [start, stop) fits; `stop` itself if no layer does."""
        start = max(0, stop - min(offer.max_layers, stop))
        while start < stop and not self.fits(offer, start, stop):
            start += 1
        return start

    def most_layers(self, offer: Offer) -> int:
        """How many it could hold in the middle of the model, roughly: layers differ."""
        per_layer = self.need[-1] / self.num_layers
        return int(min(self.num_layers, offer.max_layers, (offer.memory_bytes + 1e-6) // per_layer))


def fit_of(problem: Problem) -> Fit:
    """For this problem's model and KV floor."""
    model = problem.model
    kv = model.kv_prefix(problem.kv_floor_tokens)
    need = tuple(w + k for w, k in zip(model.weights, kv, strict=True))
    return Fit(need, model.head_bytes, model.embedding_bytes)


class Stored(NamedTuple):
    """Layers that a device need not download, but for so many bytes that are still on their way."""

    start: int
    stop: int
    lacking_bytes: float = 0.0


def stored_by(offer: Offer) -> list[Stored]:
    """What is on its disk, or soon will be. What it is loading is there only as far as it was when that began."""
    found = [Stored(layers.start, layers.stop) for layers in offer.stored if layers != offer.held]
    found += [Stored(layers.start, layers.stop, lacking_bytes) for layers, lacking_bytes in offer.partly]
    if offer.held is not None:
        found.append(Stored(offer.held.start, offer.held.stop, offer.lacking_bytes))
    return [*found, *_joined(found)] if len(found) > 1 else found


def _joined(pieces: Iterable[Stored]) -> list[Stored]:
    """What whole pieces make together where they touch or overlap."""
    joined: list[Stored] = []
    for piece in sorted(piece for piece in pieces if not piece.lacking_bytes):
        if joined and piece.start <= joined[-1].stop:
            joined[-1] = Stored(joined[-1].start, max(joined[-1].stop, piece.stop))
        else:
            joined.append(piece)
    return joined


def missing_bytes(problem: Problem, offer: Offer, layers: LayerRange) -> float:
    """What it would have to download to hold these layers: all but what is on its disk."""
    weights = problem.model.weights
    best = 0.0
    for piece in stored_by(offer):
        start, stop = max(piece.start, layers.start), min(piece.stop, layers.stop)
        if start < stop:
            best = max(best, weights[stop] - weights[start] - piece.lacking_bytes)
    return problem.model.weight_bytes(layers) - best


# ---------------------------------------------------------------- several models


def divided(state: State, devices: Iterable[Device], workloads: Demand) -> dict[DeviceKey, str]:
    """The model that each of these devices is to work for. Chains never mix variants, so each divides its own."""
    by_variant: dict[Variant, list[Device]] = {}
    for device in devices:
        by_variant.setdefault(device.spec.variant, []).append(device)
    found: dict[DeviceKey, str] = {}
    for variant, some in sorted(by_variant.items()):
        found |= divide([_claim(state, m, variant, workloads) for m in state.models], [_part(state, d) for d in some])
    return found


def _claim(state: State, manifest_hash: str, variant: Variant, workloads: Demand) -> Claim:
    """What the model may claim of the pool."""
    cost = model_cost(state.models[manifest_hash], variant)
    kv_bytes = cost.kv_prefix(min(MIN_KV_TOKENS, cost.facts.context_length))[-1]
    replica_bytes = cost.weights[-1] + cost.embedding_bytes + cost.head_bytes + kv_bytes
    wanted = workloads.workload(manifest_hash).tokens_per_s
    demand = None if wanted is None else wanted * cost.work[-1]
    return Claim(manifest_hash, replica_bytes, state.floors.get(manifest_hash, 1), demand)


def _part(state: State, device: Device) -> Part:
    """What the device could give. More memory than its owner's limit of layers allows is of no use."""
    speeds = {m: 1.0 / device_speed(device, m).step_s for m in state.models if m in device.benchmarks}
    return Part(device.key, _useful_bytes(state, device), speeds, device.model)


def _useful_bytes(state: State, device: Device) -> float:
    limit = device.spec.max_layers
    if limit is None:
        return usable_bytes(device)
    largest = max(model_cost(facts, device.spec.variant).weights[1] for facts in state.models.values())
    return min(usable_bytes(device), 2.0 * limit * largest)
