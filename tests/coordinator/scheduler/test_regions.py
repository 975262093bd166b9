"""Regions, found by clustering where coordinates place nodes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.scheduler.coordinates import Floats, Ints
from coordinator.scheduler.regions import (
    REGION_RTT_S,
    STAY,
    UNKNOWN_REGION,
    Regions,
    find_centres,
    nearest_centres,
    reaches_s,
)


def clouds(*places_s: float, num_each: int = 30, spread_s: float = 0.004, seed: int = 1) -> Floats:
    """Points about places on a line."""
    dice = np.random.default_rng(seed)
    middles = np.array([[place_s, 0.0, 0.0] for place_s in places_s])
    return np.repeat(middles, num_each, axis=0) + dice.normal(0.0, spread_s, (len(places_s) * num_each, 3))


def sure(points: Floats) -> Floats:
    return np.full(len(points), REGION_RTT_S)


def built(points: Floats) -> tuple[Regions, Ints]:
    regions, rows = Regions(), np.arange(len(points))
    regions.grow(len(points))
    regions.rebuild(rows, points, sure(points))
    return regions, rows


def test_clouds_farther_apart_than_the_radius_are_regions() -> None:
    regions, _ = built(clouds(0.0, 0.05, 0.2))
    assert [len(set(part)) for part in np.split(regions.numbers, 3)] == [1, 1, 1]
    assert len(set(regions.numbers.tolist())) == 3
    assert UNKNOWN_REGION not in regions.numbers


def test_nothing_has_no_regions() -> None:
    assert find_centres(np.zeros((0, 3)), np.zeros(0)).shape == (0, 3)
    regions, _ = built(np.zeros((0, 3)))
    assert len(regions.numbers) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(0, 1000), st.floats(0.001, 1.0))
def test_every_point_is_within_reach_of_a_centre(num_points: int, seed: int, size_s: float) -> None:
    points = np.random.default_rng(seed).uniform(-size_s, size_s, (num_points, 3))
    centres = find_centres(points, sure(points))
    assert 1 <= len(centres) <= num_points
    nearest, distances = nearest_centres(points, centres)
    assert (distances < REGION_RTT_S + 1e-9).all()
    exact = np.linalg.norm(points[:, None] - centres, axis=2)
    assert exact[np.arange(num_points), nearest] == pytest.approx(exact.min(axis=1), abs=1e-7)


def test_numbers_survive_that_everything_drifts() -> None:
    points = clouds(0.0, 0.06, 0.2)
    regions, rows = built(points)
    before = regions.numbers.copy()
    for step in range(20):
        regions.rebuild(rows, points + 0.01 * step, sure(points))
    assert (regions.numbers == before).all()


def test_a_node_on_the_border_stays_where_it_is() -> None:
    regions, rows = built(clouds(0.0, 0.05))
    left, right = regions.numbers[0], regions.numbers[-1]
    assert left != right
    for place_s in (0.024, 0.027, 0.025, 0.026):
        regions.moved(rows[:1], np.array([[place_s, 0.0, 0.0]]), np.array([REGION_RTT_S]))
        assert regions.numbers[0] == left
    regions.moved(rows[:1], np.array([[0.045, 0.0, 0.0]]), np.array([REGION_RTT_S]))
    assert regions.numbers[0] == right
    regions.moved(rows[:1], np.array([[0.026, 0.0, 0.0]]), np.array([REGION_RTT_S]))
    assert regions.numbers[0] == right


def test_a_node_far_from_all_founds_a_region_and_the_next_one_there_joins_it() -> None:
    regions, rows = built(clouds(0.0, 0.05))
    taken = set(regions.numbers.tolist())
    far = np.array([[0.5, 0.0, 0.0]])
    regions.moved(rows[:1], far, sure(far))
    assert regions.numbers[0] not in taken
    regions.moved(rows[-1:], far + 0.005, sure(far))
    assert regions.numbers[-1] == regions.numbers[0]


def test_numbers_that_nobody_has_are_given_again() -> None:
    regions, rows = built(clouds(0.0, 0.1))
    for step in range(2, 30):
        places = clouds(0.0, 0.1 * step)
        regions.moved(rows, places, sure(places))
        regions.rebuild(rows, places, sure(places))
    assert regions.numbers.max() <= 3


def test_who_is_unsure_of_its_place_belongs_to_a_region_from_farther_away() -> None:
    sure_s, unsure_s = reaches_s(np.array([0.0, 0.25]))
    assert sure_s == REGION_RTT_S < unsure_s
    regions, rows = built(clouds(0.0))
    home = regions.numbers[1]
    away = np.array([[STAY * REGION_RTT_S + 0.005, 0.0, 0.0]])
    regions.moved(rows[:1], away, np.array([unsure_s]))
    assert regions.numbers[0] == home
    regions.moved(rows[:1], away, np.array([sure_s]))
    assert regions.numbers[0] != home
