"""What an offer can hold: the same rule for every policy, and the KV share that a system reserves by itself."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from coordinator.scheduler.plan import Placement, Problem
from protocol.values import MEMORY_FOR_ACTIVATIONS, LayerRange

Span = tuple[int, int]
"""Layers [start, stop)."""


@dataclass(frozen=True, slots=True)
class CapacityRule:
    """How much a system leaves free for KV, beyond the floor that the problem asks of everybody.

    `weight_share`: weights take at most this share of the device's whole memory (activations included).
    `kv_tokens`: every layer that is held has KV room for so many tokens."""

    weight_share: float | None = None
    kv_tokens: int | None = None


FLOOR = CapacityRule()
"""Only the problem's own floor. Whoever cannot serve at all with its own KV share plans with this one."""


class Capacity:
    """Which spans fit which of a problem's offers."""

    def __init__(self, problem: Problem, rule: CapacityRule = FLOOR) -> None:
        model = problem.model
        self.problem = problem
        self.num_layers = model.num_layers
        wanted = max(problem.kv_floor_tokens, min(rule.kv_tokens or 0, model.facts.context_length))
        kv = model.kv_prefix(wanted)
        self._weights = model.weights
        self._needs = tuple(w + k for w, k in zip(model.weights, kv, strict=True))
        self._rooms = [offer.memory_bytes for offer in problem.offers]
        share = 1.0 if rule.weight_share is None else min(1.0, rule.weight_share / (1 - MEMORY_FOR_ACTIVATIONS))
        self._weight_rooms = [room * share for room in self._rooms]
        self._layer_need = max(b - a for a, b in zip(self._needs, self._needs[1:], strict=False))
        self._layer_weight = max(model.facts.layer_numels) * model.weight_item_bytes

    def fits(self, offer: int, span: Span) -> bool:
        """Whether the offer can hold the span, with the ends' own parts and KV room."""
        start, stop = span
        if not start < stop <= self.num_layers or stop - start > self.problem.offers[offer].max_layers:
            return False
        ends = self._ends_bytes(first=start == 0, last=stop == self.num_layers)
        weights = self._weights[stop] - self._weights[start] + ends
        needs = self._needs[stop] - self._needs[start] + ends
        return needs <= self._rooms[offer] and weights <= self._weight_rooms[offer]

    def reach(self, offer: int, start: int) -> int:
        """The largest stop with which the offer can hold layers from `start`; `start` itself when not even one fits."""
        if self.fits(offer, (start, self.num_layers)):
            return self.num_layers
        ends = self._ends_bytes(first=start == 0, last=False)
        by_needs = bisect_right(self._needs, self._needs[start] + self._rooms[offer] - ends) - 1
        by_weights = bisect_right(self._weights, self._weights[start] + self._weight_rooms[offer] - ends) - 1
        by_limit = start + self.problem.offers[offer].max_layers
        return max(start, min(by_needs, by_weights, by_limit, self.num_layers - 1))

    def count(self, offer: int, *, first: bool = False, last: bool = False) -> int:
        """How many layers fit anywhere in a pipeline (each counted as the largest), at the given end(s) of it."""
        ends = self._ends_bytes(first=first, last=last)
        by_needs = (self._rooms[offer] - ends) // self._layer_need
        by_weights = (self._weight_rooms[offer] - ends) // self._layer_weight
        return max(0, int(min(by_needs, by_weights, self.problem.offers[offer].max_layers, self.num_layers)))

    @property
    def ends_layers(self) -> int:
        """What embedding and head together are worth, in largest layers, rounded up."""
        return -int(-self._ends_bytes(first=True, last=True) // self._layer_weight)

    def _ends_bytes(self, *, first: bool, last: bool) -> float:
        return self.problem.model.embedding_bytes * first + self.problem.model.head_bytes * last


# ---------------------------------------------------------------- spans


def reaches_end(spans: Iterable[Span], num_layers: int) -> bool:
    """Whether some of the spans follow each other from layer 0 to the last one."""
    reached = {0}
    for start, stop in sorted(spans):
        if start in reached:
            reached.add(stop)
    return num_layers in reached


def on_whole_paths(spans: Collection[Span], num_layers: int) -> set[Span]:
    """The spans that lie on a path of spans from layer 0 to the last one."""
    ahead, behind = {0}, {num_layers}
    for start, stop in sorted(spans):
        if start in ahead:
            ahead.add(stop)
    for start, stop in sorted(spans, key=lambda span: -span[1]):
        if stop in behind:
            behind.add(start)
    return {span for span in spans if span[0] in ahead and span[1] in behind}


def held_spans(problem: Problem) -> dict[int, Span]:
    """What the offers hold now, by index."""
    held = ((i, offer.held) for i, offer in enumerate(problem.offers))
    return {i: (layers.start, layers.stop) for i, layers in held if layers is not None}


def is_served(problem: Problem) -> bool:
    """Whether what is held now makes at least one whole chain."""
    return reaches_end(held_spans(problem).values(), problem.model.num_layers)


def idle_spans(problem: Problem) -> dict[int, Span]:
    """Of what is held, slices that are on no whole chain and over which nothing runs: they serve nobody."""
    held = held_spans(problem)
    whole = on_whole_paths(set(held.values()), problem.model.num_layers)
    return {i: span for i, span in held.items() if span not in whole and not problem.offers[i].is_busy}


def placements_of(problem: Problem, spans: dict[int, Span], reason: str) -> list[Placement]:
    """Placements for spans by offer."""
    return [Placement(problem.offers[i].key, LayerRange(*span), reason) for i, span in sorted(spans.items())]


def changes_of(problem: Problem, spans: dict[int, Span], reason: str) -> list[Placement]:
    """The same without what is held so already."""
    held = held_spans(problem)
    return placements_of(problem, {i: span for i, span in spans.items() if held.get(i) != span}, reason)


def spans_from(counts: Sequence[int]) -> list[Span]:
    """One after the other from layer 0."""
    stops = list(accumulate(counts))
    return list(zip([0, *stops], stops, strict=False))
