"""When the machine gives its GPU back, and when it goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from client.agent import policy
from client.agent.policy import CALM_S, MAX_QUIET_S, QUIET_S, SAMPLE_S, SUSTAIN_S, Readings, program_key
from protocol.pause import Hours, PauseMode, PauseReason, PauseRules
from tests.client.agent.machine import QUIET_GPU, Machine, seen

ALWAYS, WHEN_FREE, WHEN_AWAY = (PauseRules(mode=mode) for mode in PauseMode)
GAME = {"others_percent": 80, "others_program": "factorio"}
LOW_MEMORY = {"free_bytes": 500_000_000, "others_growth_bytes": 4 * 10**9}
AWAY = {"idle_s": 1000.0}
NIGHT = PauseRules(hours=Hours(22 * 60, 7 * 60))
MANUAL, OTHER_GPU_USE, VIDEO, LOW_GPU_MEMORY, FULLSCREEN, PROGRAM, BATTERY, USER_ACTIVE, HOT, HOURS = PauseReason
LONG_S = 10.0
"""Longer than any condition has to be seen."""


# ---------------------------------------------------------------- one reason at a time


@pytest.mark.parametrize(
    ("rules", "what", "reason", "detail"),
    [
        (WHEN_FREE, GAME, OTHER_GPU_USE, "factorio uses 80 % of the GPU"),
        (WHEN_FREE, {"others_percent": 20}, OTHER_GPU_USE, "other programs use 20 % of the GPU"),
        (PauseRules(other_gpu_percent=5), {"others_percent": 5}, OTHER_GPU_USE, "other programs use 5 % of the GPU"),
        (WHEN_FREE, {"others_percent": None, "others_growth_bytes": 1_250_000_000}, OTHER_GPU_USE,
         "another program took 1.2 GB of the GPU's memory"),
        (WHEN_FREE, {"video_percent": 1, "video_program": "firefox"}, VIDEO, "firefox plays a video"),
        (WHEN_FREE, {"video_percent": 7}, VIDEO, "a video is playing"),
        (WHEN_FREE, {**LOW_MEMORY, "growth_program": "blender"}, LOW_GPU_MEMORY,
         "only 0.5 GB of the GPU's memory is free (blender needs it)"),
        (ALWAYS, LOW_MEMORY, LOW_GPU_MEMORY, "only 0.5 GB of the GPU's memory is free"),
        (WHEN_FREE, {"is_fullscreen": True}, FULLSCREEN, "a program fills the screen"),
        (PauseRules(programs=("Steam.exe",)), {"programs": frozenset({"steam"})}, PROGRAM, "Steam.exe is running"),
        (PauseRules(mode=PauseMode.ALWAYS, programs=("obs",)), {"programs": frozenset({"x", "obs"})}, PROGRAM,
         "obs is running"),
        (ALWAYS, {"on_battery": True}, BATTERY, "on battery"),
        (WHEN_AWAY, {"idle_s": 179.0}, USER_ACTIVE, "somebody is at the machine"),
        (WHEN_AWAY, {}, USER_ACTIVE, "somebody may be at the machine: idle detection is not available here"),
        (ALWAYS, {"temperature_c": 83}, HOT, "the GPU is at 83 °C"),
        (PauseRules(max_temperature_c=60), {"temperature_c": 61}, HOT, "the GPU is at 61 °C"),
        (NIGHT, {}, HOURS, "contributes from 22:00 to 07:00 only"),
    ],
)  # fmt: skip
def test_a_reason_pauses_and_says_what_was_seen(
    rules: PauseRules, what: dict[str, Any], reason: PauseReason, detail: str
) -> None:
    verdict = Machine(rules, serving=False).shows(LONG_S, **what)
    assert (verdict.serve, verdict.reasons, verdict.detail) == (False, (reason,), detail)


@pytest.mark.parametrize(
    ("rules", "what"),
    [
        (WHEN_FREE, {}),
        (WHEN_FREE, {"others_percent": 19}),
        (ALWAYS, GAME),
        (ALWAYS, {"others_percent": None, "others_growth_bytes": 10**10}),
        (ALWAYS, {"video_percent": 50, "is_fullscreen": True, "idle_s": 0.0}),
        (WHEN_FREE, {"others_percent": 0, "others_growth_bytes": 10**10}),
        (WHEN_FREE, {"others_percent": None, "others_growth_bytes": 299_000_000}),
        (WHEN_FREE, {"free_bytes": 0, "others_growth_bytes": 0}),
        (WHEN_FREE, {"free_bytes": 0, "others_growth_bytes": None}),
        (WHEN_FREE, {"free_bytes": 2**30, "others_growth_bytes": 10**10}),
        (PauseRules(min_free_gpu_bytes=0), {**LOW_MEMORY, "free_bytes": 0}),
        (PauseRules(programs=("steam",)), {"programs": frozenset({"steamwebhelper", "team"})}),
        (WHEN_FREE, {"programs": frozenset({"steam"})}),
        (PauseRules(run_on_battery=True), {"on_battery": True}),
        (WHEN_FREE, {"idle_s": 0.0, "is_locked": False}),
        (WHEN_AWAY, {"idle_s": 180.0}),
        (PauseRules(mode=PauseMode.WHEN_AWAY, away_after_s=5.0), {"idle_s": 5.0}),
        (WHEN_AWAY, {"idle_s": 0.0, "is_locked": True}),
        (WHEN_AWAY, {"is_locked": True}),
        (WHEN_FREE, {"temperature_c": 82}),
        (PauseRules(max_temperature_c=100), {"temperature_c": 99}),
        (PauseRules(hours=Hours(0, 0)), {}),
    ],
)
def test_what_is_no_reason_does_not_pause(rules: PauseRules, what: dict[str, Any]) -> None:
    machine = Machine(rules, serving=False)
    assert {verdict.reasons for verdict in machine.verdicts(LONG_S, **what)} == {()}
    assert machine.verdict.serve


@pytest.mark.parametrize("rules", [ALWAYS, WHEN_FREE])
def test_what_nobody_knows_is_no_reason(rules: PauseRules) -> None:
    unknown = replace(QUIET_GPU, **dict.fromkeys(
        ("others_percent", "video_percent", "free_bytes", "others_growth_bytes", "temperature_c"), None
    ))  # fmt: skip
    machine = Machine(structs.replace(rules, programs=("steam",), hours=Hours(0, 1)), serving=False)
    for _ in range(20):
        machine.now_s += SAMPLE_S
        assert not machine.decide(Readings(machine.now_s, (unknown,))).reasons
    assert machine.verdict.serve


def test_one_busy_gpu_of_two_is_enough_and_the_busiest_program_is_named() -> None:
    machine = Machine()
    gpus = (replace(QUIET_GPU, others_percent=30, others_program="a"), replace(QUIET_GPU, **GAME))
    for _ in range(4):
        machine.decide(Readings(machine.now_s, gpus))
        machine.now_s += SAMPLE_S
    assert machine.verdict.detail == "factorio uses 80 % of the GPU"


def test_several_reasons_are_told_in_one_order() -> None:
    verdict = Machine().shows(LONG_S, is_fullscreen=True, on_battery=True, **GAME)
    assert verdict.reasons == (OTHER_GPU_USE, FULLSCREEN, BATTERY)
    assert verdict.detail == "factorio uses 80 % of the GPU; a program fills the screen; on battery"


def test_the_detail_is_what_was_seen_first_and_does_not_flicker() -> None:
    machine = Machine()
    machine.shows(2, **GAME)
    details = {machine.shows(SAMPLE_S, others_percent=p, others_program="other").detail for p in (30, 70, 25, 99)}
    assert details == {"factorio uses 80 % of the GPU"}


@pytest.mark.parametrize(("name", "key"), [("Steam.EXE", "steam"), ("steam", "steam"), (" a.exe.exe ", "a.exe")])
def test_programs_are_compared_without_case_and_exe(name: str, key: str) -> None:
    assert program_key(name) == key


@pytest.mark.parametrize(
    ("start", "stop", "minute", "is_within"),
    [(540, 1020, 540, True), (540, 1020, 1019, True), (540, 1020, 1020, False), (540, 1020, 539, False),
     (1320, 420, 1320, True), (1320, 420, 0, True), (1320, 420, 419, True), (1320, 420, 420, False),
     (600, 600, 0, True), (0, 1439, 1439, False)],
)  # fmt: skip
def test_hours_may_cross_midnight(start: int, stop: int, minute: int, is_within: bool) -> None:
    machine = Machine(PauseRules(hours=Hours(start, stop)), serving=False)
    assert machine.shows(2, second_of_day=60.0 * minute).serve is is_within


# ---------------------------------------------------------------- how soon


@pytest.mark.parametrize(
    ("what", "num_readings"),
    [
        (GAME, 2),
        ({"others_percent": None, "others_growth_bytes": 10**9}, 4),
        ({"video_percent": 5}, 7),
        ({"temperature_c": 90}, 11),
        (LOW_MEMORY, 1),
        ({"is_fullscreen": True}, 1),
        ({"on_battery": True}, 1),
        ({"programs": frozenset({"steam"})}, 1),
    ],
)
def test_a_condition_is_a_reason_after_so_many_readings(what: dict[str, Any], num_readings: int) -> None:
    verdicts = Machine(PauseRules(programs=("steam",))).verdicts(LONG_S, **what)
    assert [verdict.serve for verdict in verdicts] == [i < num_readings - 1 for i in range(len(verdicts))]


@pytest.mark.parametrize("phase_s", [0.0, 0.1, 0.2, 0.3, 0.4])
def test_a_game_is_noticed_within_the_limit_wherever_it_begins_between_two_readings(phase_s: float) -> None:
    """A reading is the average since the one before: of the first, a part only is the game's."""
    machine = Machine()
    begun_s = machine.now_s - SAMPLE_S + phase_s
    machine.shows(SAMPLE_S, others_percent=round(95 * (SAMPLE_S - phase_s) / SAMPLE_S))
    while machine.shows(SAMPLE_S, others_percent=95).serve:
        pass
    assert machine.now_s - SAMPLE_S - begun_s <= SUSTAIN_S


