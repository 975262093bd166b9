"""Which lanes of a new layout are worth moving to: what they gain against what is lost and downloaded on the way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from coordinator.scheduler.flow import Held, flow_of, holder_rates, outlook
from coordinator.scheduler.forecast import lanes_of, layout_forecast, tables_of
from coordinator.scheduler.moves import Interruption, cost_tokens, gain_tokens, pays
from coordinator.scheduler.plan import Problem
from coordinator.scheduler.problems import missing_bytes
from protocol.values import LayerRange

MOST_DROPPED = 16
MANY_HELD = 512
FEW_PARTS = 3
"""With more slices than that, of a new layout only the whole and two smaller parts are weighed, and no lane is tried to
be left out: each trial takes a tenth of a second at 1,000 nodes, and people's tokens wait for it."""

Fetch = Callable[[int, float], float]
"""Seconds in which an offer's device downloads so many bytes and loads them."""


class Judge:
    """Of changes to what is held. Both layouts are judged by the same measure (flow.py), in which every holder counts
    that the router can use."""

    def __init__(self, problem: Problem, held: Held, load_s: Fetch) -> None:
        self._problem, self._held, self._load_s = problem, held, load_s
        self._tables = tables_of(problem)
        self._rates = holder_rates(self._tables, held)
        self._before = outlook(self._tables, held, self._tables.wanted_per_s)
        self._held_in_lanes = self._in_lanes(held)
        self._interruptions: dict[int, Interruption] = {}
        self._num_bytes = sum(problem.model.weight_bytes(layers) for layers in held.values())

    def best(self, lanes: Sequence[Held]) -> list[int]:
        """The numbers of those lanes that gain most beyond what moving to them costs; none if no change pays.

        Often a few of them bring nearly all that the whole layout would: the first 1, 2, 4, ... and all are tried, in
        the order of what they do for the bytes that they need; and then what is left of those without each."""
        changes = [{i: layers for i, layers in lane.items() if self._held.get(i) != layers} for lane in lanes]
        changing = [n for n, change in enumerate(changes) if change]
        rates = holder_rates(self._tables, {i: layers for lane in lanes for i, layers in lane.items()})
        does = {n: self._most(lanes[n], rates) / (1.0 + self._bytes(changes[n])) for n in changing}
        order = sorted(changing, key=lambda n: -does[n])
        is_large = len(self._held) > MANY_HELD
        parts = sorted({*(1 << n for n in range(len(order).bit_length())), len(order)} - {0})
        parts = parts[-FEW_PARTS:] if is_large else parts
        worth, chosen = max(
            ((self._worth([changes[n] for n in order[:k]]), order[:k]) for k in parts), default=(0.0, [])
        )
        for n in chosen[:MOST_DROPPED] if worth > 0.0 and not is_large else ():
            fewer = [other for other in chosen if other != n]
            if fewer and (less := self._worth([changes[other] for other in fewer])) >= worth:
                worth, chosen = less, fewer
        return chosen if worth > 0.0 else []

    def _worth(self, steps: Sequence[Held]) -> float:
        """What these changes gain beyond their cost, in tokens; 0 if they do not pay."""
        changed = {i: layers for step in steps for i, layers in step.items()}
        wanted_per_s, before = self._tables.wanted_per_s, self._before
        after = outlook(self._tables, {**self._held, **changed}, wanted_per_s)
        if after.tokens_per_s < before.tokens_per_s or self._in_lanes({**self._held, **changed}) < self._held_in_lanes:
            return 0.0
        gained = gain_tokens(before, after, wanted_per_s, [self._problem.offers[i].leaves_per_s for i in changed])
        interruptions = [self._interruption(step) for step in steps]
        cost = cost_tokens(before, interruptions, self._bytes(changed) / self._num_bytes, wanted_per_s)
        return gained - cost if pays(before, after, gained, cost, wanted_per_s) else 0.0

    def _in_lanes(self, held: Held) -> float:
        """Tokens per second, counting whole lanes only: repairs reckon with lanes (repair.py), and would rebuild at
        once what a migration has left without them."""
        return layout_forecast(self._problem, lanes_of(self._problem, held)).tokens_per_s

    def _interruption(self, step: Held) -> Interruption:
        """What the pool can do less while this step is taken: its holders serve nobody as they load."""
        first = min(step)  # a device is in one lane only
        if first not in self._interruptions:
            load_s = max(self._load_s(i, self._missing(i, layers)) for i, layers in step.items())
            self._interruptions[first] = Interruption(self._before.tokens_per_s - self._most_without(step), load_s)
        return self._interruptions[first]

    def _most_without(self, devices: Collection[int]) -> float:
        left = {i: rate for i, rate in self._rates.items() if i not in devices}
        return flow_of(self._held, left, self._tables.model.num_layers)

    def _most(self, lane: Held, rates: Mapping[int, float]) -> float:
        """Of a lane by itself, tokens per second."""
        return flow_of(lane, {i: rates[i] for i in lane if i in rates}, self._tables.model.num_layers)

    def _bytes(self, change: Held) -> float:
        return sum(self._missing(i, layers) for i, layers in change.items())

    def _missing(self, i: int, layers: LayerRange) -> float:
        return missing_bytes(self._problem, self._problem.offers[i], layers)
