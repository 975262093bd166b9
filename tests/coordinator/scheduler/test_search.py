"""Local search: it never makes anything worse, keeps every rule, and finds what a first layout cannot."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.scheduler.drafts import Draft, Load, drafts_of
from coordinator.scheduler.forecast import tables_of
from coordinator.scheduler.plan import Problem
from coordinator.scheduler.search import Search
from coordinator.scheduler.tables import Sketch
from tests.fakes import lane_problems as pools
from tests.fakes.lane_problems import Given


def search(problem: Problem, *sketches: Sketch) -> Search:
    p = tables_of(problem)
    drafts = [draft for draft in drafts_of(p, sketches, Load()) if draft is not None]
    return Search(p, drafts, range(len(problem.offers)))


def holders(drafts: list[Draft]) -> list[int]:
    return sorted(i for draft in drafts for stage in draft.sketch for i in stage)


def test_without_a_budget_nothing_changes() -> None:
    one = search(pools.problem([Given(24), Given(24)]), ((0,),))
    before = list(one.drafts)
    assert one.run(0) == before


def test_a_spare_is_put_to_use() -> None:
    one = search(pools.problem([Given(13), Given(13), Given(13)]), ((0,), (1,)))
    before = one.worth
    assert holders(one.run(300)) == [0, 1, 2]
    assert one.worth > before


def test_lanes_that_cross_regions_are_sorted_out() -> None:
    """Two lanes, each over both regions, become one in each."""
    problem = pools.problem([Given(13, region=i % 2) for i in range(4)])
    found = search(problem, ((0,), (1,)), ((2,), (3,))).run(600)
    regions = [{i % 2 for stage in draft.sketch for i in stage} for draft in found]
    assert all(len(region) == 1 for region in regions)


def test_a_device_too_small_for_a_layer_stays_out() -> None:
    one = search(pools.problem([Given(24), Given(0.2)]), ((0,),))
    assert holders(one.run(200)) == [0]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(4, 30), st.floats(2e-4, 5e-3), st.integers(0, 1)), min_size=2, max_size=7))
def test_it_never_makes_anything_worse_and_uses_nobody_twice(devices: list[tuple[int, float, int]]) -> None:
    problem = pools.problem([Given(room, layer_s, region) for room, layer_s, region in devices])
    one = search(problem, tuple((i,) for i in range(len(devices))))
    before = one.worth
    found = one.run(150)
    assert one.worth >= before * (1 - 1e-9)
    assert len(set(holders(found))) == len(holders(found))
    assert all(sum(draft.counts) == problem.model.num_layers for draft in found)


def test_the_same_problem_has_the_same_answer() -> None:
    problem = pools.problem([Given(6 + i % 5, 1e-3 * (1 + i % 3), i % 2) for i in range(9)])
    sketch = tuple((i,) for i in range(9))
    assert search(problem, sketch).run(300) == search(problem, sketch).run(300)


def test_more_budget_is_never_worth_less() -> None:
    problem = pools.problem([Given(6 + i % 5, 1e-3 * (1 + i % 3), i % 2) for i in range(9)])
    worths = []
    for budget in (0, 96, 960):
        one = search(problem, tuple((i,) for i in range(9)))
        one.run(budget)
        worths.append(one.worth)
    assert worths == sorted(worths)
    assert worths[-1] > worths[0] or worths[0] == pytest.approx(worths[-1])
