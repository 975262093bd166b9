"""Phase 1: which device holds which layers.

Built as Parallax builds it (region first, fewest stages, most replicas, water-filling by measured speed; arXiv
2509.26182, section 3), for several amounts of KV per lane, judged by one cost model (forecast.py) in place of the
paper's Z(k), and then improved by local search, which is not bound to whole replicas: a stage may have more holders.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coordinator.scheduler.drafts import (
    SHIFTS,
    Draft,
    Load,
    drafts_of,
    drafts_score,
    expected_part,
    option_worths,
    polished,
)
from coordinator.scheduler.filling import Cutter
from coordinator.scheduler.forecast import Tables, tables_of
from coordinator.scheduler.grouping import KV_STEPS, Grouper, all_sketches, by_region
from coordinator.scheduler.plan import Lane, Placement, Problem, Stage
from coordinator.scheduler.search import FEW_DEVICES, SEED, Search
from coordinator.scheduler.tables import Sketch
from protocol.values import LayerRange

MOST_BEGINNINGS = 5
FINALISTS = 2
POLISHING_ROUNDS = 24
FEW_ENOUGH = 5
"""With so many devices, all lanes are looked at: at most a thousand (1,081 of 5 devices; 9,365 of 6)."""
FINE_KV_STEPS = (0.0, 4.0, 8.0, 16.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0, 1024.0)


class LaneAllocator:
    """The pool's own allocator."""

    def allocate(self, problem: Problem) -> Sequence[Placement]:
        """A layout from scratch."""
        return placements(problem, self.layout(problem))

    def adapt(self, problem: Problem) -> Sequence[Placement]:
        """Local repair: repair.py."""
        from coordinator.scheduler.repair import repair

        return repair(problem, self)

    def layout(self, problem: Problem) -> tuple[Lane, ...]:
        """Lanes from scratch, best first."""
        return self.lanes_from(problem, range(len(problem.offers)))

    def lanes_from(self, problem: Problem, indices: Sequence[int]) -> tuple[Lane, ...]:
        """Lanes from these offers only."""
        if not len(indices):
            return ()
        p = tables_of(problem)
        drafts, cutter = _searched(p, indices), Cutter(problem)
        lanes = (_lane(cutter, draft) for draft in sorted(drafts, key=lambda d: -d.rate))
        return tuple(lane for lane in lanes if lane is not None)


