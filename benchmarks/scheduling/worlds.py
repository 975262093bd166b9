"""Synthetic problems for phase 1: real kinds of devices, real models' shapes, published distances between regions.

Every problem follows from its `World` alone, seed included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from coordinator.scheduler.cost import Bound, Workload, model_cost
from coordinator.scheduler.links import Floats, Ints, LinkMap, LinkSeen
from coordinator.scheduler.plan import Lane, Offer, Problem
from coordinator.scheduler.state import Device, DeviceKey, DeviceState, State
from coordinator.simulate.geography import INNER_RTT_S, LINES, RTT_MS, Access, Site, make_sites
from coordinator.simulate.hardware import BATCHES, CLASSES, VARIANT, Calibration, true_speed
from coordinator.simulate.models import MODELS
from protocol.values import (
    MEMORY_FOR_ACTIVATIONS,
    BatchTime,
    DeviceId,
    DeviceKind,
    DeviceSpec,
    LayerBenchmark,
    NodeId,
)

MIX: Mapping[str, float] = {"rtx3060-12g": 0.35, "rtx4090-24g": 0.35, "rtx5090-32g": 0.2, "a100-80g": 0.1}
"""Shares of devices, unless a world says otherwise."""
ENDLESS = 1e9
"""A wanted rate, in tokens per second, that no pool can serve: the objective then adds up over lanes."""
MEASURED = Calibration()
LAN_ACCESS_S = 1e-3
"""Nodes of one region with shorter access lines are in one building (geography.delay_s)."""


class FixedLinks(LinkMap):
    """Links that are known exactly: what a link map would converge to. A node's row is the number that its id is."""

    def __init__(self, sites: Sequence[Site]) -> None:
        super().__init__()
        rtts = np.array(RTT_MS) / 1000
        self._region_rtts = (rtts + rtts.T) / 2
        np.fill_diagonal(self._region_rtts, INNER_RTT_S)
        self._region_of = np.array([site.region for site in sites], dtype=np.intp)
        self._access_s = np.array([site.access_s for site in sites])
        self._uploads = np.array([site.up_bytes_per_s for site in sites])

    def row(self, node_id: NodeId) -> int:
        return int(node_id, 16)

    def regions(self, rows: Ints) -> Ints:
        return np.asarray(self._region_of[rows])

    def region(self, node_id: NodeId) -> int:
        return int(self._region_of[self.row(node_id)])

    def upload(self, row: int) -> float:
        return float(self._uploads[row])

    def uploads(self, rows: Ints) -> Floats:
        return np.asarray(self._uploads[rows])

    def pair_delays_s(self, sources: Ints, targets: Ints) -> Floats:
        """One way, [n], from each source to the target beside it."""
        here, there = self._region_of[sources], self._region_of[targets]
        one, other = self._access_s[sources], self._access_s[targets]
        same_building = (here == there) & (one < LAN_ACCESS_S) & (other < LAN_ACCESS_S)
        between = np.where(same_building, 0.0, self._region_rtts[here, there] / 2)
        return np.where(sources == targets, 0.0, between + one + other)

    def delays_s(self, sources: Ints, targets: Ints) -> Floats:
        shape = (len(sources), len(targets))
        left = np.broadcast_to(np.asarray(sources)[:, None], shape)
        return self.pair_delays_s(left, np.broadcast_to(np.asarray(targets)[None, :], shape))

    def delay_s(self, a: NodeId, b: NodeId) -> float:
        return float(self.pair_delays_s(np.array([self.row(a)]), np.array([self.row(b)]))[0])

    def bytes_per_s(self, a: NodeId, b: NodeId) -> float:
        return float("inf") if a == b else float(self._uploads[self.row(a)])


@dataclass(frozen=True)
class World:
    """A pool, its model and its workload. `num_kinds`: so many different (device, line) pairs, of which nodes are
    copies; None: every node's line is its own."""

    num_nodes: int
    model: str = "llama3-70b-4bit"
    num_regions: int = 1
    access: Access = "fibre"
    seed: int = 0
    num_kinds: int | None = None
    mix: Mapping[str, float] = field(default_factory=lambda: MIX)
    workload: Workload = Workload()
    bound: Bound = Bound()
    budget: int = 2_000


def problem_of_world(world: World) -> Problem:
    """The problem that phase 1 has to solve there, all devices free."""
    num_kinds = world.num_kinds or world.num_nodes
    names = _class_names(num_kinds, world.mix, np.random.default_rng(world.seed + 2))
    offers = tuple(_offer(number, names[number % num_kinds], world.model) for number in range(world.num_nodes))
    return Problem(
        model=model_cost(MODELS[world.model].facts, VARIANT),
        offers=offers,
        links=FixedLinks(sites_of(world)),
        workload=world.workload,
        bound=world.bound,
        budget=world.budget,
    )


def node_id(number: int) -> NodeId:
    """Ids that are their numbers."""
    return NodeId(f"{number:032x}")


