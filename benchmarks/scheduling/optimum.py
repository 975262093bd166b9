"""The exact optimum of phase 1 on small pools: the yardstick for coordinator/scheduler/allocation.py.

    python -m benchmarks.scheduling.optimum --num 100

With a demand that no pool can serve (worlds.ENDLESS) the objective, forecast.score, adds up over lanes: each is worth
its rate, a little less the longer its answers take. So the optimum is a set packing, which HiGHS solves: disjoint sets
of offers, each worth what its best lane is. Offers that can be exchanged for one another are counted, not named.

The best lane of a set is looked for over all ways to form stages of it, with any number of holders each (stages.py),
all ends, orders and leads, and all cuts: a bound (ceilings.py) discards what cannot beat the best that is known by more
than TOLERANCE, the rest is evaluated by the objective itself. A set of which several known lanes are worth more than
any one lane could be needs no lane of its own.

What is exact: `Optimum.score` is the objective's value of `Optimum.lanes`, and no layout is worth more than
`Optimum.bound`, whether the limits on time were reached (not `is_complete`) or not. Lanes that cannot keep the bound of
latency, of whose tokens a hundredth counts, are part of the bound, but not looked for. What is not looked at: demands
that end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from benchmarks.scheduling.ceilings import FASTEST, MISSED, MOST_IN_ORDER, Ceilings, Hops, token_worth
from benchmarks.scheduling.stages import Groups, Numbers, kinds_of, ways
from benchmarks.scheduling.worlds import ENDLESS, World, problem_of_world, small_worlds
from coordinator.scheduler.allocation import LaneAllocator
from coordinator.scheduler.filling import Cutter
from coordinator.scheduler.forecast import (
    answer_limit_s,
    answer_times,
    lane_rates,
    lane_times,
    score,
    tables_of,
)
from coordinator.scheduler.links import Floats, Ints
from coordinator.scheduler.plan import Lane, Problem, Stage
from coordinator.scheduler.tables import Sketch, lane_batch

TOLERANCE = 0.003
"""What is not worth so much more than the best known, relatively, is not looked at."""
MOST_LEADS = 64
AT_ONCE = 40
"""Ordered lanes that are evaluated before the others are bounded again."""
RAISES = (10.0, 2.0, 1.2)
"""Factors by which a bound is raised until nothing can be worth so much."""
STEPS = (1, 2)
"""Layers that the last polish of a cut moves at once."""


@dataclass(frozen=True)
class Column:
    """A lane, of the first offers of each kind."""

    worth: float
    sketch: Sketch
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Optimum:
    """The best layout found, and what no layout can exceed."""

    lanes: tuple[Lane, ...]
    score: float
    bound: float
    is_complete: bool
    wall_s: float


def optimum(problem: Problem, time_limit_s: float = 120.0) -> Optimum:
    """Of a problem with endless demand and up to about 12 offers; ValueError for another demand."""
    if problem.workload.tokens_per_s is None or problem.workload.tokens_per_s < ENDLESS:
        raise ValueError("only with endless demand does the objective add up over lanes")
    return _Solver(problem, time_limit_s).run()


class _Solver:
    def __init__(self, problem: Problem, time_limit_s: float) -> None:
        self._problem, self._p = problem, tables_of(problem)
        self._kinds = kinds_of(self._p)
        self._groups = Groups(self._p, self._kinds)
        self._ceilings = Ceilings(self._p, self._groups)
        self._slow_ceilings = Ceilings(self._p, self._groups, MISSED)
        self._columns: dict[Numbers, Column] = {}
        self._bounds: dict[Numbers, float] = {}
        self._started_s = time.perf_counter()
        self._time_limit_s = time_limit_s
        self._is_complete = True
        self._order = cache(self._best_order)

    def run(self) -> Optimum:
        ranges = [range(number + 1) for number in self._kinds.numbers]
        packed: dict[Numbers, float] = {}
        for numbers in sorted(itertools.product(*ranges), key=lambda n: (sum(n), n)):
            packed[numbers] = self._packed(numbers, packed)
            if not any(numbers):
                continue
            column, bound = self._best_lane(numbers, packed[numbers])
            if column is not None:
                self._columns[numbers] = column
                packed[numbers] = column.worth
            if column is not None or bound > packed[numbers] * (1.0 + TOLERANCE):
                self._bounds[numbers] = bound
        chosen = pack({n: column.worth for n, column in self._columns.items()}, self._kinds.numbers)
        bounding = pack(self._bounds, self._kinds.numbers)
        lanes = self._lanes(chosen)
        most = sum(self._bounds[numbers] for numbers in bounding)
        spent_s = time.perf_counter() - self._started_s
        return Optimum(lanes, score(self._problem, lanes), most, self._is_complete, spent_s)

    def _packed(self, numbers: Numbers, packed: Mapping[Numbers, float]) -> float:
        """The most that is known of these offers, in lanes of fewer of them."""
        fewer = (_less(numbers, i) for i, number in enumerate(numbers) if number)
        best = max((packed[some] for some in fewer), default=0.0)
        for some, column in self._columns.items():
            if all(a <= b for a, b in zip(some, numbers, strict=True)):
                rest = tuple(b - a for a, b in zip(some, numbers, strict=True))
                best = max(best, column.worth + packed[rest])
        return best

    # ------------------------------------------------------------ the best lane of a set

    def _best_lane(self, numbers: Numbers, known: float) -> tuple[Column | None, float]:
        """(a lane of all these that is worth more than `known`, if there is one; what no such lane can exceed)."""
        column, most = None, max(known, 1e-6) * (1.0 + TOLERANCE)
        if self._ceilings.at_a_glance(numbers) > most:
            if self._is_late():
                most = self._ceilings.at_a_glance(numbers)
            else:
                column, most = self._best_keeping(list(self._roomy(numbers)), max(known, 1e-6))
        if self._slow_ceilings.at_a_glance(numbers) > most:
            if self._is_late():
                return column, self._slow_ceilings.at_a_glance(numbers)
            most = self._most_missing(self._roomy(numbers), most)
        return column, most

    def _best_keeping(self, roomy: Sequence[Ints], worth: float) -> tuple[Column | None, float]:
        """The same, of lanes that keep the bound of latency."""
        best, most = None, worth * (1.0 + TOLERANCE)
        left = self._candidates(roomy, most)
        while left:
            if self._is_late():
                return best, max(most, self._rough_bound(left, worth))
            rest = []
            for lanes, hops in self._longest_lasting(left, worth * (1.0 + TOLERANCE)):
                column, ceiling = self._looked_at(lanes, hops, worth)
                most = max(most, ceiling)
                if column is not None and column.worth > worth:
                    best, worth = column, column.worth
                rest.append({tuple(lane) for lane in lanes.tolist()})
            left = self._still_able(left, set().union(*rest), worth * (1.0 + TOLERANCE))
        return best, max(most, worth * (1.0 + TOLERANCE))

    def _looked_at(self, lanes: Ints, hops: Hops, worth: float) -> tuple[Column | None, float]:
        """(the best lane found among these, what none of them is worth): of up to two stages all cuts are tried. A lane
        is as slow as it is at its most, which the ceilings, over all rates, do not know."""
        if lanes.shape[1] > 2:
            high, counts = self._ceilings.most(lanes, hops, worth / FASTEST)
            ceiling = float(self._ceilings.ceiling(lanes, hops, worth / FASTEST, high).max())
            return self._evaluated(lanes, counts), ceiling
        num_layers = self._groups.num_layers
        every_cut = [(num_layers,)] if lanes.shape[1] == 1 else [(n, num_layers - n) for n in range(1, num_layers)]
        columns = [column for lane in lanes.tolist() if (column := self._best_cut(tuple(lane), every_cut)) is not None]
        best = max(columns, key=lambda column: column.worth, default=None)
        return best, best.worth if best is not None else 0.0

    def _best_cut(self, lane: tuple[int, ...], every_cut: Sequence[tuple[int, ...]]) -> Column | None:
        able = [cut for cut in every_cut if self._groups.fit(lane, cut)]
        trials = [(sketch, cut) for sketch in self._sketches(lane) for cut in able]
        if not trials:
            return None
        worths = self._worths([sketch for sketch, _ in trials], [cut for _, cut in trials])
        best = int(worths.argmax())
        return Column(float(worths[best]), *trials[best])

    def _is_late(self) -> bool:
        late = time.perf_counter() - self._started_s > self._time_limit_s
        self._is_complete &= not late
        return late

    def _most_missing(self, roomy: Iterable[Ints], worth: float) -> float:
        """At least `worth`, and what lanes that miss the bound of latency are not worth, to 20 %, in any order."""
        ceilings = self._slow_ceilings

        def able(lanes: Ints, worth: float) -> Ints:
            return lanes[ceilings.able(lanes, ceilings.any_hops(lanes), worth, ordered=False)]

        for lanes in roomy:
            left = able(lanes, worth)
            if not len(left):
                continue
            for factor in RAISES:
                while len(fewer := able(left, worth * factor)):
                    left, worth = fewer, worth * factor
            worth *= RAISES[-1]
        return worth

    def _roomy(self, numbers: Numbers) -> Iterator[Ints]:
        """Ways to form stages that have room for all layers."""
        caps = (self._groups.most_sessions >= 1).sum(axis=1)
        for size, lanes in ways(self._groups, numbers).items():
            if size <= self._groups.num_layers:
                yield lanes[caps[lanes].sum(axis=1) >= self._groups.num_layers]

    def _rough_bound(self, left: list[tuple[Ints, Hops]], worth: float) -> float:
        """What none of these can be worth, to 5 %: for when there is no time to look closer."""
        while left:
            worth *= 1.05
            left = self._still_able(left, set(), worth)
        return worth

    def _candidates(self, roomy: Iterable[Ints], worth: float) -> list[tuple[Ints, Hops]]:
        """Ordered lanes that may be worth so much."""
        found = []
        for some in roomy:
            able = some[self._ceilings.able(some, self._ceilings.any_hops(some), worth, ordered=False)]
            if len(able):
                lanes = np.array([lane for way in able.tolist() for lane in self._orders(tuple(way))], dtype=np.intp)
                found.append((lanes, self._ceilings.hops_of(lanes)))
        return self._still_able(found, set(), worth)

    def _still_able(
        self, lanes: Iterable[tuple[Ints, Hops]], done: set[tuple[int, ...]], worth: float
    ) -> list[tuple[Ints, Hops]]:
        left = []
        for some, hops in lanes:
            new = np.array([i for i, lane in enumerate(some.tolist()) if tuple(lane) not in done], dtype=np.intp)
            able = new[self._ceilings.able(some[new], hops.at(new), worth, ordered=True)]
            if len(able):
                left.append((some[able], hops.at(able)))
        return left

    def _longest_lasting(self, lanes: list[tuple[Ints, Hops]], worth: float) -> list[tuple[Ints, Hops]]:
        """The few that promise most: those that are left when more and more is asked for."""
        while sum(len(some) for some, _ in lanes) > AT_ONCE:
            worth *= 1.2
            fewer = self._still_able(lanes, set(), worth)
            if not fewer:
                break
            lanes = fewer
        return [(some[:AT_ONCE], hops.at(slice(AT_ONCE))) for some, hops in lanes]

    # ------------------------------------------------------------ orders, leads, cuts

    def _orders(self, way: tuple[int, ...]) -> set[tuple[int, ...]]:
        """For each choice of first and last stage the order of least delay: nothing else depends on it."""
        if len(way) == 1:
            return {way}
        pairs = itertools.permutations(range(len(way)), 2)
        ends = {(way[i], way[j], tuple(sorted(way[k] for k in range(len(way)) if k not in (i, j)))) for i, j in pairs}
        return {self._order(first, last, between) for first, last, between in ends}

    def _best_order(self, first: int, last: int, between: tuple[int, ...]) -> tuple[int, ...]:
        if len(between) + 2 > MOST_IN_ORDER:
            return (first, *between, last)
        hop_s = self._groups.hop_s
        orders = ((first, *middle, last) for middle in sorted(set(itertools.permutations(between))))
        return min(orders, key=lambda lane: sum(hop_s[a, b] for a, b in itertools.pairwise(lane)))

    def _evaluated(self, lanes: Ints, counts: Ints) -> Column | None:
        """The best of these by the objective itself, its cut polished."""
        trials = [
            (tuple(lane), sketch, tuple(cut))
            for lane, cut in zip(lanes.tolist(), counts.tolist(), strict=True)
            if self._groups.fit(tuple(lane), tuple(cut))
            for sketch in self._sketches(tuple(lane))
        ]
        if not trials:
            return None
        worths = self._worths([t[1] for t in trials], [t[2] for t in trials])
        best = [self._polished(*trials[i]) for i in np.argsort(-worths, kind="stable")[:5]]
        return max(best, key=lambda column: column.worth)

    def _sketches(self, lane: tuple[int, ...]) -> list[Sketch]:
        """With the first offers of each kind; every choice of who leads a stage."""
        used = [0] * len(self._kinds.members)
        stages = []
        for group in lane:
            numbers = self._groups.numbers[group]
            of_kinds = [self._kinds.members[t][used[t] : used[t] + n] for t, n in enumerate(numbers) if n]
            used = [u + n for u, n in zip(used, numbers, strict=True)]
            holders = [i for members in of_kinds for i in members]
            stages.append([(m[0], *(i for i in holders if i != m[0])) for m in of_kinds])
        return list(itertools.islice(itertools.product(*stages), MOST_LEADS))

    def _polished(self, lane: tuple[int, ...], sketch: Sketch, counts: tuple[int, ...]) -> Column:
        worth = float(self._worths([sketch], [counts])[0])
        while True:
            near = [cut for cut in _neighbours(counts) if self._groups.fit(lane, cut)]
            worths = self._worths([sketch] * len(near), near)
            if not near or worths.max() <= worth * (1.0 + 1e-9):
                return Column(worth, sketch, counts)
            worth, counts = float(worths.max()), near[int(worths.argmax())]

    def _worths(self, sketches: Sequence[Sketch], counts: Sequence[tuple[int, ...]]) -> Floats:
        if not sketches:
            return np.zeros(0)
        batch = lane_batch(sketches)
        times = lane_times(self._p, batch, np.array([c for cut in counts for c in cut], dtype=float))
        rates = lane_rates(self._p, batch, times).tokens_per_s
        latency = answer_times(self._p, batch, times, rates) / answer_limit_s(self._p)
        return np.asarray(rates * token_worth(latency))

    def _lanes(self, chosen: Sequence[Numbers]) -> tuple[Lane, ...]:
        """The columns' lanes, each with offers of its own."""
        used, cutter = [0] * len(self._kinds.members), Cutter(self._problem)
        lanes = []
        for numbers in chosen:
            column = self._columns[numbers]
            names = {
                members[i]: members[used[t] + i]
                for t, (members, number) in enumerate(zip(self._kinds.members, numbers, strict=True))
                for i in range(number)
            }
            used = [u + n for u, n in zip(used, numbers, strict=True)]
            sketch = [tuple(names[i] for i in stage) for stage in column.sketch]
            ranges = cutter.cuts(column.counts, tuple(sketch))
            assert ranges is not None, "its layers fit"
            lanes.append(Lane(tuple(Stage(layers, holders) for layers, holders in zip(ranges, sketch, strict=True))))
        return tuple(lanes)


