"""The policy at work in one agent: the rules in force, what it remembers, the last verdict, the history. Pure."""

from __future__ import annotations

from dataclasses import replace

from client.agent.history import with_change
from client.agent.policy import (
    LOOKING,
    PolicyState,
    Readings,
    Verdict,
    change_rules,
    decide,
    pause,
    resume,
)
from client.status import History, Pause, PauseInfo, Resume, SetRules
from protocol.pause import PauseRules, strictest

DRIFT_S = 2.0
"""Clocks are never quite alike: an end that moved by less has not moved."""


class Guard:
    """Says whether the machine may serve. Every method brings the verdict up to date."""

    def __init__(self, own: PauseRules) -> None:
        self.verdict = LOOKING
        self.history = History(())
        self.pause: PauseInfo | None = None
        """Why and until when, if the verdict is to pause."""
        self._own = own
        self._pool = PauseRules()
        self._state = PolicyState()
        self._readings: Readings | None = None

    @property
    def rules(self) -> PauseRules:
        """The volunteer's own and the pool's, the stricter of the two."""
        return strictest(self._own, self._pool)

    @property
    def is_paused_by_hand(self) -> bool:
        return self._state.manual_until_s is not None

    def see(self, readings: Readings, now_s: float, wall_s: float) -> None:
        """New readings."""
        self._readings = readings
        self._reconsider(now_s, wall_s)

    def obey(self, command: Pause | Resume | SetRules, now_s: float, wall_s: float) -> None:
        """What the volunteer wants, at once."""
        match command:
            case Pause(for_s, after_answers):
                self._state = pause(self._state, now_s, for_s, after_answers=after_answers)
            case Resume(anyway):
                self._state = resume(self._state, now_s, anyway=anyway)
            case SetRules(rules):
                self._own = rules
                self._state = change_rules(self._state)
        self._reconsider(now_s, wall_s)

    def take_pool_rules(self, rules: PauseRules, now_s: float, wall_s: float) -> None:
        """The pool says its rules at every connection; the same ones change nothing. Kept while paused."""
        if rules != self._pool:
            self._pool = rules
            self._state = change_rules(self._state)
            self._reconsider(now_s, wall_s)

    def _reconsider(self, now_s: float, wall_s: float) -> None:
        """Before the first readings, which come at once, there is nothing to decide on."""
        if self._readings is None:
            return
        before = self.verdict
        self._state, verdict = decide(self._readings, self.rules, self._state, now_s)
        if is_news(before, verdict):
            self.verdict = verdict
            self.pause = _pause_info(verdict, self.pause, now_s, wall_s)
            self.history = with_change(self.history, before, verdict, wall_s)


def is_news(before: Verdict, after: Verdict) -> bool:
    """Whether people are to be told anything else than before."""
    if before.resumes_at_s is None or after.resumes_at_s is None:
        return before != after
    drift_s = abs(after.resumes_at_s - before.resumes_at_s)
    return drift_s > DRIFT_S or replace(before, resumes_at_s=None) != replace(after, resumes_at_s=None)


def _pause_info(verdict: Verdict, before: PauseInfo | None, now_s: float, wall_s: float) -> PauseInfo | None:
    if not verdict.reasons:
        return None
    return PauseInfo(
        reasons=verdict.reasons,
        since_s=before.since_s if before is not None else wall_s,
        detail=verdict.detail,
        until_s=None if verdict.until_s is None else wall_s + verdict.until_s - now_s,
        resumes_at_s=None if verdict.resumes_at_s is None else wall_s + verdict.resumes_at_s - now_s,
    )
