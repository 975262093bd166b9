"""Petals' placement (Borzunov et al., arXiv 2209.01188, section 3.2; arXiv 2312.08361, section 3.2 and appendix on load
balancing; released server, `block_selection.py`).

A joining server takes the contiguous blocks with the lowest total throughput: it compares the sorted throughputs of
all windows of its size and takes the least one. Every server announces min(forward rate / ((n + 1) / 2), network rate)
for its n blocks. From time to time each server works out where everybody would end up if it moved; it moves when the
swarm's least throughput now is below `balance_quality` (0.75) of what it would be then.

Adaptation, because a stage here runs as a whole: a span starts and ends where chains can continue. A server chooses
among the spans between existing boundaries, as many blocks as fit, by Petals' own criterion; where blocks are still
missing, or it is too small for every such span, it begins at a boundary and makes a new one where its memory ends.
"""

from __future__ import annotations

import math
from bisect import bisect_right
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
    idle_spans,
    is_served,
    on_whole_paths,
    placements_of,
    reaches_end,
)
from coordinator.scheduler.links import Floats
from coordinator.scheduler.plan import Placement, Problem

ATTENTION_CACHE_TOKENS = 16_384
"""Per block, for models with grouped queries: `attn_cache_tokens` of the released server."""
REASON = "Petals: the blocks with the lowest total throughput"
EPSILON = 1e-3
"""As released: makes a server prefer where it is when all else is equal."""
MAX_MOVERS = 16
MAX_SETTLING = 128
MAX_ROUNDS = 3
"""Bounds of one rebalancing check: servers asked, servers that settle in the preview, and rounds of it."""


class Swarm:
    """Who holds what, and each block's total throughput in tokens per second."""

    def __init__(self, capacity: Capacity, spans: dict[int, Span] | None = None) -> None:
        self.capacity = capacity
        self.spans: dict[int, Span] = {}
        self.throughputs: Floats = np.zeros(capacity.num_layers)
        self._network = _network_rates(capacity.problem)
        for server, span in (spans or {}).items():
            self.take(server, span)

    def throughput(self, server: int, num_blocks: int) -> float:
        """What the server announces for so many blocks."""
        forward = 1.0 / max(self.capacity.problem.offers[server].speed.prefill_s, 1e-12)
        return min(forward / ((num_blocks + 1) / 2), self._network[server])

    def take(self, server: int, span: Span) -> None:
        self.spans[server] = span
        self.throughputs[span[0] : span[1]] += self.throughput(server, span[1] - span[0])

    def drop(self, server: int) -> Span:
        span = self.spans.pop(server)
        self.throughputs[span[0] : span[1]] -= self.throughput(server, span[1] - span[0])
        self._clear_rounding(span)
        return span

    def join(self, servers: Iterable[int]) -> None:
        """One after the other; whoever can hold no span stays out."""
        for server in servers:
            if span := self.best_span(server):
                self.take(server, span)

    def cut_off(self, idle: Iterable[int]) -> list[int]:
        """Takes those out whose boundaries have gone with others, and who now fit between those that are left."""
        whole = on_whole_paths(set(self.spans.values()), self.capacity.num_layers)
        bounds = _boundaries(whole, self.capacity.num_layers)
        cut_off = [server for server in idle if whole and self._aligned(server, bounds)]
        for server in cut_off:
            self.drop(server)
        return cut_off

    def is_whole(self) -> bool:
        return reaches_end(self.spans.values(), self.capacity.num_layers)

    def best_span(self, server: int) -> Span | None:
        """Where it is needed most: the least sorted throughputs. A longer span beats one that it begins with."""
        options = self._options(server)
        if not options:
            return None
        longest = max(stop - start for start, stop in options)
        return min(options, key=lambda span: (self._sorted_throughputs(span, longest), span))

    # ------------------------------------------------------------ where spans may lie

    def _options(self, server: int) -> list[Span]:
        spans = set(self.spans.values())
        whole = on_whole_paths(spans, self.capacity.num_layers)
        if whole and (aligned := self._aligned(server, _boundaries(whole, self.capacity.num_layers))):
            return aligned
        bounds = _boundaries(spans, self.capacity.num_layers)
        frontier = [(start, self._frontier_stop(server, start, bounds)) for start in bounds[:-1]]
        if fitting := [span for span in frontier if span[0] < span[1]]:
            return fitting
        free = [(start, self.capacity.reach(server, start)) for start in range(self.capacity.num_layers)]
        return [span for span in free if span[0] < span[1]]

    def _aligned(self, server: int, bounds: Sequence[int]) -> list[Span]:
        """From every boundary to the farthest one within reach."""
        spans = ((start, _last_up_to(bounds, self.capacity.reach(server, start))) for start in bounds[:-1])
        return [span for span in spans if span[0] < span[1]]

    def _frontier_stop(self, server: int, start: int, bounds: Sequence[int]) -> int:
        reach = self.capacity.reach(server, start)
        stop = _last_up_to(bounds, reach)
        return stop if stop > start else reach

    def _sorted_throughputs(self, span: Span, length: int) -> list[float]:
        values: list[float] = np.sort(self.throughputs[span[0] : span[1]]).tolist()
        return values + [math.inf] * (length - len(values))

    def _clear_rounding(self, span: Span) -> None:
        part = self.throughputs[span[0] : span[1]]
        part[part < 1e-9] = 0.0

    # ------------------------------------------------------------ rebalancing

    def mover(self, balance_quality: float) -> tuple[int, Span] | None:
        """A server that should choose other blocks, and which."""
        least = float(self.throughputs.min())
        total = sum(self.throughput(i, stop - start) * (stop - start) for i, (start, stop) in self.spans.items())
        if least > EPSILON and least >= (balance_quality - EPSILON) * total / self.capacity.num_layers:
            return None  # no placement of these servers can have a better least throughput than the mean
        at_rest = [i for i in self.spans if not self.capacity.problem.offers[i].is_busy]
        for server in sorted(at_rest, key=self._spare, reverse=True)[:MAX_MOVERS]:
            if span := self._better_span(server):
                preview = Swarm(self.capacity, {**self.spans, server: span})
                preview.settle()
                after = float(preview.throughputs.min())
                is_better = after >= max(least, EPSILON) and least / after < balance_quality - EPSILON
                return (server, span) if is_better and preview.is_whole() else None
        return None

    def settle(self) -> None:
        """Everybody moves to where it would be needed most, until nobody wants to."""
        for _ in range(MAX_ROUNDS):
            moved = False
            for server in sorted(self.spans)[:MAX_SETTLING]:
                if span := self._better_span(server):
                    self.drop(server)
                    self.take(server, span)
                    moved = True
            if not moved:
                return

    def _better_span(self, server: int) -> Span | None:
        """None if it is where it should be, or chains would break without it."""
        was_whole = self.is_whole()
        old = self.drop(server)
        self.throughputs[old[0] : old[1]] -= EPSILON * self.throughput(server, old[1] - old[0])
        span = self.best_span(server) if self.is_whole() or not was_whole else old
        self.throughputs[old[0] : old[1]] += EPSILON * self.throughput(server, old[1] - old[0])
        self.take(server, old)
        return None if span == old else span

    def _spare(self, server: int) -> float:
        """The least throughput of its blocks without it."""
        start, stop = self.spans[server]
        return float(self.throughputs[start:stop].min()) - self.throughput(server, stop - start)


