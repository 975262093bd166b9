"""Who takes layers that nobody holds: the device that has them on its disk, else the fewest that suffice.

Their shares follow measured speed as far as memory allows (water-filling), with each layer's real size.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from coordinator.scheduler.departed import FLAPPING_PER_S
from coordinator.scheduler.pieces import Piece
from coordinator.scheduler.plan import Lane, Problem, Stage
from coordinator.scheduler.problems import Fit, missing_bytes
from protocol.values import LayerRange

BISECTIONS = 16
MOST_DEVICES = 64
"""In one hole."""


class HoleFiller:
    """For one problem."""

    def __init__(self, problem: Problem, fit: Fit) -> None:
        self._problem = problem
        self._fit = fit
        self._work = problem.model.work
        self.offers = problem.offers

    def fill_all(self, holes: Sequence[Piece], usable: Iterable[int]) -> dict[int, Piece] | None:
        """All of these holes, with different devices; None if they do not suffice."""
        left = list(usable)
        filled: dict[int, Piece] = {}
        for hole in holes:
            found = self.fill(hole, [i for i in left if i not in filled])
            if found is None:
                return None
            filled |= found
        return filled

    def fill(self, hole: Piece, usable: Sequence[int]) -> dict[int, Piece] | None:
        """The fewest devices that can hold these layers together."""
        if (one := self._best_single(hole, usable)) is not None:
            return {one: hole}
        roomiest = self.roomiest(usable)[:MOST_DEVICES]
        room = 0
        for count, i in enumerate(roomiest, start=1):
            room += self._fit.most_layers(self.offers[i])
            if count > 1 and room >= hole[1] - hole[0] and (found := self.level(roomiest[:count], hole)):
                return found
        return None

    def roomiest(self, usable: Iterable[int]) -> list[int]:
        """Those that could hold anything, most first; the quicker one where that is equal."""
        offers = self.offers
        rooms = [(self._fit.most_layers(offers[i]), i) for i in usable]
        return [i for room, i in sorted(rooms, key=lambda r: (-r[0], offers[r[1]].speed.step_s, r[1])) if room]

    def simple_lane(self, indices: Sequence[int]) -> tuple[Lane, ...]:
        """One lane of the fewest of these; none if they do not suffice."""
        filled = self.fill((0, self._problem.model.num_layers), indices)
        if filled is None:
            return ()
        return (Lane(tuple(Stage(LayerRange(*p), (i,)) for i, p in sorted(filled.items(), key=lambda f: f[1]))),)

    def level(self, roomiest: Sequence[int], hole: Piece) -> dict[int, Piece] | None:
        """These devices over these layers, as level as memory allows. The two roomiest take the ends, which may also
        have to hold the embedding or the head."""
        order = [roomiest[0], *roomiest[2:], *roomiest[1:2]]
        best = self.pack(order, hole, math.inf)
        if best is None:
            return None
        low, high = 0.0, max(self._stage_s(i, piece) for i, piece in best.items())
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            found = self.pack(order, hole, middle)
            if found is None:
                low = middle
            else:
                best, high = found, middle
        return best

    def pack(self, order: Iterable[int], hole: Piece, limit_s: float) -> dict[int, Piece] | None:
        """One after the other takes as many layers as it can within its memory and this time per token."""
        at, stop = hole
        packed: dict[int, Piece] = {}
        for i in order:
            if at == stop:
                break
            end = min(stop, self._fit.reach(self.offers[i], at), self._reach_in(i, at, limit_s))
            if end > at:
                packed[i] = (at, end)
                at = end
        return packed if at == stop else None

    def _reach_in(self, i: int, start: int, limit_s: float) -> int:
        speed = self.offers[i].speed
        most = self._work[start] + limit_s / (speed.step_s + speed.row_s)
        return bisect_right(self._work, most + 1e-12, lo=start) - 1

    def _best_single(self, hole: Piece, usable: Iterable[int]) -> int | None:
        """Steady, with the fewest bytes to download, then the quickest; the smallest where that is equal."""
        offers, layers = self.offers, LayerRange(*hole)
        fitting = [i for i in usable if self._fit.fits(offers[i], *hole)]
        if not fitting:
            return None

        def cost(i: int) -> tuple[bool, float, float, float]:
            offer = offers[i]
            fetched = missing_bytes(self._problem, offer, layers)
            return offer.leaves_per_s > FLAPPING_PER_S, fetched, self._stage_s(i, hole), offer.memory_bytes

        return min(fitting, key=cost)

    def _stage_s(self, i: int, piece: Piece) -> float:
        speed = self.offers[i].speed
        return (self._work[piece[1]] - self._work[piece[0]]) * (speed.step_s + speed.row_s)
