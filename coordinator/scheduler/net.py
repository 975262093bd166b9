"""A small graph of slices with its links, and the cheapest way through it: the dynamic programme of phase 2.

Positions are in order of their first layer. An edge leads from a slice to one that begins where it stops.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from coordinator.scheduler.candidates import Ask, Candidates
from coordinator.scheduler.links import Floats, Ints, LinkMap
from protocol.values import NodeId

TOKEN_BYTES = 4
"""What the tail sends the head for each token."""
APART_PENALTY_S = 1e4
"""Where chains are to be diverse: more than any chain takes, so that neighbours share a node only if all must."""
MAX_STAGES_FOR_TWO = 16
"""Of longer chains the way back is too small a part to look for another head."""
LINK_FRESH_S = 10.0
MAX_PAIRS = 100_000


class PairTimes:
    """The link map's answers for pairs of nodes, kept for some seconds: one is asked for again and again."""

    def __init__(self, links: LinkMap) -> None:
        self._links = links
        self._known: dict[tuple[NodeId, NodeId], tuple[float, float]] = {}
        self._since_s = -math.inf

    def refresh(self, now_s: float) -> None:
        """Forget what may be old."""
        if now_s - self._since_s >= LINK_FRESH_S or len(self._known) > MAX_PAIRS:
            self._known.clear()
            self._since_s = now_s

    def pair(self, a: NodeId, b: NodeId) -> tuple[float, float]:
        """One way from a to b: delay in seconds, and seconds per byte."""
        known = self._known.get((a, b))
        if known is None:
            known = (self._links.delay_s(a, b), 1.0 / self._links.bytes_per_s(a, b)) if a != b else (0.0, 0.0)
            self._known[a, b] = known
        return known

    def pairs(self, ends: Sequence[tuple[NodeId, NodeId]]) -> list[tuple[float, float]]:
        """Like `pair` of each."""
        known = self._known
        return [known.get(pair) or self.pair(*pair) for pair in ends]

    def delays_s(self, sources: Ints, targets: Ints) -> Floats:
        """One way between rows of the link map, by coordinates."""
        return np.array(self._links.delays_s(sources, targets), dtype=np.float64)


class Step(NamedTuple):
    """A position that is no head: where its edges come from, and the way back from it to each head, per token."""

    position: int
    sources: list[int]
    back_s: list[float]
    """Exact from tails, by coordinates from elsewhere."""


@dataclass(frozen=True, slots=True)
class Part:
    """A graph. Positions count from 0, and so do edges, in the order of `steps`; in lists, for they are looked at one
    after the other."""

    slots: list[int]
    num_edges: int
    heads: list[int]
    steps: list[Step]
    tails: list[Step]


@dataclass(frozen=True, slots=True)
class Net:
    """One graph, or several beside each other; what a request's prices are made of is in one array for all of them."""

    parts: tuple[Part, ...]
    slots: Ints
    delay_s: Floats
    byte_s: Floats
    apart_s: Floats | None
    """None where chains need not be diverse."""

    @property
    def num_edges(self) -> int:
        return len(self.delay_s)


@dataclass(frozen=True, slots=True)
class Way:
    """A chain as slots, head first, and what it costs in seconds (penalties included)."""

    cost_s: float
    slots: tuple[int, ...]


class Prices(NamedTuple):
    """What a request pays in a part: at each position and on each edge, in seconds; and how many ways back."""

    costs: list[float]
    hops: list[float]
    num_backs: float


# ---------------------------------------------------------------- making


def make_net(candidates: Candidates, slots: Sequence[int], pairs: PairTimes, *, keeps_apart: bool) -> Net:
    """Of these slots, less those that are on no whole chain among them."""
    order, starts, stops = _on_whole_chains(candidates, slots)
    nodes = [candidates.device(slot).key.node_id for slot in order]
    ending: defaultdict[int, list[int]] = defaultdict(list)
    for position, stop in enumerate(stops):
        ending[stop].append(position)
    heads, tails = [p for p, start in enumerate(starts) if start == 0], ending[candidates.model.num_layers]
    slot_array = np.array(order, dtype=np.intp)
    back_s = pairs.delays_s(candidates.rows[slot_array], candidates.rows[slot_array[heads]]).tolist()
    for tail in tails:
        back_s[tail] = [_hop_s(pairs.pair(nodes[tail], nodes[head])) for head in heads]
    steps = [Step(p, ending[start], back_s[p]) for p, start in enumerate(starts) if start]
    times = pairs.pairs([(nodes[u], nodes[step.position]) for step in steps for u in step.sources])
    delay_s, byte_s = np.array(times, dtype=np.float64).reshape(-1, 2).T
    same = [nodes[u] == nodes[step.position] for step in steps for u in step.sources] if keeps_apart else None
    part = Part(order, len(times), heads, steps, [Step(tail, [], back_s[tail]) for tail in tails])
    return Net((part,), slot_array, delay_s, byte_s, None if same is None else APART_PENALTY_S * np.array(same))


