"""Which readings are worth telling the agent: a line costs both processes a wake-up. Pure."""

from __future__ import annotations

from client.status import SessionReading

TELL_AGAIN_S = 5.0
"""Unchanged readings are told this often: one that is older counts as unknown."""


class Sifter:
    """Remembers what was told last. `now_s` is any clock that never goes back."""

    def __init__(self) -> None:
        self._told: SessionReading | None = None
        self._told_s = 0.0

    def is_worth_telling(self, reading: SessionReading, away_after_s: float, now_s: float) -> bool:
        """True at most once for the same news."""
        if not (self._is_news(reading, away_after_s) or now_s - self._told_s >= TELL_AGAIN_S):
            return False
        self._told, self._told_s = reading, now_s
        return True

    def forget(self) -> None:
        """A new agent knows nothing."""
        self._told = None

    def _is_news(self, reading: SessionReading, away_after_s: float) -> bool:
        told = self._told
        if told is None or (told.is_fullscreen, told.is_locked) != (reading.is_fullscreen, reading.is_locked):
            return True
        return _is_away(told.idle_s, away_after_s) != _is_away(reading.idle_s, away_after_s)


def _is_away(idle_s: float | None, away_after_s: float) -> bool | None:
    return None if idle_s is None else idle_s >= away_after_s