def test_one_busy_moment_is_no_game() -> None:
    machine = Machine()
    for _ in range(20):
        assert machine.shows(SAMPLE_S, **GAME).serve
        assert machine.shows(2 * SAMPLE_S).serve


def test_a_game_that_shares_the_gpu_with_our_worker_is_seen_in_every_other_reading_only() -> None:
    """As measured on an H100 with a game and a worker that never rest."""
    machine = Machine()
    verdicts = [machine.shows(SAMPLE_S, others_percent=percent) for percent in (66, 0, 82, 0, 80, 26, 0, 70)]
    assert [verdict.serve for verdict in verdicts] == [True, True, *[False] * 6]
    assert {verdict.resumes_at_s for verdict in verdicts} == {None}


def test_the_same_reading_twice_is_one_reading() -> None:
    machine = Machine()
    reading = seen(machine.now_s, **GAME)
    assert all(machine.decide(reading).serve for _ in range(10))
    machine.now_s += 0.3
    assert machine.decide(seen(machine.now_s, **GAME)).serve


# ---------------------------------------------------------------- the first verdict


def test_before_the_first_verdict_the_gpu_is_watched_and_nothing_is_decided() -> None:
    verdicts = Machine(serving=False).verdicts(2)
    assert verdicts[:2] == [policy.LOOKING] * 2
    assert [verdict.serve for verdict in verdicts[2:]] == [True, True]


