"""Lanes under construction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.scheduler.drafts import FILLINGS, Load, drafts_of, drafts_score, expected_part, option_worths
from coordinator.scheduler.forecast import lane_forecast, tables_of
from coordinator.scheduler.tables import Floats, Sketch
from tests.fakes import lane_problems as pools
from tests.fakes.lane_problems import Given


def test_nothing_to_fill_is_nothing() -> None:
    assert drafts_of(tables_of(pools.problem([Given(24)])), [], Load()) == []


def test_a_sketch_that_cannot_hold_the_model_is_no_draft_and_hurts_no_other() -> None:
    p = tables_of(pools.problem([Given(24), Given(5), Given(26)]))
    found = drafts_of(p, [((0,),), ((1,),), ((2,),)], Load(1.0))
    assert [draft is None for draft in found] == [False, True, False]
    assert found[0] == drafts_of(p, [((0,),)], Load(1.0))[0]


def test_a_draft_does_what_the_forecast_of_its_lane_says() -> None:
    problem = pools.problem([Given(14), Given(16, layer_s=2e-3)])
    draft = drafts_of(tables_of(problem), [((0,), (1,))], Load(1.0))[0]
    assert draft is not None
    lane = pools.lane((draft.counts[0], (0,)), (draft.counts[1], (1,)))
    assert draft.rate == pytest.approx(lane_forecast(problem, lane).tokens_per_s)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(2, 30), st.floats(1e-4, 1e-2)), min_size=1, max_size=5))
def test_counts_add_up_and_fit(devices: list[tuple[int, float]]) -> None:
    problem = pools.problem([Given(room, layer_s=layer_s) for room, layer_s in devices])
    sketch = tuple((i,) for i in range(len(devices)))
    draft = drafts_of(tables_of(problem), [sketch], Load())[0]
    if draft is None:
        assert sum(room for room, _ in devices) < 24
    else:
        lane = pools.lane(*((count, (i,)) for i, count in enumerate(draft.counts)))
        assert pools.faults(problem, [lane]) == []


def test_trying_more_fillings_never_finds_less() -> None:
    problem = pools.problem([Given(20), Given(20, layer_s=5e-3), Given(10)])
    p, sketch = tables_of(problem), ((0,), (1,), (2,))
    roughly, well = (drafts_of(p, [sketch], Load(1.0), fillings)[0] for fillings in (FILLINGS[:1], FILLINGS))
    assert roughly is not None
    assert well is not None
    worth = [drafts_score(p, *_columns(draft.rate, draft.slow)) for draft in (roughly, well)]
    assert worth[1] >= worth[0]


def test_an_option_is_worth_what_its_drafts_are_whatever_is_reckoned_beside_it() -> None:
    p = tables_of(pools.problem([Given(24), Given(20), Given(20, layer_s=5e-3), Given(3), Given(26)]))
    options: list[list[Sketch]] = [[((0,),), ((1,), (2,))], [], [((1,), (2,))], [((3,),)], [((3,),), ((4,),)]]
    worths, rates = option_worths(p, options)
    for option, worth in zip(options, worths.tolist(), strict=True):
        drafts = [draft for draft in drafts_of(p, option, Load(), FILLINGS[:1]) if draft is not None]
        columns = np.array([d.rate for d in drafts]), np.array([d.slow for d in drafts])
        assert worth == pytest.approx(drafts_score(p, *columns))
    assert [rate > 0.0 for rate in rates.tolist()] == [True, True, True, False, False, True]


def test_options_of_one_pool_share_its_demand() -> None:
    problem = pools.problem([Given(24)] * 8)
    options: list[list[Sketch]] = [[((i,),)] for i in range(8)]
    one_per_s = float(option_worths(tables_of(problem), options)[1][0])
    p = tables_of(replace(problem, workload=replace(problem.workload, tokens_per_s=one_per_s)))
    alone, together = option_worths(p, options)[0], option_worths(p, options, Load())[0]
    assert (alone < together).all(), "where all have a part of the demand, answers are shorter"


def test_lanes_that_could_do_more_than_is_wanted_are_asked_for_a_part() -> None:
    p = tables_of(pools.problem([Given(24)]))
    assert expected_part(p, 2 * p.wanted_per_s) == pytest.approx(0.5)
    assert expected_part(p, p.wanted_per_s / 2) == 1.0
    assert expected_part(p, 0.0) == 1.0


def _columns(rate: float, slow: float) -> tuple[Floats, Floats]:
    return np.array([rate]), np.array([slow])
