"""Problems of phase 1 with round numbers: devices of so many layers, what they hold, how quick they are."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.scheduler.cost import Speed, Workload, model_cost
from coordinator.scheduler.links import LinkMap
from coordinator.scheduler.plan import Offer, Placement, Problem
from coordinator.scheduler.state import ModelFacts
from protocol.values import LayerRange, Variant
from tests.fakes import pool_facts as facts

MODEL = facts.model(24)


def speed(layer_s: float = 0.01) -> Speed:
    """A step with one row takes `layer_s` a layer; a row alone a twentieth of it."""
    return Speed(0.95 * layer_s, 0.05 * layer_s, layer_s / 100, 0.0)


def offer(
    number: int,
    room: int,
    held: tuple[int, int] | None = None,
    *,
    layer_s: float = 0.001,
    stored: tuple[int, int] | None = None,
    leaves_per_s: float = 0.0,
    is_busy: bool = False,
    is_loading: bool = False,
) -> Offer:
    """Node `number`, with room for so many layers."""
    layers = LayerRange(*held) if held else None
    on_disk = (LayerRange(*stored),) if stored else ()
    key = facts.key(number)
    return Offer(key, float(facts.GIB), room, speed(layer_s), layers, on_disk, leaves_per_s, is_busy, is_loading)


def problem(*offers: Offer, model: ModelFacts = MODEL, demand: float | None = None) -> Problem:
    workload = Workload(tokens_per_s=demand)
    return Problem(model_cost(model, Variant.FLOAT32), tuple(offers), LinkMap(), workload)


def placed(placements: Sequence[Placement]) -> dict[int, tuple[int, int]]:
    """Node number -> layers."""
    return {facts.number_of(p.key.node_id): (p.layers.start, p.layers.stop) for p in placements}


def held_after(problem: Problem, placements: Sequence[Placement]) -> dict[int, tuple[int, int]]:
    """What everybody holds when that is done."""
    before = {facts.number_of(o.key.node_id): (o.held.start, o.held.stop) for o in problem.offers if o.held}
    return before | placed(placements)
