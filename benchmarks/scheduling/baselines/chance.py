"""Random placement and random routing: what chance achieves under the same rules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.scheduling.baselines.capacity import (
    FLOOR,
    Capacity,
    CapacityRule,
    Span,
    changes_of,
    held_spans,
    is_served,
    on_whole_paths,
    placements_of,
)
from benchmarks.scheduling.baselines.pipelines import cut_smallest
from coordinator.scheduler.plan import Placement, Problem

SEED = 20_240_601
REASON = "random: drawn by lot"


@dataclass(frozen=True, slots=True)
class RandomAllocator:
    """One pipeline of devices drawn by lot covers the model; everybody else takes random layers between boundaries."""

    rule: CapacityRule = FLOOR
    seed: int = SEED

    def allocate(self, problem: Problem) -> list[Placement]:
        for rule in (self.rule, FLOOR):
            capacity = Capacity(problem, rule)
            lot = np.random.default_rng(self.seed)
            order = [i for i in lot.permutation(len(problem.offers)).tolist() if capacity.count(i) > 0]
            by_room = [float(capacity.count(i)) for i in range(len(problem.offers))]
            roomiest = sorted(order, key=lambda i: -capacity.count(i))
            if spans := cut_smallest(capacity, order, by_room) or cut_smallest(capacity, roomiest, by_room):
                _join(capacity, spans, [i for i in order if i not in spans], lot)
                return placements_of(problem, spans, REASON)
        return []

    def adapt(self, problem: Problem) -> list[Placement]:
        held = held_spans(problem)
        if not is_served(problem):
            return self.allocate(problem)
        lot = np.random.default_rng((self.seed, len(held)))
        spans = dict(held)
        _join(Capacity(problem, self.rule), spans, [i for i in range(len(problem.offers)) if i not in held], lot)
        return changes_of(problem, spans, REASON)


def _join(capacity: Capacity, spans: dict[int, Span], offers: list[int], lot: np.random.Generator) -> None:
    whole = on_whole_paths(set(spans.values()), capacity.num_layers)
    bounds = sorted({bound for span in whole for bound in span})
    for i in offers:
        options = [(a, b) for a in bounds for b in bounds if a < b <= capacity.reach(i, a)]
        if options:
            spans[i] = options[int(lot.integers(len(options)))]
