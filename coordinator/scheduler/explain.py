"""The plan for people: who holds what and why, what each lane is expected to do, and what one more device would add."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from coordinator.scheduler.cost import Bound, usable_bytes
from coordinator.scheduler.forecast import lane_forecasts, lanes_of, layout_forecast, total_forecast
from coordinator.scheduler.plan import Allocator, Forecast, Lane, Offer, Placement, Problem, Stage
from coordinator.scheduler.policy import SchedulerConfig
from coordinator.scheduler.problems import Demand, Fit, fit_of, problem_of
from coordinator.scheduler.state import Device, DeviceKey, DeviceState, ModelFacts, State
from protocol.values import DeviceId, LayerRange, Variant

NEWCOMER = DeviceId("")
"""Stands for a device that might join, beside one that is there. No real one is called so (protocol.values)."""
MOST_NEWCOMERS = 10_000
LEAVES_SHOWN_PER_H = 0.1
SLOWDOWN_SHOWN = 1.1


class Part(StrEnum):
    """What a device does for the pool."""

    SERVING = "serving"
    LOADING = "loading"
    STANDBY = "standby"
    MEASURING = "measuring"
    FAILED = "failed"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """A device and its layers; None for one that holds none. `why` are the figures behind the reason, in sentences."""

    key: DeviceKey
    part: Part
    layers: LayerRange | None
    reason: str
    why: tuple[str, ...] = ()
    num_requests: int = 0
    num_kv_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Some layers and everybody who holds them in this lane."""

    layers: LayerRange
    holders: tuple[DevicePlan, ...]


@dataclass(frozen=True, slots=True)
class LanePlan:
    """Stages, head first."""

    stages: tuple[StagePlan, ...]
    forecast: Forecast


@dataclass(frozen=True, slots=True)
class Newcomer:
    """What one more device like `like`, the pool's middle one, would hold, and what the model could do then.

    `num_needed`: so many of them would make a first whole lane; 0 where there is one, None where none ever would."""

    like: DeviceKey
    memory_bytes: float
    layers: LayerRange | None
    reason: str
    forecast: Forecast
    num_needed: int | None


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """One model in one variant. `others` hold layers that complete no lane now.

    `wanted_tokens_per_s` is the demand that was seen, None while nobody has asked; `num_replicas` the operator's
    floor."""

    facts: ModelFacts
    variant: Variant
    lanes: tuple[LanePlan, ...]
    others: tuple[DevicePlan, ...]
    forecast: Forecast
    newcomer: Newcomer
    wanted_tokens_per_s: float | None
    num_replicas: int


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """Everything that is planned. `idle` are the devices that no model's plan has, each with its reason."""

    models: tuple[ModelPlan, ...]
    idle: tuple[DevicePlan, ...]
    bound: Bound


def plan_of(
    state: State, demand: Demand, config: SchedulerConfig, allocator: Allocator, now_s: float = 0.0
) -> PoolPlan:
    """Every model in every variant that some device serves or could serve, and the devices beside."""
    asked = [problem_of(state, digest, v, demand, config) for digest in state.models for v in Variant]
    problems = [problem for problem in asked if problem.offers]
    models = tuple(_Explained(state, problem).plan(allocator) for problem in problems)
    rooms = [(fit_of(problem), {offer.key: offer for offer in problem.offers}) for problem in problems]
    planned = {offer.key for problem in problems for offer in problem.offers if offer.held is not None}
    rest = sorted((d for d in state.devices.values() if d.key not in planned), key=lambda d: d.key)
    return PoolPlan(models, tuple(_idle(state, device, rooms, now_s) for device in rest), config.bound)


# ---------------------------------------------------------------- one model


