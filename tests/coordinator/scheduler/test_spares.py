"""Where a spare device gains most."""

from __future__ import annotations

from coordinator.scheduler.pieces import Piece
from coordinator.scheduler.plan import Offer
from coordinator.scheduler.problems import fit_of
from coordinator.scheduler.spares import Edge, Spares
from tests.fakes.problem_facts import offer, problem


def chosen(*offers: Offer) -> dict[int, Piece]:
    """What those that hold nothing take, by number."""
    pool = problem(*offers)
    holders: dict[Piece, list[int]] = {}
    for i, some in enumerate(offers):
        if some.held:
            holders.setdefault((some.held.start, some.held.stop), []).append(i)
    free = [i for i, some in enumerate(offers) if some.held is None]
    return {i + 1: piece for i, (piece, _) in Spares(pool, fit_of(pool), holders).choose(free).items()}


def test_the_narrowest_stage_of_a_lane_gains_first() -> None:
    stages = [offer(n, 8, (8 * n - 8, 8 * n), layer_s=0.02 if n == 2 else 0.001) for n in (1, 2, 3)]
    assert chosen(*stages, offer(4, 8)) == {4: (8, 16)}


def test_where_all_stages_are_alike_the_one_with_a_single_holder_is_made_safe() -> None:
    stages = [offer(n, 12, (0, 12)) for n in (1, 2)] + [offer(n, 12, (12, 24)) for n in (3,)]
    assert chosen(*stages, offer(4, 12)) == {4: (12, 24)}


def test_of_two_lanes_the_one_with_more_to_gain_is_strengthened() -> None:
    even = [offer(1, 12, (0, 12)), offer(2, 12, (12, 24))]
    uneven = [offer(3, 16, (0, 10)), offer(4, 16, (10, 24), layer_s=0.02)]
    assert chosen(*even, *uneven, offer(5, 14)) == {5: (10, 24)}


def test_many_spares_do_not_all_stand_beside_the_same_stage() -> None:
    stages = [offer(n, 8, (8 * n - 8, 8 * n)) for n in (1, 2, 3)]
    taken = chosen(*stages, *(offer(n, 8) for n in range(4, 10)))
    assert sorted(taken.values()) == [(0, 8), (0, 8), (8, 16), (8, 16), (16, 24), (16, 24)]


def test_what_nobody_could_use_is_not_taken() -> None:
    assert chosen(offer(1, 24, (0, 24)), offer(2, 0)) == {}


def test_a_slice_that_others_limit_gains_nothing_by_itself() -> None:
    edge = Edge((0, 8), capacity=10.0, flow=4.0, up=float("inf"), out=10.0, down=4.0, into=10.0, num_holders=1)
    assert edge.gain(0.0) == 0.0
    assert edge.gain(90.0) == 0.0
    narrow = edge._replace(capacity=4.0, down=10.0, into=4.0)
    assert narrow.gain(2.0) == 2.0
    assert narrow.gain(90.0) == 6.0
