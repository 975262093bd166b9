"""Parallax's phase 1 (Tong et al., arXiv 2509.26182, section 3): regions first, then whole replicas.

Within a region the pipelines come from dynamic programming over the objective Z(k) (`parallax_dp.py`) or from the
greedy form of the released code: GPUs by capacity, the largest next, the smallest that closes the pipeline last. Layers
within a pipeline are water-filled by FLOP rate, as published: taken as 1 / prefill time per token. What no region can
use alone forms pipelines across regions.

Membership, as published: a joining GPU takes the least provisioned layers; a leaving one is de-allocated, and whoever
serves nobody without it joins anew; a layer that nobody holds, or a coefficient of variation of the layers' provision
above `max_variation`, starts phase 1 anew for the whole pool. As released (`joins="standby"`): GPUs stand by until they
form a whole pipeline by themselves.

Not stated in the paper: alpha (2 here, the exponent in the released code) and the threshold of the coefficient. The
released workers give weights at most 0.65 of a GPU's memory (`OWN_SHARE`); with the pool's own floor goodput is better,
so that is the default.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.scheduling.baselines.capacity import (
    FLOOR,
    Capacity,
    CapacityRule,
    Span,
    changes_of,
    held_spans,
    idle_spans,
    is_served,
    on_whole_paths,
    placements_of,
)
from benchmarks.scheduling.baselines.parallax_dp import Objective, TooManyStatesError, choose_replicas
from benchmarks.scheduling.baselines.pipelines import cut
from coordinator.scheduler.links import Floats
from coordinator.scheduler.plan import Placement, Problem

OWN_SHARE = CapacityRule(weight_share=0.65)
MAX_STATES = 60_000
"""Of the dynamic program, per region: a few seconds. The paper gives no bound."""
MAX_PAIRS = 64
"""GPUs of a region between which the mean hop is taken."""


@dataclass(frozen=True, slots=True)
class ParallaxAllocator:
    """`method` "dp" falls back to "greedy" where it would need more than `max_states`; the reason then says so."""

    method: Literal["dp", "greedy"] = "dp"
    joins: Literal["thinnest", "standby"] = "thinnest"
    rule: CapacityRule = FLOOR
    alpha: float = 2.0
    max_variation: float = 0.5
    max_states: int = MAX_STATES

    def allocate(self, problem: Problem) -> list[Placement]:
        everybody = range(len(problem.offers))
        for rule in (self.rule, FLOOR):
            plan = _Plan(self, Capacity(problem, rule))
            plan.by_regions(everybody)
            if plan.spans:
                if self.joins == "thinnest":
                    plan.join(i for i in everybody if i not in plan.spans)
                return placements_of(problem, plan.spans, plan.reason)
        return []

    def adapt(self, problem: Problem) -> list[Placement]:
        if not is_served(problem):
            return self.allocate(problem)
        return self._stand_by(problem) if self.joins == "standby" else self._adjust(problem)

    def _adjust(self, problem: Problem) -> list[Placement]:
        idle = idle_spans(problem)
        steady = {i: span for i, span in held_spans(problem).items() if i not in idle}
        plan = _Plan(self, Capacity(problem, self.rule), steady)
        plan.join(i for i in range(len(problem.offers)) if i not in steady)
        before = variation(plan.provision())
        if before > self.max_variation:
            anew = _Plan(self, plan.capacity)
            anew.by_regions(range(len(problem.offers)))
            anew.join(i for i in range(len(problem.offers)) if i not in anew.spans)
            if anew.spans and variation(anew.provision()) < before:
                return changes_of(problem, anew.spans, f"{anew.reason}; layers had become uneven")
        return changes_of(problem, plan.spans, "Parallax: joins the least provisioned layers")

    def _stand_by(self, problem: Problem) -> list[Placement]:
        """Survivors of broken pipelines count as free once nothing runs over them."""
        survivors = idle_spans(problem)
        idle = [i for i, offer in enumerate(problem.offers) if offer.held is None or i in survivors]
        plan = _Plan(self, Capacity(problem, self.rule))
        plan.by_regions(idle)
        return changes_of(problem, plan.spans, plan.reason)


class _Plan:
    """One run of phase 1."""

    def __init__(self, allocator: ParallaxAllocator, capacity: Capacity, spans: dict[int, Span] | None = None) -> None:
        self.capacity = capacity
        self.spans: dict[int, Span] = dict(spans or {})
        self.reason = f"Parallax ({allocator.method}): its share of a pipeline by FLOPs"
        self._allocator = allocator
        self._flops = [1.0 / max(offer.speed.prefill_s, 1e-12) for offer in capacity.problem.offers]
        self._counts = [capacity.count(i) for i in range(len(capacity.problem.offers))]

    def by_regions(self, offers: Iterable[int]) -> None:
        """Pipelines within each region, then of what is left over of all of them."""
        usable = [i for i in offers if self._counts[i] > 0]
        if not usable:
            return
        links, keys = self.capacity.problem.links, self.capacity.problem.offers
        rows = np.array([links.row(keys[i].key.node_id) for i in usable], dtype=np.intp)
        regions = dict(zip(usable, links.regions(rows).tolist(), strict=True))
        for region in sorted(set(regions.values())):
            self._pipelines([i for i in usable if regions[i] == region], lambda i: 0)
        self._pipelines([i for i in usable if i not in self.spans], lambda i: regions[i])
        if not self.spans:  # too few for a pipeline with room to spare at the ends: all of them then
            everybody = sorted(usable, key=lambda i: (-self._counts[i], i))
            self.spans.update(self._smallest(everybody) or {})

    def _smallest(self, members: Sequence[int]) -> dict[int, Span] | None:
        for num_members in range(1, min(len(members), self.capacity.num_layers) + 1):
            if spans := cut(self.capacity, members[:num_members], self._flops):
                return spans
        return None

    def _pipelines(self, offers: Sequence[int], region_of: Callable[[int], int]) -> None:
        for members in self._grouped(offers):
            order = sorted(members, key=lambda i: (region_of(i), -self._counts[i], i))
            self.spans.update(cut(self.capacity, order, self._flops) or {})

    def _grouped(self, offers: Sequence[int]) -> list[list[int]]:
        """Embedding and head count as layers, so that the groups have room for them too."""
        num_layers = self.capacity.num_layers + self.capacity.ends_layers
        counts = [self._counts[i] for i in offers]
        if self._allocator.method == "dp":
            try:
                choice = choose_replicas(counts, num_layers, self._objective(offers), self._allocator.max_states)
            except TooManyStatesError:
                self.reason = "Parallax (greedy, as the dynamic program was too large): its share by FLOPs"
            else:
                return [[offers[at] for at in members] for members in (choice.pipelines if choice else ())]
        return [[offers[at] for at in members] for members in greedy_groups(counts, num_layers)]

    def _objective(self, offers: Sequence[int]) -> Objective:
        """T_comp is the mean device's time for all layers, r_RTT the mean hop between (some of) these offers."""
        problem = self.capacity.problem
        speeds = [problem.offers[i].speed for i in offers]
        layer_s = sum(speed.step_s + speed.row_s for speed in speeds) / max(1, len(speeds))
        nodes = sorted({problem.offers[i].key.node_id for i in offers})[:MAX_PAIRS]
        rows = np.array([problem.links.row(node) for node in nodes], dtype=np.intp)
        num_pairs = len(nodes) * (len(nodes) - 1)
        hop_s = float(problem.links.delays_s(rows, rows).sum()) / num_pairs if num_pairs else 0.0
        return Objective(self._allocator.alpha, layer_s * problem.model.work[-1], hop_s)

    # ------------------------------------------------------------ joins

    def provision(self) -> Floats:
        """Per layer, the FLOP rate that its holders on whole chains have for it."""
        provision = np.zeros(self.capacity.num_layers)
        whole = on_whole_paths(set(self.spans.values()), self.capacity.num_layers)
        for i, (start, stop) in self.spans.items():
            if (start, stop) not in whole:
                continue
            provision[start:stop] += self._flops[i] / (stop - start)
        return provision

    def join(self, offers: Iterable[int]) -> None:
        """Each takes the least provisioned layers that it can, between the boundaries of whole pipelines."""
        provision = self.provision()
        for i in offers:
            if span := self._thinnest(i, provision):
                self.spans[i] = span
                provision[span[0] : span[1]] += self._flops[i] / (span[1] - span[0])

    def _thinnest(self, offer: int, provision: Floats) -> Span | None:
        whole = on_whole_paths(set(self.spans.values()), self.capacity.num_layers)
        bounds = sorted({bound for span in whole for bound in span})
        options = []
        for start in bounds[:-1]:
            reach = self.capacity.reach(offer, start)
            stop = max(bound for bound in bounds if bound <= reach) if reach > start else start
            if stop > start:
                options.append((float(provision[start:stop].mean()), start - stop, (start, stop)))
        return min(options)[2] if options else None


def greedy_groups(capacities: Sequence[int], num_layers: int) -> list[list[int]]:
    """Pipelines one after the other: the largest next; where one can close the pipeline, the smallest that does."""
    left = sorted((i for i, c in enumerate(capacities) if c > 0), key=lambda i: (-capacities[i], i))
    total = sum(min(capacities[i], num_layers) for i in left)
    groups: list[list[int]] = []
    while left and total >= num_layers:
        group: list[int] = []
        missing = num_layers
        while missing > 0 and left:
            closing = _closing(left, capacities, missing)
            group.append(left.pop(closing))
            missing -= capacities[group[-1]]
        if missing <= 0:
            groups.append(group)
        total = sum(min(capacities[i], num_layers) for i in left)
    return groups


def _closing(left: Sequence[int], capacities: Sequence[int], missing: int) -> int:
    """Where in `left` (largest first) the smallest is that suffices; 0 if none does."""
    num_enough = sum(1 for _ in itertools.takewhile(lambda i: capacities[i] >= missing, left))
    return max(0, num_enough - 1)


def variation(provision: Floats) -> float:
    """Coefficient of variation; inf where a layer has nobody."""
    if not len(provision) or provision.min() <= 0:
        return math.inf
    return float(provision.std() / provision.mean())
