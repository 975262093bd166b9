"""Helix's placement (Mei et al., arXiv 2406.01566, section 4): the placement whose maximum flow is the greatest.

Up to `MILP_NODES` nodes the mixed integer program decides (`helix_milp.py`), if what it finds within its effort is
better than the heuristics; the paper starts its solver from the heuristics' placements too, and gives it hours for 24
to 42 nodes. Above that, the heuristics it starts from (Petals', Swarm's equal stages, separate pipelines per machine
type; section 4.5) are improved by local search on the same objective, weakest cut first. In the paper half of the
memory is for weights (`OWN_SHARE`); with the pool's own floor goodput is better, so that is the default.

Helix plans once. Here a device that joins, or serves nobody any more, takes the slice that raises the flow most with
everything else held fixed, and a pool that can serve nothing is planned anew, by the heuristics and local search:
nobody waits for a solver.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

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
from benchmarks.scheduling.baselines.flow import NodeRates, bottleneck, node_rates, span_flow
from benchmarks.scheduling.baselines.grouping import grouped
from benchmarks.scheduling.baselines.helix_milp import Cluster, Effort, solve
from benchmarks.scheduling.baselines.petals import Swarm
from coordinator.scheduler.links import Floats
from coordinator.scheduler.plan import Placement, Problem

MILP_NODES = 16
OWN_SHARE = CapacityRule(weight_share=0.5)
SEED = 2_406_01566
MAX_STAGES = 24
"""Equal stages are tried for up to so many numbers of stages."""
NUM_CANDIDATES = 12
"""Slices that local search tries for one device at a time."""


@dataclass(frozen=True, slots=True)
class HelixAllocator:
    """`effort` bounds the integer program (None: without it), the problem's `budget` the local search, in placements
    tried."""

    rule: CapacityRule = FLOOR
    effort: Effort | None = Effort()
    seed: int = SEED

    def allocate(self, problem: Problem) -> list[Placement]:
        for rule in (self.rule, FLOOR):
            if spans := self._best(Capacity(problem, rule)):
                return placements_of(problem, spans, "Helix: its part of the greatest flow")
        return []

    def adapt(self, problem: Problem) -> list[Placement]:
        if not is_served(problem):
            return replace(self, effort=None).allocate(problem)
        idle = idle_spans(problem)
        steady = {i: span for i, span in held_spans(problem).items() if i not in idle}
        search = _Search(Capacity(problem, self.rule), node_rates(problem), steady)
        search.join(i for i in range(len(problem.offers)) if i not in steady)
        return changes_of(problem, search.spans, "Helix: where it raises the flow most")

    def _best(self, capacity: Capacity) -> dict[int, Span]:
        rates = node_rates(capacity.problem)
        starts = [make(capacity, rates) for make in HEURISTICS]
        searches = [self._improved(capacity, rates, spans) for spans in starts]
        best = max(searches, key=lambda search: search.flow)
        if self.effort is not None and len(capacity.problem.offers) <= MILP_NODES:
            exact = solve(cluster_of(capacity, rates), self.effort, at_least=best.flow) or {}
            fitting = {i: span for i, span in exact.items() if capacity.fits(i, span)}
            best = max(best, self._improved(capacity, rates, fitting), key=lambda search: search.flow)
        return best.spans

    def _improved(self, capacity: Capacity, rates: NodeRates, spans: dict[int, Span]) -> _Search:
        """Nodes on no whole chain, which carry nothing, join where they help."""
        whole = on_whole_paths(set(spans.values()), capacity.num_layers)
        search = _Search(capacity, rates, {i: span for i, span in spans.items() if span in whole})
        if search.spans:
            search.join(i for i in range(len(capacity.problem.offers)) if i not in search.spans)
            search.improve(capacity.problem.budget // len(HEURISTICS), np.random.default_rng(self.seed))
        return search


def cluster_of(capacity: Capacity, rates: NodeRates) -> Cluster:
    """The integer program's numbers: layers count as equal, as in the paper."""
    problem = capacity.problem
    offers = range(len(problem.offers))
    layer_work = problem.model.work[-1] / capacity.num_layers
    return Cluster(
        num_layers=capacity.num_layers,
        rates=[
            [0.0, *(rates.rate(i, n * layer_work) for n in range(1, max(1, capacity.count(i)) + 1))] for i in offers
        ],
        most=[capacity.count(i) for i in offers],
        most_first=[capacity.count(i, first=True) for i in offers],
        most_last=[capacity.count(i, last=True) for i in offers],
        link_rates=_link_rates(problem, rates),
    )


