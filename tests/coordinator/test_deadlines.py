"""When an answer is late: what is learnt from steps, and who is due when."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.deadlines import (
    ENOUGH_STEPS,
    GOOD_STEPS,
    LEAST_OPENING_S,
    LEAST_PROMPT_S,
    LEAST_S,
    LEAST_SILENT_S,
    MAX_PATIENCE,
    MOST_BIAS,
    NUM_RECENT,
    SAFETY,
    SLOW_FOR_S,
    WINDOW,
    Deadlines,
    StepTimes,
)
from coordinator.scheduler.chain_times import ChainTimes, HopTimes, StageTimes
from tests.fakes import pool_facts as facts

ONE = facts.session_id(1)


def chain(step_s: float = 0.02, row_s: float = 0.001, delay_s: float = 0.0, num_stages: int = 2) -> ChainTimes:
    return ChainTimes((StageTimes(step_s, row_s),) * num_stages, (HopTimes(delay_s, 0.0),) * num_stages)


def running(times: ChainTimes | None = None, num_rows: int = 3) -> Deadlines:
    """One session whose first token came at 10 s."""
    deadlines = Deadlines()
    deadlines.opens(ONE, times or chain(), num_rows, 0.0)
    deadlines.runs(ONE, 0, 1.0)
    deadlines.answered(ONE, 1, 10.0)
    return deadlines


def step(deadlines: Deadlines, num_steps: int, step_s: float, now_s: float = 10.0) -> float:
    """So many tokens, each that much after the last; returns when the last came."""
    for _ in range(num_steps):
        now_s += step_s
        deadlines.answered(ONE, 1, now_s)
    return now_s


def limit_s(deadlines: Deadlines, now_s: float) -> float:
    """After how long without a token it is due."""
    lo, hi = 0.0, 1e4
    watch = deadlines.watch(ONE)
    assert watch is not None
    while hi - lo > 1e-6:
        mid = (lo + hi) / 2
        lo, hi = (lo, mid) if watch.due_s <= now_s + mid else (mid, hi)
    return hi


# ---------------------------------------------------------------- step times


def test_the_slowest_of_a_few_is_the_99th_percentile_and_of_many_the_second_slowest() -> None:
    times = StepTimes()
    for _ in range(98):
        times.add(1.0)
    times.add(9.0)
    assert times.p99_s == 9.0
    for _ in range(WINDOW):
        times.add(1.0)
    times.add(9.0)
    assert times.p99_s == 1.0
    times.add(9.0)
    assert times.p99_s == 9.0


@given(st.lists(st.floats(0.0, 1e3), min_size=1, max_size=3 * WINDOW))
def test_only_the_last_steps_count(values: list[float]) -> None:
    times = StepTimes()
    for value in values:
        times.add(value)
    latest = sorted(values[-WINDOW:])
    assert len(times) == len(latest)
    assert times.p99_s == latest[math.ceil(0.99 * len(latest)) - 1]


@given(st.lists(st.floats(0.0, 1e3), min_size=1, max_size=3 * WINDOW))
def test_what_is_usual_is_the_mean_of_what_was_before_the_most_recent(values: list[float]) -> None:
    times = StepTimes()
    for value in values:
        times.add(value)
    before = values[-WINDOW:][:-NUM_RECENT]
    usual_s = times.usual_s()
    if len(before) < NUM_RECENT:
        assert usual_s is None
    else:
        assert usual_s == pytest.approx(sum(before) / len(before))


def test_tokens_that_come_in_bursts_are_not_slow() -> None:
    """Most of them took no time at all, so that any pause is many times what most took."""
    deadlines = running()
    for number in range(60):
        now_s = 10.0 + 0.5 * (number // 6)
        deadlines.answered(ONE, 1, now_s)
        assert deadlines.slow(now_s) == []


def test_before_the_first_step_nothing_is_known() -> None:
    assert StepTimes().p99_s == 0.0
    assert StepTimes().usual_s() is None
    assert StepTimes().recent_s() is None


# ---------------------------------------------------------------- limits


def test_quick_steps_have_half_a_second() -> None:
    deadlines = running()
    now_s = step(deadlines, 50, 0.02)
    assert limit_s(deadlines, now_s) == pytest.approx(LEAST_S, abs=1e-4)


def test_slow_steps_have_four_times_what_the_slowest_took() -> None:
    deadlines = running()
    now_s = step(deadlines, 50, 0.8)
    assert limit_s(deadlines, now_s) == pytest.approx(SAFETY * 0.8, rel=1e-3)


def test_before_enough_steps_the_forecast_counts_too() -> None:
    deadlines = running(chain(step_s=0.5))
    now_s = step(deadlines, ENOUGH_STEPS - 1, 0.02)
    assert limit_s(deadlines, now_s) == pytest.approx(SAFETY * 1.0, rel=1e-3)
    now_s = step(deadlines, 1, 0.02, now_s)
    assert limit_s(deadlines, now_s) == pytest.approx(LEAST_S, abs=1e-4)


def test_a_long_way_round_has_a_few_trips() -> None:
    deadlines = running(chain(delay_s=0.3))
    now_s = step(deadlines, 50, 0.05)
    assert limit_s(deadlines, now_s) == pytest.approx(4 * 2 * 0.3, rel=1e-3)


def test_several_tokens_at_once_are_several_steps() -> None:
    deadlines = running()
    now_s = 10.0
    for _ in range(20):
        now_s += 1.0
        deadlines.answered(ONE, 4, now_s)
    assert limit_s(deadlines, now_s) == pytest.approx(SAFETY * 0.25, rel=1e-3)


def test_opening_has_a_second_and_a_prompt_a_second_and_a_half_at_least() -> None:
    deadlines = Deadlines()
    deadlines.opens(ONE, chain(), 3, 0.0)
    assert limit_s(deadlines, 0.0) == pytest.approx(LEAST_OPENING_S, abs=1e-4)
    deadlines.runs(ONE, 0, 5.0)
    assert limit_s(deadlines, 5.0) == pytest.approx(LEAST_PROMPT_S, abs=1e-4)


def test_a_prompts_limit_grows_with_its_rows_and_with_those_before_it() -> None:
    limits = []
    for num_rows, num_ahead in ((1000, 0), (2000, 0), (1000, 5000)):
        deadlines = Deadlines()
        deadlines.opens(ONE, chain(), num_rows, 0.0)
        deadlines.runs(ONE, num_ahead, 0.0)
        watch = deadlines.watch(ONE)
        assert watch is not None
        limits.append(watch.prompt_by_s)
    assert limits[0] >= SAFETY * (1000 + 512) * 0.001 - 1e-3, "two stages pass it on in chunks"
    assert limits[1] - limits[0] == pytest.approx(SAFETY * 1000 * 0.001, rel=1e-3)
    assert limits[2] - limits[0] == pytest.approx(SAFETY * 5000 * 0.001, rel=1e-3)


def test_a_long_prompts_workers_are_asked_long_before_it_is_late() -> None:
    deadlines = Deadlines()
    deadlines.opens(ONE, chain(), 100_000, 0.0)
    deadlines.runs(ONE, 0, 1.0)
    assert limit_s(deadlines, 1.0) == pytest.approx(LEAST_SILENT_S, abs=1e-4)


@pytest.mark.parametrize(("factor", "bias"), [(0.5, 1.0), (3.0, 3.0), (100.0, MOST_BIAS)])
def test_forecasts_of_prompts_are_corrected_by_what_prompts_took(factor: float, bias: float) -> None:
    deadlines = Deadlines()
    for _ in range(ENOUGH_STEPS):
        deadlines.opens(ONE, chain(), 1000, 0.0)
        deadlines.runs(ONE, 0, 0.0)
        deadlines.answered(ONE, 1, factor * chain().prompt_s(1000))
    assert deadlines.prompt_bias == pytest.approx(bias)


# ---------------------------------------------------------------- who is due


def test_a_session_is_due_once_when_its_time_is_over() -> None:
    deadlines = running()
    assert deadlines.due(10.0 + LEAST_S - 0.01) == []
    assert deadlines.due(10.0 + LEAST_S) == [ONE]
    assert deadlines.due(1000.0) == []
    deadlines.allow(ONE, 2.0, 1000.0)
    assert deadlines.due(1001.9) == []
    assert deadlines.due(1002.0) == [ONE]


def test_every_token_gives_it_new_time() -> None:
    deadlines = running()
    now_s = step(deadlines, 1000, 0.4)
    assert deadlines.due(now_s + 0.1) == []
    assert deadlines.next_s >= now_s


def test_a_shorter_limit_counts_at_once() -> None:
    deadlines = Deadlines()
    deadlines.opens(ONE, chain(), 100_000, 0.0)
    deadlines.runs(ONE, 0, 0.0)
    deadlines.answered(ONE, 1, 1.0)
    assert deadlines.due(1.0 + LEAST_S - 0.01) == []
    assert deadlines.due(1.0 + LEAST_S) == [ONE]


def test_who_has_no_chain_is_never_due() -> None:
    deadlines = running()
    deadlines.stops(ONE)
    assert deadlines.due(1e6) == []
    deadlines.allow(ONE, 1.0, 0.0)
    assert deadlines.due(1e6) == []
    deadlines.forget(ONE)


def test_a_new_chain_begins_anew() -> None:
    deadlines = running()
    now_s = step(deadlines, 50, 2.0)
    deadlines.stops(ONE)
    deadlines.opens(ONE, chain(), 3, now_s)
    assert limit_s(deadlines, now_s) == pytest.approx(LEAST_OPENING_S, abs=1e-4)


def test_time_that_the_judge_missed_does_not_count() -> None:
    deadlines = running()
    deadlines.forgive(3.0)
    assert deadlines.due(10.0 + 3.0) == []
    assert deadlines.due(10.0 + 3.0 + LEAST_S) == [ONE]


@given(st.lists(st.tuples(st.sampled_from("otsa"), st.integers(1, 5), st.floats(0.0, 2.0)), max_size=60))
def test_whoever_is_due_is_found_then_and_nobody_before(steps: list[tuple[str, int, float]]) -> None:
    deadlines, now_s = Deadlines(), 0.0
    for what, number, seconds in steps:
        now_s += seconds
        session_id = facts.session_id(number)
        watch = deadlines.watch(session_id)
        if what == "o" or watch is None:
            deadlines.opens(session_id, chain(), number, now_s)
        elif what == "t":
            deadlines.answered(session_id, 1, now_s)
        elif what == "s":
            deadlines.stops(session_id)
        else:
            deadlines.allow(session_id, seconds, now_s)
        known = {n: deadlines.watch(facts.session_id(n)) for n in range(1, 6)}
        expected = {facts.session_id(n) for n, w in known.items() if w is not None and w.due_s <= now_s}
        assert all(deadlines.next_s <= w.due_s for w in known.values() if w is not None)
        found = deadlines.due(now_s)
        assert set(found) == expected
        assert len(found) == len(expected)


# ---------------------------------------------------------------- patience


def test_each_time_that_a_session_moves_it_is_given_twice_as_long_up_to_a_limit() -> None:
    deadlines = running()
    for number in range(1, MAX_PATIENCE + 3):
        deadlines.be_patient(ONE)
        assert deadlines.patience(ONE) == 2.0 ** min(number, MAX_PATIENCE)
        assert deadlines.is_impatient(ONE) == (number >= MAX_PATIENCE)
    now_s = step(deadlines, 1, 0.02)
    assert limit_s(deadlines, now_s) == pytest.approx(2**MAX_PATIENCE * LEAST_S, rel=1e-3)


def test_patience_outlives_the_chain_and_ends_after_good_steps_or_with_the_session() -> None:
    deadlines = running()
    deadlines.be_patient(ONE)
    deadlines.stops(ONE)
    deadlines.opens(ONE, chain(), 3, 20.0)
    assert deadlines.patience(ONE) == 2.0
    deadlines.answered(ONE, 1, 20.0)
    now_s = step(deadlines, GOOD_STEPS - 1, 0.02, 20.0)
    assert deadlines.patience(ONE) == 2.0
    step(deadlines, 1, 0.02, now_s)
    assert deadlines.patience(ONE) == 1.0
    deadlines.be_patient(ONE)
    deadlines.forget(ONE)
    assert deadlines.patience(ONE) == 1.0


# ---------------------------------------------------------------- slow


def test_a_chain_is_slow_when_its_steps_take_much_longer_than_usual_for_a_while() -> None:
    deadlines = running()
    now_s = step(deadlines, 50, 0.1)
    assert deadlines.slow(now_s) == []
    now_s = step(deadlines, 8, 0.5, now_s)
    assert deadlines.slow(now_s) == [], "not yet for long enough"
    now_s = step(deadlines, 10, 0.5, now_s)
    assert deadlines.slow(now_s) == [ONE]
    assert deadlines.slow(now_s) == [], "once in a while"
    assert deadlines.slow(now_s + SLOW_FOR_S) == [ONE]


def test_a_chain_that_was_slow_for_a_moment_or_from_the_start_is_not() -> None:
    deadlines = running()
    now_s = step(deadlines, 50, 0.1)
    now_s = step(deadlines, 4, 1.0, now_s)
    now_s = step(deadlines, 10, 0.1, now_s)
    assert deadlines.slow(now_s + 100.0) == []
    deadlines = running()
    now_s = step(deadlines, 200, 2.0)
    assert deadlines.slow(now_s + 100.0) == []


def test_a_chain_shows_how_much_its_forecast_was_worth() -> None:
    deadlines = running(chain(step_s=0.05))
    step(deadlines, 50, 0.3)
    watch = deadlines.watch(ONE)
    assert watch is not None
    assert watch.bias == pytest.approx(3.0)
