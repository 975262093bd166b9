"""Which part of a new layout is moved to: what gains clearly more than it costs, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from coordinator.scheduler.cost import Workload
from coordinator.scheduler.flow import Held, outlook
from coordinator.scheduler.forecast import tables_of
from coordinator.scheduler.judging import Judge
from coordinator.scheduler.pieces import Piece
from coordinator.scheduler.plan import Problem
from protocol.values import LayerRange
from tests.fakes import lane_problems as pools
from tests.fakes.lane_problems import Given

HALVES: list[Piece] = [(0, 12), (12, 24)]
FAST_LOAD_S, SLOW_LOAD_S = 20.0, 20_000.0


def layout(*pieces: Piece) -> dict[int, LayerRange]:
    return {i: LayerRange(*piece) for i, piece in enumerate(pieces)}


def lanes(layers: Held, *members: Sequence[int]) -> list[dict[int, LayerRange]]:
    return [{i: layers[i] for i in lane} for lane in members]


def holding(devices: Sequence[Given], held: Held, wanted_per_s: float | None) -> Problem:
    workload = Workload(64, 64, 128, wanted_per_s)
    problem = pools.problem(devices, workload=workload)
    return replace(problem, offers=tuple(replace(o, held=held.get(i)) for i, o in enumerate(problem.offers)))


def best(problem: Problem, wanted: list[dict[int, LayerRange]], load_s: float = FAST_LOAD_S) -> list[int]:
    held = {i: offer.held for i, offer in enumerate(problem.offers) if offer.held}
    return Judge(problem, held, lambda i, num_bytes: load_s).best(wanted)


def most(devices: Sequence[Given], held: Held) -> float:
    """Tokens per second."""
    return outlook(tables_of(holding(devices, held, None)), held, 1.0).tokens_per_s


UNEVEN = layout((0, 3), (3, 24), (0, 3), (3, 24))
EVEN = layout(*HALVES, *HALVES)
FOUR = [Given(24)] * 4


@pytest.fixture
def uneven_most() -> float:
    """As a pool that was founded one by one may be: a third of its devices' time is used."""
    rate = most(FOUR, UNEVEN)
    assert rate < 0.7 * most(FOUR, EVEN)
    return rate


def test_a_layout_that_is_much_worse_than_a_fresh_one_is_left_where_more_is_wanted(uneven_most: float) -> None:
    assert sorted(best(holding(FOUR, UNEVEN, 2 * uneven_most), lanes(EVEN, (0, 1), (2, 3)))) == [0, 1]


def test_it_is_kept_as_long_as_it_does_what_is_wanted_and_left_when_the_demand_has_doubled(uneven_most: float) -> None:
    wanted = lanes(EVEN, (0, 1), (2, 3))
    assert best(holding(FOUR, UNEVEN, 0.7 * uneven_most), wanted) == []
    assert best(holding(FOUR, UNEVEN, 1.4 * uneven_most), wanted) != []


def test_it_is_kept_if_loading_takes_longer_than_the_gain_lasts(uneven_most: float) -> None:
    assert best(holding(FOUR, UNEVEN, 1.5 * uneven_most), lanes(EVEN, (0, 1), (2, 3)), SLOW_LOAD_S) == []


def test_a_lane_across_regions_is_left_for_a_much_better_one() -> None:
    """Each half is held in both regions, but those of the same region do not continue each other."""
    devices = [Given(24, region=region) for region in (0, 1, 0, 1)]
    far, near = layout((0, 12), (12, 24), (0, 12), (12, 24)), layout((0, 12), (0, 12), (12, 24), (12, 24))
    across = holding(devices, {0: far[0], 1: far[1]}, 10.0)
    assert best(across, lanes(near, (0, 2), (1, 3))) != []


def test_a_few_per_cent_sooner_are_not_worth_a_byte_where_the_demand_is_met() -> None:
    devices = [Given(24, 1.00e-3), Given(24, 1.0e-3), Given(24, 0.9e-3), Given(24, 0.9e-3)]
    held = {i: LayerRange(*piece) for i, piece in enumerate(HALVES)}
    wanted = {2: LayerRange(0, 12), 3: LayerRange(12, 24)}
    assert best(holding(devices, held, 10.0), [wanted]) == []


def test_of_a_new_layout_only_the_lanes_are_moved_to_that_bring_something() -> None:
    """One device has become free that does alone what the others do together, and ten times as fast."""
    devices = [*FOUR, Given(24, 1e-4)]
    wanted = [*lanes(layout((0, 13), (13, 24), (0, 13), (13, 24)), (0, 1), (2, 3)), {4: LayerRange(0, 24)}]
    assert best(holding(devices, EVEN, 10.0), wanted) == [2]


def test_mixed_boundaries_that_the_router_can_use_are_not_taken_for_idle() -> None:
    """No lane has the last two devices: a layout in which they are in one does no more for what is wanted."""
    pieces: list[Piece] = [(0, 12), (12, 24), (0, 8), (8, 24), (0, 8), (8, 12)]
    devices = [Given(24, 1e-4 if piece == (12, 24) else 1e-3) for piece in pieces]
    held = layout(*pieces)
    wanted = lanes(layout(*HALVES, *HALVES, *HALVES), (0, 1), (2, 3), (4, 5))
    assert best(holding(devices, held, 0.7 * most(devices, held)), wanted) == []