class _Explained:
    """One problem, with what is held as lanes."""

    def __init__(self, state: State, problem: Problem) -> None:
        self._state, self._problem = state, problem
        self._held = {i: offer.held for i, offer in enumerate(problem.offers) if offer.held is not None}
        self._lanes = lanes_of(problem, self._held)
        self._num_holders = _num_holders(self._held.values(), problem.model.num_layers)

    def plan(self, allocator: Allocator) -> ModelPlan:
        problem = self._problem
        forecasts = lane_forecasts(problem, self._lanes)
        in_lanes = {i for lane in self._lanes for stage in lane.stages for i in stage.holders}
        lanes = tuple(LanePlan(self._stages(lane), f) for lane, f in zip(self._lanes, forecasts, strict=True))
        others = tuple(self._holder(i, None) for i in self._held if i not in in_lanes)
        facts = problem.model.facts
        return ModelPlan(
            facts,
            problem.model.variant,
            lanes,
            others,
            total_forecast(forecasts),
            _newcomer(problem, self._lanes, allocator),
            problem.workload.tokens_per_s,
            self._state.floors.get(facts.manifest_hash, 1),
        )

    def _stages(self, lane: Lane) -> tuple[StagePlan, ...]:
        """The tail's next stage is the head: that is where a token goes."""
        following = [*lane.stages[1:], lane.stages[0]]
        return tuple(
            StagePlan(stage.layers, tuple(self._holder(i, after) for i in stage.holders))
            for stage, after in zip(lane.stages, following, strict=True)
        )

    def _holder(self, index: int, following: Stage | None) -> DevicePlan:
        offer = self._problem.offers[index]
        device = self._state.devices[offer.key]
        layers = self._held[index]
        why = (
            _speed_sentence(device, offer, layers),
            self._memory_sentence(device, layers),
            self._replica_sentence(layers),
            *self._hop_sentence(offer, following),
            *_trouble_sentences(device),
        )
        part = Part.SERVING if device.state is DeviceState.READY else Part.LOADING
        return DevicePlan(device.key, part, layers, device.reason, why, device.num_requests, device.num_kv_tokens)

    def _memory_sentence(self, device: Device, layers: LayerRange) -> str:
        weights, usable = self._problem.model.weight_bytes(layers), usable_bytes(device)
        rest = f"; the rest is KV room for {device.num_kv_tokens:,} tokens" if device.num_kv_tokens else ""
        return f"Their weights take {_gigabytes(weights)} of its {_gigabytes(usable)} of usable memory{rest}."

    def _replica_sentence(self, layers: LayerRange) -> str:
        counts = self._num_holders[layers.start : layers.stop]
        alone = [layers.start + n for n, count in enumerate(counts) if count == 1]
        if not alone:
            return f"Each of its layers is held by {min(counts)} devices or more: the model goes on without it."
        held = "all of them" if len(alone) == len(layers) else _ranges(alone)
        return f"Nobody else holds {held}: without it the model would stop until others have loaded them."

    def _hop_sentence(self, offer: Offer, following: Stage | None) -> Iterable[str]:
        if following is None:
            yield "No other slices continue its layers to a whole model now."
            return
        here, links = offer.key.node_id, self._problem.links
        targets = {self._problem.offers[i].key.node_id for i in following.holders} - {here}
        if targets:
            delays = sorted(links.delay_s(here, target) for target in targets)
            away = _milliseconds(delays[0])
            more = f" to {_milliseconds(delays[-1])}" if _milliseconds(delays[-1]) != away else ""
            yield f"The stage that its results go to is {away}{more} away (one way)."


def _num_holders(held: Iterable[LayerRange], num_layers: int) -> list[int]:
    """Per layer."""
    steps = [0] * (num_layers + 1)
    for layers in held:
        steps[layers.start] += 1
        steps[layers.stop] -= 1
    counts, now = [], 0
    for step in steps[:-1]:
        now += step
        counts.append(now)
    return counts


# ---------------------------------------------------------------- sentences


def _speed_sentence(device: Device, offer: Offer, layers: LayerRange) -> str:
    layer_s = offer.speed.step_s + offer.speed.row_s
    slower = f", {device.slowdown:.1f} times its measurement" if device.slowdown >= SLOWDOWN_SHOWN else ""
    total = _milliseconds(layer_s * len(layers))
    return f"A token takes it {_milliseconds(layer_s)} a layer{slower}: {total} for its {len(layers)} layers."


def _trouble_sentences(device: Device) -> Iterable[str]:
    if (leaves := device.leaves_per_s * 3600.0) >= LEAVES_SHOWN_PER_H:
        yield f"Its node has been leaving about {leaves:.1f} times an hour."
    if device.spec.max_layers is not None:
        yield f"Its owner allows {device.spec.max_layers} layers at most."
    for num_layers in device.disk_layers.values():
        yield f"Its disk had room for {num_layers} layers of what it was to load."


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def _milliseconds(seconds: float) -> str:
    amount = seconds * 1e3
    return f"{amount:.0f} ms" if amount >= 10 else f"{amount:.1f} ms" if amount >= 0.1 else f"{amount * 1e3:.0f} µs"


def _ranges(layers: Sequence[int]) -> str:
    """Layers as people write them: 0-3, 7."""
    found: list[list[int]] = []
    for layer in layers:
        if found and found[-1][1] == layer - 1:
            found[-1][1] = layer
        else:
            found.append([layer, layer])
    return ("layer " if len(layers) == 1 else "layers ") + ", ".join(
        str(first) if first == last else f"{first}-{last}" for first, last in found
    )


# ---------------------------------------------------------------- devices without layers

Rooms = Sequence[tuple[Fit, Mapping[DeviceKey, Offer]]]


def _idle(state: State, device: Device, rooms: Rooms, now_s: float) -> DevicePlan:
    """A device that no plan has: it drains, measures, failed or stands by."""
    part = _part_of(state, device)
    reason = _REASONS[part](state, device, now_s)
    why = tuple(
        f"It has room for {fit.most_layers(offers[device.key])} of {fit.num_layers} layers."
        for fit, offers in rooms
        if device.key in offers
    )
    return DevicePlan(device.key, part, device.layers, reason, (*why, *_trouble_sentences(device)))


