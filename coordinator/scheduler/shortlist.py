"""Which devices are worth looking at: those on the best chains when links are taken between regions only.

Two sweeps over the layer boundaries give, for each region and each region of the head, the least cost of coming to a
boundary and of going on from it (the bounds of A*, Hart, Nilsson and Raphael 1968). A device's slack, the sum of both
and its own cost, is then the cost of the best chain over it: every device of a chain has at most that chain's slack, so
that those with the least slack make whole chains among themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from coordinator.scheduler.candidates import Ask, Candidates, Groups
from coordinator.scheduler.links import Floats, Ints, LinkMap
from coordinator.scheduler.net import Net, PairTimes, make_net

MAX_EDGES = 600
"""Edges that one request looks at."""
MIN_WIDTH = 4
"""Slices that may begin, and that may stop, at one boundary of a net, however long its chains are."""
MAX_NETS = 4
"""Regions whose devices are considered as heads."""
MAX_HEAD_REGIONS = 8
MAX_CHOSEN = 192
"""Devices of a net."""
NET_SHARE = 1.5
"""A region's net is looked at if its best chain takes at most so many times the best one's time."""


@dataclass(frozen=True, slots=True)
class Graph:
    """Slices in regions, as one request sees them."""

    num_layers: int
    groups: Groups
    least_s: Floats
    """Of each group, its cheapest device's cost."""
    hop_s: Floats
    """Between regions, for all tokens of the request."""
    back_s: Floats
    """From a tail's region to a head's."""
    heads: Ints
    """Regions that heads may be in."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """`come[b, r, h]`: the least seconds before layer b runs in region r, if the head is in the region heads[h].
    `go[b, r, h]`: the least seconds after layer b - 1 ran in region r."""

    come: Floats
    go: Floats


def best_nets(candidates: Candidates, ask: Ask, links: LinkMap, pairs: PairTimes, *, keeps_apart: bool) -> list[Net]:
    """Graphs to look for this request's chain in, the likeliest first; none if no chain has room for it."""
    if not candidates.slots:
        return []
    costs = _costs_with_links(candidates, ask, links)
    graph = _graph(candidates, ask, costs)
    if not graph.heads.size:
        return []
    groups, bounds = graph.groups, _bounds(graph)
    around = bounds.come[groups.start, groups.region] + bounds.go[groups.stop, groups.region]
    best = (around + graph.least_s[:, None]).min(axis=0)
    numbers = [int(n) for n in np.argsort(best, kind="stable")[: _num_nets(candidates)] if best[n] < math.inf]
    numbers = [n for n in numbers if best[n] <= NET_SHARE * best[numbers[0]]]
    sizes = np.diff(groups.first, append=len(costs))
    num_edges = MAX_EDGES // max(1, len(numbers))
    width = max(MIN_WIDTH, round(math.sqrt(num_edges / max(1.0, candidates.num_stages - 1.0))))
    nets = []
    for number in numbers:
        sure = [_cheapest_member(graph, group, costs) for group in _best_chain(graph, bounds, number)]
        slack = np.repeat(around[:, number], sizes) + costs
        chosen = _chosen(candidates, slack, [int(groups.members[at]) for at in sure], width, num_edges)
        nets.append(make_net(candidates, chosen, pairs, keeps_apart=keeps_apart))
    return nets


def _num_nets(candidates: Candidates) -> int:
    """Fewer for long chains: each net is to have several devices for every stage."""
    return max(1, min(MAX_NETS, round(MAX_EDGES / (MIN_WIDTH**2 * max(1.0, candidates.num_stages)))))


def _costs_with_links(candidates: Candidates, ask: Ask, links: LinkMap) -> Floats:
    """In order of the groups' members: costs, with what a device's own line adds to the hops to it and from it.

    Whoever holds the whole model sends nothing back, so that its region's own distance, which all ways back are at
    least taken for, is taken off."""
    groups = candidates.groups()
    num_rows = ask.num_new_tokens + candidates.prompt_weight(ask.num_prompt_tokens)
    leave_s = num_rows * candidates.model.hidden_bytes / links.uploads(candidates.rows[groups.members])
    stop = candidates.stop[groups.members]
    leave_s[stop == candidates.model.num_layers] = 0.0
    has_hops = stop - candidates.start[groups.members] < candidates.model.num_layers
    inside_s = np.repeat(groups.delays_s.diagonal()[groups.region], np.diff(groups.first, append=len(stop)))
    line_s = np.where(has_hops, 2 * (ask.num_new_tokens + 1) * groups.remote_s, -ask.num_new_tokens * inside_s)
    return np.asarray(candidates.costs(ask)[groups.members] + leave_s + line_s)


def _graph(candidates: Candidates, ask: Ask, costs: Floats) -> Graph:
    """`costs` are in order of the groups' members."""
    groups = candidates.groups()
    least_s = np.minimum.reduceat(costs, groups.first)
    hop_s = (ask.num_new_tokens + 1.0) * groups.delays_s
    heads = _head_regions(candidates.model.num_layers, groups, least_s, hop_s)
    back_s = ask.num_new_tokens * groups.delays_s[:, heads]
    return Graph(candidates.model.num_layers, groups, least_s, hop_s, back_s, heads)


