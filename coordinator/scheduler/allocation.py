"""Phase 1: which device holds which layers.

Built as Parallax builds it (region first, fewest stages, most replicas, water-filling by measured speed; arXiv
2509.26182, section 3), for several amounts of KV per lane, judged by one cost model (forecast.py) in place of the
paper's Z(k), and then improved by local search, which is not bound to whole replicas: a stage may have more holders.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coordinator.scheduler.drafts import ROUGHLY, SHIFTS, Draft, Load, drafts_of, drafts_score, expected_part, polished
from coordinator.scheduler.filling import cuts
from coordinator.scheduler.forecast import Tables, tables_of
from coordinator.scheduler.grouping import KV_STEPS, by_region, group, layer_capacities, needed_layers, sketch_of
from coordinator.scheduler.plan import Lane, Placement, Problem, Stage
from coordinator.scheduler.search import FEW_DEVICES, SEED, Search
from coordinator.scheduler.tables import Sketch
from protocol.values import LayerRange

MOST_BEGINNINGS = 5
FINALISTS = 2
POLISHING_ROUNDS = 24
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
        drafts = _searched(p, indices)
        lanes = (_lane(problem, draft) for draft in sorted(drafts, key=lambda d: -d.rate))
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
    for sessions in FINE_KV_STEPS:
        sketches, _ = _grouped(p, indices, sessions)
        by_number.setdefault(len(sketches), sketches)
    drafted = [[d for d in drafts_of(p, sketches, Load()) if d is not None] for sketches in by_number.values()]
    return sorted((drafts for drafts in drafted if drafts), key=lambda drafts: -_worth(p, drafts))[:MOST_BEGINNINGS]


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
    wanted = set(indices)
    regions = {region: [i for i in members if i in wanted] for region, members in by_region(p.offers).items()}
    options = [_grouped(p, members, kv) for members in regions.values() for kv in KV_STEPS]
    all_sketches = [sketch for option, _ in options for sketch in option]
    drafts = iter(drafts_of(p, all_sketches, Load(num_options=len(KV_STEPS)), ROUGHLY))
    drafted = [([next(drafts) for _ in option], left) for option, left in options]
    chosen: list[Sketch] = []
    left_over: list[int] = []
    for n in range(0, len(drafted), len(KV_STEPS)):
        best, left = max(drafted[n : n + len(KV_STEPS)], key=lambda option: _worth(p, option[0]))
        chosen += [d.sketch for d in best if d is not None]
        left_over += left
    chosen += _across(p, left_over)
    return [d for d in drafts_of(p, chosen, Load()) if d is not None]


def _grouped(p: Tables, members: Sequence[int], sessions: float) -> tuple[list[Sketch], list[int]]:
    kv_tokens = sessions * p.problem.workload.num_reserved_tokens
    caps = layer_capacities(p.offers, p.model, kv_tokens)
    lanes, left = group(members, caps, needed_layers(p.model, kv_tokens))
    return [sketch_of(lane, p.offers) for lane in lanes], left


def _across(p: Tables, left_over: Sequence[int]) -> list[Sketch]:
    """The best lanes over regions' borders; those that cannot keep the bound at all are worth nothing."""
    options = [_grouped(p, left_over, kv)[0] for kv in KV_STEPS]
    drafted = [[d for d in drafts_of(p, o, Load(), ROUGHLY) if d is not None and d.rate > 0.0] for o in options]
    best = max(drafted, key=lambda drafts: _worth(p, drafts), default=[])
    return [d.sketch for d in best]


def _worth(p: Tables, drafts: Sequence[Draft | None]) -> float:
    """Of one region's lanes, as if the demand that falls to them were the pool's."""
    good = [d for d in drafts if d is not None]
    if not good:
        return 0.0
    rates, slows = np.array([d.rate for d in good]), np.array([d.slow for d in good])
    return drafts_score(p, rates, slows)


def _lane(problem: Problem, draft: Draft) -> Lane | None:
    ranges = cuts(problem, list(draft.counts), list(draft.sketch))
    if ranges is None:
        return None
    return Lane(tuple(Stage(layers, holders) for layers, holders in zip(ranges, draft.sketch, strict=True)))


def lane_ranges(lane: Lane) -> list[LayerRange]:
    """Its cuts, head first."""
    return [stage.layers for stage in lane.stages]
