"""How long somebody in the queue will wait."""

from __future__ import annotations

import pytest

from coordinator.scheduler.queue_forecast import NEW_SHARE, QueueForecast


def test_nothing_is_expected_before_anything_was_seen() -> None:
    assert QueueForecast().expected_wait_s(1, 5) is None


def test_answers_that_take_longer_and_places_further_back_mean_longer_waits() -> None:
    forecast = QueueForecast()
    forecast.ended(12.0)
    assert forecast.expected_wait_s(1, 4) == 3.0
    assert forecast.expected_wait_s(3, 4) == 9.0
    assert forecast.expected_wait_s(3, 1) == 36.0


def test_a_queue_before_which_nothing_runs_may_take_for_ever() -> None:
    forecast = QueueForecast()
    forecast.ended(12.0)
    assert forecast.expected_wait_s(1, 0) is None


def test_the_forecast_follows_what_is_seen_slowly() -> None:
    forecast = QueueForecast()
    forecast.ended(10.0)
    forecast.ended(18.0)
    assert forecast.expected_wait_s(1, 1) == 10.0 + NEW_SHARE * 8.0
    for _ in range(100):
        forecast.ended(18.0)
    assert forecast.expected_wait_s(1, 1) == pytest.approx(18.0, rel=1e-3)
