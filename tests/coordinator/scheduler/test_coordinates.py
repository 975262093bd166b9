"""Network coordinates, fitted to what was measured."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.scheduler.coordinates import DEFAULT_RTT_S, SURE, Coordinates, Floats, Measured

HIGH = 0.006
"""Every node of the made-up world has this access delay."""


def placed(points: Floats) -> Coordinates:
    """All but the last row are where they are."""
    coordinates = Coordinates()
    coordinates.grow(len(points))
    for row, point in enumerate(points[:-1]):
        coordinates.put(row, point, HIGH, 0.1)
    return coordinates


def measured_by_last(points: Floats, trust: float = 1.0) -> Measured:
    others = np.arange(len(points) - 1)[None]
    rtts = np.linalg.norm(points[:-1] - points[-1], axis=1)[None] + 2 * HIGH
    return Measured(others, rtts, np.full(others.shape, trust))


@pytest.fixture
def points() -> Floats:
    return np.random.default_rng(3).uniform(-0.1, 0.1, (9, 3))


def test_a_node_is_placed_where_its_round_trips_agree(points: Floats) -> None:
    coordinates = placed(points)
    for _ in range(60):
        coordinates.fit(np.array([8]), measured_by_last(points))
    assert coordinates.points[8] == pytest.approx(points[8], abs=0.002)
    assert coordinates.heights[8] == pytest.approx(HIGH, abs=0.002)
    assert coordinates.errors[8] < 0.1


def test_rows_are_fitted_together_as_they_are_alone(points: Floats) -> None:
    both = placed(np.concatenate([points, points[-1:]]))
    both.placed[8] = False
    one = measured_by_last(points)
    two = Measured(*(np.repeat(part, 2, axis=0) for part in (one.others, one.rtts_s, one.trust)))
    for _ in range(60):
        both.fit(np.array([8, 9]), two)
    assert both.points[[8, 9]] == pytest.approx(np.stack([points[8]] * 2), abs=0.002)


def test_who_measured_nobody_with_a_place_has_none(points: Floats) -> None:
    coordinates = placed(points)
    coordinates.fit(np.array([8]), measured_by_last(points, trust=0.0))
    assert not coordinates.placed[8]
    coordinates.placed[:8] = False
    coordinates.fit(np.array([8]), measured_by_last(points))
    assert not coordinates.placed[8]
    assert coordinates.rtt_s(0, 8) == DEFAULT_RTT_S


def test_with_half_the_gain_a_node_goes_half_the_way(points: Floats) -> None:
    coordinates = placed(points)
    start = points[8] + 0.01
    coordinates.put(8, start, HIGH, 0.1)
    coordinates.fit(np.array([8]), measured_by_last(points), gain=0.5, num_starts=0)
    way = np.linalg.norm(coordinates.points[8] - start) / np.linalg.norm(points[8] - start)
    assert 0.15 < way < 0.6


def test_a_node_that_sits_where_a_wrong_fit_left_it_jumps(points: Floats) -> None:
    coordinates = placed(points)
    coordinates.put(8, -5 * points[8], HIGH, 0.1)
    for _ in range(60):
        coordinates.fit(np.array([8]), measured_by_last(points))
    assert coordinates.points[8] == pytest.approx(points[8], abs=0.002)


def test_what_is_trusted_less_pulls_less(points: Floats) -> None:
    coordinates = placed(points)
    moved = points.copy()
    moved[-1] += 0.05
    old, new = measured_by_last(points, trust=0.2), measured_by_last(moved)
    both = Measured(
        *(
            np.concatenate(parts, axis=1)
            for parts in zip((old.others, old.rtts_s, old.trust), (new.others, new.rtts_s, new.trust), strict=True)
        )
    )
    for _ in range(60):
        coordinates.fit(np.array([8]), both)
    to_new, to_old = (np.linalg.norm(coordinates.points[8] - at[8]) for at in (moved, points))
    assert to_new < 0.8 * to_old


def test_one_measurement_is_met_but_not_trusted() -> None:
    coordinates = placed(np.zeros((2, 3)))
    coordinates.fit(np.array([1]), Measured(np.array([[0]]), np.array([[0.08]]), np.ones((1, 1))))
    assert coordinates.rtt_s(0, 1) == pytest.approx(0.08, rel=0.1)
    assert coordinates.errors[1] >= SURE


def test_heights_are_never_negative_nor_more_than_the_shortest_round_trip() -> None:
    dice = np.random.default_rng(5)
    coordinates = placed(dice.uniform(-0.1, 0.1, (9, 3)))
    for _ in range(50):
        rtts = dice.uniform(0.001, 0.3, (1, 8))
        coordinates.fit(np.array([8]), Measured(np.arange(8)[None], rtts, np.ones((1, 8))))
        assert 0.0 <= coordinates.heights[8] <= rtts.min()


def test_a_landmark_alone_places_a_node_at_its_distance_from_the_origin() -> None:
    coordinates = Coordinates()
    coordinates.grow(2)
    coordinates.put(0, np.zeros(3), 0.0, 0.1)
    coordinates.place_by_landmark(1, 0.12)
    assert coordinates.rtt_s(0, 1) == pytest.approx(0.12)
    assert coordinates.errors[1] == 1.0
