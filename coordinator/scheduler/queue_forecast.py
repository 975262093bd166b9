"""How long somebody in the queue will wait, from what was seen so far. Pure.

Each answer that ends lets the next request in. How many end per second follows from how many run and from the hazard of
one: ends over the time that answers have run, those that still run included (the estimate for censored lifetimes;
Cox and Oakes, Analysis of Survival Data, 1984, section 3.2). The mean of those that ended would be too short wherever
load has just risen: the first that end are the short ones.
"""

from __future__ import annotations

from dataclasses import dataclass

KEPT = 1 - 1 / 64
"""Of what was seen before, with each answer that ends."""


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """Where a request stands among those that wait for the same model; the next one to start has place 1."""

    place: int
    num_waiting: int
    expected_wait_s: float | None
    """None while nothing is known yet."""


class QueueForecast:
    """What is known of one model's answers. Times never go back."""

    def __init__(self) -> None:
        self._num_running = 0
        self._since_s = 0.0
        self._num_ended = 0.0
        self._ran_s = 0.0

    def runs(self, num_running: int, now_s: float) -> None:
        """So many answers run from now on."""
        self._ran_s += self._num_running * (now_s - self._since_s)
        self._num_running, self._since_s = num_running, now_s

    def ended(self, now_s: float) -> None:
        """One of those that run has given its chain back, however it ended. What runs then is told by `runs`."""
        self.runs(self._num_running, now_s)
        self._ran_s *= KEPT
        self._num_ended = self._num_ended * KEPT + KEPT

    def expected_wait_s(self, place: int, now_s: float) -> float | None:
        """Until that many more answers have ended. None while none has, or none runs."""
        self.runs(self._num_running, now_s)
        if not self._num_ended or not self._num_running:
            return None
        return place * self._ran_s / self._num_ended / self._num_running
