"""Layers that nobody holds: the fewest devices that suffice, as level as their memory allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.filling_holes import HoleFiller
from coordinator.scheduler.pieces import Piece
from coordinator.scheduler.plan import Offer
from coordinator.scheduler.problems import fit_of
from tests.fakes.problem_facts import offer, problem


def filled(hole: Piece, *offers: Offer) -> dict[int, Piece] | None:
    """By the offers' numbers, which count from 1."""
    pool = problem(*offers)
    found = HoleFiller(pool, fit_of(pool)).fill(hole, range(len(offers)))
    return None if found is None else {i + 1: piece for i, piece in found.items()}


def test_one_device_takes_all_when_it_can() -> None:
    assert filled((8, 16), offer(1, 4), offer(2, 8), offer(3, 7)) == {2: (8, 16)}


def test_of_several_that_can_the_one_with_the_layers_on_disk_then_the_quickest() -> None:
    assert filled((8, 16), offer(1, 8), offer(2, 8, stored=(8, 16), layer_s=0.1)) == {2: (8, 16)}
    assert filled((8, 16), offer(1, 8), offer(2, 8, layer_s=0.0001)) == {2: (8, 16)}


def test_a_part_on_disk_is_better_than_nothing() -> None:
    assert filled((8, 16), offer(1, 8), offer(2, 8, stored=(4, 12))) == {2: (8, 16)}


@pytest.mark.parametrize(("rooms", "shares"), [((24, 24), (8, 4)), ((5, 24), (5, 7)), ((24, 2), (10, 2))])
def test_shares_follow_speed_within_memory(rooms: tuple[int, int], shares: tuple[int, int]) -> None:
    pool = problem(offer(1, rooms[0], layer_s=0.001), offer(2, rooms[1], layer_s=0.002))
    found = HoleFiller(pool, fit_of(pool)).level([0, 1], (6, 18))
    assert found is not None
    assert tuple(found[i][1] - found[i][0] for i in (0, 1)) == shares


def test_several_holes_get_different_devices() -> None:
    pool = problem(*(offer(n, 6) for n in (1, 2, 3)))
    filler = HoleFiller(pool, fit_of(pool))
    found = filler.fill_all([(0, 6), (12, 18)], range(3))
    assert found is not None
    assert sorted(found.values()) == [(0, 6), (12, 18)]
    assert filler.fill_all([(0, 6), (6, 12), (12, 18), (18, 24)], range(3)) is None


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(1e-4, 1)), max_size=8), st.integers(1, 24), st.integers(0, 23))
def test_a_filling_covers_its_hole_once_in_order(sizes: list[tuple[int, float]], length: int, start: int) -> None:
    hole = (start, min(24, start + length))
    found = filled(hole, *(offer(n, room, layer_s=layer_s) for n, (room, layer_s) in enumerate(sizes, start=1)))
    if found:
        pieces = sorted(found.values())
        assert [layer for a, b in pieces for layer in range(a, b)] == list(range(*hole))
        assert all(b - a <= sizes[n - 1][0] for n, (a, b) in found.items())
    else:
        assert sum(min(24, room) for room, _ in sizes) < hole[1] - hole[0]
