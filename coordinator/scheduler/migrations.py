"""When a new layout is worth moving to, and the migrations that are under way: one per model and variant."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from coordinator.scheduler.forecast import lanes_of
from coordinator.scheduler.judging import Judge
from coordinator.scheduler.links import DEFAULT_BYTES_PER_S
from coordinator.scheduler.moves import PATIENCE_S, Holding, Migration, Step
from coordinator.scheduler.pieces import on_paths
from coordinator.scheduler.plan import Offer, Placement, Problem
from coordinator.scheduler.policy import Policy
from coordinator.scheduler.state import HOLDING, Device, DeviceKey, DeviceState, State
from protocol.values import LayerRange, Variant

CHECK_S = 60.0
"""Between looks at whether a new layout would pay."""
QUIET_S = 30.0
"""Nobody may have come or gone for so long: what is planned while nodes flap is soon planned again."""
RECHECK_S = 600.0
"""So often it is looked at in any case: in a large pool somebody always comes or goes, and links and speeds change
without anybody's coming or going."""
LEAST_BETWEEN_S = 600.0
"""Between two migrations of one model."""
DEMAND_STEP = 1.5
RELOAD_S = 10.0
"""Loading a slice from disk, beside its download."""

Kind = tuple[str, Variant]
Remake = Callable[[str, Variant, set[DeviceKey] | None, set[DeviceKey] | None], Problem]


@dataclass(frozen=True, slots=True)
class UnderWay:
    migration: Migration
    devices: Mapping[DeviceKey, Device]
    """What the new layout was planned with. A node that left and came back is not the one that was meant."""