@pytest.mark.parametrize(
    "what", [GAME, {"video_percent": 5}, {"temperature_c": 90}, {"is_fullscreen": True}, {"on_battery": True}]
)
def test_a_machine_that_is_busy_at_the_start_never_serves(what: dict[str, Any]) -> None:
    machine = Machine(serving=False)
    machine.shows(SAMPLE_S, **{**what, "others_percent": None})
    verdicts = machine.verdicts(LONG_S, **what)
    assert not any(verdict.serve for verdict in verdicts)
    assert verdicts[-1].reasons


def test_a_machine_without_a_gpu_has_its_first_verdict_at_once() -> None:
    machine = Machine(serving=False)
    assert machine.decide(Readings(machine.now_s)).serve


def test_a_pause_by_hand_does_not_shorten_the_first_look() -> None:
    machine = Machine(serving=False)
    machine.pause()
    assert machine.shows(SAMPLE_S).reasons == (MANUAL,)
    machine.resume()
    assert machine.shows(SAMPLE_S) == policy.LOOKING
    assert machine.shows(1).serve


# ---------------------------------------------------------------- going on


def test_it_goes_on_after_a_minute_of_quiet() -> None:
    machine = Machine()
    machine.shows(LONG_S, **GAME)
    assert machine.verdict.resumes_at_s is None
    last_held_s = machine.now_s - SAMPLE_S
    verdict = machine.shows(2 * SAMPLE_S)
    assert (verdict.reasons, verdict.resumes_at_s) == ((OTHER_GPU_USE,), last_held_s + QUIET_S)
    machine.until_it_serves(QUIET_S)
    assert machine.now_s - SAMPLE_S == last_held_s + QUIET_S


