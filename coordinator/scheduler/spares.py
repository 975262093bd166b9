"""What a spare device does at once: it strengthens the slice, or run of slices, where that gains most.

Slices are edges between layer boundaries, with what their holders do per second as capacity. What could reach a slice
from the head and go on from it to the tail limits what a further holder gains: the narrowest stage gains first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from coordinator.scheduler.departed import FLAPPING_PER_S
from coordinator.scheduler.pieces import Piece
from coordinator.scheduler.plan import Offer, Problem
from coordinator.scheduler.problems import Fit
from protocol.values import LayerRange

MOST_ROWS = 16.0
"""Rows of a step by which stages are compared: beyond, most devices gain little."""
RELIEF_WEIGHT = 0.1
"""A stage with less to do answers sooner: worth so much of what flows through it."""
SAFETY_WEIGHT = 0.05
"""A second holder is worth that part of what flows through a slice that has only one."""
STORED_WEIGHT = 1.5
"""A slice that is on the device's disk may be worth that much less."""
LEAST_SPLIT_GAIN = 0.05
"""Of what flows through a slice: less is not worth splitting it."""
MOST_SPLIT_HOP = 0.25
"""A split adds a hop to every token's way. It may take that part of the time of the step that is split."""
NUM_RUNS = 3
NUM_BATCHES = 16
"""Many spares are placed in so many rounds; capacities are reckoned anew between rounds."""


class Edge(NamedTuple):
    """A slice that serves. `flow`: what goes through it; `up`, `down`: what could arrive and go on, rows per second."""

    piece: Piece
    capacity: float
    flow: float
    up: float
    out: float
    down: float
    into: float
    num_holders: int

    def gain(self, more: float) -> float:
        """What flows through beyond now if its capacity grew by so much. It then also gets more of what it shares."""
        capacity = self.capacity + more
        up = self.up * capacity / (self.out + more) if math.isfinite(self.up) else math.inf
        down = self.down * capacity / (self.into + more) if math.isfinite(self.down) else math.inf
        return max(0.0, min(capacity, up, down) - self.flow)


