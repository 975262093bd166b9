"""Regions: nodes near each other, found from where coordinates place them and never declared.

Distances leave heights out: two nodes behind slow access lines in one town are still in one region. Seconds.
"""

from __future__ import annotations

from itertools import count, islice

import numpy as np

from coordinator.scheduler.coordinates import DIMENSIONS, Bools, Floats, Ints, grown

REGION_RTT_S = 0.03
"""A node whose round trip to a region's centre takes less, its own access line not counted, belongs to the region."""
UNKNOWN_REGION = 0
"""Of nodes without a single measurement."""
STAY = 1.3
"""A member leaves its region when it is so many times the radius away, or another centre is so many times nearer."""
DOUBT = 4.0
MAX_ERROR = 0.3
"""The reach of a node whose coordinates err by so much is longer by `DOUBT` times that, up to an error of this."""
NUM_REFINEMENTS = 2
MOVES_BEFORE_REBUILD = 32
"""And half the number of nodes: to find all regions anew then costs nothing beside the moves themselves."""
CELL_CODE = np.array([1, 1 << 20, 1 << 40], dtype=np.int64)
"""Cubes have one number each as long as coordinates are within 2^19 cubes: hours of round trip."""


def reaches_s(errors: Floats) -> Floats:
    """How far from a centre nodes may seem and still belong to it, by the relative errors of their coordinates."""
    return REGION_RTT_S * (1.0 + DOUBT * np.minimum(errors, MAX_ERROR))


def find_centres(points: Floats, reaches: Floats) -> Floats:
    """Centres [r, d] such that each point has one within its reach; the densest first (leader clustering)."""
    cells = _cells(points, REGION_RTT_S / 2)
    crowd = np.bincount(cells)
    around_s = REGION_RTT_S + reaches.max(initial=0.0)
    centres: list[Floats] = []
    while len(points):
        seed = points[cells == np.argmax(crowd)].mean(axis=0)
        around = np.flatnonzero(_within(points, seed, around_s))
        seed = _middle(points[around], seed)
        taken = around[_within(points[around], seed, reaches[around])]
        centres.append(seed)
        crowd -= np.bincount(cells[taken], minlength=len(crowd))
        left = np.ones(len(points), dtype=np.bool_)
        left[taken] = False
        points, cells, reaches = points[left], cells[left], reaches[left]
    return np.array(centres).reshape(-1, DIMENSIONS)


def _middle(points: Floats, seed: Floats) -> Floats:
    """The middle of the crowd about the seed: mean shift, with a narrow kernel, so that neighbours do not pull."""
    for _ in range(NUM_REFINEMENTS):
        near = _within(points, seed, REGION_RTT_S / 2)
        seed = points[near].mean(axis=0) if near.any() else seed
    return seed


def nearest_centres(points: Floats, centres: Floats) -> tuple[Ints, Floats]:
    """For each point the index of its nearest centre, and how far that is."""
    squares = _squares(points, centres)
    nearest = np.argmin(squares, axis=1)
    return nearest, np.sqrt(np.maximum(squares[np.arange(len(points)), nearest], 0.0))


