"""For how long a volunteer can take the GPU back by hand, and what of it outlives the app. Free of Qt."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

TOMORROW_HOUR = 8
MAX_PAUSE_S = 2 * 86_400.0
"""No choice is longer; a remembered end that is further away comes from a clock that was wrong."""


class PauseChoice(Enum):
    """In the order of the menu; the value is its text."""

    UNTIL_RESUMED = "Until I resume"
    QUARTER_HOUR = "For 15 minutes"
    HOUR = "For 1 hour"
    TOMORROW = f"Until tomorrow {TOMORROW_HOUR}:00"
    UNTIL_RESTART = "Until restart"


AFTER_ANSWERS = tuple(choice for choice in PauseChoice if choice is not PauseChoice.UNTIL_RESTART)
"""What a pause can be that waits for answers: an app that ends meanwhile comes back paused, whatever was chosen."""


@dataclass(frozen=True, slots=True)
class ManualPause:
    """`until_s` is seconds since 1970; None: until the volunteer resumes."""

    until_s: float | None = None
    outlives_app: bool = True

    def is_over(self, now_s: float) -> bool:
        """A clock that was set back by days must not hold a volunteer's pause for years."""
        return self.until_s is not None and not now_s < self.until_s <= now_s + MAX_PAUSE_S

    def remaining_s(self, now_s: float) -> float | None:
        return None if self.until_s is None else max(0.01, self.until_s - now_s)


def pause_of(choice: PauseChoice, now_s: float) -> ManualPause:
    match choice:
        case PauseChoice.UNTIL_RESUMED:
            return ManualPause()
        case PauseChoice.UNTIL_RESTART:
            return ManualPause(outlives_app=False)
        case PauseChoice.QUARTER_HOUR:
            return ManualPause(now_s + 15 * 60)
        case PauseChoice.HOUR:
            return ManualPause(now_s + 60 * 60)
        case PauseChoice.TOMORROW:
            return ManualPause(_tomorrow_s(now_s))


def _tomorrow_s(now_s: float) -> float:
    """Local time, so that a day on which the clocks change is as long as it is."""
    day = datetime.fromtimestamp(now_s).date() + timedelta(days=1)
    return datetime(day.year, day.month, day.day, TOMORROW_HOUR).timestamp()
