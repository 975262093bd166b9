"""Small pools for the tests of the baselines: models, links that are known exactly, offers, ready devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from benchmarks.scheduling.baselines.capacity import Span, on_whole_paths
from coordinator.scheduler.cost import Speed, model_cost
from coordinator.scheduler.links import Floats, Ints, LinkMap
from coordinator.scheduler.plan import Offer, Placement, Problem
from coordinator.scheduler.policy import Router, RouteRequest
from coordinator.scheduler.state import Device, DeviceKey, DeviceState, DeviceTable, ModelFacts, State
from protocol.values import (
    BatchTime,
    DeviceId,
    DeviceKind,
    DeviceSpec,
    LayerBenchmark,
    LayerRange,
    NodeId,
    SessionId,
    Variant,
)

LAYER_BYTES = 1_000
"""Weights of one layer; its KV floor is a tenth of that."""
NEED_BYTES = 1_100


class KnownLinks(LinkMap):
    """Node names begin with their region: within one 5 ms, between two 50 ms one way; 1 MB/s up."""

    def __init__(self, delays: Mapping[tuple[str, str], float] | None = None) -> None:
        super().__init__()
        self.delays = dict(delays or {})
        self.names: list[NodeId] = []

    def row(self, node_id: NodeId) -> int:
        if node_id not in self.names:
            self.names.append(node_id)
        return self.names.index(node_id)

    def delay_s(self, a: NodeId, b: NodeId) -> float:
        if a == b:
            return 0.0
        return self.delays.get((a, b), 0.005 if a[0] == b[0] else 0.05)

    def bytes_per_s(self, a: NodeId, b: NodeId) -> float:
        return float("inf") if a == b else 1e6

    def delays_s(self, sources: Ints, targets: Ints) -> Floats:
        return np.array([[self.delay_s(self.names[a], self.names[b]) for b in targets] for a in sources])

    def upload(self, row: int) -> float:
        return 1e6

    def uploads(self, rows: Ints) -> Floats:
        return np.full(len(rows), 1e6)

    def regions(self, rows: Ints) -> Ints:
        return np.array([ord(self.names[row][0]) for row in rows], dtype=np.intp)


def facts(num_layers: int = 12, *, ends: int = 0, hidden_size: int = 10) -> ModelFacts:
    """Elements have two bytes (bfloat16); one token's KV of one layer takes two."""
    return ModelFacts(
        "toy",
        "m",
        50,
        (LAYER_BYTES // 2,) * num_layers,
        ends,
        ends,
        kv_numel_per_token=1,
        hidden_size=hidden_size,
    )


def speed(ms: float = 1.0) -> Speed:
    """Decode time of one layer in milliseconds; a row costs a tenth of it, a prompt token a twentieth."""
    return Speed(ms * 0.9e-3, ms * 0.1e-3, ms * 0.05e-3, 0.0)


def key(name: str) -> DeviceKey:
    return DeviceKey(NodeId(name), DeviceId("cuda:0"))


def offer(name: str, num_layers: float, ms: float = 1.0, held: Span | None = None, *, is_busy: bool = False) -> Offer:
    """With memory for so many layers, KV floor included."""
    layers = LayerRange(*held) if held else None
    return Offer(key(name), num_layers * NEED_BYTES, 1_000, speed(ms), layers, is_busy=is_busy)


def problem(offers: Iterable[Offer], num_layers: int = 12, *, ends: int = 0, links: LinkMap | None = None) -> Problem:
    cost = model_cost(facts(num_layers, ends=ends), Variant.BFLOAT16)
    return Problem(cost, tuple(offers), KnownLinks() if links is None else links, budget=200)


def spans_of(asked: Problem, placements: Sequence[Placement]) -> dict[int, Span]:
    """By offer index; no device is placed twice."""
    index = {o.key: i for i, o in enumerate(asked.offers)}
    assert len({p.key for p in placements}) == len(placements)
    return {index[p.key]: (p.layers.start, p.layers.stop) for p in placements}


def covers(spans: Iterable[Span], num_layers: int) -> bool:
    return bool(on_whole_paths(set(spans), num_layers))


# ---------------------------------------------------------------- ready devices


def device(name: str, span: Span, ms: float = 1.0, *, num_kv_tokens: int = 10_000) -> Device:
    benchmark = LayerBenchmark((BatchTime(1, ms * 1e-3), BatchTime(11, ms * 2e-3)), ms * 0.05e-3, 0.0)
    spec = DeviceSpec(DeviceId("cuda:0"), DeviceKind.CUDA, "gpu", 10**6, Variant.BFLOAT16)
    made = Device(key(name), spec, DeviceState.READY, {"m": benchmark})
    made.model, made.layers, made.num_kv_tokens = "m", LayerRange(*span), num_kv_tokens
    return made


def state_of(devices: Iterable[Device], num_layers: int = 12, links: LinkMap | None = None) -> State:
    return State(
        {"m": facts(num_layers)},
        DeviceTable({d.key: d for d in devices}),
        links=KnownLinks() if links is None else links,
    )


def request(num_reserved_tokens: int = 100, avoid: Iterable[str] = ()) -> RouteRequest:
    away = frozenset(key(name) for name in avoid)
    return RouteRequest(SessionId("s"), "m", 50, 50, num_reserved_tokens, away)


def chain(router: Router, asked: RouteRequest | None = None, now_s: float = 0.0) -> list[str]:
    """Names of the nodes of the chosen chain; empty if there is none. Takes room and counts, as the pool does."""
    asked = asked or request()
    route = router.route(asked, Variant.BFLOAT16, now_s)
    for member in route.devices if route else ():
        member.num_requests += 1
        member.num_reserved_tokens += asked.num_reserved_tokens
        router.changed(member)
    return [member.key.node_id for member in route.devices] if route else []
