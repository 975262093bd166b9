"""How long somebody in the queue will wait, from what was seen so far. Pure.

Little's law (Operations Research 9, 1961): with R answers running for D seconds each on average, R / D of them end per
second, and each one that ends lets the next request in.
"""

from __future__ import annotations

from dataclasses import dataclass

NEW_SHARE = 1 / 8
"""Weight of the newest duration in the running mean: RFC 6298, 2.3, smooths round-trip times so."""


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """Where a request stands among those that wait for the same model; the next one to start has place 1."""

    place: int
    num_waiting: int
    expected_wait_s: float | None
    """None while nothing is known yet."""


class QueueForecast:
    """What is known of one model's answers."""

    def __init__(self) -> None:
        self._mean_s: float | None = None

    def ended(self, duration_s: float) -> None:
        """An answer has given its chain back after this time, however it ended."""
        if self._mean_s is None:
            self._mean_s = duration_s
        else:
            self._mean_s += NEW_SHARE * (duration_s - self._mean_s)

    def expected_wait_s(self, place: int, num_running: int) -> float | None:
        """Until that many more answers have ended. None while none has, or none runs."""
        if self._mean_s is None or not num_running:
            return None
        return place * self._mean_s / num_running