def side_by_side(nets: Sequence[Net]) -> Net:
    """All of them as one."""
    if len(nets) == 1:
        return nets[0]
    slots = [slot for net in nets for part in net.parts for slot in part.slots]
    apart = [net.apart_s for net in nets if net.apart_s is not None]
    return Net(
        tuple(part for net in nets for part in net.parts),
        np.array(slots, dtype=np.intp),
        np.concatenate([net.delay_s for net in nets] or [np.zeros(0)]),
        np.concatenate([net.byte_s for net in nets] or [np.zeros(0)]),
        np.concatenate(apart) if apart else None,
    )


def _hop_s(pair: tuple[float, float]) -> float:
    return pair[0] + TOKEN_BYTES * pair[1]


def _on_whole_chains(candidates: Candidates, slots: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """In order of first layer, without dead ends; and their first layers, and the layers after their last ones."""
    pieces = sorted((*candidates.piece(slot), slot) for slot in slots)
    forward, backward = {0}, {candidates.model.num_layers}
    for start, stop, _ in pieces:
        if start in forward:
            forward.add(stop)
    for start, stop, _ in reversed(pieces):  # whatever begins later comes first, so its start is known already
        if stop in backward:
            backward.add(start)
    whole = [piece for piece in pieces if piece[0] in forward and piece[1] in backward]
    return [slot for _, _, slot in whole], [start for start, _, _ in whole], [stop for _, stop, _ in whole]


# ---------------------------------------------------------------- looking


def prices(net: Net, candidates: Candidates, ask: Ask) -> list[tuple[Part, Prices]]:
    """Answer tokens pay every hop's delay and every stage, the prompt pays the delays once and is transferred in
    chunks."""
    num_rows = ask.num_new_tokens + candidates.prompt_weight(ask.num_prompt_tokens)
    times = (ask.num_new_tokens + 1) * net.delay_s
    times += (num_rows * candidates.model.hidden_bytes) * net.byte_s
    if net.apart_s is not None:
        times += net.apart_s
    costs, hops = candidates.costs(ask, net.slots).tolist(), times.tolist()
    if len(net.parts) == 1:
        return [(net.parts[0], Prices(costs, hops, ask.num_new_tokens))]
    priced, position, edge = [], 0, 0
    for part in net.parts:
        end, last = position + len(part.slots), edge + part.num_edges
        priced.append((part, Prices(costs[position:end], hops[edge:last], ask.num_new_tokens)))
        position, edge = end, last
    return priced


def cheapest_way(net: Net, candidates: Candidates, ask: Ask, *, looks_twice: bool = False) -> Way | None:
    """The chain with the least expected time for this request; None if no chain has room for it.

    Each token's way ends with the hop from the tail back to the head. The answer is exact for a part with one head;
    `looks_twice` also tries the best part without the head that was found there."""
    best: tuple[Way, Part, Prices] | None = None
    for part, priced in prices(net, candidates, ask):
        way = cheapest_in(part, priced, math.inf if best is None else best[0].cost_s)
        if way is not None:
            best = way, part, priced
    if best is None:
        return None
    way, part, priced = best
    if not looks_twice or len(part.heads) == 1 or len(way.slots) > MAX_STAGES_FOR_TWO:
        return way
    return cheapest_in(part, priced, way.cost_s, not_from=way.slots[0]) or way


def cheapest_in(part: Part, priced: Prices, limit_s: float, not_from: int | None = None) -> Way | None:
    """None if no way that begins elsewhere than at the slot `not_from` costs less than the limit."""
    reach, via, head = _sweep(part, priced, limit_s, not_from)
    num_backs = priced.num_backs
    ends = [(reach[t] + num_backs * back_s[head[t]], t) for t, _, back_s in part.tails if reach[t] < limit_s]
    cost_s, tail = min(ends, default=(math.inf, -1))
    return Way(cost_s, _traced(part, via, tail)) if cost_s < limit_s else None


def _sweep(
    part: Part, priced: Prices, limit_s: float, not_from: int | None
) -> tuple[list[float], list[int], list[int]]:
    """Per position: the seconds until a row leaves it, where the row came from, and its chain's head.

    Ways to a position may have different heads; the one is kept that would be shortest if it closed the ring here.
    Ways that take as long as the limit already are left out. This loop is where a request's time goes."""
    costs, hops, num_backs = priced
    num = len(costs)
    reach, via, head = [math.inf] * num, [-1] * num, [0] * num
    for number, position in enumerate(part.heads):
        if part.slots[position] != not_from:
            reach[position], head[position] = costs[position], number
    hop = iter(hops)
    best = -1
    for position, sources, back_s in part.steps:
        least = best_s = math.inf
        for source, hop_s in zip(sources, hop):  # noqa: B905  # each step takes as many hops as it has sources
            at_s = reach[source] + hop_s
            if at_s < least:
                closed_s = at_s + num_backs * back_s[head[source]]
                if closed_s < least:
                    least, best_s, best = closed_s, at_s, source
        done_s = best_s + costs[position]
        if done_s < limit_s:
            reach[position], via[position], head[position] = done_s, best, head[best]
    return reach, via, head


def _traced(part: Part, via: list[int], tail: int) -> tuple[int, ...]:
    chain = []
    position = tail
    while position >= 0:
        chain.append(part.slots[position])
        position = via[position]
    return tuple(chain[::-1])
