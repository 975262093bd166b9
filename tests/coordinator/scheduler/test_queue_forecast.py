"""How long somebody in the queue will wait."""

from __future__ import annotations

import pytest

from coordinator.scheduler.queue_forecast import QueueForecast


def after(*durations_s: float, num_running: int = 1) -> tuple[QueueForecast, float]:
    """Answers that ran alone, one after the other; now so many run. And the time."""
    forecast, now_s = QueueForecast(), 0.0
    for duration_s in durations_s:
        forecast.runs(1, now_s)
        now_s += duration_s
        forecast.ended(now_s)
    forecast.runs(num_running, now_s)
    return forecast, now_s


def test_nothing_is_expected_before_anything_was_seen() -> None:
    forecast = QueueForecast()
    forecast.runs(5, 0.0)
    assert forecast.expected_wait_s(1, 10.0) is None


def test_answers_that_take_longer_and_places_further_back_mean_longer_waits() -> None:
    forecast, now_s = after(12.0, num_running=4)
    assert forecast.expected_wait_s(1, now_s) == pytest.approx(3.0)
    assert forecast.expected_wait_s(3, now_s) == pytest.approx(9.0)
    forecast.runs(1, now_s)
    assert forecast.expected_wait_s(3, now_s) == pytest.approx(36.0)


def test_a_queue_before_which_nothing_runs_may_take_for_ever() -> None:
    forecast, now_s = after(12.0, num_running=0)
    assert forecast.expected_wait_s(1, now_s) is None


def test_the_forecast_follows_what_is_seen_slowly() -> None:
    forecast, now_s = after(*[10.0] * 100, 40.0)
    assert forecast.expected_wait_s(1, now_s) == pytest.approx(10.5, abs=0.5)
    forecast, now_s = after(*[10.0] * 100, *[40.0] * 300)
    assert forecast.expected_wait_s(1, now_s) == pytest.approx(40.0, rel=0.05)


def test_short_answers_that_end_first_do_not_hide_the_long_ones_that_still_run() -> None:
    forecast = QueueForecast()
    forecast.runs(100, 0.0)
    for number in range(10):
        forecast.ended(2.0)
        forecast.runs(99 - number, 2.0)
    wait_s = forecast.expected_wait_s(10, 2.0)
    assert wait_s is not None and wait_s > 2.0, "ten ended within two seconds; of the other ninety, none did sooner"