def test_a_reason_in_the_quiet_begins_the_wait_anew() -> None:
    machine = Machine()
    machine.shows(2, **GAME)
    machine.shows(50)
    machine.shows(2, **GAME)
    assert machine.until_it_serves(QUIET_S) >= QUIET_S - SAMPLE_S


def test_other_moments_of_use_in_the_quiet_do_not() -> None:
    machine = Machine()
    machine.shows(2, **GAME)
    waited_s = 0.0
    while not machine.verdict.serve:
        machine.shows(SAMPLE_S, **GAME)
        machine.shows(1.5)
        waited_s += 2.0
    assert waited_s <= QUIET_S + 2.0


def test_a_machine_that_flaps_waits_twice_as_long_each_time_up_to_ten_minutes() -> None:
    machine = Machine()
    waits_s = []
    for _ in range(6):
        machine.shows(LONG_S, **GAME)
        waits_s.append(machine.until_it_serves(MAX_QUIET_S) + SAMPLE_S)
        machine.shows(30)
    assert waits_s == [60, 120, 240, 480, 600, 600]


def test_after_calm_the_wait_is_a_minute_again() -> None:
    machine = Machine()
    for _ in range(3):
        machine.shows(1, **GAME)
        machine.until_it_serves(MAX_QUIET_S)
    machine.shows(CALM_S)
    machine.shows(1, **GAME)
    assert machine.until_it_serves(MAX_QUIET_S) + SAMPLE_S == QUIET_S


def test_a_pause_long_after_a_resume_does_not_lengthen_the_wait() -> None:
    machine = Machine()
    for _ in range(3):
        machine.shows(1, **GAME)
        assert machine.until_it_serves(MAX_QUIET_S) + SAMPLE_S == QUIET_S
        machine.shows(301)


@pytest.mark.parametrize("how", [{"idle_s": 180.0}, {"idle_s": 3.0, "is_locked": True}])
def test_when_everybody_is_away_it_goes_on_at_once(how: dict[str, Any]) -> None:
    machine = Machine(WHEN_AWAY, serving=False)
    machine.shows(LONG_S, idle_s=1.0)
    assert machine.reasons == (USER_ACTIVE,)
    assert machine.shows(SAMPLE_S, **how).serve


