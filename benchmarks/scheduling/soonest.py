"""The shortest time in which devices could have a whole chain on their disks and loaded, whoever orders what.

All devices may begin at once and each downloads what its slice lacks, no faster than its own line, and all together no
faster than the mirror, which serves at its full rate until the last byte; then each loads its slice. Slices are
contiguous and fit with the least KV room. No scheduler is quicker: who knows all lines and disks needs as long.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.scheduler.cost import ModelCost
from coordinator.scheduler.pieces import Piece
from coordinator.scheduler.plan import Offer
from coordinator.scheduler.problems import Fit
from coordinator.simulate.fleet import EMBEDDING, HEAD

MOST_DEVICES = 10
"""All subsets of the devices are gone through."""
EXACT_S = 0.1

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Holder:
    """A device that is there: what it could hold, the parts on its disk, its line in bytes per second, and the slice
    that it has loaded or is loading, which it need not load again."""

    offer: Offer
    disk: Collection[int]
    down_bytes_per_s: float
    held: Piece | None = None


@dataclass(frozen=True, slots=True)
class Sources:
    """What all share: the mirror's rate, and how fast a slice is loaded from a disk, in bytes per second."""

    mirror_bytes_per_s: float
    load_bytes_per_s: float


def soonest_s(cost: ModelCost, fit: Fit, holders: Sequence[Holder], sources: Sources) -> float | None:
    """Seconds; None if these cannot hold the model, or are too many to go through."""
    if not holders or len(holders) > MOST_DEVICES:
        return None
    sizes = [_sizes(cost, fit, holder) for holder in holders]
    low, high = 0.0, 2.0 * cost.weights[-1] / min(h.down_bytes_per_s for h in holders) + 3_600.0
    if not _is_possible(sizes, holders, sources, high):
        return None
    while high - low > EXACT_S:
        middle = (low + high) / 2
        if _is_possible(sizes, holders, sources, middle):
            high = middle
        else:
            low = middle
    return high


def _sizes(cost: ModelCost, fit: Fit, holder: Holder) -> tuple[Floats, Floats]:
    """For each slice [start, stop), as [start, stop]: bytes that it lacks (infinite: no slice), and that it has to
    load."""
    num = cost.num_layers
    own = np.diff(np.asarray(cost.weights, dtype=np.float64))
    lacks = np.array([0.0 if i in holder.disk else size for i, size in enumerate(own)])
    missing, whole = _spans(lacks), _spans(own)
    for edge, part, size in ((0, EMBEDDING, cost.embedding_bytes), (num, HEAD, cost.head_bytes)):
        at = (edge, slice(None)) if part == EMBEDDING else (slice(None), edge)
        missing[at] += 0.0 if part in holder.disk else size
        whole[at] += size
    fits = [[a < b and fit.fits(holder.offer, a, b) for b in range(num + 1)] for a in range(num + 1)]
    missing[~np.array(fits)] = np.inf
    if holder.held is not None:
        whole[holder.held] = 0.0
    return missing, whole


def _spans(layers: Floats) -> Floats:
    ends = np.concatenate([[0.0], np.cumsum(layers)])
    return np.asarray(ends[None, :] - ends[:, None])


def _is_possible(
    sizes: Sequence[tuple[Floats, Floats]], holders: Sequence[Holder], sources: Sources, limit_s: float
) -> bool:
    """Whether some chain is loaded by then. Per subset of devices, the fewest bytes that bring it to each layer."""
    num = sizes[0][0].shape[0] - 1
    within = []
    for (missing, whole), holder in zip(sizes, holders, strict=True):
        took_s = missing / min(holder.down_bytes_per_s, sources.mirror_bytes_per_s) + whole / sources.load_bytes_per_s
        within.append(np.where(took_s <= limit_s, missing, np.inf))
    fewest = np.full((1 << len(holders), num + 1), np.inf)
    fewest[0, 0] = 0.0
    for used in range(1, 1 << len(holders)):
        ways = [
            np.min(fewest[used ^ (1 << d)][:, None] + within[d], axis=0) for d in range(len(holders)) if used >> d & 1
        ]
        fewest[used] = np.minimum.reduce(ways)
    return bool(fewest[:, num].min() <= sources.mirror_bytes_per_s * limit_s)
