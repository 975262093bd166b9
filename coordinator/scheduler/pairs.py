"""What was measured between pairs of nodes: sparse, bounded, smoothed, and void after a while. Seconds and bytes."""

from __future__ import annotations

import math

import numpy as np

from coordinator.scheduler.coordinates import Ints, Measured, grown

MAX_PAIRS = 24
"""Kept at one node; the oldest makes room."""
FRESH_S = 600.0
"""After so long a measurement counts no more as what the link is like."""
OLD_S = 3600.0
OLD_TRUST = 0.15
"""And so long it still counts a little for where the node is."""
NEWEST_WEIGHT = 0.25
"""Of the newest measurement against all before it: a link that is ten times as slow shows at the second."""


class Pairs:
    """By row the others it measured. Where everybody measures one node, a pair may be kept at the other end only.

    A row that is given to another node gets another tenure, which makes void all that was ever measured to it."""

    def __init__(self) -> None:
        self._slots: list[dict[int, int]] = []
        self._tenure = np.zeros(0, dtype=np.intp)
        self._others = np.zeros((0, MAX_PAIRS), dtype=np.intp)
        self._other_tenures = np.zeros((0, MAX_PAIRS), dtype=np.intp)
        self._rtts_s = np.zeros((0, MAX_PAIRS))
        self._seen_s = np.zeros((0, MAX_PAIRS))
        self._byte_s = np.zeros((0, MAX_PAIRS))
        self._turns = np.zeros((0, MAX_PAIRS), dtype=np.intp)
        """When a slot was written, counted in writes: finer than time."""
        self._turn = 0
        self._now_s = 0.0

    def grow(self, num_rows: int) -> None:
        self._slots += [{} for _ in range(num_rows - len(self._slots))]
        self._tenure = grown(self._tenure, num_rows, 0)
        self._others, self._other_tenures = grown(self._others, num_rows, 0), grown(self._other_tenures, num_rows, -1)
        self._rtts_s, self._seen_s = grown(self._rtts_s, num_rows, 0.0), grown(self._seen_s, num_rows, 0.0)
        self._byte_s, self._turns = grown(self._byte_s, num_rows, math.nan), grown(self._turns, num_rows, 0)

    def clear(self, row: int) -> None:
        """Another node gets this row."""
        self._slots[row].clear()
        self._tenure[row] += 1
        self._other_tenures[row] = -1

    def pass_time(self, now_s: float) -> None:
        """Time never goes back, whatever is passed."""
        self._now_s = max(self._now_s, now_s)

    def see(self, source: int, target: int, rtt_s: float, bytes_per_s: float | None = None) -> None:
        """A measurement from one row to another. Times are what is smoothed, of bytes too: a slow one weighs more."""
        before = self.rtt_s(source, target)
        rtt_s = rtt_s if before is None else before + NEWEST_WEIGHT * (rtt_s - before)
        byte_s = math.nan
        if bytes_per_s is not None:
            rate = self.bytes_per_s(source, target)
            byte_s = 1 / bytes_per_s
            byte_s = byte_s if rate is None else 1 / rate + NEWEST_WEIGHT * (byte_s - 1 / rate)
        self._put(source, target, self._room(source), rtt_s, byte_s)
        spare = self._spare(target)
        if spare is not None or source in self._slots[target]:
            self._put(target, source, spare or 0, rtt_s, math.nan)

    def see_landmark(self, row: int, landmark: int, rtt_s: float) -> float:
        """Like `see`, for a landmark that keeps no list of its own; returns the smoothed round trip."""
        before = self.rtt_s(row, landmark)
        rtt_s = rtt_s if before is None else before + NEWEST_WEIGHT * (rtt_s - before)
        self._put(row, landmark, self._room(row), rtt_s, math.nan)
        return rtt_s

    def rtt_s(self, a: int, b: int) -> float | None:
        """As measured lately, from either end; None: not measured."""
        slot = self._find(a, b)
        if slot is not None:
            return float(self._rtts_s[a, slot])
        slot = self._find(b, a)
        return None if slot is None else float(self._rtts_s[b, slot])

    def bytes_per_s(self, source: int, target: int) -> float | None:
        """As measured lately in this direction."""
        slot = self._find(source, target)
        if slot is None or math.isnan(self._byte_s[source, slot]):
            return None
        return 1 / float(self._byte_s[source, slot])

    def median_bytes_per_s(self, source: int) -> float | None:
        """Over all its measured links; of two in the middle the slower one."""
        slots = [slot for other in self._slots[source] if (slot := self._find(source, other)) is not None]
        times = np.sort(self._byte_s[source, slots])
        times = times[~np.isnan(times)]
        return 1 / float(times[len(times) // 2]) if len(times) else None

    def fresh(self, row: int) -> list[int]:
        """The others that this row measured lately."""
        return [other for other in self._slots[row] if self._find(row, other) is not None]

    def measured(self, rows: Ints) -> Measured:
        """All that these rows know, for fitting their coordinates."""
        current = self._other_tenures[rows] == self._tenure[self._others[rows]]
        ages_s = self._now_s - self._seen_s[rows]
        trust = np.where(ages_s <= FRESH_S, 1.0, np.where(ages_s <= OLD_S, OLD_TRUST, 0.0))
        return Measured(self._others[rows], self._rtts_s[rows], trust * current)

    def _find(self, row: int, other: int) -> int | None:
        slot = self._slots[row].get(other)
        return slot if slot is not None and self._is_fresh(row, slot) else None

    def _is_fresh(self, row: int, slot: int) -> bool:
        is_current = self._other_tenures[row, slot] == self._tenure[self._others[row, slot]]
        return bool(is_current and self._seen_s[row, slot] >= self._now_s - FRESH_S)

    def _spare(self, row: int) -> int | None:
        """A slot that is free or void."""
        if len(self._slots[row]) < MAX_PAIRS:
            return len(self._slots[row])
        void = self.measured(np.array([row])).trust[0] < 1.0
        return int(np.argmax(void)) if void.any() else None

    def _room(self, row: int) -> int:
        spare = self._spare(row)
        return int(np.argmin(self._turns[row])) if spare is None else spare

    def _put(self, row: int, other: int, slot: int, rtt_s: float, byte_s: float) -> None:
        slots = self._slots[row]
        if other in slots:
            slot = slots[other]
            byte_s = float(self._byte_s[row, slot]) if math.isnan(byte_s) and self._is_fresh(row, slot) else byte_s
        elif slot < len(slots):
            del slots[int(self._others[row, slot])]
        slots[other] = slot
        self._others[row, slot], self._other_tenures[row, slot] = other, self._tenure[other]
        self._rtts_s[row, slot], self._byte_s[row, slot] = rtt_s, byte_s
        self._seen_s[row, slot], self._turns[row, slot] = self._now_s, self._turn
        self._turn += 1
