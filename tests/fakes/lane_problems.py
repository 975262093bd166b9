"""Problems of phase 1 in which everything is known: how many layers a device holds, how fast it is, where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from coordinator.scheduler.cost import ModelCost, Speed, Workload, model_cost
from coordinator.scheduler.links import Floats, Ints, LinkMap
from coordinator.scheduler.plan import Lane, Offer, Problem, Stage
from coordinator.scheduler.state import DeviceKey, ModelFacts
from protocol.values import DeviceId, LayerRange, NodeId, Variant
from tests.fakes import pool_facts as facts

FAR_S = 0.2
"""One way between two regions."""
NEAR_S = 0.002
UPLOAD = 1e6


class RegionLinks(LinkMap):
    """A node's id is its row; nodes of different regions are far from each other."""

    def __init__(self, regions: Sequence[int], far_s: float = FAR_S) -> None:
        super().__init__()
        self._region_of = np.array(regions, dtype=np.intp)
        self._far_s = far_s

    def row(self, node_id: NodeId) -> int:
        return int(node_id, 16)

    def regions(self, rows: Ints) -> Ints:
        return np.asarray(self._region_of[rows])

    def upload(self, row: int) -> float:
        return UPLOAD

    def uploads(self, rows: Ints) -> Floats:
        return np.full(len(rows), UPLOAD)

    def pair_delays_s(self, sources: Ints, targets: Ints) -> Floats:
        near = self._region_of[sources] == self._region_of[targets]
        return np.where(sources == targets, 0.0, np.where(near, NEAR_S, self._far_s))


@dataclass(frozen=True)
class Given:
    """A device: room for so many layers at the ends of a lane too (and the KV that each must leave); seconds per layer
    and step."""

    room: float
    layer_s: float = 1e-3
    region: int = 0
    max_layers: int = 10**6


def cost_of(model: ModelFacts) -> ModelCost:
    """In 32-bit floats, as all problems here."""
    return model_cost(model, Variant.FLOAT32)


def layer_bytes(model: ModelFacts) -> float:
    """A layer's weights and the KV floor."""
    cost = cost_of(model)
    return max(model.layer_numels) * 4.0 + cost.kv_prefix(min(4096, model.context_length))[1]


def problem(
    devices: Sequence[Given],
    *,
    model: ModelFacts | None = None,
    workload: Workload | None = None,
    budget: int = 300,
    far_s: float = FAR_S,
) -> Problem:
    """With room for the ends on every device."""
    model = model or facts.model(24)
    cost = cost_of(model)
    ends = cost.embedding_bytes + cost.head_bytes
    offers = tuple(
        Offer(
            DeviceKey(NodeId(f"{number:032x}"), DeviceId("cpu")),
            given.room * layer_bytes(model) + ends + 1.0,
            given.max_layers,
            Speed(given.layer_s, given.layer_s / 50, given.layer_s / 100, given.layer_s / 2),
        )
        for number, given in enumerate(devices)
    )
    links = RegionLinks([given.region for given in devices], far_s)
    return Problem(cost, offers, links, workload or Workload(64, 64, 128, 1e6), budget=budget)


def lane(*stages: tuple[int, tuple[int, ...]]) -> Lane:
    """From (number of layers, holders)."""
    made, start = [], 0
    for count, holders in stages:
        made.append(Stage(LayerRange(start, start + count), holders))
        start += count
    return Lane(tuple(made))


def dense_first(num_layers: int = 12, times: int = 4) -> ModelFacts:
    """The first layer is several times as large as the others."""
    plain = facts.model(num_layers)
    return replace(plain, layer_numels=(1_000_000 * times, *plain.layer_numels[1:]))


def faults(problem: Problem, lanes: Sequence[Lane]) -> list[str]:
    """Whatever is wrong with a layout: layers missing or twice, devices used twice, memory or limits exceeded."""
    found = []
    holders = [i for lane in lanes for stage in lane.stages for i in stage.holders]
    if len(set(holders)) < len(holders):
        found.append("a device is used twice")
    for lane in lanes:
        layers = [layer for stage in lane.stages for layer in range(stage.layers.start, stage.layers.stop)]
        if layers != list(range(problem.model.num_layers)):
            found.append(f"layers {layers}")
        found += [
            f"device {i} cannot hold {stage.layers}"
            for stage in lane.stages
            for i in stage.holders
            if _bytes(problem, stage) > problem.offers[i].memory_bytes + 1.0
            or len(stage.layers) > problem.offers[i].max_layers
        ]
    return found


def _bytes(problem: Problem, stage: Stage) -> float:
    model = problem.model
    return model.weight_bytes(stage.layers) + model.kv_bytes(stage.layers, problem.kv_floor_tokens)