@dataclass(frozen=True, slots=True)
class PetalsAllocator:
    """Servers join in the order of the offers (the roomiest first if that leaves blocks out)."""

    rule: CapacityRule = CapacityRule(kv_tokens=ATTENTION_CACHE_TOKENS)
    balance_quality: float = 0.75

    def allocate(self, problem: Problem) -> list[Placement]:
        swarm = Swarm(Capacity(problem, FLOOR))
        for rule in (self.rule, FLOOR):
            capacity = Capacity(problem, rule)
            arrival = range(len(problem.offers))
            for order in (arrival, sorted(arrival, key=lambda i: (-capacity.count(i), i))):
                swarm = Swarm(capacity)
                swarm.join(order)
                if swarm.is_whole():
                    self._rebalance(swarm)
                    return placements_of(problem, swarm.spans, REASON)
        return placements_of(problem, swarm.spans, REASON)

    def adapt(self, problem: Problem) -> list[Placement]:
        """Free servers join; then one server at most moves, as they look at the balance at different times.

        A server that is busy stays: here, unlike there, requests are not dropped for a better balance."""
        held = held_spans(problem)
        swarm = Swarm(Capacity(problem, self.rule), held)
        free = [i for i in range(len(problem.offers)) if i not in held]
        free += swarm.cut_off(idle_spans(problem))
        swarm.join(free)
        if not swarm.is_whole() and not is_served(problem):
            roomier = Swarm(Capacity(problem, FLOOR), held)
            roomier.join(free)
            swarm = roomier if roomier.is_whole() else swarm
        changed = set(free)
        if move := swarm.mover(self.balance_quality):
            swarm.drop(move[0])
            swarm.take(*move)
            changed.add(move[0])
        elif not swarm.is_whole():
            return changes_of(problem, self._gathered(swarm), REASON)
        return changes_of(problem, {i: span for i, span in swarm.spans.items() if i in changed}, REASON)

    def _gathered(self, swarm: Swarm) -> dict[int, Span]:
        """Servers whose blocks are on no whole chain join anew: in a swarm with gaps none of them serves anybody."""
        again = Swarm(swarm.capacity)
        again.join(sorted(swarm.spans, key=lambda i: (-swarm.capacity.count(i), i)))
        return again.spans if again.is_whole() else swarm.spans

    def _rebalance(self, swarm: Swarm) -> None:
        for _ in range(MAX_MOVERS):
            move = swarm.mover(self.balance_quality)
            if move is None:
                return
            swarm.drop(move[0])
            swarm.take(*move)


def _network_rates(problem: Problem) -> list[float]:
    """Rows per second that each offer's uplink can carry."""
    row_bytes = problem.model.hidden_bytes
    if not row_bytes or not problem.offers:
        return [math.inf] * len(problem.offers)
    rows = np.array([problem.links.row(offer.key.node_id) for offer in problem.offers], dtype=np.intp)
    rates: list[float] = (problem.links.uploads(rows) / row_bytes).tolist()
    return rates


def _boundaries(spans: Iterable[Span], num_layers: int) -> list[int]:
    return sorted({0, num_layers, *(bound for span in spans for bound in span)})


def _last_up_to(bounds: Sequence[int], limit: int) -> int:
    return bounds[bisect_right(bounds, limit) - 1]
