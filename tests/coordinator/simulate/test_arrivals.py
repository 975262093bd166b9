"""Rates are kept, and what is called bursty is."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.simulate.arrivals import ArrivalKind, arrival_times

KINDS: list[ArrivalKind] = ["poisson", "gamma", "mmpp", "diurnal"]


def variation(times: np.ndarray) -> float:
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_rate_is_the_wanted_one(kind: ArrivalKind) -> None:
    times = arrival_times(kind, 0.5, 2.0, 86_400.0, np.random.default_rng(3))
    assert len(times) / 86_400 == pytest.approx(0.5, rel=0.08)


@pytest.mark.parametrize("kind", KINDS)
def test_times_ascend_within_the_duration(kind: ArrivalKind) -> None:
    times = arrival_times(kind, 2.0, 2.0, 500.0, np.random.default_rng(3))
    assert np.all(np.diff(times) >= 0)
    assert times[0] >= 0
    assert times[-1] < 500


def test_gamma_gaps_vary_as_asked_and_poisson_gaps_by_one() -> None:
    rng = np.random.default_rng(3)
    assert variation(arrival_times("gamma", 1.0, 3.0, 50_000.0, rng)) == pytest.approx(3.0, rel=0.1)
    assert variation(arrival_times("poisson", 1.0, 3.0, 50_000.0, rng)) == pytest.approx(1.0, rel=0.05)


def test_switching_between_two_rates_is_burstier_than_poisson() -> None:
    assert variation(arrival_times("mmpp", 1.0, 1.0, 50_000.0, np.random.default_rng(3))) > 1.2


def test_the_afternoon_is_busier_than_the_night() -> None:
    hours = arrival_times("diurnal", 1.0, 1.0, 86_400.0, np.random.default_rng(3)) / 3600
    assert np.sum((hours >= 13) & (hours < 17)) > 2.5 * np.sum((hours >= 1) & (hours < 5))


def test_no_rate_means_no_request() -> None:
    assert len(arrival_times("poisson", 0.0, 1.0, 100.0, np.random.default_rng(3))) == 0
