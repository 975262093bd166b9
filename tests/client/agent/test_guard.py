"""The guard: rules from two sides, what the volunteer says, and what people are told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from client.agent.guard import DRIFT_S, Guard, is_news
from client.agent.policy import LOOKING, QUIET_S, SAMPLE_S, Verdict
from client.status import Command, Pause, PauseInfo, Resume, SetRules, Transition
from protocol.pause import PauseMode, PauseReason, PauseRules
from tests.client.agent.machine import seen

WALL_S = 1_700_000_000.0
"""What the wall clock is ahead of the monotonic one."""
GAME = {"others_percent": 80, "others_program": "factorio"}


class Guarded:
    """A guard on a clock of its own."""

    def __init__(self, own: PauseRules = PauseRules()) -> None:
        self.guard = Guard(own)
        self.now_s = 50.0

    def shows(self, for_s: float, **what: Any) -> Verdict:
        for _ in range(round(for_s / SAMPLE_S)):
            self.now_s += SAMPLE_S
            self.guard.see(seen(self.now_s, **what), *self.clocks)
        return self.guard.verdict

    def told(self, command: Command) -> Verdict:
        assert isinstance(command, Pause | Resume | SetRules)
        self.guard.obey(command, *self.clocks)
        return self.guard.verdict

    @property
    def clocks(self) -> tuple[float, float]:
        return self.now_s, self.now_s + WALL_S


def serving(own: PauseRules = PauseRules()) -> Guarded:
    guarded = Guarded(own)
    assert guarded.shows(2).serve
    return guarded


def test_before_the_first_readings_nothing_is_decided_and_what_was_said_counts_later() -> None:
    guarded = Guarded()
    assert guarded.told(Pause()) == LOOKING
    assert guarded.shows(SAMPLE_S).reasons == (PauseReason.MANUAL,)


def test_a_pause_by_hand_acts_without_new_readings() -> None:
    guarded = serving()
    assert guarded.told(Pause(900.0)).reasons == (PauseReason.MANUAL,)
    begun_s = guarded.now_s + WALL_S
    assert guarded.guard.pause == PauseInfo(
        (PauseReason.MANUAL,), begun_s, until_s=begun_s + 900, resumes_at_s=begun_s + 900
    )
    assert guarded.guard.is_paused_by_hand
    assert guarded.told(Resume()).serve
    assert guarded.guard.pause is None
    assert not guarded.guard.is_paused_by_hand


def test_a_pause_after_answers_is_in_no_hurry_until_something_else_is() -> None:
    guarded = serving()
    assert guarded.told(Pause(after_answers=True)).is_soft
    assert guarded.shows(1, on_battery=True).is_soft, "neither of them hurries"
    assert not guarded.shows(2, on_battery=True, **GAME).is_soft
    assert guarded.shows(2, on_battery=True).reasons == (PauseReason.MANUAL, PauseReason.BATTERY)


def test_the_last_word_by_hand_says_whether_it_is_in_a_hurry() -> None:
    guarded = serving()
    assert not guarded.told(Pause()).is_soft
    assert guarded.told(Pause(900.0, after_answers=True)).is_soft
    assert not guarded.told(Pause()).is_soft
    assert guarded.told(Resume()).serve
    assert not guarded.shows(2, **GAME).is_soft, "what was said before a resume is over"


def test_people_are_told_since_when_why_and_until_when() -> None:
    guarded = serving()
    guarded.shows(1, **GAME)
    begun_s = guarded.now_s + WALL_S
    assert guarded.guard.pause == PauseInfo(
        (PauseReason.OTHER_GPU_USE,), begun_s, "factorio uses 80 % of the GPU"
    )  # fmt: skip
    guarded.shows(10)
    told = guarded.guard.pause
    assert (told.since_s, told.resumes_at_s) == (begun_s, begun_s + QUIET_S)


def test_nothing_new_is_told_while_nothing_changes() -> None:
    guarded = serving()
    guarded.shows(2, **GAME)
    guarded.shows(2 * SAMPLE_S)
    told = guarded.guard.pause
    for _ in range(20):
        guarded.shows(SAMPLE_S)
        assert guarded.guard.pause is told


def test_the_history_has_each_pause_and_each_resume() -> None:
    guarded = serving()
    guarded.shows(1, **GAME)
    paused_s = guarded.now_s + WALL_S
    guarded.shows(QUIET_S)
    resumed_s = guarded.now_s + WALL_S
    guarded.shows(10)
    assert guarded.guard.history.transitions == (
        Transition(paused_s, (PauseReason.OTHER_GPU_USE,), "factorio uses 80 % of the GPU"),
        Transition(resumed_s),
    )


def test_resume_anyway_acts_without_new_readings() -> None:
    guarded = serving()
    guarded.shows(2, **GAME)
    assert not guarded.told(Resume()).serve
    assert guarded.told(Resume(anyway=True)).serve


def test_new_rules_act_without_new_readings() -> None:
    guarded = serving()
    guarded.shows(2, on_battery=True, **GAME)
    assert guarded.told(SetRules(PauseRules(mode=PauseMode.ALWAYS, run_on_battery=True))).serve
    assert guarded.told(SetRules(PauseRules())).reasons == (PauseReason.OTHER_GPU_USE, PauseReason.BATTERY)


def test_the_pools_rules_apply_where_they_are_stricter_and_are_kept() -> None:
    guarded = serving(PauseRules(other_gpu_percent=50, max_temperature_c=70))
    guarded.guard.take_pool_rules(PauseRules(other_gpu_percent=10, max_temperature_c=90), *guarded.clocks)
    assert guarded.guard.rules == PauseRules(other_gpu_percent=10, max_temperature_c=70)
    guarded.told(SetRules(PauseRules(other_gpu_percent=5)))
    assert guarded.guard.rules == PauseRules(other_gpu_percent=5, max_temperature_c=90)


def test_the_pools_rules_act_at_once() -> None:
    guarded = serving(PauseRules(run_on_battery=True))
    assert guarded.shows(2, on_battery=True).serve
    guarded.guard.take_pool_rules(PauseRules(run_on_battery=False), *guarded.clocks)
    assert guarded.guard.verdict.reasons == (PauseReason.BATTERY,)


def test_the_same_rules_of_the_pool_again_do_not_end_a_wait() -> None:
    guarded = serving()
    guarded.guard.take_pool_rules(PauseRules(other_gpu_percent=10), *guarded.clocks)
    guarded.shows(2, **GAME)
    guarded.shows(2)
    guarded.guard.take_pool_rules(PauseRules(other_gpu_percent=10), *guarded.clocks)
    assert not guarded.guard.verdict.serve


def test_an_end_that_moves_with_the_clocks_is_no_news() -> None:
    paused = Verdict(False, (PauseReason.HOURS,), "", resumes_at_s=100.0)
    assert not is_news(paused, replace(paused, resumes_at_s=100.0 + DRIFT_S / 2))
    assert is_news(paused, replace(paused, resumes_at_s=100.0 + 2 * DRIFT_S))
    assert is_news(paused, replace(paused, resumes_at_s=None))
    assert is_news(paused, replace(paused, resumes_at_s=100.5, detail="else"))
    assert not is_news(paused, replace(paused))
