"""What slices can serve together, however they are cut: the router may use any path over slices whose boundaries meet.

Lanes (forecast.lanes_of) put every holder into one pipeline at most, and underrate what has grown with mixed
boundaries. Here the most is a maximum flow over the layer boundaries (as in Helix, arXiv 2406.01566, section 4.3),
where each holder carries what it can do within the latency bound; and what is wanted takes the quickest paths first, as
the router does, each as far as its holders can carry.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coordinator.scheduler.forecast import LaneTimes, Tables, lane_forecasts, lane_rates
from coordinator.scheduler.pieces import Piece, on_paths
from coordinator.scheduler.plan import Lane, Stage
from coordinator.scheduler.tables import Bools, Floats, Ints, lane_batch
from protocol.values import LayerRange

NUM_NEAR = 16
"""Holders that a path to a boundary may come from: those that it reaches soonest."""
MOST_PATHS = 64
"""In a large pool the quickest paths stand for all."""
MOST_COPIES = 256
LEAST_FLOW = 1e-9

Held = Mapping[int, LayerRange]
"""Offers (their numbers in the problem) and what they hold."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a layout will do. `tokens_per_s` is the most within the bound, `answer_s` the seconds of a mean answer
    when nothing else runs, over the quickest paths that carry what is wanted; inf where nothing is served."""

    tokens_per_s: float
    answer_s: float


def outlook(p: Tables, held: Held, wanted_per_s: float) -> Outlook:
    """Of these slices, for so many tokens per second."""
    rates = holder_rates(p, held)
    if not rates:
        return Outlook(0.0, math.inf)
    most_per_s = flow_of(held, rates, p.model.num_layers)
    return Outlook(most_per_s, _answer_s(p, held, rates, min(wanted_per_s, most_per_s)))


# ---------------------------------------------------------------- what each holder carries


def holder_rates(p: Tables, held: Held) -> dict[int, float]:
    """Tokens per second that each holder on a whole path carries within the bound.

    A holder that takes a third of the time of the quickest path over it may take a third of the bound: its rate is that
    of a lane of three like it. Parts between whole numbers are interpolated."""
    paths = _Paths(p, held)
    if not len(paths.offers):
        return {}
    copies = np.clip(paths.through_s() / paths.alone_s, 1.0, MOST_COPIES)
    fewer = np.floor(copies)
    part = copies - fewer
    rates = (1.0 - part) * _rates_of_copies(p, paths, fewer) + part * _rates_of_copies(p, paths, fewer + 1.0)
    return dict(zip(paths.offers.tolist(), rates.tolist(), strict=True))


def _rates_of_copies(p: Tables, paths: _Paths, copies: Floats) -> Floats:
    """Of lanes that consist of so many of each holder."""
    offers, num = paths.offers, copies.astype(np.intp)
    batch = lane_batch([((i,),) * n for i, n in zip(offers.tolist(), num.tolist(), strict=True)])
    o, work, none = p.offers, np.repeat(paths.work, num), np.zeros(len(offers))
    times = LaneTimes(
        share=np.ones(len(work)),
        fixed_s=np.repeat(paths.alone_s, num),
        row_s=work * o.row_s[batch.holders],
        prefill_s=work * o.prefill_s[batch.holders],
        num_sessions=paths.num_sessions,
        hops_s=none,
        prompt_hop_s=np.zeros(len(work)),
        up_s=np.zeros(len(work)),
        way_s=paths.alone_s * copies,
    )
    return lane_rates(p, batch, times).tokens_per_s


# ---------------------------------------------------------------- the most


def flow_of(held: Held, rates: Mapping[int, float], num_layers: int) -> float:
    """The maximum flow from layer 0 to the last one; holders of the same layers add up.

    Shortest augmenting paths (Edmonds and Karp 1972): there are no more nodes than boundaries."""
    room: dict[int, dict[int, float]] = {}
    for i, rate in rates.items():
        start, stop = held[i].start, held[i].stop
        onward = room.setdefault(start, {})
        onward[stop] = onward.get(stop, 0.0) + rate
        room.setdefault(stop, {}).setdefault(start, 0.0)
    least = LEAST_FLOW * max(rates.values(), default=0.0)
    total = 0.0
    while path := _augmenting(room, num_layers, least):
        amount = min(room[a][b] for a, b in path)
        for a, b in path:
            room[a][b] -= amount
            room[b][a] += amount
        total += amount
    return total


def _augmenting(room: Mapping[int, Mapping[int, float]], sink: int, least: float) -> list[Piece]:
    came = {0: 0}
    frontier = deque([0])
    while frontier and sink not in came:
        at = frontier.popleft()
        for to, left in room.get(at, {}).items():
            if left > least and to not in came:
                came[to] = at
                frontier.append(to)
    path: list[Piece] = []
    at = sink
    while at and at in came:
        path.append((came[at], at))
        at = came[at]
    return path


# ---------------------------------------------------------------- how soon


def _answer_s(p: Tables, held: Held, rates: Mapping[int, float], wanted_per_s: float) -> float:
    """Over the quickest paths first, each as far as its holders go."""
    paths = _Paths(p, held)
    left = np.array([rates[i] for i in paths.offers.tolist()])
    least = LEAST_FLOW * float(left.max(initial=0.0))
    found: list[tuple[list[int], float]] = []
    served = 0.0
    while served < wanted_per_s and len(found) < MOST_PATHS and (path := paths.quickest(left > least)):
        amount = min(float(left[path].min()), wanted_per_s - served)
        left[path] -= amount
        served += amount
        found.append((path, amount))
    if served <= 0.0:
        return math.inf
    lanes = [Lane(tuple(Stage(held[i], (i,)) for i in paths.offers[path].tolist())) for path, _ in found]
    answers = [f.ttft_s + p.problem.workload.num_answer_tokens * f.tpot_s for f in lane_forecasts(p.problem, lanes)]
    return sum(s * amount for s, (_, amount) in zip(answers, found, strict=True)) / served


class _Paths:
    """The holders on whole paths, as columns, and the quickest ways over them."""

    def __init__(self, p: Tables, held: Held) -> None:
        whole = on_paths({(layers.start, layers.stop) for layers in held.values()}, p.model.num_layers)
        self._links, self._num_layers = p.problem.links, p.model.num_layers
        self.offers: Ints = np.array(
            sorted(i for i, layers in held.items() if (layers.start, layers.stop) in whole), dtype=np.intp
        )
        ranges = [held[i] for i in self.offers.tolist()]
        model, reserved = p.problem.model, p.problem.workload.num_reserved_tokens
        self._starts = np.array([layers.start for layers in ranges], dtype=np.intp)
        self._stops = np.array([layers.stop for layers in ranges], dtype=np.intp)
        self._rows = p.offers.rows[self.offers]
        self.work: Floats = np.array([model.work_of(layers) for layers in ranges])
        self.alone_s: Floats = self.work * p.offers.step_s[self.offers]
        self.alone_s += p.offers.head_s[self.offers] * (self._stops == self._num_layers)
        room = p.offers.memory[self.offers] - np.array([model.weight_bytes(layers) for layers in ranges])
        kv_bytes = np.array([model.kv_bytes(layers, reserved) for layers in ranges])
        self.num_sessions: Floats = np.floor(np.maximum(0.0, room) / kv_bytes + 1e-9)

    def through_s(self) -> Floats:
        """Of the quickest path over each holder: one row's time alone, without the way back to the first."""
        everybody = np.ones(len(self.offers), dtype=bool)
        until_s, _ = self._walk(self._starts, self._stops, 0, everybody)
        from_s, _ = self._walk(-self._stops, -self._starts, -self._num_layers, everybody)
        return np.asarray(until_s + from_s - self.alone_s)

    def quickest(self, usable: Bools) -> list[int]:
        """Positions in `offers` of the quickest path over usable holders; empty if there is none."""
        until_s, came = self._walk(self._starts, self._stops, 0, usable)
        ends = np.flatnonzero((self._stops == self._num_layers) & np.isfinite(until_s))
        if not len(ends):
            return []
        path = [int(ends[np.argmin(until_s[ends])])]
        while came[path[-1]] >= 0:
            path.append(int(came[path[-1]]))
        return path[::-1]

    def _walk(self, enters: Ints, leaves: Ints, begin: int, usable: Bools) -> tuple[Floats, Ints]:
        """Until each holder is done, from boundary `begin` on, and whom the path comes from (-1: nobody)."""
        until_s = np.full(len(enters), np.inf)
        came = np.full(len(enters), -1, dtype=np.intp)
        for boundary in np.unique(enters).tolist():
            here = np.flatnonzero((enters == boundary) & usable)
            if boundary == begin:
                until_s[here] = self.alone_s[here]
                continue
            near = np.flatnonzero((leaves == boundary) & np.isfinite(until_s))
            near = near[np.argsort(until_s[near], kind="stable")[:NUM_NEAR]]
            if len(here) and len(near):
                arrive_s = until_s[near][:, None] + self._delays_s(near, here)
                best = np.argmin(arrive_s, axis=0)
                came[here] = near[best]
                until_s[here] = arrive_s[best, np.arange(len(here))] + self.alone_s[here]
        return until_s, came

    def _delays_s(self, near: Ints, here: Ints) -> Floats:
        pairs = self._rows[np.repeat(near, len(here))], self._rows[np.tile(here, len(near))]
        return self._links.pair_delays_s(*pairs).reshape(len(near), len(here))
