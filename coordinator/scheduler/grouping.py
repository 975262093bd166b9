"""Which devices form a lane: region first, then fewest stages, then most replicas.

As in Parallax (arXiv 2509.26182, section 3): stages of one replica stay in one region, because links between regions
are slow, and every stage adds a hop. How much memory each stage keeps for KV is not fixed there; here it is what is
tried: more KV means more stages and slower answers, but more of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from coordinator.scheduler.tables import Floats, ModelTable, OfferTable, Sketch

KV_STEPS = (0.0, 24.0, 64.0, 160.0)
"""Sessions that a lane shall have KV for: the concurrency that grouping is tried with."""


def layer_capacities(offers: OfferTable, model: ModelTable, kv_tokens: float) -> Floats:
    """Layers that each offer can hold anywhere but at the ends, [offers], beside this much KV."""
    per_layer = model.weight_bytes + model.kv_token_bytes * max(kv_tokens, model.kv_floor_tokens)
    limits = np.where(offers.max_layers < model.num_layers, offers.max_layers, np.inf)  # beyond it, room for the ends
    return np.asarray(np.minimum(np.floor(offers.memory / per_layer + 1e-9), limits))


def needed_layers(model: ModelTable, kv_tokens: float) -> float:
    """Layers that a lane's capacities must add up to: the model's, and what its ends take, in layers."""
    per_layer = model.weight_bytes + model.kv_token_bytes * max(kv_tokens, model.kv_floor_tokens)
    return model.num_layers + math.ceil(model.embedding_bytes / per_layer) + math.ceil(model.head_bytes / per_layer)


class Grouper:
    """Forms the lanes of one problem. Its columns are plain lists: one offer is looked at at a time, which takes numpy
    several times as long."""

    def __init__(self, offers: OfferTable, model: ModelTable) -> None:
        self._offers, self._model = offers, model
        self._memory: list[float] = offers.memory.tolist()
        self._regions: list[int] = offers.regions.tolist()
        self._rooms: dict[float, tuple[list[float], float]] = {}

    def lanes(self, members: Iterable[int], kv_tokens: float) -> tuple[list[Sketch], list[int]]:
        """(lanes, left over) of these offers, where lanes keep so much KV."""
        if kv_tokens not in self._rooms:
            caps = layer_capacities(self._offers, self._model, kv_tokens)
            self._rooms[kv_tokens] = caps.tolist(), needed_layers(self._model, kv_tokens)
        found, left = group(members, *self._rooms[kv_tokens])
        return [sketch_of(lane, self._memory, self._regions) for lane in found], left


def group(offers: Iterable[int], caps: Sequence[float], needed: float) -> tuple[list[list[int]], list[int]]:
    """(lanes, left over): roomiest first, a lane takes devices until they suffice. So it has few stages, and its
    devices are alike: none waits for a much slower one, none has much more room for KV than the others."""
    lanes: list[list[int]] = []
    lane: list[int] = []
    missing = needed
    for room, index in sorted([(-caps[i], i) for i in offers if caps[i] >= 1.0]):
        lane.append(index)
        missing += room
        if missing <= 0:
            lanes.append(lane)
            lane, missing = [], needed
    return lanes, lane


def sketch_of(lane: Sequence[int], memory: Sequence[float], regions: Sequence[int]) -> Sketch:
    """One stage per device; neighbours are of one region, the roomiest two at the ends, which hold more."""
    if len(lane) < 3:
        return tuple([(i,) for i in lane])
    first, last, *others = sorted(lane, key=memory.__getitem__, reverse=True)
    here, there = regions[first], regions[last]
    middle = sorted(others, key=lambda i: (regions[i] != here, regions[i], i))
    if here != there:
        middle.sort(key=lambda i: (regions[i] == there, regions[i] != here))
    return ((first,), *[(i,) for i in middle], (last,))


def all_sketches(offers: Sequence[int]) -> list[Sketch]:
    """Every lane that some of these offers could make: all ways to put them into stages, in every order."""
    found: list[Sketch] = [()]
    for offer in offers:
        found += [placed(sketch, offer, at) for sketch in found for at in _alone_first(num_places(sketch))]
    return found[1:]


def _alone_first(num: int) -> list[int]:
    return [*range(0, num, 2), *range(1, num, 2)]


def num_places(sketch: Sketch) -> int:
    """In how many ways one more offer can be put into it."""
    return 2 * len(sketch) + 1


def placed(sketch: Sketch, offer: int, at: int) -> Sketch:
    """As a stage of its own before stage `at` / 2, or, if `at` is odd, beside the holders of that stage."""
    stage = at // 2
    if at % 2:
        return (*sketch[:stage], (*sketch[stage], offer), *sketch[stage + 1 :])
    return (*sketch[:stage], (offer,), *sketch[stage:])


def by_region(offers: OfferTable) -> dict[int, list[int]]:
    """Offers of each region."""
    found: dict[int, list[int]] = {}
    for index, region in enumerate(offers.regions.tolist()):
        found.setdefault(region, []).append(index)
    return found
