"""How long rows take between two nodes: measured sparsely, completed by network coordinates; regions found by RTT.

A path over the relay and a direct one are both just a measured round trip here. Seconds and bytes per second.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import numpy as np

from coordinator.scheduler.coordinates import DEFAULT_RTT_S as DEFAULT_RTT_S
from coordinator.scheduler.coordinates import DIMENSIONS, NUM_STARTS, SURE, Coordinates, grown
from coordinator.scheduler.coordinates import Floats as Floats
from coordinator.scheduler.coordinates import Ints as Ints
from coordinator.scheduler.pairs import Pairs
from coordinator.scheduler.regions import REGION_RTT_S as REGION_RTT_S
from coordinator.scheduler.regions import UNKNOWN_REGION as UNKNOWN_REGION
from coordinator.scheduler.regions import Regions, reaches_s
from protocol.values import NodeId

DEFAULT_BYTES_PER_S = 12.5e6
"""100 Mbit/s: of nodes whose uplink nobody measured."""
MIN_RTT_S, MAX_RTT_S = 1e-4, 5.0
"""Whatever a node reports, it counts as no less and no more."""
MIN_BYTES_PER_S = 1e3
ENOUGH_PAIRS = 8
"""A node that has measured so many others lately need not measure more."""
FIRST_PROBES = 5
"""What a node without coordinates measures of them: landmarks. The rest are its neighbours, known after that."""
NEAR_RTT_S = 2 * REGION_RTT_S
"""Who measured no other as near as this, access lines included, has not met its region yet."""
MAX_DEPARTED = 10_000
"""Of so many nodes that left the coordinates are kept."""
MAX_GUESTS = 10_000
"""Nodes that only measurements have named. A late report may name one that left, and nobody would forget it again."""
FEW_NODES = 256
"""Of so many all are looked at to find whom a node should measure."""
NUM_LOOKED_AT = 128
"""Of more nodes, so many by chance, and so many of the nearest."""
NUM_REFITTED = 3
"""Other nodes that are fitted again at each report, in turn: what they once measured was measured to moving targets."""
OTHERS_GAIN = 0.5
"""How far those who did not report themselves go towards where they should be; many move at once."""

_POOL = 0
"""The coordinator's row: it is a landmark, at the origin and without height."""


@dataclass(frozen=True, slots=True)
class LinkSeen:
    """One measurement from `source` to `target`: round trip in seconds, and bytes per second if that was measured."""

    source: NodeId
    target: NodeId
    rtt_s: float
    bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Departed:
    """What is kept of a node that left."""

    point: Floats
    height: float
    error: float
    upload: float
    region: int