def _part_of(state: State, device: Device) -> Part:
    if device.key.node_id in state.draining:
        return Part.DRAINING
    return _PARTS.get(device.state, Part.STANDBY)


def _standby_reason(state: State, device: Device, now_s: float) -> str:
    if not state.models:
        return "stands by: the pool serves no model"
    if device.probation_until_s > now_s:
        wait_s = device.probation_until_s - now_s
        return f"its node has left too often lately: only what nobody else can hold for another {wait_s:.0f} s"
    return device.reason or "stands by: nothing would gain from it now"


def _measuring_reason(state: State, device: Device, now_s: float) -> str:
    model = state.models.get(device.measuring)
    return f"measures how fast it is with {model.name}" if model else "is about to measure"


def _failed_reason(state: State, device: Device, now_s: float) -> str:
    times = "once" if device.num_failures == 1 else f"{device.num_failures} times in a row"
    return f"failed {times}; it is tried again in {max(0.0, device.retry_at_s - now_s):.0f} s"


def _draining_reason(state: State, device: Device, now_s: float) -> str:
    return f"its node is being drained: nothing new; {device.num_requests} request(s) still run over it"


_PARTS = {
    DeviceState.NEW: Part.MEASURING,
    DeviceState.MEASURING: Part.MEASURING,
    DeviceState.FAILED: Part.FAILED,
}
_REASONS: dict[Part, Callable[[State, Device, float], str]] = {
    Part.STANDBY: _standby_reason,
    Part.MEASURING: _measuring_reason,
    Part.FAILED: _failed_reason,
    Part.DRAINING: _draining_reason,
}


# ---------------------------------------------------------------- one more device


def _newcomer(problem: Problem, lanes: Sequence[Lane], allocator: Allocator) -> Newcomer:
    """A device like the one in the middle by memory, where the next one by memory is."""
    by_memory = sorted(problem.offers, key=lambda o: (o.memory_bytes, o.key))
    like, beside = by_memory[len(by_memory) // 2], by_memory[len(by_memory) // 2 - 1]
    key = DeviceKey(beside.key.node_id, NEWCOMER)
    new = replace(like, key=key, held=None, stored=(), leaves_per_s=0.0, is_busy=False, is_loading=False)
    wider = replace(problem, offers=(*problem.offers, new))
    placed = {p.key: p for p in allocator.adapt(wider)}
    mine: Placement | None = placed.get(key)
    return Newcomer(
        like.key,
        new.memory_bytes,
        mine.layers if mine else None,
        mine.reason if mine else "it would stand by",
        layout_forecast(wider, _lanes_after(wider, lanes, placed)),
        0 if lanes else _num_needed(problem, new),
    )


def _lanes_after(wider: Problem, lanes: Sequence[Lane], placed: Mapping[DeviceKey, Placement]) -> Sequence[Lane]:
    """The lanes once the newcomer, who is the last of the offers, is there. As long as it only joins a stage, all
    lanes are as they were but the one to which it adds most."""
    number = len(wider.offers) - 1
    layers = placed[wider.offers[-1].key].layers if wider.offers[-1].key in placed else None
    joinable = [i for i, lane in enumerate(lanes) if any(stage.layers == layers for stage in lane.stages)]
    if len(placed) != 1 or not joinable:
        after = {i: placed[o.key].layers if o.key in placed else o.held for i, o in enumerate(wider.offers)}
        return lanes_of(wider, {i: held for i, held in after.items() if held is not None})
    before = lane_forecasts(wider, [lanes[i] for i in joinable])
    joined = [_with_holder(lanes[i], layers, number) for i in joinable]
    gains = [b.tokens_per_s - a.tokens_per_s for a, b in zip(before, lane_forecasts(wider, joined), strict=True)]
    best = max(range(len(joinable)), key=gains.__getitem__)
    return [joined[best] if i == joinable[best] else lane for i, lane in enumerate(lanes)]


def _with_holder(lane: Lane, layers: LayerRange | None, number: int) -> Lane:
    """One holder more on the stage with these layers."""
    return Lane(tuple(Stage(s.layers, (*s.holders, number)) if s.layers == layers else s for s in lane.stages))


def _num_needed(problem: Problem, new: Offer) -> int | None:
    """How many devices like this one would hold a whole model, together with all that are there."""
    fit = fit_of(problem)
    at = 0
    for offer in sorted(problem.offers, key=lambda o: -fit.most_layers(o)):
        at = fit.reach(offer, at)
    for number in range(MOST_NEWCOMERS):
        if at >= fit.num_layers:
            return number
        if (reached := fit.reach(new, at)) == at:
            return None
        at = reached
    return None