class Regions:
    """By row the number of its region, from 1 on. Numbers stay what they are as long as most members do."""

    def __init__(self) -> None:
        self.numbers = np.zeros(0, dtype=np.intp)
        self._centres = np.zeros((0, DIMENSIONS))
        self._centre_numbers = np.zeros(0, dtype=np.intp)
        self._num_moves = 0

    def grow(self, num_rows: int) -> None:
        self.numbers = grown(self.numbers, num_rows, UNKNOWN_REGION)

    def clear(self, row: int) -> None:
        self.numbers[row] = UNKNOWN_REGION

    def moved(self, rows: Ints, points: Floats, reaches: Floats) -> None:
        """These rows are at these points now: some change their region, those far from any centre found one."""
        self._num_moves += len(rows)
        self._assign(rows, points, reaches)
        lost = self.numbers[rows] == UNKNOWN_REGION
        if lost.any():
            centres = find_centres(points[lost], reaches[lost])
            numbers = self._unused(len(centres))
            self._centres = np.concatenate([self._centres, centres])
            self._centre_numbers = np.concatenate([self._centre_numbers, numbers])
            self._assign(rows[lost], points[lost], reaches[lost])

    def is_stale(self, num_placed: int) -> bool:
        """So many moved since the last rebuild that centres may be where nobody is."""
        return self._num_moves > num_placed // 2 + MOVES_BEFORE_REBUILD

    def rebuild(self, rows: Ints, points: Floats, reaches: Floats) -> None:
        """Find all regions anew; each gets the number that most of its members had."""
        self._num_moves = 0
        centres = find_centres(points, reaches)
        found, _ = nearest_centres(points, centres) if len(rows) else (rows, None)
        self._centre_numbers = self._matched(found, self.numbers[rows], len(centres))
        self._centres = centres
        self._assign(rows, points, reaches)

    def _assign(self, rows: Ints, points: Floats, reaches: Floats) -> None:
        if not len(self._centres):
            self.numbers[rows] = UNKNOWN_REGION
            return
        nearest, distances = nearest_centres(points, self._centres)
        choice = np.where(distances < reaches, self._centre_numbers[nearest], UNKNOWN_REGION)
        own = self._own_distances(rows, points)
        stays = (own < STAY * reaches) & (own < STAY * distances + REGION_RTT_S / 4)
        self.numbers[rows] = np.where(stays, self.numbers[rows], choice)

    def _own_distances(self, rows: Ints, points: Floats) -> Floats:
        """To the centre of the region that each row has; inf where that is no more."""
        slot = np.full(int(max(self._centre_numbers.max(), self.numbers[rows].max(initial=0))) + 1, -1, dtype=np.intp)
        slot[self._centre_numbers] = np.arange(len(self._centre_numbers))
        own = slot[self.numbers[rows]]
        offsets = points - self._centres[own]
        return np.where(own >= 0, np.sqrt(np.einsum("nd,nd->n", offsets, offsets)), np.inf)

    def _matched(self, found: Ints, before: Ints, num_centres: int) -> Ints:
        """A number for each centre found: the largest overlaps first, each number once."""
        numbers = np.zeros(num_centres, dtype=np.intp)
        known = before != UNKNOWN_REGION
        pairs, counts = np.unique(np.stack([found[known], before[known]]), axis=1, return_counts=True)
        taken: set[int] = set()
        for each in np.argsort(-counts, kind="stable"):
            centre, number = int(pairs[0, each]), int(pairs[1, each])
            if not numbers[centre] and number not in taken:
                numbers[centre] = number
                taken.add(number)
        fresh = numbers == UNKNOWN_REGION
        numbers[fresh] = _lowest_unused(taken, int(fresh.sum()))
        return numbers

    def _unused(self, num_wanted: int) -> Ints:
        return _lowest_unused(set(self._centre_numbers.tolist()), num_wanted)


def _lowest_unused(taken: set[int], num_wanted: int) -> Ints:
    free = (number for number in count(UNKNOWN_REGION + 1) if number not in taken)
    return np.array(list(islice(free, num_wanted)), dtype=np.intp)


def _cells(points: Floats, size_s: float) -> Ints:
    """For each point the number of the cube it is in: as many numbers as cubes that are not empty."""
    _, cells = np.unique(np.floor(points / size_s).astype(np.int64) @ CELL_CODE, return_inverse=True)
    return np.asarray(cells, dtype=np.intp)


def _squares(points: Floats, centres: Floats) -> Floats:
    lengths = np.einsum("nd,nd->n", points, points)[:, None] + np.einsum("rd,rd->r", centres, centres)
    return np.asarray(lengths - 2.0 * np.einsum("nd,rd->nr", points, centres), dtype=np.float64)


def _within(points: Floats, centre: Floats, radius_s: Floats | float) -> Bools:
    offsets = points - centre
    return np.asarray(np.einsum("nd,nd->n", offsets, offsets) < radius_s * radius_s, dtype=np.bool_)