class LinkMap:
    """All that is known of the network between the nodes. Deterministic: the same calls have the same answers."""

    def __init__(self) -> None:
        self._rows: dict[NodeId, int] = {}
        self._names: list[NodeId | None] = []
        """By row."""
        self._free: list[int] = []
        self._num_rows = 1
        self._guests: dict[NodeId, None] = {}
        self._departed: dict[NodeId, _Departed] = {}
        self._pairs, self._coordinates, self._regions = Pairs(), Coordinates(), Regions()
        self._uploads = np.zeros(0)
        self._turn = 0
        self._dice = np.random.Generator(np.random.PCG64(4096))
        self._grow(64)
        self._coordinates.put(_POOL, np.zeros(DIMENSIONS), 0.0, 0.1)

    def __len__(self) -> int:
        """How many nodes it knows now."""
        return len(self._rows)

    # ------------------------------------------------------------ what was measured

    def see(
        self, links: Iterable[LinkSeen], pool_rtts: Iterable[tuple[NodeId, float]] = (), now_s: float = 0.0
    ) -> None:
        """Nodes measured links, and their round trips to the coordinator. Time may stand still, but never goes back."""
        self._pairs.pass_time(now_s)
        self._see_pool([(node_id, rtt_s) for node_id, rtt_s in pool_rtts if math.isfinite(rtt_s)])
        usable = (link for link in links if link.source != link.target and math.isfinite(link.rtt_s))
        for source, group in groupby(usable, key=attrgetter("source")):
            self._see_links(self._named(source), list(group))
        if self._regions.is_stale(len(self._rows)):
            rows = self._placed(np.arange(1, self._num_rows))
            self._regions.rebuild(rows, *self._places(rows))
        while len(self._guests) > MAX_GUESTS:
            self.forget(next(iter(self._guests)))

    def _see_pool(self, pool_rtts: Sequence[tuple[NodeId, float]]) -> None:
        rows = []
        for node_id, rtt_s in pool_rtts:
            row = self._named(node_id)
            smooth_s = self._pairs.see_landmark(row, _POOL, _clamped(rtt_s))
            if self._pairs.fresh(row) == [_POOL] and self._coordinates.errors[row] >= 1.0:
                self._coordinates.place_by_landmark(row, smooth_s)
                rows.append(row)
        self._moved(rows)

    def _see_links(self, row: int, links: Sequence[LinkSeen]) -> None:
        targets = [self._named(link.target) for link in links]
        for target, link in zip(targets, links, strict=True):
            rate = max(link.bytes_per_s, MIN_BYTES_PER_S) if link.bytes_per_s is not None else None
            self._pairs.see(row, target, _clamped(link.rtt_s), rate)
        self._uploads[row] = self._pairs.median_bytes_per_s(row) or self._uploads[row]
        if not self._coordinates.placed[[row, *targets]].any():
            self._coordinates.put(row, np.zeros(DIMENSIONS), _clamped(min(link.rtt_s for link in links)) / 4, 1.0)
        afresh = sorted({row, *self._next_in_turn()})
        self._fit(afresh, 1.0, NUM_STARTS)
        others = sorted(set(targets) - set(afresh))
        self._fit(others, OTHERS_GAIN, 0)
        self._moved(afresh + others)

    def _fit(self, rows: Sequence[int], gain: float, num_starts: int) -> None:
        indices = np.array(rows, dtype=np.intp)
        self._coordinates.fit(indices, self._pairs.measured(indices), gain=gain, num_starts=num_starts)

    def _moved(self, rows: Sequence[int]) -> None:
        placed = self._placed(np.array(rows, dtype=np.intp))
        self._regions.moved(placed, *self._places(placed))

    def _places(self, rows: Ints) -> tuple[Floats, Floats]:
        return self._coordinates.points[rows], reaches_s(self._coordinates.errors[rows])

    def _placed(self, rows: Ints) -> Ints:
        return rows[self._coordinates.placed[rows]]

    def _next_in_turn(self) -> list[int]:
        turns = range(self._turn, self._turn + NUM_REFITTED)
        self._turn += NUM_REFITTED
        rows = {1 + turn % max(1, self._num_rows - 1) for turn in turns}
        return [row for row in rows if row < self._num_rows and self._coordinates.placed[row]]

    # ------------------------------------------------------------ rows

    def row(self, node_id: NodeId) -> int:
        """The node's index for the vector functions, good until it is forgotten."""
        if node_id in self._guests:
            del self._guests[node_id]
        row = self._rows.get(node_id)
        return self._new_row(node_id) if row is None else row

    def forget(self, node_id: NodeId) -> None:
        """It left: its row may become another's. Should it come back soon, it is where it was. Harmless if unknown."""
        row = self._rows.pop(node_id, None)
        if row is None:
            return
        self._guests.pop(node_id, None)
        at = self._coordinates
        if at.placed[row]:
            error, region = max(float(at.errors[row]), SURE), int(self._regions.numbers[row])
            self._departed[node_id] = _Departed(
                at.points[row].copy(), float(at.heights[row]), error, float(self._uploads[row]), region
            )
        while len(self._departed) > MAX_DEPARTED:
            del self._departed[next(iter(self._departed))]
        for part in (self._pairs, self._coordinates, self._regions):
            part.clear(row)
        self._uploads[row] = DEFAULT_BYTES_PER_S
        self._names[row] = None
        self._free.append(row)

    def _named(self, node_id: NodeId) -> int:
        """The row of a node that a measurement names."""
        if node_id not in self._rows:
            self._guests[node_id] = None
        return self._row(node_id)

    def _row(self, node_id: NodeId) -> int:
        row = self._rows.get(node_id)
        return self._new_row(node_id) if row is None else row

    def _new_row(self, node_id: NodeId) -> int:
        if self._free:
            row = self._free.pop()
        else:
            row = self._num_rows
            self._num_rows += 1
            if row >= len(self._uploads):
                self._grow(2 * row)
        self._rows[node_id] = row
        self._names[row] = node_id
        before = self._departed.pop(node_id, None)
        if before is not None:
            self._coordinates.put(row, before.point, before.height, before.error)
            self._uploads[row] = before.upload
            self._regions.numbers[row] = before.region
            self._moved([row])
        return row

    def _grow(self, num_rows: int) -> None:
        for part in (self._pairs, self._coordinates, self._regions):
            part.grow(num_rows)
        self._uploads = grown(self._uploads, num_rows, DEFAULT_BYTES_PER_S)
        self._names += [None] * (num_rows - len(self._names))

    # ------------------------------------------------------------ answers

    def delay_s(self, a: NodeId, b: NodeId) -> float:
        """One way: half of what was measured lately, else by coordinates, else half the default. Same node: 0."""
        if a == b:
            return 0.0
        row_a, row_b = self._rows.get(a), self._rows.get(b)
        if row_a is None or row_b is None:
            return DEFAULT_RTT_S / 2
        rtt_s = self._pairs.rtt_s(row_a, row_b)
        return (self._coordinates.rtt_s(row_a, row_b) if rtt_s is None else rtt_s) / 2

    def bytes_per_s(self, a: NodeId, b: NodeId) -> float:
        """From a to b: no more than was measured lately, nor than a's upload. Same node: inf."""
        if a == b:
            return math.inf
        row_a, row_b = self._rows.get(a), self._rows.get(b)
        if row_a is None:
            return DEFAULT_BYTES_PER_S
        upload = float(self._uploads[row_a])
        rate = None if row_b is None else self._pairs.bytes_per_s(row_a, row_b)
        return upload if rate is None else min(rate, upload)

    def hop_s(self, a: NodeId, b: NodeId, num_bytes: float) -> float:
        """For so many bytes to arrive. Same node: 0."""
        return 0.0 if a == b else self.delay_s(a, b) + num_bytes / self.bytes_per_s(a, b)

    def delays_s(self, sources: Ints, targets: Ints) -> Floats:
        """One way, by coordinates only [n, m]. Rows from `row`."""
        return self._coordinates.rtts_s(sources, targets) / 2

    def pair_delays_s(self, sources: Ints, targets: Ints) -> Floats:
        """One way from sources[i] to targets[i], by coordinates only [n]. Rows from `row`."""
        return self._coordinates.pair_rtts_s(sources, targets) / 2

    def upload(self, row: int) -> float:
        """Bytes per second: like `uploads` of one."""
        return float(self._uploads[row])

    def uploads(self, rows: Ints) -> Floats:
        """Median of each node's measured links, or the default [n]."""
        return self._uploads[rows]

    def region(self, node_id: NodeId) -> int:
        """The number of its region; `UNKNOWN_REGION` of a node without measurements."""
        row = self._rows.get(node_id)
        return UNKNOWN_REGION if row is None else int(self._regions.numbers[row])

    def regions(self, rows: Ints) -> Ints:
        """Like `region` [n]."""
        return self._regions.numbers[rows]

    # ------------------------------------------------------------ what to measure next

    def probes(self, node_id: NodeId, connected: Collection[NodeId]) -> tuple[NodeId, ...]:
        """Whom of the connected nodes this one should measure next; none when it knows enough lately.

        First landmarks, which are the nodes surest of their place, one of each region in turn; then its neighbours by
        what that said, and one at random, which finds what coordinates have wrong. In a large pool these are looked
        for among some; pass a set, or a view of a dictionary's keys."""
        row = self.row(node_id)
        fresh = self._pairs.fresh(row)
        num_measured = len(set(fresh) - {_POOL})
        if num_measured >= ENOUGH_PAIRS:
            return ()
        if len(connected) <= FEW_NODES:
            rows = np.fromiter(map(self.row, connected), dtype=np.intp, count=len(connected))
        else:
            rows = self._worth_looking_at(row, connected)
        others = rows[~np.isin(rows, [row, *fresh])]
        if num_measured < FIRST_PROBES:
            chosen = others[self._landmarks(others, FIRST_PROBES - num_measured)]
        else:
            chosen = others[self._neighbours(row, others, ENOUGH_PAIRS - num_measured)]
        return tuple([name for each in chosen.tolist() if (name := self._names[each]) is not None])

    def _worth_looking_at(self, row: int, connected: Collection[NodeId]) -> Ints:
        """Of the connected nodes that have a row: some by chance, and the nearest in its region and its nearest's."""
        some = self._dice.integers(1, self._num_rows, NUM_LOOKED_AT)
        here = np.array([row, self._nearest_measured(row)], dtype=np.intp)
        numbers = self._regions.numbers[: self._num_rows]
        around = np.flatnonzero(np.isin(numbers, numbers[here]) & (numbers != UNKNOWN_REGION))
        if len(around) > NUM_LOOKED_AT:
            distances = self._coordinates.rtts_s(here, around).min(axis=0)
            around = around[np.argpartition(distances, NUM_LOOKED_AT)[:NUM_LOOKED_AT]]
        rows = np.unique(np.concatenate([some, around])).tolist()
        return np.array([each for each in rows if self._names[each] in connected], dtype=np.intp)

    def _nearest_measured(self, row: int) -> int:
        """The row itself if it has measured nobody."""
        times = [(self._pairs.rtt_s(row, other) or 0.0, other) for other in self._pairs.fresh(row) if other != _POOL]
        return min(times, default=(0.0, row))[1]

    def _landmarks(self, rows: Ints, num_wanted: int) -> Ints:
        """Indices into `rows`: the surest of each region, then the second of each, and so on."""
        surest = np.argsort(self._coordinates.errors[rows], kind="stable")
        by_region = np.argsort(self._regions.numbers[rows[surest]], kind="stable")
        numbers = self._regions.numbers[rows[surest[by_region]]]
        firsts = np.flatnonzero(np.diff(numbers, prepend=-1))
        lengths = np.diff(firsts, append=len(rows))
        ranks = np.empty(len(rows), dtype=np.intp)
        ranks[by_region] = np.arange(len(rows)) - np.repeat(firsts, lengths)
        return np.asarray(surest[np.argsort(ranks, kind="stable")[:num_wanted]], dtype=np.intp)

    def _neighbours(self, row: int, rows: Ints, num_wanted: int) -> Ints:
        """Indices into `rows`: those nearest to it or to whom it measured as its nearest, and one by chance."""
        measured = np.array(self._pairs.fresh(row), dtype=np.intp)
        rtts = np.array([self._pairs.rtt_s(row, other) for other in measured.tolist()], dtype=np.float64)
        friend = measured[np.argmin(rtts)]
        order = np.argsort(self._coordinates.rtts_s(np.array([row, friend]), rows).min(axis=0), kind="stable")
        if rtts.min() > NEAR_RTT_S:
            order = self._elsewhere_first(order, rows, measured)
        num_near = max(1, num_wanted - 1)
        rest = order[num_near:]
        chance = self._dice.choice(rest, min(len(rest), num_wanted - num_near), replace=False) if len(rest) else rest
        return np.concatenate([order[:num_near], chance])

    def _elsewhere_first(self, order: Ints, rows: Ints, measured: Ints) -> Ints:
        """Who has met nobody near is perhaps not where it seems: first one of each region that it has not measured."""
        regions = self._regions.numbers[rows[order]]
        _, firsts = np.unique(regions, return_index=True)
        firsts = np.sort(firsts[~np.isin(regions[firsts], self._regions.numbers[measured])])
        return np.concatenate([order[firsts], np.delete(order, firsts)])


def _clamped(rtt_s: float) -> float:
    return min(max(rtt_s, MIN_RTT_S), MAX_RTT_S)