def _less(numbers: Numbers, kind: int) -> Numbers:
    return tuple(number - (i == kind) for i, number in enumerate(numbers))


def _neighbours(counts: tuple[int, ...]) -> list[tuple[int, ...]]:
    pairs = itertools.product(itertools.permutations(range(len(counts)), 2), STEPS)
    return [tuple(c + step * ((i == a) - (i == b)) for i, c in enumerate(counts)) for (a, b), step in pairs]


def pack(worths: Mapping[Numbers, float], available: Numbers) -> list[Numbers]:
    """The sets, with repetition, that are worth most together and take no more than is available (HiGHS)."""
    sets = [numbers for numbers, worth in worths.items() if worth > 0.0]
    if not sets:
        return []
    scale = max(worths[numbers] for numbers in sets)
    found = milp(
        c=np.array([-worths[numbers] / scale for numbers in sets]),
        constraints=LinearConstraint(np.array(sets, dtype=float).T, ub=np.array(available, dtype=float)),
        bounds=Bounds(0, max(available)),
        integrality=np.ones(len(sets)),
        options={"mip_rel_gap": 1e-9},
    )
    if found.x is None:
        raise RuntimeError(f"HiGHS found no packing: {found.message}")
    times = np.round(found.x).astype(int).tolist()
    return [numbers for numbers, number in zip(sets, times, strict=True) for _ in range(number)]


