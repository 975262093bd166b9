"""The last changes between serving and paused, for "Why did it pause?". Pure."""

from __future__ import annotations

from client.agent.policy import Verdict
from client.status import MAX_TRANSITIONS, History, Transition


def with_change(history: History, before: Verdict, after: Verdict, wall_s: float) -> History:
    """The history with one more line if the machine went from serving to paused or back; the oldest goes.

    A start that needs no pause is no change, and neither is one more reason while paused."""
    was_paused, is_paused = bool(before.reasons), bool(after.reasons)
    if was_paused == is_paused:
        return history
    change = Transition(wall_s, after.reasons, after.detail)
    return History((*history.transitions, change)[-MAX_TRANSITIONS:])
