"""The yardstick itself: against trying everything where that is possible, and never beaten anywhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scheduling.optimum import TOLERANCE, compare, optimum, pack, summary
from benchmarks.scheduling.stages import Groups, kinds_of, ways
from benchmarks.scheduling.worlds import ENDLESS, World, problem_of_world, small_worlds
from coordinator.scheduler.allocation import LaneAllocator
from coordinator.scheduler.cost import Workload
from coordinator.scheduler.forecast import score, tables_of
from coordinator.scheduler.plan import Lane, Problem
from tests.fakes import lane_problems as pools
from tests.fakes import pool_facts as facts
from tests.fakes.lane_problems import Given

NUMERICAL = 0.002
"""forecast.lane_rates bisects to 0.1 %."""


def problem(devices: Sequence[Given], num_layers: int = 5, far_s: float = 0.05) -> Problem:
    workload = Workload(64.0, 64.0, 10_000.0, ENDLESS)
    return pools.problem(devices, model=facts.model(num_layers), workload=workload, far_s=far_s)


# ---------------------------------------------------------------- everything tried


def all_lanes(problem: Problem, members: tuple[int, ...]) -> Iterator[Lane]:
    """Every lane of exactly these devices: stages, leads, order, cuts."""
    num_layers = problem.model.num_layers
    for size in range(1, len(members) + 1):
        for stage_of in itertools.product(range(size), repeat=len(members)):
            if set(stage_of) != set(range(size)):
                continue
            stages = [[m for m, s in zip(members, stage_of, strict=True) if s == k] for k in range(size)]
            for cut in itertools.combinations(range(1, num_layers), size - 1):
                counts = [b - a for a, b in itertools.pairwise([0, *cut, num_layers])]
                led = [[(lead, *(m for m in s if m != lead)) for lead in s] for s in stages]
                for holders in itertools.product(*led):
                    lane = pools.lane(*zip(counts, holders, strict=True))
                    if not pools.faults(problem, [lane]):
                        yield lane


def best_of_all(problem: Problem) -> float:
    """By trying all lanes of all sets and all packings."""
    everybody = range(len(problem.offers))
    sets = [some for size in range(1, len(everybody) + 1) for some in itertools.combinations(everybody, size)]
    worth = {some: max((score(problem, [lane]) for lane in all_lanes(problem, some)), default=0.0) for some in sets}
    return _packed(worth, tuple(everybody))


def _packed(worth: dict[tuple[int, ...], float], left: tuple[int, ...]) -> float:
    """The first one is in no lane, or in one with some of the others."""
    if not left:
        return 0.0
    first, others = left[0], left[1:]
    best = _packed(worth, others)
    for size in range(len(others) + 1):
        for some in itertools.combinations(others, size):
            best = max(best, worth[first, *some] + _packed(worth, tuple(i for i in others if i not in some)))
    return best


GIVEN = st.builds(Given, st.floats(1.0, 7.0), st.sampled_from([1e-3, 3e-3]), st.integers(0, 1))


@settings(max_examples=12, deadline=None)
@given(st.lists(GIVEN, min_size=1, max_size=3))
def test_it_is_what_trying_everything_finds(devices: list[Given]) -> None:
    small = problem(devices)
    found, best = optimum(small), best_of_all(small)
    assert found.is_complete
    assert found.score == pytest.approx(best, rel=TOLERANCE + NUMERICAL)
    assert found.bound >= best * (1 - 1e-9)


@settings(max_examples=6, deadline=None)
@given(st.lists(GIVEN, min_size=2, max_size=3), st.floats(0.1, 1.0))
def test_lanes_that_miss_the_bound_of_latency_are_worth_no_more_than_the_bound_either(
    devices: list[Given], far_s: float
) -> None:
    small = problem(devices, far_s=far_s)
    assert optimum(small).bound >= best_of_all(small) * (1 - 1e-9)


def test_a_pool_that_can_only_miss_the_bound_has_a_bound_of_its_own() -> None:
    small = problem([Given(4.9, region=0), Given(4.9, region=1)], far_s=0.5)
    found, best = optimum(small), best_of_all(small)
    assert found.score == 0.0 < best <= found.bound


def test_the_bound_holds_when_the_time_is_up_at_once() -> None:
    small = problem([Given(3.0), Given(2.0), Given(4.0, 3e-3)])
    found = optimum(small, time_limit_s=0.0)
    assert not found.is_complete
    assert found.bound >= best_of_all(small) * (1 - 1e-9)


def test_holders_of_one_stage_are_found() -> None:
    """Two layers make two stages at most: the third device can only be beside another."""
    given = problem([Given(1.9, 1e-3), Given(1.5, 2e-2), Given(1.5, 2e-2)], num_layers=2)
    assert sorted(len(stage.holders) for lane in optimum(given).lanes for stage in lane.stages) == [1, 2]


# ---------------------------------------------------------------- real shapes

SMALL = [world for world in small_worlds(60) if world.num_nodes <= 5][:4]


@pytest.mark.parametrize("world", SMALL, ids=lambda world: f"{world.num_nodes}-{world.model}")
def test_no_layout_of_ours_exceeds_the_bound(world: World) -> None:
    given = problem_of_world(world)
    best = optimum(given, time_limit_s=10.0)
    lanes = LaneAllocator().layout(replace(given, budget=500))
    assert score(given, lanes) <= best.bound * (1 + 1e-9)
    assert best.score <= best.bound * (1 + 1e-9)
    assert score(given, best.lanes) == best.score
    assert pools.faults(given, best.lanes) == []


def test_devices_that_can_be_exchanged_are_of_one_kind() -> None:
    world = World(9, num_kinds=3, workload=Workload(256, 256, 512, ENDLESS))
    assert kinds_of(tables_of(problem_of_world(world))).numbers == (3, 3, 3)
    assert kinds_of(tables_of(problem_of_world(replace(world, num_kinds=None)))).numbers == (1,) * 9


def test_all_ways_to_form_stages_are_listed_once() -> None:
    given = problem([Given(5.0 + 0.5 * i) for i in range(4)])
    p = tables_of(given)
    groups = Groups(p, kinds_of(p))
    found = ways(groups, (1, 1, 1, 1))
    assert {size: len(some) for size, some in found.items()} == {1: 1, 2: 7, 3: 6, 4: 1}, "Stirling numbers"
    for some in found.values():
        assert (groups.members[some].sum(axis=1) == 1).all()
        assert len(np.unique(np.sort(some, axis=1), axis=0)) == len(some)


# ---------------------------------------------------------------- packing


@given(st.dictionaries(st.tuples(*[st.integers(0, 2)] * 2).filter(any), st.floats(0.1, 10.0), max_size=5))
def test_a_packing_takes_no_more_than_there_is_and_none_is_worth_more(worths: dict[tuple[int, ...], float]) -> None:
    available = (3, 2)
    chosen = pack(worths, available)
    assert all(sum(numbers[kind] for numbers in chosen) <= available[kind] for kind in range(2))
    assert sum(worths[numbers] for numbers in chosen) == pytest.approx(_most(worths, available))


def _most(worths: dict[tuple[int, ...], float], left: tuple[int, ...]) -> float:
    best = 0.0
    for numbers, worth in worths.items():
        rest = tuple(a - b for a, b in zip(left, numbers, strict=True))
        if min(rest) >= 0:
            best = max(best, worth + _most(worths, rest))
    return best


def test_a_demand_that_ends_is_refused() -> None:
    with pytest.raises(ValueError, match="endless"):
        optimum(pools.problem([Given(24)]))


def test_a_comparison_says_how_far_we_are_from_the_optimum() -> None:
    row = compare(SMALL[0], time_limit_s=10.0)
    figures = summary([row])
    assert 0.0 <= figures["mean_search_gap"] <= 0.1
    assert figures["mean_search_gap"] <= figures["mean_paper_gap"] + 0.01


def test_pools_that_cannot_serve_do_not_count() -> None:
    row = replace(compare(SMALL[0], time_limit_s=0.0), score=0.0)
    assert summary([row]) == {"num_pools": 0, "num_complete": 0, "num_proven": 0}


def test_spares_that_only_help_together_are_used() -> None:
    """Two of the four devices stayed idle there when devices were given places one at a time."""
    problem = problem_of_world(small_worlds(84)[83])
    [lane] = LaneAllocator().layout(problem)
    assert sorted(holder for stage in lane.stages for holder in stage.holders) == [0, 1, 2, 3]