def test_coming_and_going_is_no_flapping() -> None:
    machine = Machine(WHEN_AWAY, serving=False)
    for _ in range(10):
        assert machine.shows(LONG_S, idle_s=1.0).reasons == (USER_ACTIVE,)
        assert machine.shows(LONG_S, **AWAY).serve


def test_hours_say_when_they_begin_and_need_no_quiet() -> None:
    machine = Machine(NIGHT, serving=False)
    verdict = machine.shows(SAMPLE_S, second_of_day=21 * 3600.0)
    assert verdict.resumes_at_s == machine.now_s - SAMPLE_S + 3600
    assert machine.shows(1, second_of_day=22 * 3600.0).serve


def test_hot_ends_well_below_the_limit() -> None:
    machine = Machine()
    machine.shows(LONG_S, temperature_c=83)
    for temperature_c in (82, 76, 76):
        assert machine.shows(SAMPLE_S, temperature_c=temperature_c).resumes_at_s is None
    assert machine.shows(SAMPLE_S, temperature_c=75).resumes_at_s is not None
    assert machine.until_it_serves(QUIET_S, temperature_c=82) <= QUIET_S


def test_plugging_in_is_followed_by_quiet() -> None:
    machine = Machine()
    machine.shows(1, on_battery=True)
    assert machine.until_it_serves(QUIET_S, on_battery=False) + SAMPLE_S == QUIET_S


# ---------------------------------------------------------------- pauses by hand


def test_a_pause_by_hand_holds_until_resume() -> None:
    machine = Machine()
    machine.pause()
    verdict = machine.shows(4 * MAX_QUIET_S)
    assert (verdict.reasons, verdict.detail, verdict.until_s, verdict.resumes_at_s) == ((MANUAL,), "", None, None)
    machine.resume()
    assert machine.shows(SAMPLE_S).serve


def test_a_pause_by_hand_for_a_while_shows_its_end_and_ends_by_itself() -> None:
    machine = Machine()
    end_s = machine.now_s + 900
    machine.pause(900)
    verdicts = machine.verdicts(900)
    assert {(verdict.serve, verdict.until_s, verdict.resumes_at_s) for verdict in verdicts} == {(False, end_s, end_s)}
    assert machine.shows(SAMPLE_S).serve


def test_the_last_pause_by_hand_counts() -> None:
    machine = Machine()
    machine.pause()
    machine.pause(10)
    machine.shows(10)
    assert machine.shows(SAMPLE_S).serve


@pytest.mark.parametrize("for_s", [0.0, -5.0])
def test_a_pause_for_no_time_is_over_at_once(for_s: float) -> None:
    machine = Machine()
    machine.pause(for_s)
    assert machine.shows(SAMPLE_S).serve


def test_a_pause_by_hand_comes_first_and_other_reasons_are_shown_with_it() -> None:
    machine = Machine()
    machine.shows(2, **GAME)
    machine.pause(30)
    verdict = machine.shows(2, **GAME)
    assert (verdict.reasons, verdict.detail) == ((MANUAL, OTHER_GPU_USE), "factorio uses 80 % of the GPU")
    assert verdict.until_s is not None
    assert verdict.resumes_at_s is None
    assert machine.shows(60, **GAME).reasons == (OTHER_GPU_USE,)


def test_while_paused_by_hand_a_reason_that_has_passed_is_not_shown_but_waited_for() -> None:
    machine = Machine()
    machine.shows(2, **GAME)
    machine.pause(30)
    verdict = machine.shows(2 * SAMPLE_S)
    assert verdict.reasons == (MANUAL,)
    assert verdict.resumes_at_s > verdict.until_s
    assert machine.shows(31).reasons == (OTHER_GPU_USE,)


def test_a_pause_by_hand_is_no_flapping() -> None:
    machine = Machine()
    for _ in range(5):
        machine.pause()
        machine.shows(10)
        machine.resume()
        machine.shows(10)
    assert machine.state.quiet_s == QUIET_S