class Spares:
    """Places spare devices beside what serves; `holders` are indices of offers per piece, all on whole paths."""

    def __init__(self, problem: Problem, fit: Fit, holders: Mapping[Piece, Sequence[int]]) -> None:
        self._problem, self._fit = problem, fit
        model = problem.model
        self._num_layers, self._weights, self._work = model.num_layers, model.weights, model.work
        self._kv = model.kv_prefix(problem.workload.num_reserved_tokens)
        self._holders = {piece: list(held) for piece, held in holders.items()}
        self._capacity = {p: sum(self._rate(i, p) for i in held) for p, held in self._holders.items()}
        self._num_holders = {piece: len(held) for piece, held in self._holders.items()}

    def choose(self, spares: Sequence[int]) -> dict[int, tuple[Piece, str]]:
        """What each of these takes, and why; those that would not gain anything are left out."""
        chosen: dict[int, tuple[Piece, str]] = {}
        size = math.ceil(len(spares) / NUM_BATCHES)
        for begin in range(0, len(spares), size):
            edges = self._edges()
            for i in spares[begin : begin + size]:
                if found := self._place(i, edges):
                    chosen[i] = found
        return chosen

    # ------------------------------------------------------------ capacities

    def _rate(self, i: int, piece: Piece) -> float:
        """Rows per second of this offer with these layers, in steps as large as its KV room allows."""
        offer, (start, stop) = self._problem.offers[i], piece
        room = offer.memory_bytes - (self._weights[stop] - self._weights[start])
        rows = room / (self._kv[stop] - self._kv[start] + 1.0)
        rows = MOST_ROWS if rows > MOST_ROWS else max(1.0, rows)
        speed = offer.speed
        step_s = (self._work[stop] - self._work[start]) * (speed.step_s + rows * speed.row_s)
        return rows / (step_s + speed.head_s if stop == self._num_layers else step_s)

    def _edges(self) -> dict[Piece, Edge]:
        """What flows where: each boundary hands on what arrives in proportion to what those behind it can take."""
        out, into = self._sums()
        up = self._reached(sorted(self._capacity), 0, out)
        down = self._reached(sorted(((b, a) for a, b in self._capacity), reverse=True), self._num_layers, into)
        return {p: self._edge(p, up, out, down, into) for p in self._capacity}

    def _sums(self) -> tuple[dict[int, float], dict[int, float]]:
        out: dict[int, float] = {}
        into: dict[int, float] = {}
        for (start, stop), capacity in self._capacity.items():
            out[start] = out.get(start, 0.0) + capacity
            into[stop] = into.get(stop, 0.0) + capacity
        return out, into

    def _reached(self, pieces: Iterable[Piece], begin: int, shares: Mapping[int, float]) -> dict[int, float]:
        """Rows per second that could reach each boundary from `begin`, over pieces given as (near, far) end."""
        flows = {begin: math.inf}
        for near, far in pieces:
            capacity = self._capacity[min(near, far), max(near, far)]
            flows[far] = flows.get(far, 0.0) + min(capacity, flows[near] * capacity / shares[near])
        return flows

    def _edge(
        self,
        piece: Piece,
        up: Mapping[int, float],
        out: Mapping[int, float],
        down: Mapping[int, float],
        into: Mapping[int, float],
    ) -> Edge:
        start, stop = piece
        capacity = self._capacity[piece]
        flow = min(capacity, up[start] * capacity / out[start], down[stop] * capacity / into[stop])
        return Edge(piece, capacity, flow, up[start], out[start], down[stop], into[stop], self._num_holders[piece])

    # ------------------------------------------------------------ one spare

    def _place(self, i: int, edges: dict[Piece, Edge]) -> tuple[Piece, str] | None:
        offer = self._problem.offers[i]
        fitting = [edge for piece, edge in edges.items() if self._fit.fits(offer, *piece)]
        if not fitting:
            return self._split(i, edges)
        ranked = sorted(((self._value(i, edge), edge.piece) for edge in fitting), key=lambda v: (-v[0], v[1]))
        runs = [run for _, piece in ranked[:NUM_RUNS] if (run := self._grown(i, piece, edges))]
        value, piece = max([*runs, ranked[0]], key=lambda v: (v[0], -v[1][0]))
        for part in self._parts(piece, edges):
            self._capacity[part] += self._rate(i, piece)
            self._num_holders[part] += 1
        return (piece, self._reason(piece, edges)) if value > 0.0 else None

    def _value(self, i: int, edge: Edge) -> float:
        rate = self._rate(i, edge.piece)
        relief = RELIEF_WEIGHT * edge.flow * rate / (edge.capacity + rate)
        value = edge.gain(rate) + relief + SAFETY_WEIGHT * edge.flow * (edge.num_holders == 1)
        return value * (STORED_WEIGHT if _is_stored(self._problem.offers[i], edge.piece) else 1.0)

    def _grown(self, i: int, piece: Piece, edges: dict[Piece, Edge]) -> tuple[float, Piece] | None:
        """The run around this slice, as far as it fits, that is worth most; None if nothing fits beside it."""
        offer = self._problem.offers[i]
        best: tuple[float, Piece] | None = None
        run = piece
        while True:
            longer = [e for e in edges if e[0] == run[1] and self._fit.fits(offer, run[0], e[1])]
            before = [e for e in edges if e[1] == run[0] and self._fit.fits(offer, e[0], run[1])]
            if longer:
                run = (run[0], max(longer, key=lambda e: edges[e].flow)[1])
            elif before:
                run = (max(before, key=lambda e: edges[e].flow)[0], run[1])
            else:
                return best
            value = self._run_value(i, run, edges)
            if best is None or value > best[0]:
                best = value, run

    def _run_value(self, i: int, run: Piece, edges: dict[Piece, Edge]) -> float:
        parts = [edges[part] for part in self._parts(run, edges)]
        if not parts:
            return 0.0
        rate = self._rate(i, run)
        narrow = min(parts, key=lambda e: e.capacity)
        first, last = parts[0], parts[-1]
        whole = Edge(run, narrow.capacity, narrow.flow, first.up, first.out, last.down, last.into, 0)
        relief = sum(RELIEF_WEIGHT * e.flow * rate / (e.capacity + rate) for e in parts)
        safety = sum(SAFETY_WEIGHT * e.flow * (e.num_holders == 1) for e in parts)
        value = whole.gain(rate) + relief + safety
        return value * (STORED_WEIGHT if _is_stored(self._problem.offers[i], run) else 1.0)

    def _parts(self, run: Piece, edges: dict[Piece, Edge]) -> list[Piece]:
        """The slices that the run stands beside: its own if there is one, else the widest way from end to end."""
        if run in edges:
            return [run]
        parts: list[Piece] = []
        at = run[0]
        while at < run[1]:
            following = [e for e in edges if e[0] == at and e[1] <= run[1]]
            if not following:
                return []
            parts.append(max(following, key=lambda e: edges[e].flow))
            at = parts[-1][1]
        return parts

    def _reason(self, piece: Piece, edges: dict[Piece, Edge]) -> str:
        num_layers = piece[1] - piece[0]
        parts = self._parts(piece, edges)
        if len(parts) != 1:
            return f"{num_layers} layers beside {len(parts)} stages in a row, which all fit"
        edge = edges[parts[0]]
        if edge.gain(edge.capacity) > 0.01 * edge.flow:
            return f"{num_layers} layers beside {edge.num_holders} holder(s): this stage was the narrowest"
        return f"{num_layers} layers beside {edge.num_holders} holder(s), to share their load and stand in for them"

    # ------------------------------------------------------------ splits

    def _split(self, i: int, edges: dict[Piece, Edge]) -> tuple[Piece, str] | None:
        """It is smaller than every slice: it takes the end of one, whose holder keeps the rest (repair.py sees to
        that when this is loaded). Not if its node comes and goes: somebody would depend on it."""
        offer = self._problem.offers[i]
        if offer.leaves_per_s > FLAPPING_PER_S:
            return None
        narrow = [e for e in edges.values() if e.gain(e.capacity) > LEAST_SPLIT_GAIN * e.flow]
        options = [found for edge in narrow if (found := self._best_end(i, edge)) and found[0] > 0.0]
        if not options:
            return None
        _, part, edge = max(options, key=lambda option: (option[0], option[1]))
        self._capacity[edge.piece] *= 1.0 + LEAST_SPLIT_GAIN
        where = "last" if part[1] == edge.piece[1] else "first"
        num_layers = edge.piece[1] - edge.piece[0]
        return part, f"{part[1] - part[0]} layers, the {where} of a stage of {num_layers}: two halves are quicker"

    def _best_end(self, i: int, edge: Edge) -> tuple[float, Piece, Edge] | None:
        """(gain, part, edge) of the best cut of this slice with one of its holders."""
        holder = self._partner(i, edge)
        if holder is None:
            return None
        (start, stop), offer = edge.piece, self._problem.offers[i]
        tails = range(max(start + 1, self._fit.reach_back(offer, stop)), stop)
        heads = range(start + 1, min(stop, self._fit.reach(offer, start) + 1))
        cuts = [((cut, stop), (start, cut)) for cut in tails] + [((start, cut), (cut, stop)) for cut in heads]
        before = self._rate(holder, edge.piece)
        options = [(min(self._rate(i, part), self._rate(holder, rest)), part) for part, rest in cuts]
        if not options:
            return None
        rate, part = max(options)
        gain = edge.gain(rate - before) if rate > before else 0.0
        return (gain, part, edge) if gain > LEAST_SPLIT_GAIN * edge.flow else None

    def _partner(self, i: int, edge: Edge) -> int | None:
        """The holder to share with: near, and idle or not the only one."""
        offers, links = self._problem.offers, self._problem.links
        held = self._holders[edge.piece]
        able = [h for h in held if len(held) > 1 or not offers[h].is_busy]
        near = [(links.delay_s(offers[i].key.node_id, offers[h].key.node_id), h) for h in able]
        delay_s, holder = min(near, default=(math.inf, -1))
        step_s = MOST_ROWS / self._rate(holder, edge.piece) if able else 0.0
        return holder if delay_s <= MOST_SPLIT_HOP * step_s else None


def _is_stored(offer: Offer, piece: Piece) -> bool:
    return LayerRange(*piece) in offer.stored or offer.held == LayerRange(*piece)
