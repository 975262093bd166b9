"""The plan as JSON, with names in place of keys: for both pages and for `decentllm-coordinator plan`.

`PlanBoard` keeps the last one for a while, because working it out takes tens of milliseconds in a pool of a thousand
devices, and everybody who looks at the pool page wants it every few seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from coordinator.hub import Hub
from coordinator.nodes import NodeView
from coordinator.scheduler.explain import DevicePlan, LanePlan, ModelPlan, Newcomer, Part, PoolPlan
from coordinator.scheduler.plan import Forecast
from protocol.env import Clock
from protocol.values import DeviceId, NodeId

KEPT_S = 2.0
MOST_OF_THE_TIME = 0.05
"""Of the event loop's time that plans may take: one that took long is kept longer."""


class ForecastView(msgspec.Struct, frozen=True):
    """Seconds per token and to the first token with one request alone, tokens per second at most within the bound, and
    how many requests of the usual size find KV room."""

    tpot_s: float
    ttft_s: float
    tokens_per_s: float
    num_sessions: int


class HolderView(msgspec.Struct, frozen=True):
    """A device. `layers` as on the wire ("0-11", both included), "" for none; `why` has a sentence per figure."""

    node_id: str
    node: str
    device_id: str
    device: str
    part: Part
    layers: str
    reason: str
    why: tuple[str, ...]
    num_requests: int
    num_kv_tokens: int


class StageView(msgspec.Struct, frozen=True):
    layers: str
    holders: tuple[HolderView, ...]


class LaneView(msgspec.Struct, frozen=True):
    stages: tuple[StageView, ...]
    forecast: ForecastView


class NewcomerView(msgspec.Struct, frozen=True):
    """One more device like the one that is named. `num_needed`: so many would make a first whole lane; 0 where there
    is one; None where none ever would."""

    like: str
    memory_bytes: int
    layers: str
    reason: str
    forecast: ForecastView | None
    num_needed: int | None


class ModelPlanView(msgspec.Struct, frozen=True):
    """`forecast` is None without a lane; `others` hold layers that complete none; `message` says what is missing."""

    name: str
    variant: str
    num_layers: int
    num_replicas: int
    wanted_tokens_per_s: float | None
    message: str
    forecast: ForecastView | None
    lanes: tuple[LaneView, ...]
    others: tuple[HolderView, ...]
    newcomer: NewcomerView