def test_a_game_soon_after_a_resume_by_hand_is_no_flapping() -> None:
    machine = Machine()
    machine.shows(LONG_S, **GAME)
    machine.until_it_serves(QUIET_S)
    machine.pause()
    machine.shows(1)
    machine.resume()
    machine.shows(1)
    machine.shows(LONG_S, **GAME)
    assert machine.until_it_serves(MAX_QUIET_S) + SAMPLE_S == QUIET_S


def test_resume_ends_the_wait_for_quiet_but_no_reason_that_holds() -> None:
    machine = Machine()
    machine.shows(2, **GAME)
    machine.shows(5)
    machine.resume()
    assert machine.shows(SAMPLE_S).serve
    machine.shows(2, **GAME)
    machine.resume()
    assert machine.shows(SAMPLE_S, **GAME).reasons == (OTHER_GPU_USE,)


# ---------------------------------------------------------------- all the same


@pytest.mark.parametrize(
    ("rules", "what"),
    [(WHEN_FREE, GAME), (WHEN_FREE, LOW_MEMORY), (WHEN_FREE, {"on_battery": True}), (WHEN_AWAY, {"idle_s": 1.0}),
     (WHEN_FREE, {"temperature_c": 85}), (NIGHT, {})],
)  # fmt: skip
def test_anyway_goes_on_at_once_and_pauses_again_after_the_reason_has_passed_once(
    rules: PauseRules, what: dict[str, Any]
) -> None:
    machine = Machine(rules, serving=False)
    machine.shows(LONG_S, **what)
    machine.resume(anyway=True)
    assert all(verdict.serve for verdict in machine.verdicts(1000, **what))
    assert machine.shows(LONG_S, idle_s=1000.0, second_of_day=0.0).serve
    assert not machine.shows(LONG_S, **what).serve


def test_a_gap_in_a_games_use_is_not_its_end() -> None:
    machine = Machine()
    machine.shows(2, **GAME)
    machine.resume(anyway=True)
    for _ in range(50):
        assert machine.shows(3, **GAME).serve
        assert machine.shows(4).serve


def test_anyway_waives_only_what_is_there_now() -> None:
    machine = Machine()
    machine.shows(2, **GAME)
    machine.resume(anyway=True)
    machine.shows(2, **GAME)
    assert machine.shows(SAMPLE_S, is_fullscreen=True, **GAME).reasons == (FULLSCREEN,)


def test_a_pause_by_hand_wins_over_anyway() -> None:
    machine = Machine()
    machine.shows(2, **GAME)
    machine.resume(anyway=True)
    machine.pause()
    assert machine.shows(SAMPLE_S, **GAME).reasons == (MANUAL,)


# ---------------------------------------------------------------- other rules


def test_laxer_rules_act_at_once() -> None:
    machine = Machine()
    machine.shows(LONG_S, **GAME)
    machine.change_rules(PauseRules(other_gpu_percent=90))
    assert machine.shows(SAMPLE_S, **GAME).serve


def test_stricter_rules_act_at_once() -> None:
    machine = Machine(PauseRules(other_gpu_percent=90, run_on_battery=True))
    assert machine.shows(LONG_S, on_battery=True, **GAME).serve
    machine.change_rules(PauseRules(other_gpu_percent=10, run_on_battery=False))
    assert machine.shows(SAMPLE_S, on_battery=True, **GAME).reasons == (BATTERY,)
    assert machine.shows(SAMPLE_S, on_battery=True, **GAME).reasons == (OTHER_GPU_USE, BATTERY)


def test_rules_that_do_not_concern_it_leave_a_reason_held() -> None:
    machine = Machine()
    machine.shows(LONG_S, **GAME)
    machine.change_rules(PauseRules(max_temperature_c=70))
    assert machine.shows(SAMPLE_S, **GAME).reasons == (OTHER_GPU_USE,)