# ---------------------------------------------------------------- the comparison


@dataclass(frozen=True)
class Row:
    """One pool. Gaps are relative to the optimum found; negative where the search beats it within the tolerance."""

    world: World
    score: float
    bound_gap: float
    search_gap: float
    paper_gap: float
    is_complete: bool
    wall_s: float
    found: str
    best: str


def compare(world: World, time_limit_s: float) -> Row:
    """Our allocator, with and without its search, against the optimum."""
    problem = problem_of_world(world)
    best = optimum(problem, time_limit_s)
    allocator = LaneAllocator()
    layout = allocator.layout(problem)
    paper = score(problem, allocator.layout(replace(problem, budget=0)))
    found = score(problem, layout)
    top = max(best.score, found, 1e-9)
    return Row(
        world,
        best.score,
        best.bound / top - 1.0,
        1.0 - found / top if best.score > 0.0 else 0.0,
        1.0 - paper / top if best.score > 0.0 else 0.0,
        best.is_complete,
        best.wall_s,
        in_words(layout),
        in_words(best.lanes),
    )


def in_words(lanes: Sequence[Lane]) -> str:
    """`1+2:40 3:40 | 4:80`: lanes, their stages with holders and numbers of layers."""
    each = (" ".join(f"{'+'.join(map(str, s.holders))}:{len(s.layers)}" for s in lane.stages) for lane in lanes)
    return " | ".join(each)