def _searched(p: Tables, indices: Sequence[int]) -> list[Draft]:
    """The best of the searches that the budget allows. A small pool is searched from several beginnings, as a few
    devices leave many ways of being stuck; in a large one the first layout is too good to begin elsewhere."""
    if not p.problem.budget:
        return _first_drafts(p, indices)
    drafts = _best_search(p, indices)
    load = Load(expected_part(p, sum(draft.rate for draft in drafts)))
    num_rounds = min(POLISHING_ROUNDS, p.problem.budget // max(1, SHIFTS * len(drafts)))
    return polished(p, drafts, load, np.random.default_rng(SEED), num_rounds)


def _best_search(p: Tables, indices: Sequence[int]) -> list[Draft]:
    first = _first_drafts(p, indices)
    if len(indices) > FEW_DEVICES:
        return Search(p, first, indices).run(p.problem.budget)
    searches = [Search(p, start, indices) for start in [first, *_beginnings(p, indices)]]
    for search in searches:
        search.run(p.problem.budget // 2 // len(searches))
    searches.sort(key=lambda search: -search.worth)
    for search in searches[:FINALISTS]:
        search.run(p.problem.budget // 2 // FINALISTS)
    return max(searches[:FINALISTS], key=lambda search: search.worth).drafts


def _beginnings(p: Tables, indices: Sequence[int]) -> list[list[Draft]]:
    """Groupings over all regions, one for each number of lanes that comes out of some amount of KV."""
    by_number: dict[int, list[Sketch]] = {}
    grouper = Grouper(p.offers, p.model)
    for sessions in FINE_KV_STEPS:
        sketches, _ = _grouped(p, grouper, indices, sessions)
        by_number.setdefault(len(sketches), sketches)
    grouped = _drafted(p, list(by_number.values()))
    best = sorted(grouped, key=lambda drafts: -_worth(p, drafts))[:MOST_BEGINNINGS]
    return [*best, *_drafted(p, _best_alone(p, indices))]


def _drafted(p: Tables, groupings: Sequence[Sequence[Sketch]]) -> list[list[Draft]]:
    drafted = [[d for d in drafts_of(p, sketches, Load()) if d is not None] for sketches in groupings]
    return [drafts for drafts in drafted if drafts]


def _best_alone(p: Tables, indices: Sequence[int]) -> list[list[Sketch]]:
    """Of a handful of devices, the lanes that would be worth most by themselves. The best one may differ from any good
    one in several places, so that no way of small steps leads to it."""
    if len(indices) > FEW_ENOUGH:
        return []
    sketches = all_sketches(indices)
    worths, _ = option_worths(p, [[sketch] for sketch in sketches])
    return [[sketches[i]] for i in np.argsort(-worths, kind="stable")[:MOST_BEGINNINGS].tolist()]


def placements(problem: Problem, lanes: Sequence[Lane]) -> list[Placement]:
    """One per holder, with its reason."""
    found = []
    for number, lane in enumerate(lanes, start=1):
        for stage in lane.stages:
            for holder in stage.holders:
                reason = _reason(stage, f"lane {number} of {len(lanes)}", len(lane.stages))
                found.append(Placement(problem.offers[holder].key, stage.layers, reason))
    return found


def _reason(stage: Stage, lane: str, num_stages: int) -> str:
    beside = f", shared by {len(stage.holders)} holders" if len(stage.holders) > 1 else ""
    return f"{len(stage.layers)} layers of {lane} ({num_stages} stages){beside}"


# ---------------------------------------------------------------- the first layout


def _first_drafts(p: Tables, indices: Sequence[int]) -> list[Draft]:
    """For each region the best of several groupings, then lanes across regions from what is left."""
    wanted, grouper = set(indices), Grouper(p.offers, p.model)
    regions = [[i for i in members if i in wanted] for members in by_region(p.offers).values()]
    options = [_grouped(p, grouper, members, kv) for members in regions for kv in KV_STEPS]
    worths, _ = option_worths(p, [sketches for sketches, _ in options], Load(num_options=len(KV_STEPS)))
    chosen: list[Sketch] = []
    left_over: list[int] = []
    for region, best in enumerate(worths.reshape(-1, len(KV_STEPS)).argmax(axis=1).tolist()):
        sketches, left = options[region * len(KV_STEPS) + best]
        chosen += sketches
        left_over += left
    chosen += _across(p, grouper, left_over)
    return [d for d in drafts_of(p, chosen, Load()) if d is not None]


def _grouped(p: Tables, grouper: Grouper, members: Sequence[int], sessions: float) -> tuple[list[Sketch], list[int]]:
    return grouper.lanes(members, sessions * p.problem.workload.num_reserved_tokens)


def _across(p: Tables, grouper: Grouper, left_over: Sequence[int]) -> list[Sketch]:
    """The best lanes over regions' borders; those that cannot keep the bound at all are worth nothing."""
    options = [_grouped(p, grouper, left_over, kv)[0] for kv in KV_STEPS]
    worths, rates = option_worths(p, options)
    best = int(worths.argmax())
    first = sum(len(option) for option in options[:best])
    return [sketch for sketch, rate in zip(options[best], rates[first:], strict=False) if rate > 0.0]


def _worth(p: Tables, drafts: Sequence[Draft]) -> float:
    """As if the demand that falls to them were the pool's."""
    return drafts_score(p, np.array([d.rate for d in drafts]), np.array([d.slow for d in drafts]))


def _lane(cutter: Cutter, draft: Draft) -> Lane | None:
    ranges = cutter.cuts(draft.counts, draft.sketch)
    return None if ranges is None else Lane(tuple(map(Stage, ranges, draft.sketch)))


def lane_ranges(lane: Lane) -> list[LayerRange]:
    """Its cuts, head first."""
    return [stage.layers for stage in lane.stages]