def _class_names(num: int, mix: Mapping[str, float], rng: Generator) -> list[str]:
    shares = np.array(list(mix.values()))
    return [str(name) for name in rng.choice(list(mix), size=num, p=shares / shares.sum())]


def _offer(number: int, class_name: str, model: str) -> Offer:
    device = CLASSES[class_name]
    return Offer(
        key=DeviceKey(node_id(number), DeviceId("gpu:0")),
        memory_bytes=device.memory_bytes * (1 - MEMORY_FOR_ACTIVATIONS),
        max_layers=10**6,
        speed=true_speed(device, MODELS[model], MEASURED),
    )


ACCESSES: tuple[Access, ...] = ("lan", "fibre", "home")
assert set(ACCESSES) <= set(LINES), "only lines that there are"
SMALL_MODELS = ("llama3-8b", "qwen3-32b-4bit", "llama3-70b-4bit")
SMALL_MIXES: tuple[Mapping[str, float], ...] = (
    MIX,
    {"laptop-8g": 0.4, "rtx3060-12g": 0.4, "rtx3090-24g": 0.2},
    {"rtx4090-24g": 0.6, "rtx5090-32g": 0.4},
    {"apple-64g": 0.3, "rtx3060-12g": 0.3, "rtx4090-24g": 0.4},
)
WORKLOADS = (
    Workload(512, 256, 1024, ENDLESS),
    Workload(256, 512, 1536, ENDLESS),
    Workload(2048, 256, 3072, ENDLESS),
)


def small_worlds(num: int, seed: int = 0) -> list[World]:
    """Pools of 4 to 12 nodes. Up to 7 nodes all are different; larger ones have 3 or 4 kinds of nodes."""
    rng = np.random.default_rng(seed)
    worlds = []
    for number in range(num):
        num_nodes = int(rng.integers(4, 13))
        worlds.append(
            World(
                num_nodes=num_nodes,
                model=SMALL_MODELS[number % 3],
                num_regions=int(rng.integers(1, 4)),
                access=ACCESSES[int(rng.integers(3))],
                seed=int(rng.integers(2**31)),
                num_kinds=None if num_nodes <= 7 else int(rng.integers(3, 5)),
                mix=SMALL_MIXES[int(rng.integers(len(SMALL_MIXES)))],
                workload=WORKLOADS[int(rng.integers(len(WORKLOADS)))],
            )
        )
    return worlds


NUM_MEASURED = 8
"""Links that each node of a world has measured."""


def sites_of(world: World) -> list[Site]:
    """Where the world's nodes are, as problem_of_world has them."""
    num_kinds = world.num_kinds or world.num_nodes
    rng = np.random.default_rng(world.seed)
    sites = make_sites(num_kinds, min(world.num_regions, num_kinds), world.access, rng)
    return [sites[number % num_kinds] for number in range(world.num_nodes)]


def measured_links(world: World) -> LinkMap:
    """A real link map that knows what nodes have measured: links to some others, drawn at random, without noise."""
    sites, links = sites_of(world), LinkMap()
    truth = FixedLinks(sites)
    rng = np.random.default_rng(world.seed + 1)
    for number in range(world.num_nodes):
        others = rng.choice(world.num_nodes, size=min(NUM_MEASURED, world.num_nodes), replace=False).tolist()
        seen = [
            LinkSeen(node_id(number), node_id(other), 2.0 * truth.delay_s(node_id(number), node_id(other)), up)
            for other in others
            if other != number and (up := sites[number].up_bytes_per_s)
        ]
        links.see(seen)
    return links


def ready_state(problem: Problem, lanes: Sequence[Lane]) -> State:
    """As if these lanes were loaded and idle: what phase 2 works on."""
    facts = problem.model.facts
    devices = {}
    for stage in (stage for lane in lanes for stage in lane.stages):
        for holder in stage.holders:
            offer = problem.offers[holder]
            device = Device(offer.key, _spec(offer), state=DeviceState.READY)
            device.benchmarks[facts.manifest_hash] = _benchmark(offer)
            device.model, device.layers = facts.manifest_hash, stage.layers
            free = offer.memory_bytes - problem.model.weight_bytes(stage.layers)
            device.num_kv_tokens = int(free / problem.model.kv_bytes(stage.layers, 1))
            devices[offer.key] = device
    state = State(models={facts.manifest_hash: facts}, links=problem.links)
    state.devices.update(devices)
    return state


def _spec(offer: Offer) -> DeviceSpec:
    memory_bytes = int(offer.memory_bytes / (1 - MEMORY_FOR_ACTIVATIONS))
    return DeviceSpec(offer.key.device_id, DeviceKind.CUDA, "a card", memory_bytes, VARIANT)


def _benchmark(offer: Offer) -> LayerBenchmark:
    times = tuple(BatchTime(rows, offer.speed.step_time_s(1.0, rows, last=False)) for rows in BATCHES)
    return LayerBenchmark(times, offer.speed.prefill_s, offer.speed.head_s)
