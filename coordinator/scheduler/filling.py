"""How many layers each stage of a lane takes: water-filling, for many lanes at once.

As in Parallax (arXiv 2509.26182, section 3) a level is found at which the stages together take all layers, each at
most what its memory holds. Two things differ. What is levelled is measured time (decode is bound by memory bandwidth,
not by FLOPs), and memory is shared with the KV of as many sessions as the lane shall hold: a stage whose memory is all
weights serves nobody.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from coordinator.scheduler.plan import Problem
from coordinator.scheduler.problems import fit_of
from coordinator.scheduler.tables import Bools, Floats, LaneBatch, ModelTable, OfferTable, Sketch
from protocol.values import LayerRange

BISECTIONS = 12
MOST_KV = 4096.0
"""No lane is planned with more KV than so many times the floor."""
ROUNDING_BYTES = 1.0
"""By so much sums of sizes may seem to be beyond a device's memory."""


def capacities(offers: OfferTable, model: ModelTable, batch: LaneBatch, kv_tokens: Floats) -> Floats:
    """Layers that each stage can hold, [stages], beside `kv_tokens` of KV per lane, [lanes].

    A stage's holders share its sessions, so each keeps KV for its part; but never less than the floor."""
    return _capacities(_room_of(offers, model, batch), model, batch, kv_tokens)


@dataclass(frozen=True, slots=True)
class _Room:
    """What holders' capacities follow from whatever the KV, [holders]."""

    memory: Floats
    """Without what the ends take."""
    max_layers: Floats
    num_sharers: Floats
    """Holders of the stage."""


def _room_of(offers: OfferTable, model: ModelTable, batch: LaneBatch) -> _Room:
    ends = model.embedding_bytes * batch.is_first + model.head_bytes * batch.is_last
    memory = offers.memory[batch.holders] - ends[batch.stage_of]
    max_layers = np.minimum(offers.max_layers[batch.holders], model.num_layers)
    return _Room(memory, max_layers, batch.num_holders[batch.stage_of])


def _capacities(room: _Room, model: ModelTable, batch: LaneBatch, kv_tokens: Floats) -> Floats:
    share = kv_tokens[batch.lane_of_holder] / room.num_sharers
    per_layer = model.weight_bytes + model.kv_token_bytes * np.maximum(share, model.kv_floor_tokens)
    most = np.minimum(np.floor(room.memory / per_layer + 1e-9), room.max_layers)
    return np.maximum(batch.least_of_stages(most), 0.0)


def most_kv_tokens(offers: OfferTable, model: ModelTable, batch: LaneBatch) -> Floats:
    """The most KV tokens, [lanes], for which each lane still holds all layers; negative where it cannot at all."""
    room = _room_of(offers, model, batch)

    def fits(tokens: Floats) -> Bools:
        caps = _capacities(room, model, batch, tokens)
        enough = np.add.reduceat(caps, batch.lane_starts) >= model.num_layers
        return np.asarray(enough & (np.minimum.reduceat(caps, batch.lane_starts) >= 1.0))

    low = np.full(len(batch.lane_starts), model.kv_floor_tokens)
    feasible = fits(low)
    factor = math.sqrt(MOST_KV)
    for _ in range(BISECTIONS):  # on a scale of factors: a hundred tokens matter to a small lane only
        more = low * factor
        low = np.where(fits(more), more, low)
        factor = math.sqrt(factor)
    return np.where(feasible, low, -1.0)


def fill(caps: Floats, times: Floats, extras: Floats, batch: LaneBatch, num_layers: int) -> Floats:
    """Whole layers per stage, [stages]: at least one, at most `caps`, `times` * layers + `extras` as level as can be.

    Lanes whose capacities do not suffice get what they hold (the caller drops them)."""
    starts, lane_of = batch.lane_starts, batch.lane_of
    low = np.zeros(len(starts))
    high = np.maximum.reduceat(times * num_layers + extras, starts)

    def level(time_s: Floats) -> Floats:
        return np.asarray(np.minimum(np.maximum((time_s[lane_of] - extras) / times, 1.0), caps))

    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = np.add.reduceat(level(middle), starts) >= num_layers
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return _whole(level(high), caps, batch, num_layers)


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


class Cutter:
    """Exact layer ranges for one problem's lanes."""

    def __init__(self, problem: Problem) -> None:
        self._offers, self._fit = problem.offers, fit_of(problem)

    def cuts(self, counts: Sequence[int], sketch: Sketch) -> list[LayerRange] | None:
        """Ranges of these counts, moved where layers differ in size so that every holder has the memory for its own
        and for the KV floor; None if there is no such cut nearby."""
        num_layers = self._fit.num_layers
        edges = [*accumulate(counts, initial=0)]
        if edges[-1] != num_layers:
            return None  # as where there are more stages than layers
        for _ in range(num_layers):
            over = self._first_misfit(edges, sketch)
            if over is None:
                return [LayerRange(a, b) for a, b in pairwise(edges)]
            if not _shift(edges, over, self._room(edges, sketch)):
                return None
        return None

    def fits(self, offer: int, start: int, stop: int) -> bool:
        """Whether this offer can hold [start, stop), with its ends' parts and the KV floor."""
        o = self._offers[offer]
        return stop - start <= o.max_layers and self._fit.need_bytes(start, stop) <= o.memory_bytes + ROUNDING_BYTES

    def _first_misfit(self, edges: Sequence[int], sketch: Sketch) -> int | None:
        """The first stage with a holder that cannot hold its part."""
        for stage, holders in enumerate(sketch):
            start, stop = edges[stage], edges[stage + 1]
            for holder in holders:
                if not self.fits(holder, start, stop):
                    return stage
        return None

    def _room(self, edges: Sequence[int], sketch: Sketch) -> list[float]:
        """Bytes that each stage's tightest holder has left."""
        memory = (min(self._offers[holder].memory_bytes for holder in holders) for holders in sketch)
        return [m - self._fit.need_bytes(a, b) for m, (a, b) in zip(memory, pairwise(edges), strict=True)]


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
