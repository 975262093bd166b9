"""Network coordinates: where nodes are, such that distances are round trips.

They are those of Vivaldi (Dabek, Cox, Kaashoek, Morris, SIGCOMM 2004): a point, whose distances are round trips through
the network's core, and a height, the way through the node's own access line. Vivaldi takes a small step at every one of
thousands of measurements; here a node has about eight, so they are kept and the node is fitted to all of them at once,
by majorisation of the stress (SMACOF: de Leeuw 1977). Each measurement counts by its relative error, or the long ones,
which vary most, would drown the short ones, which say most. Seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]

DIMENSIONS = 3
DEFAULT_RTT_S = 0.1
"""Between nodes of which nothing is known."""
SURE = 0.5
"""A node whose coordinates err less, relative to what it measured, is where they say."""
NUM_STARTS = 2
"""Of the fit, beside where the node is: from beside its nearest others."""
SWEEPS = 4
"""Of the fit, per call: it goes on from where it was at the next measurement."""
JUMP = 0.7
"""A placed node goes to quite another place only if that is so much better: its stress, relative."""
SOFT_RTT_S = 0.01
"""Below this, absolute errors count: half a millisecond against one is not an error of 50 %."""
TINY_S = 1e-6


@dataclass(frozen=True, slots=True)
class Measured:
    """What some rows have measured, each its own number: arrays [n, k]. `trust` is 0 where there is nothing."""

    others: Ints
    rtts_s: Floats
    trust: Floats


class Coordinates:
    """By row. Rows that were never placed have none: the caller asks `placed`."""

    def __init__(self) -> None:
        self.points = np.zeros((0, DIMENSIONS))
        self.heights = np.zeros(0)
        self.errors = np.zeros(0)
        """Mean error of what was measured, relative, and more where little was measured."""
        self.placed = np.zeros(0, dtype=np.bool_)
        self._noise = np.random.Generator(np.random.PCG64(2004))

    def grow(self, num_rows: int) -> None:
        self.points, self.heights = grown(self.points, num_rows, 0.0), grown(self.heights, num_rows, 0.0)
        self.errors, self.placed = grown(self.errors, num_rows, 1.0), grown(self.placed, num_rows, False)

    def put(self, row: int, point: Floats, height: float, error: float) -> None:
        self.points[row], self.heights[row], self.errors[row], self.placed[row] = point, height, error, True

    def clear(self, row: int) -> None:
        self.placed[row] = False
        self.errors[row] = 1.0

    def rtts_s(self, sources: Ints, targets: Ints) -> Floats:
        """Matrix [n, m]; between the same rows 0."""
        a, b = self.points[sources], self.points[targets]
        squares = (
            np.einsum("nd,nd->n", a, a)[:, None] + np.einsum("md,md->m", b, b) - 2.0 * np.einsum("nd,md->nm", a, b)
        )
        rtts: Floats = np.sqrt(np.maximum(squares, 0.0)) + self.heights[sources][:, None] + self.heights[targets]
        rtts[~(self.placed[sources][:, None] & self.placed[targets])] = DEFAULT_RTT_S
        rtts[sources[:, None] == targets] = 0.0
        return rtts

    def pair_rtts_s(self, sources: Ints, targets: Ints) -> Floats:
        """Of sources[i] and targets[i], [n]. Same row: 0; a row without a place: the default."""
        away = self.points[sources] - self.points[targets]
        rtts = np.sqrt((away * away).sum(axis=-1)) + self.heights[sources] + self.heights[targets]
        rtts = np.where(self.placed[sources] & self.placed[targets], rtts, DEFAULT_RTT_S)
        return np.asarray(np.where(sources == targets, 0.0, rtts))

    def rtt_s(self, a: int, b: int) -> float:
        """Like `rtts_s`, of one pair."""
        if not (self.placed[a] and self.placed[b]):
            return 0.0 if a == b else DEFAULT_RTT_S
        return 0.0 if a == b else math.dist(self.points[a], self.points[b]) + float(self.heights[a] + self.heights[b])

    def place_by_landmark(self, row: int, rtt_s: float) -> None:
        """Only the round trip to the origin is known: a place on one line for all such nodes.

        Half of it is height, so that two of them are as far apart as the farther one is from the landmark: the middle
        between the least and the most that the triangle inequality allows."""
        self.put(row, np.array([rtt_s / 2, 0.0, 0.0]), rtt_s / 2, 1.0)

    def fit(self, rows: Ints, measured: Measured, *, gain: float = 1.0, num_starts: int = NUM_STARTS) -> None:
        """Move these rows (each once) to where their measurements say, or `gain` of the way there.

        Those of which nothing is known but round trips to rows without a place stay without one."""
        trust = measured.trust * self.placed[measured.others]
        known = trust.any(axis=1)
        rows, others, rtts, trust = rows[known], measured.others[known], measured.rtts_s[known], trust[known]
        if not len(rows):
            return
        weights = trust / ((self.errors[others] + 0.1) * (rtts + SOFT_RTT_S))
        doubtful = np.divide(rtts, trust, out=np.full_like(rtts, np.inf), where=trust > 0.0)
        springs = _Springs(self.points[others], self.heights[others], rtts, weights)
        starts = self._starts(rows, others, doubtful, min(num_starts, others.shape[1]))
        most = np.where(trust > 0.0, rtts, np.inf).min(axis=1)
        heights = np.minimum(np.where(self.placed[rows], self.heights[rows], most / 4), most)
        points, heights, stress = springs.relax(starts, heights, most)
        stress[:, 0] *= np.where(self.placed[rows], JUMP, 1.0)
        best = np.argmin(stress, axis=1)
        each = np.arange(len(rows))
        self._move(rows, points[each, best], heights[each, best], gain)
        self._judge(rows, others, rtts, trust)

    def _starts(self, rows: Ints, others: Ints, rtts: Floats, num_starts: int) -> Floats:
        """[n, 1 + num_starts, d]: where it is, and beside the nearest others."""
        near = np.argsort(rtts, axis=1)[:, : max(1, num_starts)]
        beside = self.points[np.take_along_axis(others, near, axis=1)]
        here = np.where(self.placed[rows][:, None], self.points[rows], beside[:, 0])
        starts: Floats = np.concatenate([here[:, None], beside[:, :num_starts]], axis=1)
        spread = np.repeat(0.3 * np.minimum(rtts.min(axis=1), DEFAULT_RTT_S)[:, None], num_starts + 1, axis=1)
        spread[self.errors[rows] < SURE, 0] = 0.0
        starts += self._noise.standard_normal(starts.shape) * spread[:, :, None]
        return starts

    def _move(self, rows: Ints, points: Floats, heights: Floats, gain: float) -> None:
        gains = np.where(self.placed[rows], gain, 1.0)
        self.points[rows] += gains[:, None] * (points - self.points[rows])
        self.heights[rows] += gains * (heights - self.heights[rows])
        self.placed[rows] = True

    def _judge(self, rows: Ints, others: Ints, rtts: Floats, trust: Floats) -> None:
        offsets = self.points[rows][:, None] - self.points[others]
        guess = np.sqrt(np.einsum("nkd,nkd->nk", offsets, offsets)) + self.heights[rows][:, None] + self.heights[others]
        num = trust.sum(axis=1)
        wrong = (trust * np.abs(guess - rtts) / (rtts + SOFT_RTT_S)).sum(axis=1) / num
        self.errors[rows] = np.minimum(1.0, wrong + 0.5 / num)


@dataclass(frozen=True, slots=True)
class _Springs:
    """Each row's pull towards where its others say that it is: arrays [n, k, ...]."""

    anchors: Floats
    anchor_heights: Floats
    rtts_s: Floats
    weights: Floats

    def relax(self, points: Floats, heights: Floats, max_heights: Floats) -> tuple[Floats, Floats, Floats]:
        """Points [n, s, d] of s starts each, heights [n, s] and the stress left [n, s]."""
        shares = (self.weights / self.weights.sum(axis=1, keepdims=True))[:, None]
        pulled = np.einsum("nsk,nkd->nsd", shares, self.anchors)
        above = (self.rtts_s - self.anchor_heights)[:, None]
        heights = np.repeat(heights[:, None], points.shape[1], axis=1)
        distances, offsets = self._distances(points)
        for _ in range(SWEEPS):
            reach = np.maximum(above - heights[:, :, None], 0.0) / distances
            points = pulled + np.einsum("nsk,nskd->nsd", shares * reach, offsets)
            distances, offsets = self._distances(points)
            heights = np.minimum(np.maximum((shares * (above - distances)).sum(axis=2), 0.0), max_heights[:, None])
        errors = distances + heights[:, :, None] - above
        return points, heights, (self.weights[:, None] * errors * errors).sum(axis=2)

    def _distances(self, points: Floats) -> tuple[Floats, Floats]:
        offsets = points[:, :, None] - self.anchors[:, None]
        return np.sqrt(np.einsum("nskd,nskd->nsk", offsets, offsets)) + TINY_S, offsets


def grown(array: NDArray[Any], num_rows: int, value: float) -> NDArray[Any]:
    """The array with more rows, filled with `value`."""
    more = np.full((num_rows - len(array), *array.shape[1:]), value, dtype=array.dtype)
    return np.concatenate([array, more])