def _link_rates(problem: Problem, rates: NodeRates) -> Floats:
    """Tokens per second over each link; within a node, no limit."""
    num_offers = len(problem.offers)
    limits = np.repeat(np.array([rates.link_rate(i) for i in range(num_offers)])[:, None], num_offers, axis=1)
    for i, one in enumerate(problem.offers):
        for j, other in enumerate(problem.offers):
            if one.key.node_id == other.key.node_id:
                limits[i, j] = np.inf
    return limits


# ---------------------------------------------------------------- heuristics


def _by_petals(capacity: Capacity, rates: NodeRates) -> dict[int, Span]:
    swarm = Swarm(capacity)
    swarm.join(sorted(range(len(capacity.problem.offers)), key=lambda i: (-capacity.count(i), i)))
    return swarm.spans


def _by_groups(capacity: Capacity, rates: NodeRates) -> dict[int, Span]:
    return grouped(capacity, range(len(capacity.problem.offers)))


def _by_swarm(capacity: Capacity, rates: NodeRates) -> dict[int, Span]:
    """Equal stages (Ryabinin et al., arXiv 2301.11913, as Helix uses it); the number of stages with the most flow."""
    options = [_equal_stages(capacity, rates, n) for n in range(1, min(MAX_STAGES, capacity.num_layers) + 1)]
    return max(options, key=lambda spans: span_flow(spans, rates, capacity.num_layers))


HEURISTICS: tuple[Callable[[Capacity, NodeRates], dict[int, Span]], ...] = (_by_petals, _by_groups, _by_swarm)


def _equal_stages(capacity: Capacity, rates: NodeRates, num_stages: int) -> dict[int, Span]:
    """Each node, the roomiest last as it fits everywhere, takes the stage that has the least throughput."""
    bounds = [round(at * capacity.num_layers / num_stages) for at in range(num_stages + 1)]
    stages = list(itertools.pairwise(bounds))
    totals = dict.fromkeys(stages, 0.0)
    spans: dict[int, Span] = {}
    for i in sorted(range(len(capacity.problem.offers)), key=lambda i: (capacity.count(i), i)):
        fitting = [stage for stage in stages if capacity.fits(i, stage)]
        if fitting:
            spans[i] = min(fitting, key=lambda stage: totals[stage])
            totals[spans[i]] += rates.slice_rate(i, spans[i])
    return spans


# ---------------------------------------------------------------- local search


class _Search:
    """One device at a time moves to where the flow needs it."""

    def __init__(self, capacity: Capacity, rates: NodeRates, spans: dict[int, Span]) -> None:
        self.capacity = capacity
        self.rates = rates
        self.spans = dict(spans)
        self.flow = self._flow(self.spans)
        self._known_weak: list[Span] | None = None

    def join(self, offers: Iterable[int]) -> None:
        """Those that hold nothing, each at the weakest place that it can strengthen."""
        for i in offers:
            options = self._options(i, self._weak())
            if options:
                span = max(options, key=lambda span: self.rates.slice_rate(i, span))
                self._accept({**self.spans, i: span}, None)

    def improve(self, budget: int, lot: np.random.Generator) -> None:
        """Devices drawn by lot move to a saturated place; a move that raises the flow is kept."""
        movable = sorted(self.spans)
        while budget > 0 and movable:
            i = movable[int(lot.integers(len(movable)))]
            options = self._options(i, self._weak())
            lot.shuffle(options)
            budget -= 1
            for span in options[: min(budget, NUM_CANDIDATES)]:
                budget -= 1
                trial = {**self.spans, i: span}
                flow = self._flow(trial)
                if flow > self.flow:
                    self._accept(trial, flow)
                    break

    def _accept(self, spans: dict[int, Span], flow: float | None) -> None:
        self.spans = spans
        self.flow = self._flow(spans) if flow is None else flow
        self._known_weak = None

    def _weak(self) -> list[Span]:
        """The saturated spans, as of the placement now."""
        if self._known_weak is None:
            self._known_weak = bottleneck(self.spans, self.rates, self.capacity.num_layers)
        return self._known_weak

    def _options(self, offer: int, weak: list[Span]) -> list[Span]:
        """Slices that cross the weakest cut: the saturated ones, or others between the boundaries."""
        bounds = sorted({0, self.capacity.num_layers, *(bound for span in self.spans.values() for bound in span)})
        crossing = {(a, b) for start, stop in weak for a in bounds if a <= start for b in bounds if stop <= b} | set(
            weak
        )
        held = self.spans.get(offer)
        return sorted(span for span in crossing if span != held and self.capacity.fits(offer, span))

    def _flow(self, spans: dict[int, Span]) -> float:
        return span_flow(spans, self.rates, self.capacity.num_layers)
