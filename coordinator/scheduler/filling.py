"""How many layers each stage of a lane takes: water-filling, for many lanes at once.

As in Parallax (arXiv 2509.26182, section 3) a level is found at which the stages together take all layers, each at
most what its memory holds. Two things differ. What is levelled is measured time (decode is bound by memory bandwidth,
not by FLOPs), and memory is shared with the KV of as many sessions as the lane shall hold: a stage whose memory is all
weights serves nobody.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from coordinator.scheduler.plan import Problem
from coordinator.scheduler.tables import Bools, Floats, LaneBatch, ModelTable, OfferTable
from protocol.values import LayerRange

BISECTIONS = 12
MOST_KV = 4096.0
"""No lane is planned with more KV than so many times the floor."""


def capacities(offers: OfferTable, model: ModelTable, batch: LaneBatch, kv_tokens: Floats) -> Floats:
    """Layers that each stage can hold, [stages], beside `kv_tokens` of KV per lane, [lanes].

    A stage's holders share its sessions, so each keeps KV for its part; but never less than the floor."""
    share = kv_tokens[batch.lane_of_holder] / batch.num_holders[batch.stage_of]
    per_layer = model.weight_bytes + model.kv_token_bytes * np.maximum(share, model.kv_floor_tokens)
    ends = model.embedding_bytes * batch.is_first + model.head_bytes * batch.is_last
    memory = offers.memory[batch.holders] - ends[batch.stage_of]
    most = np.minimum(np.floor(memory / per_layer + 1e-9), offers.max_layers[batch.holders])
    return np.clip(np.minimum.reduceat(most, batch.stage_starts), 0.0, model.num_layers)


def most_kv_tokens(offers: OfferTable, model: ModelTable, batch: LaneBatch) -> Floats:
    """The most KV tokens, [lanes], for which each lane still holds all layers; negative where it cannot at all."""
    floor = model.kv_floor_tokens

    def fits(tokens: Floats) -> Bools:
        caps = capacities(offers, model, batch, tokens)
        enough = np.add.reduceat(caps, batch.lane_starts) >= model.num_layers
        return np.asarray(enough & (np.minimum.reduceat(caps, batch.lane_starts) >= 1.0))

    low = np.full(len(batch.lane_starts), floor)
    feasible = fits(low)
    factor = np.sqrt(MOST_KV)
    for _ in range(BISECTIONS):  # on a scale of factors: a hundred tokens matter to a small lane only
        low = np.where(fits(low * factor), low * factor, low)
        factor = np.sqrt(factor)
    return np.where(feasible, low, -1.0)


def fill(caps: Floats, times: Floats, extras: Floats, batch: LaneBatch, num_layers: int) -> Floats:
    """Whole layers per stage, [stages]: at least one, at most `caps`, `times` * layers + `extras` as level as can be.

    Lanes whose capacities do not suffice get what they hold (the caller drops them)."""
    starts, lane_of = batch.lane_starts, batch.lane_of
    low = np.zeros(len(starts))
    high = np.maximum.reduceat(times * num_layers + extras, starts)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        share = np.clip((middle[lane_of] - extras) / times, 1.0, caps)
        enough = np.add.reduceat(share, starts) >= num_layers
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    share = np.clip((high[lane_of] - extras) / times, 1.0, caps)
    return _whole(share, caps, batch, num_layers)


def _whole(share: Floats, caps: Floats, batch: LaneBatch, num_layers: int) -> Floats:
    """Round to whole layers by the largest remainder (Hamilton), within `caps`."""
    counts = np.maximum(1.0, np.floor(share + 1e-9))
    counts = np.minimum(counts, np.maximum(caps, 1.0))
    for _ in range(3):  # a second round only where the first met a cap
        missing = num_layers - np.add.reduceat(counts, batch.lane_starts)
        if not missing.any():
            break
        counts = _one_round(counts, share, caps, missing, batch)
    return counts


def _one_round(counts: Floats, share: Floats, caps: Floats, missing: Floats, batch: LaneBatch) -> Floats:
    """Add one layer to the stages with the largest remainder, or take one from those with the smallest."""
    direction = np.sign(missing)[batch.lane_of]
    room = np.where(direction > 0, caps - counts, counts - 1.0)
    merit = np.where(room >= 1.0, (share - counts) * direction, -np.inf)
    order = np.lexsort((-merit, batch.lane_of))
    rank = np.empty(len(order))
    rank[order] = np.arange(len(order)) - np.repeat(batch.lane_starts, batch.num_stages)
    open_stages = np.maximum(1.0, np.add.reduceat((room >= 1.0).astype(float), batch.lane_starts))
    whole, rest = np.divmod(np.abs(missing), open_stages)
    step = np.where(rank < rest[batch.lane_of], whole[batch.lane_of] + 1, whole[batch.lane_of])
    step = np.where(room >= 1.0, np.minimum(step, room), 0.0)
    return np.asarray(counts + direction * step)


def cuts(problem: Problem, counts: list[int], holders: list[tuple[int, ...]]) -> list[LayerRange] | None:
    """Exact layer ranges for these counts, moved where layers differ in size so that every holder has the memory for
    its own and for the KV floor; None if there is no such cut nearby."""
    num_layers = problem.model.num_layers
    edges = [0]
    for count in counts:
        edges.append(edges[-1] + count)
    if edges[-1] != num_layers:
        return None  # as where there are more stages than layers
    for _ in range(num_layers):
        ranges = [LayerRange(a, b) for a, b in pairwise(edges)]
        over = next((i for i, r in enumerate(ranges) if not _fit(problem, holders[i], r)), None)
        if over is None:
            return ranges
        if not _shift(edges, over, _room(problem, holders, ranges)):
            return None
    return None


def fits(problem: Problem, offer: int, layers: LayerRange) -> bool:
    """Whether this offer can hold these layers, with its ends' parts and the KV floor."""
    o = problem.offers[offer]
    need = problem.model.weight_bytes(layers) + problem.model.kv_bytes(layers, problem.kv_floor_tokens)
    return len(layers) <= o.max_layers and need <= o.memory_bytes + 1.0


def _fit(problem: Problem, holders: tuple[int, ...], layers: LayerRange) -> bool:
    return all(fits(problem, holder, layers) for holder in holders)


def _room(problem: Problem, holders: list[tuple[int, ...]], ranges: list[LayerRange]) -> list[float]:
    """Bytes that each stage's tightest holder has left."""
    model, floor = problem.model, problem.kv_floor_tokens
    return [
        min(problem.offers[h].memory_bytes for h in stage) - model.weight_bytes(r) - model.kv_bytes(r, floor)
        for stage, r in zip(holders, ranges, strict=True)
    ]


def _shift(edges: list[int], over: int, room: list[float]) -> bool:
    """Hand one layer of stage `over` towards the stage with the most room; False if there is none."""
    target = max(range(len(room)), key=lambda i: room[i])
    if room[target] <= 0 or target == over or edges[over + 1] - edges[over] <= 1:
        return False
    if target > over:
        for i in range(over + 1, target + 1):
            edges[i] -= 1
    else:
        for i in range(target + 1, over + 1):
            edges[i] += 1
    return all(b > a for a, b in pairwise(edges))