def _head_regions(num_layers: int, groups: Groups, least_s: Floats, hop_s: Floats) -> Ints:
    """Regions with a head that has room: if there are too many to look at, those where the shortest chains begin, the
    way back left out."""
    has_room = (groups.start == 0) & (least_s < math.inf)
    found = np.unique(groups.region[has_room])
    if len(found) > MAX_HEAD_REGIONS:
        go = _go(num_layers, groups, least_s, hop_s, hop_s.diagonal()[:, None])
        whole_s = least_s[has_room] + go[groups.stop[has_room], groups.region[has_room], 0]
        first_s = np.full(len(hop_s), math.inf)
        np.minimum.at(first_s, groups.region[has_room], whole_s)
        found = np.sort(np.argsort(first_s, kind="stable")[:MAX_HEAD_REGIONS])
    return np.asarray(found, dtype=np.intp)


# ---------------------------------------------------------------- the sweeps


def _bounds(graph: Graph) -> Bounds:
    num_heads = len(graph.heads)
    come = np.full((graph.num_layers + 1, len(graph.hop_s), num_heads), math.inf)
    come[0, graph.heads, np.arange(num_heads)] = 0.0
    groups, region, least_s = graph.groups, graph.groups.region, graph.least_s[:, None]
    for stop, piece, places, first in groups.ending:
        if stop < graph.num_layers:
            done = np.minimum.reduceat(come[groups.start[piece], region[piece]] + least_s[piece], first)
            come[stop] = (done[:, None, :] + graph.hop_s[places][:, :, None]).min(axis=0)
    return Bounds(come, _go(graph.num_layers, groups, graph.least_s, graph.hop_s, graph.back_s))


def _go(num_layers: int, groups: Groups, least_s: Floats, hop_s: Floats, back_s: Floats) -> Floats:
    """See `Bounds.go`; `back_s` is what follows the last layer [region, head]."""
    go = np.full((num_layers + 1, *back_s.shape), math.inf)
    go[num_layers] = back_s
    for start, piece, places, first in reversed(groups.beginning):
        if start > 0:
            left = go[groups.stop[piece], groups.region[piece]] + least_s[piece, None]
            left = np.minimum.reduceat(left, first)
            go[start] = (hop_s[:, places][:, :, None] + left[None]).min(axis=1)
    return go


# ---------------------------------------------------------------- what is chosen


def _best_chain(graph: Graph, bounds: Bounds, head: int) -> list[int]:
    """The groups of the best chain by the bounds: whatever else is left out, this one is whole."""
    groups, region = graph.groups, graph.groups.region
    at, chain, before = 0, [], bounds.come[0, :, head]
    beginning = {run.boundary: run.groups for run in groups.beginning}
    while at < graph.num_layers:
        here = beginning[at]
        cost_s = before[region[here]] + graph.least_s[here] + bounds.go[groups.stop[here], region[here], head]
        chosen = int(here[np.argmin(cost_s)])
        chain.append(chosen)
        at, before = int(groups.stop[chosen]), graph.hop_s[region[chosen]]
    return chain


def _cheapest_member(graph: Graph, group: int, costs: Floats) -> int:
    """As an index of the groups' members."""
    first = graph.groups.first
    begin, end = int(first[group]), int(first[group + 1]) if group + 1 < len(first) else len(costs)
    return begin + int(np.argmin(costs[begin:end]))


def _chosen(candidates: Candidates, slack: Floats, sure: list[int], width: int, num_edges: int) -> list[int]:
    """The slots with the least slack, until so many edges are between them.

    At most `width` begin, and as many stop, at one boundary, so that a crowd at one does not leave others thin."""
    members = candidates.groups().members
    num_looked_at = min(len(slack), 4 * MAX_CHOSEN)
    nearest = np.argpartition(slack, num_looked_at - 1)[:num_looked_at]
    nearest = nearest[np.argsort(slack[nearest], kind="stable")]
    ranked = members[nearest[slack[nearest] < math.inf]]
    pieces = zip(ranked.tolist(), candidates.start[ranked].tolist(), candidates.stop[ranked].tolist(), strict=True)
    chosen = dict.fromkeys(sure)
    begins, ends = [0] * (candidates.model.num_layers + 1), [0] * (candidates.model.num_layers + 1)
    for slot in chosen:
        start, stop = candidates.piece(slot)
        begins[start] += 1
        ends[stop] += 1
    for slot, start, stop in pieces:
        if num_edges <= 0 or len(chosen) >= MAX_CHOSEN:
            break
        if slot not in chosen and begins[start] < width and ends[stop] < width:
            chosen[slot] = None
            num_edges -= ends[start] + begins[stop]
            begins[start] += 1
            ends[stop] += 1
    return list(chosen)
