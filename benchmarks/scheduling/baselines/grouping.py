"""HexGen-like static groups (Jiang et al., arXiv 2311.11514, sections 3 and 4).

HexGen splits the GPUs into groups, one asymmetric pipeline each: stages may have different numbers of layers, in
proportion to speed within memory. It searches the groups with a genetic algorithm whose good solutions keep GPUs of one
type and region together; here they are put together so directly. Stages are ordered by the links between them, as
its dynamic program orders them by communication cost. Tensor parallelism over slow links is never chosen by either.

A deployment does not adapt: a device that comes back takes its own slice again, new devices are used when they
form whole groups by themselves, and only when no group is whole any more is everything deployed anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
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
    placements_of,
)
from benchmarks.scheduling.baselines.pipelines import cut, cut_smallest
from coordinator.scheduler.plan import Placement, Problem

OWN_SHARE = CapacityRule(weight_share=0.65)
"""HexGen's memory constraint counts weights and the KV of a batch that it leaves open: one choice of it. Better than
the pool's own floor where small models are saturated, worse over wide areas: the floor is the default."""
REASON = "HexGen-like: its part of a static group"


@dataclass(frozen=True, slots=True)
class GroupAllocator:
    rule: CapacityRule = FLOOR

    def allocate(self, problem: Problem) -> list[Placement]:
        for rule in (self.rule, FLOOR):
            if spans := grouped(Capacity(problem, rule), range(len(problem.offers))):
                return placements_of(problem, spans, REASON)
        return []

    def adapt(self, problem: Problem) -> list[Placement]:
        held = held_spans(problem)
        if not is_served(problem):
            return self.allocate(problem)
        free = [i for i in range(len(problem.offers)) if i not in held]
        capacity = Capacity(problem, self.rule)
        back = {i: span for i in free if (span := _own_slice(problem, i))}
        new = grouped(capacity, [i for i in free if i not in back])
        return changes_of(problem, {**back, **new}, REASON)


def grouped(capacity: Capacity, offers: Iterable[int]) -> dict[int, Span]:
    """Groups within each region, devices of like speed together; then of what is left of all regions."""
    problem = capacity.problem
    usable = [i for i in offers if capacity.count(i) > 0]
    if not usable:
        return {}
    rows = np.array([problem.links.row(problem.offers[i].key.node_id) for i in usable], dtype=np.intp)
    regions = dict(zip(usable, problem.links.regions(rows).tolist(), strict=True))
    rates = [1.0 / (offer.speed.step_s + offer.speed.row_s) for offer in problem.offers]
    by_type = sorted(usable, key=lambda i: (rates[i], problem.offers[i].memory_bytes, i), reverse=True)
    spans: dict[int, Span] = {}
    for region in sorted(set(regions.values())):
        spans.update(_groups(capacity, [i for i in by_type if regions[i] == region], rates))
    left = [i for i in by_type if i not in spans]
    spans.update(_groups(capacity, sorted(left, key=lambda i: regions[i]), rates))
    if not spans:
        roomiest = sorted(usable, key=lambda i: (-capacity.count(i), i))
        spans.update(cut_smallest(capacity, roomiest, rates) or {})
    return spans


def _groups(capacity: Capacity, offers: Sequence[int], rates: Sequence[float]) -> dict[int, Span]:
    """As many as there are, each of the next offers in this order, its stages in order of the links."""
    spans: dict[int, Span] = {}
    left = list(offers)
    while group := cut_smallest(capacity, left, rates):
        spans.update(cut(capacity, _by_links(capacity.problem, list(group)), rates) or group)
        left = [i for i in left if i not in group]
    return spans


def _by_links(problem: Problem, members: Sequence[int]) -> list[int]:
    """The nearest next, from the device from which the whole way is the shortest."""
    rows = np.array([problem.links.row(problem.offers[i].key.node_id) for i in members], dtype=np.intp)
    delays = problem.links.delays_s(rows, rows).tolist()
    ways = [_nearest_next(delays, first) for first in range(len(members))]
    way = min(ways, key=lambda way: sum(delays[a][b] for a, b in itertools.pairwise(way)))
    return [members[at] for at in way]


def _nearest_next(delays: Sequence[Sequence[float]], first: int) -> list[int]:
    way, left = [first], [at for at in range(len(delays)) if at != first]
    while left:
        here = delays[way[-1]]
        way.append(min(left, key=lambda at: here[at]))
        left.remove(way[-1])
    return way


def _own_slice(problem: Problem, offer: int) -> Span | None:
    """What it held last, if others still hold slices that it continues."""
    stored = problem.offers[offer].stored
    if not stored:
        return None
    layers = stored[-1]
    bounds = {0, problem.model.num_layers, *(b for span in held_spans(problem).values() for b in span)}
    span = (layers.start, layers.stop)
    return span if {*span} <= bounds and Capacity(problem, FLOOR).fits(offer, span) else None
