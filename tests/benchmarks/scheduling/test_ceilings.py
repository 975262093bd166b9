"""Bounds of what lanes can be worth: never below what some lane is worth, and not far above it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.scheduling.ceilings import KEPT, MISSED, needed_sessions
from benchmarks.scheduling.worlds import ENDLESS, WORKLOADS, World, problem_of_world, small_worlds
from coordinator.scheduler.cost import Bound
from coordinator.scheduler.tables import Sketch
from coordinator.simulate.geography import Access
from tests.benchmarks.scheduling.drawn_lanes import Pool

EXCESS = 1e-9
TRIALS = 100
"""Lanes that are drawn in each world; about half of them have room for all layers and serve."""

WORLDS = [
    *(world for world in small_worlds(24, seed=5) if world.num_nodes <= 8),
    World(6, model="llama3-8b", num_regions=2, access="home", seed=3, workload=WORKLOADS[2]),
    World(6, model="llama3-8b", access="home", seed=4, workload=WORKLOADS[0], bound=Bound(2.0, 0.06)),
    World(6, model="qwen3-32b-4bit", num_regions=3, seed=5, workload=WORKLOADS[2], bound=Bound(4.0, 0.3)),
]


@pytest.mark.parametrize("number", range(len(WORLDS)))
def test_no_lane_is_worth_more_than_its_bound(number: int) -> None:
    pool = Pool(problem_of_world(WORLDS[number]), number)
    num_known = 0
    for _ in range(TRIALS):
        sketch, counts = pool.drawn()
        known = pool.known(sketch, counts)
        if known is None:
            continue
        num_known += 1
        ceilings, lane = pool.ceilings(known.limits), pool.lane(sketch)
        for ordered in (True, False):
            hops = ceilings.hops_of(lane) if ordered else ceilings.any_hops(lane)
            found = ceilings.least(lane, hops, np.array([known.rate]), ordered=ordered)
            assert found.least[0] <= known.least * (1 + EXCESS), (sketch, counts, ordered)
            assert len(ceilings.able(lane, hops, known.worth * (1 - EXCESS), ordered=ordered)), (sketch, counts)
    if WORLDS[number].model == "llama3-8b":
        assert num_known > TRIALS / 10, "the worlds of the small model hold many lanes"


def test_lanes_that_keep_the_bound_and_lanes_that_miss_it_are_drawn() -> None:
    """Else the test above says less than it seems."""
    limits = set()
    for number, world in enumerate(WORLDS[-3:]):
        pool = Pool(problem_of_world(world), number)
        each = (pool.known(*pool.drawn()) for _ in range(TRIALS))
        limits |= {known.limits for known in each if known is not None}
    assert limits == {KEPT, MISSED}


@pytest.mark.parametrize("access", ["lan", "fibre", "home"])
def test_the_bound_of_two_stages_is_the_best_cut(access: Access) -> None:
    """One holder each, so that nothing but the trip's length is bounded: within 2 % of the best of all cuts."""
    world = World(4, model="llama3-8b", mix={"rtx3060-12g": 1.0}, workload=WORKLOADS[2], seed=1)
    pool = Pool(problem_of_world(replace(world, access=access)), 0)
    sketch: Sketch = ((0,), (1,))
    cuts = [(n, pool.p.model.num_layers - n) for n in range(1, pool.p.model.num_layers)]
    each = [known for cut in cuts if (known := pool.known(sketch, cut)) is not None]
    best = max(each, key=lambda known: known.rate)
    assert best.limits == KEPT
    ceilings, lane = pool.ceilings(KEPT), pool.lane(sketch)
    high, _ = ceilings.most(lane, ceilings.hops_of(lane), best.rate / 2)
    assert best.rate * (1 - EXCESS) <= high[0] <= best.rate * 1.02
    most = ceilings.ceiling(lane, ceilings.hops_of(lane), best.rate / 2, high)
    assert max(known.worth for known in each) * (1 - EXCESS) <= most[0] <= best.worth * 1.04


def test_a_session_finds_room_alone_and_many_only_with_a_margin() -> None:
    assert needed_sessions(np.array([0.2, 1.0, 1.01, 8.5, 8.6])).tolist() == [1.0, 1.0, 2.0, 10.0, 11.0]


def test_demand_has_no_end_in_these_worlds() -> None:
    assert all(world.workload.tokens_per_s == ENDLESS for world in WORLDS)


@pytest.mark.parametrize("number", range(len(WORLDS)))
def test_no_lane_is_worth_more_than_its_devices_promise_at_a_glance(number: int) -> None:
    pool = Pool(problem_of_world(WORLDS[number]), number)
    for _ in range(TRIALS):
        sketch, counts = pool.drawn()
        known = pool.known(sketch, counts)
        if known is not None:
            numbers = tuple(pool.groups.members[pool.lane(sketch)[0]].sum(axis=0).astype(int).tolist())
            assert known.worth <= pool.ceilings(known.limits).at_a_glance(numbers)