class PlanView(msgspec.Struct, frozen=True):
    """The whole pool. The bound (seconds) is what `tokens_per_s` keeps."""

    pool: str
    as_of_s: float
    num_devices: int
    bound_tpot_s: float
    bound_ttft_s: float
    models: tuple[ModelPlanView, ...]
    idle: tuple[HolderView, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Of one device: its reason, and the number of its lane (from 1), None outside of lanes."""

    reason: str
    lane: int | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """A plan as it was at one moment. `forecasts` are by manifest hash, of the variant that does most."""

    view: PlanView
    places: dict[NodeId, dict[DeviceId, Place]] = field(default_factory=dict)
    forecasts: dict[str, tuple[int, Forecast]] = field(default_factory=dict)
    """With the number of lanes."""


class PlanBoard:
    """The plan, at most a few seconds old."""

    def __init__(self, hub: Hub, clock: Clock) -> None:
        self._hub, self._clock = hub, clock
        self._seen: Seen | None = None
        self._good_until_s = 0.0

    def look(self) -> Seen:
        """The plan as of now, or of a moment ago."""
        now_s = self._clock.monotonic()
        if self._seen is None or now_s >= self._good_until_s:
            self._seen = self._work_out(now_s)
            done_s = self._clock.monotonic()
            self._good_until_s = done_s + max(KEPT_S, (done_s - now_s) / MOST_OF_THE_TIME)
        return self._seen

    def _work_out(self, now_s: float) -> Seen:
        core = self._hub.core
        plan = core.scheduler.plan(now_s)
        shortfalls = {m.facts.manifest_hash: core.scheduler.shortfall(m.facts.manifest_hash) for m in plan.models}
        view = _Names(core.nodes).pool(plan, shortfalls, self._hub.pool_name, self._clock.wall())
        return Seen(view, places_of(plan), forecasts_of(plan))


def places_of(plan: PoolPlan) -> dict[NodeId, dict[DeviceId, Place]]:
    """Where each device is in the plan."""
    places: dict[NodeId, dict[DeviceId, Place]] = {}
    for device, lane in _devices_of(plan):
        places.setdefault(device.key.node_id, {})[device.key.device_id] = Place(device.reason, lane)
    return places


def _devices_of(plan: PoolPlan) -> Iterator[tuple[DevicePlan, int | None]]:
    """Each with the number of its lane."""
    yield from ((device, None) for device in plan.idle)
    for model in plan.models:
        yield from ((device, None) for device in model.others)
        for number, lane in enumerate(model.lanes, start=1):
            yield from ((device, number) for stage in lane.stages for device in stage.holders)


def forecasts_of(plan: PoolPlan) -> dict[str, tuple[int, Forecast]]:
    """For each model that has a lane: how many of them, and what they do together."""
    found: dict[str, tuple[int, Forecast]] = {}
    for model in sorted(plan.models, key=lambda m: m.forecast.tokens_per_s):
        if model.lanes:
            found[model.facts.manifest_hash] = (len(model.lanes), model.forecast)
    return found


def forecast_view(forecast: Forecast) -> ForecastView | None:
    """None where nothing would ever come: JSON has no infinity."""
    if not math.isfinite(forecast.tpot_s + forecast.ttft_s):
        return None
    return ForecastView(forecast.tpot_s, forecast.ttft_s, forecast.tokens_per_s, forecast.num_sessions)


class _Names:
    """Puts names into a plan."""

    def __init__(self, nodes: Mapping[NodeId, NodeView]) -> None:
        self._nodes = nodes

    def pool(self, plan: PoolPlan, shortfalls: Mapping[str, str], name: str, as_of_s: float) -> PlanView:
        return PlanView(
            pool=name,
            as_of_s=as_of_s,
            num_devices=sum(len(node.devices) for node in self._nodes.values()),
            bound_tpot_s=plan.bound.tpot_s,
            bound_ttft_s=plan.bound.ttft_s,
            models=tuple(self._model(model, shortfalls[model.facts.manifest_hash]) for model in plan.models),
            idle=self._holders(plan.idle),
        )

    def _model(self, model: ModelPlan, message: str) -> ModelPlanView:
        packed = model.facts.quantisation
        return ModelPlanView(
            name=model.facts.name,
            variant=f"{model.variant}, {packed} weights" if packed else model.variant,
            num_layers=model.facts.num_layers,
            num_replicas=model.num_replicas,
            wanted_tokens_per_s=model.wanted_tokens_per_s,
            message=message,
            forecast=forecast_view(model.forecast),
            lanes=tuple(view for lane in model.lanes if (view := self._lane(lane)) is not None),
            others=self._holders(model.others),
            newcomer=self._newcomer(model.newcomer),
        )

    def _lane(self, lane: LanePlan) -> LaneView | None:
        forecast = forecast_view(lane.forecast)
        stages = tuple(StageView(str(stage.layers), self._holders(stage.holders)) for stage in lane.stages)
        return LaneView(stages, forecast) if forecast else None

    def _holders(self, devices: Iterable[DevicePlan]) -> tuple[HolderView, ...]:
        return tuple(self._holder(device) for device in devices)

    def _holder(self, device: DevicePlan) -> HolderView:
        node_id, device_id = device.key
        return HolderView(
            node_id=node_id,
            node=self._node_name(node_id),
            device_id=device_id,
            device=self._device_name(node_id, device_id),
            part=device.part,
            layers=str(device.layers) if device.layers else "",
            reason=device.reason,
            why=device.why,
            num_requests=device.num_requests,
            num_kv_tokens=device.num_kv_tokens,
        )

    def _newcomer(self, newcomer: Newcomer) -> NewcomerView:
        node_id, device_id = newcomer.like
        return NewcomerView(
            like=f"{self._node_name(node_id)}'s {self._device_name(node_id, device_id)}",
            memory_bytes=int(newcomer.memory_bytes),
            layers=str(newcomer.layers) if newcomer.layers else "",
            reason=newcomer.reason,
            forecast=forecast_view(newcomer.forecast),
            num_needed=newcomer.num_needed,
        )

    def _node_name(self, node_id: NodeId) -> str:
        node = self._nodes.get(node_id)
        return node.hello.name if node else node_id[:8]

    def _device_name(self, node_id: NodeId, device_id: DeviceId) -> str:
        node = self._nodes.get(node_id)
        device = node.devices.get(device_id) if node else None
        return device.spec.name if device else device_id
