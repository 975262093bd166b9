"""What is asked of each model, as it is learnt from requests."""

from __future__ import annotations

import pytest

from coordinator.scheduler.cost import Workload
from coordinator.scheduler.workload import ENOUGH_REQUESTS, PEAK_HALF_LIFE_S, Workloads

MODEL, OTHER = "2c" * 32, "3d" * 32


def ask(workloads: Workloads, num_requests: int, *, since_s: float = 0.0, every_s: float = 1.0, **sizes: int) -> float:
    """Requests at a steady rate, each answered at once; returns the time of the last."""
    now_s = since_s
    for number in range(num_requests):
        now_s = since_s + number * every_s
        workloads.seen(MODEL, sizes.get("prompt", 100), sizes.get("reserved", 300), now_s)
        workloads.answered(MODEL, sizes.get("answer", 50), now_s)
    return now_s


def rate(workloads: Workloads) -> float:
    tokens_per_s = workloads.workload(MODEL).tokens_per_s
    assert tokens_per_s is not None
    return tokens_per_s


def test_without_enough_requests_it_is_the_default() -> None:
    workloads = Workloads()
    assert workloads.workload(MODEL) == Workload()
    ask(workloads, ENOUGH_REQUESTS - 1)
    assert workloads.workload(MODEL) == Workload()


def test_without_enough_requests_it_is_the_prior_if_there_is_one() -> None:
    workloads, prior = Workloads(), Workload(10.0, 20.0, 30.0, 40.0)
    workloads.set_prior(MODEL, prior)
    ask(workloads, ENOUGH_REQUESTS - 1)
    assert workloads.workload(MODEL) == prior
    assert workloads.workload(OTHER) == Workload()
    ask(workloads, 1, since_s=100.0)
    assert workloads.workload(MODEL).num_prompt_tokens == pytest.approx(100.0)


def test_lengths_are_means_of_what_was_seen() -> None:
    workloads = Workloads()
    for number in range(10):
        workloads.seen(MODEL, 100 if number % 2 else 300, 1000, float(number))
    for _ in range(20_000):
        workloads.answered(MODEL, 40, 10.0)
    seen = workloads.workload(MODEL)
    assert (seen.num_prompt_tokens, seen.num_reserved_tokens) == pytest.approx((200.0, 1000.0))
    assert seen.num_answer_tokens == pytest.approx(40.0, rel=0.1)


def test_the_first_answers_to_end_are_short_ones_and_are_not_taken_for_all() -> None:
    workloads = Workloads()
    for number in range(40):
        workloads.seen(MODEL, 100, 1000, float(number))
        workloads.answered(MODEL, 8, float(number))
    assert 8 < workloads.workload(MODEL).num_answer_tokens < Workload().num_answer_tokens
    assert workloads.workload(MODEL).num_answer_tokens > Workload().num_answer_tokens / 2


def test_unknown_lengths_and_failed_requests_say_nothing() -> None:
    workloads = Workloads()
    workloads.answered(OTHER, 10, 0.0)
    for number in range(10):
        workloads.seen(MODEL, 0, 0, float(number))
        workloads.answered(MODEL, 0, float(number))
    seen, default = workloads.workload(MODEL), Workload()
    assert seen.num_prompt_tokens == default.num_prompt_tokens
    assert seen.num_answer_tokens == default.num_answer_tokens
    assert seen.num_reserved_tokens == default.num_reserved_tokens
    assert workloads.workload(OTHER) == default


def test_lengths_follow_when_people_ask_otherwise() -> None:
    workloads = Workloads()
    now_s = ask(workloads, 1000, prompt=100)
    ask(workloads, 150, since_s=now_s, prompt=1000)
    assert workloads.workload(MODEL).num_prompt_tokens > 900


def test_the_rate_is_that_of_wanted_tokens_whether_served_or_not() -> None:
    workloads = Workloads()
    now_s = ask(workloads, 50, every_s=0.5, answer=40)
    for number in range(1, 2000):
        workloads.seen(MODEL, 100, 300, now_s + number / 2)
    assert rate(workloads) == pytest.approx(2 * workloads.workload(MODEL).num_answer_tokens, rel=0.15)


def test_a_short_burst_is_spread_over_a_minute() -> None:
    workloads = Workloads()
    ask(workloads, 60, every_s=0.0, answer=10)
    assert rate(workloads) == pytest.approx(workloads.workload(MODEL).num_answer_tokens, rel=0.15)


def test_a_quiet_minute_does_not_shrink_the_rate_but_a_quiet_day_does() -> None:
    workloads = Workloads()
    now_s = ask(workloads, 2000)
    busy = rate(workloads)
    workloads.seen(OTHER, 1, 1, now_s + 60.0)
    assert rate(workloads) > 0.95 * busy
    workloads.seen(OTHER, 1, 1, now_s + PEAK_HALF_LIFE_S)
    assert rate(workloads) == pytest.approx(busy / 2, rel=0.05)
    workloads.seen(OTHER, 1, 1, now_s + 86_400.0)
    assert rate(workloads) < 0.001 * busy


def test_asking_twice_changes_nothing() -> None:
    workloads = Workloads()
    now_s = ask(workloads, 20)
    workloads.seen(OTHER, 1, 1, now_s + 500.0)
    assert workloads.workload(MODEL) == workloads.workload(MODEL)