class Migrations:
    """Decides and keeps them; the planner carries out their steps."""

    def __init__(self, state: State, policy: Policy, remake: Remake) -> None:
        self._state, self._policy, self._remake = state, policy, remake
        self._under_way: dict[Kind, UnderWay] = {}
        self._last_s: dict[Kind, float] = {}
        self._leaving: dict[DeviceKey, tuple[int, float]] = {}
        """Holders that another model needs more: the generation that is to give way, and since when."""
        self._checked_at_s: float | None = None
        self._changed_at_s = 0.0
        self._num_changes = 0
        self._considered = -1
        self._wanted_per_s = 0.0
        """Tokens, when a new layout was looked for last."""

    def is_under_way(self, manifest_hash: str, variant: Variant) -> bool:
        return (manifest_hash, variant) in self._under_way

    def drop_model(self, manifest_hash: str) -> None:
        """It is served no more."""
        for kind in [kind for kind in self._under_way if kind[0] == manifest_hash]:
            self._end(kind)

    # ------------------------------------------------------------ deciding

    def is_due(self, now_s: float, wanted_per_s: float = 0.0) -> bool:
        """Whether to look for a better layout now: something has changed, and then nothing for a while; or nobody has
        looked for long.

        `wanted_per_s`: tokens that people want from all models. Half as much again, or half, is a change, too."""
        if self._checked_at_s is None:
            self._checked_at_s = now_s
        num_changes = self._state.devices.num_changes
        if num_changes != self._num_changes:
            self._num_changes, self._changed_at_s = num_changes, now_s
        is_time = now_s >= self._checked_at_s + CHECK_S and now_s >= self._changed_at_s + QUIET_S
        is_steady = self._wanted_per_s / DEMAND_STEP <= wanted_per_s <= self._wanted_per_s * DEMAND_STEP
        is_overdue = now_s >= self._checked_at_s + RECHECK_S
        if not is_overdue and (not is_time or (num_changes == self._considered and is_steady)):
            return False
        self._wanted_per_s = wanted_per_s
        return True

    def consider(self, problems: Iterable[Problem], now_s: float) -> None:
        """Begin to move to a new layout where that pays."""
        self._checked_at_s = now_s
        self._considered = self._state.devices.num_changes
        for problem in problems:
            kind = _kind(problem)
            if kind in self._under_way or now_s < self._last_s.get(kind, -LEAST_BETWEEN_S) + LEAST_BETWEEN_S:
                continue
            lanes = self._better_layout(problem)
            if lanes:
                self._begin(problem, lanes, now_s, may_stop=False)

    def start(self, problems: Iterable[Problem], now_s: float) -> None:
        """Move to new layouts, whatever that costs."""
        for problem in problems:
            self._end(_kind(problem))
            placements = self._policy.allocator.allocate(problem)
            if placements:
                self._begin(problem, _lanes_of(problem, placements), now_s, may_stop=True)

    def give_way(self, chosen: Mapping[DeviceKey, str], now_s: float) -> None:
        """Holders that are to work for another model: as many as their own can do without."""
        for model in self._state.models:
            holders = list(self._state.devices.holding(model))
            moving = [d for d in holders if chosen.get(d.key, model) != model]
            gone: set[DeviceKey] = set()
            for device in moving:
                if _serves_without(holders, {*gone, device.key}, self._state.models[model].num_layers):
                    gone.add(device.key)
                    if not self._is_leaving(device.key):
                        self._leaving[device.key] = device.generation, now_s

    def _better_layout(self, problem: Problem) -> list[list[Placement]]:
        """The lanes of a better layout that gain clearly more than moving to them costs; none if there are no such."""
        held = {i: o.held for i, o in enumerate(problem.offers) if o.held is not None}
        serves = on_paths({(layers.start, layers.stop) for layers in held.values()}, problem.model.num_layers)
        placements = self._policy.allocator.allocate(problem) if serves else ()
        if not placements:
            return []
        lanes, index = _lanes_of(problem, placements), {offer.key: i for i, offer in enumerate(problem.offers)}
        judge = Judge(problem, held, lambda i, num_bytes: self._load_s(problem.offers[i].key, num_bytes))
        chosen = [lanes[n] for n in judge.best([{index[p.key]: p.layers for p in lane} for lane in lanes])]
        return chosen if self._would_last(problem, chosen) else []

    def _would_last(self, problem: Problem, lanes: Sequence[Sequence[Placement]]) -> bool:
        """Whether repairs would leave the moved devices alone then; else one would undo what the other has loaded."""
        changed = {p.key: p.layers for lane in lanes for p in lane}
        moved = {o.key for o in problem.offers if o.key in changed and o.held != changed[o.key]}
        offers = tuple(_holding(offer, changed[offer.key]) if offer.key in moved else offer for offer in problem.offers)
        return not any(p.key in moved for p in self._policy.allocator.adapt(replace(problem, offers=offers)))

    def _load_s(self, key: DeviceKey, num_bytes: float) -> float:
        return RELOAD_S + num_bytes / (self._state.devices[key].fetch_bytes_per_s or DEFAULT_BYTES_PER_S)

    # ------------------------------------------------------------ under way

    def steps(self, now_s: float) -> list[tuple[Problem, Step]]:
        """What each migration does now."""
        found = []
        for kind, under_way in list(self._under_way.items()):
            step = under_way.migration.step(self._held(kind, under_way.devices), now_s)
            if step.is_over:
                self._end(kind, now_s)
            else:
                self._state.retiring |= step.retiring
                found.append((self._remake(*kind, None, set(under_way.devices)), step))
        return found

    def gone_way(self, now_s: float) -> list[Device]:
        """Holders that are to give way and have nothing more to do, or have had long enough: release them."""
        self._leaving = {key: leaving for key, leaving in self._leaving.items() if self._is_leaving(key)}
        self._keep_needed()
        self._state.retiring |= self._leaving.keys()
        devices = [(self._state.devices[key], since) for key, (_, since) in self._leaving.items()]
        return [device for device, since in devices if not device.num_requests or now_s >= since + PATIENCE_S]

    def _is_leaving(self, key: DeviceKey) -> bool:
        """Whether it still holds what it is to give up; one that left and came back, or was given more, does not."""
        device, (generation, _) = self._state.devices.get(key), self._leaving.get(key, (-1, 0.0))
        return device is not None and device.state in HOLDING and device.generation == generation

    def _keep_needed(self) -> None:
        """Nobody gives way whose model would not be served any more: others may have left since it was chosen."""
        for model in {self._state.devices[key].model for key in self._leaving} - {None}:
            holders = list(self._state.devices.holding(str(model)))
            gone = {device.key for device in holders if device.key in self._leaving}
            if not _serves_without(holders, gone, self._state.models[str(model)].num_layers):
                self._leaving = {key: leaving for key, leaving in self._leaving.items() if key not in gone}
                self._state.retiring -= gone

    def _begin(self, problem: Problem, lanes: Sequence[Sequence[Placement]], now_s: float, *, may_stop: bool) -> None:
        migration = Migration(problem.model.num_layers, tuple(map(tuple, lanes)), now_s, may_stop)
        devices = {offer.key: self._state.devices[offer.key] for offer in problem.offers}
        self._under_way[_kind(problem)] = UnderWay(migration, devices)

    def _end(self, kind: Kind, now_s: float | None = None) -> None:
        under_way = self._under_way.pop(kind, None)
        if under_way is not None:
            self._state.retiring -= under_way.devices.keys()
        if now_s is not None:
            self._last_s[kind] = now_s

    def _held(self, kind: Kind, devices: Mapping[DeviceKey, Device]) -> dict[DeviceKey, Holding]:
        """What the devices hold that are still here."""
        found: dict[DeviceKey, Holding] = {}
        for key, device in devices.items():
            if self._state.devices.get(key) is not device or key.node_id in self._state.draining:
                continue
            if device.state is DeviceState.FREE:
                found[key] = Holding(None)
            elif device.model == kind[0] and device.layers is not None:
                piece = (device.layers.start, device.layers.stop)
                found[key] = Holding(piece, device.state is DeviceState.READY, device.num_requests)
        return found


def _holding(offer: Offer, layers: LayerRange) -> Offer:
    return replace(offer, held=layers, stored=(layers,), is_busy=False, is_loading=False)


def _kind(problem: Problem) -> Kind:
    return problem.model.facts.manifest_hash, problem.model.variant


def _lanes_of(problem: Problem, placements: Sequence[Placement]) -> list[list[Placement]]:
    """The placements lane by lane; those in no lane come last, together."""
    index = {offer.key: i for i, offer in enumerate(problem.offers)}
    by_index = {index[p.key]: p for p in placements}
    lanes = lanes_of(problem, {i: p.layers for i, p in by_index.items()})
    members = [[by_index.pop(i) for stage in lane.stages for i in stage.holders] for lane in lanes]
    return [*members, list(by_index.values())] if by_index else members


def _serves_without(holders: Sequence[Device], gone: Collection[DeviceKey], num_layers: int) -> bool:
    """Whether the others that are ready make a whole chain, of the variant of each that goes."""
    variants = {d.spec.variant for d in holders if d.key in gone}
    ready = [d for d in holders if d.key not in gone and d.state is DeviceState.READY and d.layers]
    some = [{(d.layers.start, d.layers.stop) for d in ready if d.layers and d.spec.variant is v} for v in variants]
    return all(on_paths(pieces, num_layers) for pieces in some)
