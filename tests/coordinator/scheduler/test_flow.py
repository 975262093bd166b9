"""What slices can serve together: every holder counts that the router can use, and the quickest paths come first."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.flow import Outlook, flow_of, holder_rates, outlook
from coordinator.scheduler.forecast import lanes_of, layout_forecast, tables_of
from coordinator.scheduler.pieces import Piece
from coordinator.scheduler.plan import Problem
from protocol.values import LayerRange
from tests.fakes import lane_problems as pools
from tests.fakes.lane_problems import Given

PIECES = st.tuples(st.integers(0, 5), st.integers(1, 6)).filter(lambda piece: piece[0] < piece[1])


def held(*pieces: Piece) -> dict[int, LayerRange]:
    return {i: LayerRange(*piece) for i, piece in enumerate(pieces)}


def seen(problem: Problem, *pieces: Piece, wanted_per_s: float = 1.0) -> Outlook:
    return outlook(tables_of(problem), held(*pieces), wanted_per_s)


# ---------------------------------------------------------------- the most


def least_cut(pieces: list[Piece], rates: dict[int, float], num_layers: int) -> float:
    """Over all ways to part the boundaries in two (Ford and Fulkerson 1956), tried one by one."""
    inner = range(1, num_layers)
    cuts = itertools.chain.from_iterable(itertools.combinations(inner, n) for n in range(num_layers))
    sides = [{0, *cut} for cut in cuts]
    return min(sum(rates[i] for i, (a, b) in enumerate(pieces) if a in side and b not in side) for side in sides)


@given(st.lists(st.tuples(PIECES, st.floats(0.1, 100.0)), max_size=8))
def test_the_most_is_what_the_least_cut_lets_through(holders: list[tuple[Piece, float]]) -> None:
    pieces, rates = [piece for piece, _ in holders], {i: rate for i, (_, rate) in enumerate(holders)}
    assert flow_of(held(*pieces), rates, 6) == pytest.approx(least_cut(pieces, rates, 6))


def test_holders_that_are_in_no_lane_of_their_own_count() -> None:
    """Two short slices and a long one lead to the same boundary, from which two lead on."""
    problem = pools.problem([Given(24)] * 4)
    mixed: list[Piece] = [(0, 12), (0, 12), (12, 18), (18, 24)]
    more: list[Piece] = [*mixed[:2], (12, 24), (12, 24)]
    one = seen(pools.problem([Given(24)] * 2), (0, 12), (12, 24)).tokens_per_s
    assert seen(problem, *more).tokens_per_s == pytest.approx(2 * one)
    assert one <= seen(problem, *mixed).tokens_per_s < 2 * one + 1e-6


def test_it_agrees_with_the_forecast_of_a_lane_that_is_level() -> None:
    problem = pools.problem([Given(24)] * 2)
    forecast = layout_forecast(problem, lanes_of(problem, held((0, 12), (12, 24))))
    assert seen(problem, (0, 12), (12, 24)).tokens_per_s == pytest.approx(forecast.tokens_per_s, rel=0.1)


def test_mixed_boundaries_serve_more_than_their_lanes_do() -> None:
    """The second device could do for two, but the lanes put it behind the first, and the last two into none."""
    pieces: list[Piece] = [(0, 12), (12, 24), (0, 8), (8, 24), (0, 8), (8, 12)]
    problem = pools.problem([Given(24, 1e-4 if piece == (12, 24) else 1e-3) for piece in pieces])
    lanes = layout_forecast(problem, lanes_of(problem, held(*pieces)))
    assert seen(problem, *pieces).tokens_per_s > 1.05 * lanes.tokens_per_s


@given(st.lists(PIECES, min_size=1, max_size=8), PIECES)
def test_one_more_holder_never_takes_what_others_can_do_together(pieces: list[Piece], more: Piece) -> None:
    rates = {i: float(i + 1) for i in range(len(pieces) + 1)}
    fewer = {i: rate for i, rate in rates.items() if i < len(pieces)}
    assert flow_of(held(*pieces, more), rates, 6) >= flow_of(held(*pieces), fewer, 6) - 1e-9


def test_slices_that_leave_a_hole_serve_nobody() -> None:
    problem = pools.problem([Given(24)] * 2)
    assert seen(problem, (0, 12), (13, 24)) == Outlook(0.0, math.inf)
    assert holder_rates(tables_of(problem), held((0, 12), (13, 24))) == {}


# ---------------------------------------------------------------- how soon


def test_the_quickest_path_is_taken_first_and_slower_ones_when_it_is_full() -> None:
    devices = [Given(24, 1e-3), Given(24, 1e-3), Given(24, 5e-3), Given(24, 5e-3)]
    problem, pieces = pools.problem(devices), [(0, 12), (12, 24)] * 2
    quick = seen(problem, *pieces, wanted_per_s=1.0).answer_s
    alone = seen(pools.problem(devices[:2]), *pieces[:2]).answer_s
    assert quick == pytest.approx(alone)
    assert seen(problem, *pieces, wanted_per_s=math.inf).answer_s > quick


def test_a_path_over_regions_is_not_taken_if_there_is_a_nearer_one() -> None:
    devices = [Given(24, region=0), Given(24, region=1), Given(24, region=0), Given(24, region=1)]
    problem, pieces = pools.problem(devices), [(0, 12), (0, 12), (12, 24), (12, 24)]
    near = seen(pools.problem([Given(24)] * 2), (0, 12), (12, 24)).answer_s
    assert seen(problem, *pieces, wanted_per_s=math.inf).answer_s == pytest.approx(near)
    assert seen(pools.problem([Given(24, region=0), Given(24, region=1)]), (0, 12), (12, 24)).answer_s > near
