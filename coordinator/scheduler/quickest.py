"""When nothing serves: the chain that serves soonest, whoever holds what now.

The last layer that arrives ends the wait, so what counts is the longest download of a chain. For a given limit a search
takes devices one after the other, each as many layers as it can have within the limit; bisection finds the least.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from coordinator.scheduler.departed import FLAPPING_PER_S
from coordinator.scheduler.pieces import Piece
from coordinator.scheduler.plan import Problem
from coordinator.scheduler.problems import Fit, Stored, stored_by

MOST_DEVICES = 24
"""That are looked at: those with the most on their disks, and the quickest lines."""
BEAM = 16
"""Beginnings of chains that are followed at once."""
BISECTIONS = 7
PATIENCE = (1.0, 1.2, 1.5, 2.0)
"""A chain that takes so many times as long as the quickest may have fewer stages, or quicker devices."""
SLACK_S = 1.0
MIRROR_LINES = 2.0
"""What all download from together is taken to be as quick as so many of the quickest lines: its rate is not known, and
where it is the narrowest, what counts is how many bytes there are in all."""


class _Begun(NamedTuple):
    at: int
    chain: tuple[tuple[int, Piece], ...]


class Quickest:
    """For one problem."""

    def __init__(self, problem: Problem, fit: Fit) -> None:
        self._problem, self._fit = problem, fit
        self._weights = problem.model.weights
        self._rates: dict[int, float] = {}
        self._stored: dict[int, list[Stored]] = {}

    def chains(self, usable: Sequence[int]) -> list[dict[int, Piece]]:
        """Who is to hold what: the chain that is ready first, and some that take little longer; none if they do not
        suffice. Devices that come and go are taken only if others do not."""
        offers = self._problem.offers
        steady = [i for i in usable if offers[i].leaves_per_s < FLAPPING_PER_S]
        for some in (steady, usable) if len(steady) < len(usable) else (usable,):
            candidates = self._candidates(some)
            least_s = self._least_s(candidates)
            if least_s is not None:
                found = [self._within(candidates, least_s * times + SLACK_S) for times in PATIENCE]
                return [chain for chain in found if chain]
        return []

    def wait_s(self, changes: Mapping[int, Piece]) -> float:
        """Until the last of these is downloaded."""
        self._learn(changes)
        return max((self._fetch_s(i, piece) for i, piece in changes.items()), default=0.0)

    def shared_s(self, changes: Mapping[int, Piece]) -> float:
        """Until a mirror that is no quicker than a few of the quickest lines has sent all of these."""
        self._learn(changes)
        line = max((self._rates[i] for i in self._stored), default=1.0)
        return sum(self._missing(i, piece) for i, piece in changes.items()) / (MIRROR_LINES * line)

    def missing_bytes(self, i: int, piece: Piece) -> float:
        """What offer i would have to download for this."""
        self._learn([i])
        return self._missing(i, piece)

    # ------------------------------------------------------------ what is known of devices

    def _candidates(self, usable: Sequence[int]) -> list[int]:
        offers = self._problem.offers
        able = [i for i in usable if self._fit.most_layers(offers[i])]
        self._learn(able)
        order = sorted(able, key=lambda i: (-self._soon_bytes(i), i))
        return sorted(order[:MOST_DEVICES])

    def _soon_bytes(self, i: int) -> float:
        """What it could hold within a minute."""
        w = self._weights
        on_disk = max((w[s.stop] - w[s.start] - s.lacking_bytes for s in self._stored[i]), default=0.0)
        return min(on_disk + 60.0 * self._rates[i], self._problem.offers[i].memory_bytes)

    def _learn(self, some: Collection[int]) -> None:
        """What is on their disks, and how fast weights come: as their last ones did. Who has not downloaded yet is
        taken for one like the others; a line's download is seldom slower than its upload, which links show."""
        offers, links = self._problem.offers, self._problem.links
        unknown = [i for i in some if i not in self._stored]
        self._stored |= {i: stored_by(offers[i]) for i in unknown}
        rows = np.array([links.row(offers[i].key.node_id) for i in unknown], dtype=np.intp)
        uploads = dict(zip(unknown, links.uploads(rows).tolist(), strict=True)) if unknown else {}
        known = sorted(rate for i in some if (rate := offers[i].fetch_bytes_per_s))
        usual = known[len(known) // 2] if known else max(uploads.values(), default=1.0)
        self._rates |= {i: offers[i].fetch_bytes_per_s or max(usual, uploads[i]) for i in unknown}

    # ------------------------------------------------------------ the least time

    def _least_s(self, some: Sequence[int]) -> float | None:
        """The shortest time in which these can have a whole chain on their disks."""
        low, high = 0.0, 2.0 * self._weights[-1] / min((self._rates[i] for i in some), default=1.0)
        best = self._within(some, high)
        if best is None:
            return None
        for _ in range(BISECTIONS + 8):
            high = min(high, max(self._fetch_s(i, piece) for i, piece in best.items()))
            if high - low < max(1.0, 0.03 * high):
                break
            middle = (low + high) / 2
            found = self._within(some, middle)
            low, high, best = (middle, high, best) if found is None else (low, middle, found)
        return high

    def _within(self, some: Sequence[int], limit_s: float) -> dict[int, Piece] | None:
        """A chain of the fewest of these that takes no longer to download; of equally many the fewest bytes."""
        beginnings = [_Begun(0, ())]
        while beginnings:
            longer: dict[frozenset[int], _Begun] = {}
            for begun in beginnings:
                for i in some:
                    if all(i != other for other, _ in begun.chain):
                        self._go_on(begun, i, limit_s, longer)
            whole = [begun.chain for begun in longer.values() if begun.at == self._fit.num_layers]
            if whole:
                return min((self._settled(chain, limit_s) for chain in whole[:BEAM]), key=self._num_bytes)
            beginnings = sorted(longer.values(), key=lambda begun: (-begun.at, begun.chain))[:BEAM]
        return None

    def _go_on(self, begun: _Begun, i: int, limit_s: float, longer: dict[frozenset[int], _Begun]) -> None:
        """With device `i`, if that is further than others came with the same devices."""
        stop = self._reach(i, begun.at, limit_s * self._rates[i])
        if stop == begun.at:
            return
        chain = (*begun.chain, (i, (begun.at, stop)))
        used = frozenset(other for other, _ in chain)
        if used not in longer or longer[used].at < stop:
            longer[used] = _Begun(stop, chain)

    def _reach(self, i: int, start: int, num_bytes: float) -> int:
        """The largest stop with which it can hold [start, stop) after downloading at most so much."""
        weights, model = self._weights, self._problem.model
        room = num_bytes - model.embedding_bytes * (start == 0 and all(s.start for s in self._stored[i]))
        stop = bisect_right(weights, weights[start] + room, lo=start) - 1 if room >= 0.0 else start
        for piece in self._stored[i]:
            lead = max(0.0, weights[piece.start] - weights[start]) + piece.lacking_bytes
            if piece.stop > start and lead <= room:
                stop = max(stop, bisect_right(weights, weights[piece.stop] + room - lead, lo=piece.stop) - 1)
        return min(stop, self._fit.reach(self._problem.offers[i], start))

    # ------------------------------------------------------------ boundaries

    def _settled(self, chain: Sequence[tuple[int, Piece]], limit_s: float) -> dict[int, Piece]:
        """The same devices in the same order, with boundaries where the fewest bytes are missing: each was given as
        much as it can have in time, which may be more than anybody needs to download."""
        edges = {edge for i, _ in chain for s in self._stored[i] for edge in (s.start, s.stop)}
        edges |= {edge for _, piece in chain for edge in piece}
        ways: dict[int, tuple[float, tuple[tuple[int, Piece], ...]]] = {0: (0.0, ())}
        for i, _ in chain:
            longer: dict[int, tuple[float, tuple[tuple[int, Piece], ...]]] = {}
            for start, (num_bytes, way) in ways.items():
                furthest = self._reach(i, start, limit_s * self._rates[i])
                for stop in (edge for edge in edges if start < edge <= furthest):
                    total = num_bytes + self._missing(i, (start, stop))
                    if stop not in longer or total < longer[stop][0]:
                        longer[stop] = total, (*way, (i, (start, stop)))
            ways = longer
        return dict(ways[self._fit.num_layers][1])

    # ------------------------------------------------------------ what a chain costs

    def _fetch_s(self, i: int, piece: Piece) -> float:
        return self._missing(i, piece) / self._rates[i]

    def _num_bytes(self, chain: Mapping[int, Piece]) -> float:
        return sum(self._missing(i, piece) for i, piece in chain.items())

    def _missing(self, i: int, piece: Piece) -> float:
        weights, (start, stop) = self._weights, piece
        saved = 0.0
        for s in self._stored[i]:
            first, last = max(s.start, start), min(s.stop, stop)
            if first < last:
                saved = max(saved, weights[last] - weights[first] - s.lacking_bytes)
        return weights[stop] - weights[start] - saved