PROVEN = 0.01
"""A pool's optimum is known if the bound is no further above the best layout that was found."""


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Means and worst gaps, as shares. Only pools that can serve at all count."""
    serving = [row for row in rows if row.score > 0.0]
    figures: dict[str, float] = {
        "num_pools": len(serving),
        "num_complete": sum(row.is_complete for row in serving),
        "num_proven": sum(row.bound_gap <= PROVEN for row in serving),
    }
    for name in ("search_gap", "paper_gap", "bound_gap") if serving else ():
        gaps = [max(0.0, getattr(row, name)) for row in serving]
        figures |= {f"mean_{name}": statistics.fmean(gaps), f"worst_{name}": max(gaps)}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time-limit-s", type=float, default=120.0)
    arguments = parser.parse_args()
    rows = []
    print("| pool | nodes | model | regions | optimum | bound | search gap | paper's gap | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    worlds = small_worlds(arguments.first + arguments.num, arguments.seed)
    for number, world in enumerate(worlds[arguments.first :], start=arguments.first):
        row = compare(world, arguments.time_limit_s)
        rows.append(row)
        note = "" if row.is_complete else " (time limit)"
        shape = f"| {number} | {world.num_nodes} | {world.model} | {world.num_regions} {world.access} "
        gaps = f"| {row.score:.1f} | +{row.bound_gap:.2%}{note} | {row.search_gap:.2%} | {row.paper_gap:.2%} "
        print(f"{shape}{gaps}| {row.wall_s:.1f} |", flush=True)
        if row.search_gap > 0.01:
            print(f"  found {row.found}\n  best  {row.best}", flush=True)
    print(json.dumps(summary(rows)))


if __name__ == "__main__":
    main()
