"""When requests arrive: Poisson, bursty or with the time of day. Times in seconds, rates in requests per second."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.random import Generator

from coordinator.scheduler.links import Floats

ArrivalKind = Literal["poisson", "gamma", "mmpp", "diurnal"]
MMPP_RATIO = 5.0
"""The busy state's rate over the quiet one's."""
MMPP_BUSY_S, MMPP_QUIET_S = 30.0, 120.0
"""Mean lengths of the two states."""
DAY_S = 86_400.0
PEAK_HOUR = 15.0
SWING = 0.6
"""The day's highest rate is (1 + SWING) times the mean, the lowest (1 - SWING)."""


def arrival_times(
    kind: ArrivalKind, rate: float, burstiness: float, duration_s: float, rng: Generator, starts_at_h: float = 0.0
) -> Floats:
    """Ascending times in [0, duration_s) with `rate` on average ("diurnal": over whole days from that hour).

    `burstiness` is the coefficient of variation of the gaps between requests ("gamma" only; 1 is Poisson; production
    traffic has more: BurstGPT, Wang et al. 2024, fits gamma gaps)."""
    if rate <= 0.0:
        return np.empty(0)
    if kind == "gamma":
        return _gamma(rate, burstiness, duration_s, rng)
    if kind == "mmpp":
        return _mmpp(rate, duration_s, rng)
    if kind == "diurnal":
        return _diurnal(rate, duration_s, rng, starts_at_h)
    return _poisson(rate, duration_s, rng)


def _poisson(rate: float, duration_s: float, rng: Generator) -> Floats:
    return np.sort(rng.uniform(0.0, duration_s, int(rng.poisson(rate * duration_s))))


def _gamma(rate: float, burstiness: float, duration_s: float, rng: Generator) -> Floats:
    shape = 1.0 / burstiness**2
    parts: list[Floats] = []
    at_s = 0.0
    while at_s < duration_s:
        part = at_s + np.cumsum(rng.gamma(shape, 1.0 / (rate * shape), int(rate * duration_s) + 16))
        parts.append(part)
        at_s = float(part[-1])
    times = np.concatenate(parts)
    return times[times < duration_s]


def _mmpp(rate: float, duration_s: float, rng: Generator) -> Floats:
    """A Poisson process that switches between a quiet and a busy rate (Fischer and Meier-Hellstern 1993)."""
    share_busy = MMPP_BUSY_S / (MMPP_BUSY_S + MMPP_QUIET_S)
    quiet = rate / (1.0 - share_busy + MMPP_RATIO * share_busy)
    parts: list[Floats] = []
    at_s, is_busy = 0.0, bool(rng.random() < share_busy)
    while at_s < duration_s:
        length_s = float(rng.exponential(MMPP_BUSY_S if is_busy else MMPP_QUIET_S))
        parts.append(at_s + _poisson(quiet * (MMPP_RATIO if is_busy else 1.0), length_s, rng))
        at_s, is_busy = at_s + length_s, not is_busy
    times = np.concatenate(parts)
    return times[times < duration_s]


def _diurnal(rate: float, duration_s: float, rng: Generator, starts_at_h: float) -> Floats:
    """Thinned from the peak's rate (Lewis and Shedler 1979)."""
    times = _poisson(rate * (1.0 + SWING), duration_s, rng)
    wave = 1.0 + SWING * np.cos(2 * np.pi * (times / DAY_S + (starts_at_h - PEAK_HOUR) / 24.0))
    return times[rng.uniform(0.0, 1.0 + SWING, len(times)) < wave]
