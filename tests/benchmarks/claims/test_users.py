from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.claims.scene import Ask
from benchmarks.claims.users import Answer, _take, quantile, summarise
from coordinator.scheduler.cost import Bound

BOUND = Bound(ttft_s=2.0, tpot_s=0.5)


def answered(at_s: float, *token_times_s: float, error: str = "", wanted: int | None = None) -> Answer:
    num_wanted = len(token_times_s) if wanted is None else wanted
    return Answer(Ask(at_s, 10, num_wanted), list(token_times_s), error=error)


def test_times_count_from_when_the_user_asked() -> None:
    answer = answered(1.0, 2.0, 2.5, 3.0)
    assert (answer.ttft_s, answer.latency_s, answer.tpot_s) == (1.0, 2.0, 0.5)


def test_an_answer_of_one_token_has_no_time_per_token() -> None:
    assert answered(0.0, 1.0).tpot_s == 0.0


@pytest.mark.parametrize(
    ("answer", "is_good"),
    [
        (answered(0.0, 1.0, 1.4), True),
        (answered(0.0, 2.1, 2.2), False),
        (answered(0.0, 1.0, 1.6), False),
        (answered(0.0, 1.0, 1.4, wanted=3), False),
        (answered(0.0, 1.0, 1.4, error="kv_full"), False),
        (answered(0.0), True),
    ],
    ids=["within", "first token late", "tokens slow", "cut short", "broken", "nothing asked"],
)
def test_only_whole_answers_within_both_limits_count(answer: Answer, is_good: bool) -> None:
    if not answer.token_times_s:
        answer.token_times_s = [0.1]
    assert answer.meets(BOUND) is is_good


def test_latencies_are_of_requests_that_arrive_in_the_window() -> None:
    answers = [answered(at_s, at_s + 1.0, at_s + 1.2) for at_s in (0.0, 5.0, 9.9, 10.0)]
    summary = summarise(answers, 5.0, 10.0, BOUND)
    assert (summary.num_asked, summary.num_whole, summary.num_in_bound) == (2, 2, 2)
    assert summary.mean_latency_s == pytest.approx(1.2)


def test_throughput_is_of_answers_that_end_in_the_window_whenever_they_began() -> None:
    before, across, within, after = (answered(at_s, at_s + 1.0, at_s + 1.2) for at_s in (0.0, 4.5, 6.0, 9.5))
    summary = summarise([before, across, within, after], 5.0, 10.0, BOUND)
    assert summary.tokens_per_s == summary.goodput_tokens_per_s == 4 / 5


def test_slow_answers_are_throughput_and_no_goodput() -> None:
    summary = summarise([answered(0.0, 1.0, 3.0)], 0.0, 4.0, BOUND)
    assert (summary.tokens_per_s, summary.goodput_tokens_per_s) == (0.5, 0.0)


def test_a_load_that_nobody_answered_has_a_summary_too() -> None:
    summary = summarise([answered(0.0, error="no_capacity", wanted=3)], 0.0, 1.0, BOUND)
    assert (summary.num_asked, summary.num_whole, summary.mean_latency_s) == (1, 0, 0.0)


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0, 1))
def test_a_quantile_is_one_of_the_values_and_grows_with_its_share(values: list[float], share: float) -> None:
    assert quantile(values, share) in values
    assert quantile(values, share) <= quantile(values, 1.0) == max(values)


def test_events_become_tokens_nodes_and_errors() -> None:
    answer = answered(0.0, wanted=3)
    _take(answer, {"choices": [{"delta": {}}], "decentllm": {"queue": {"place": 1}}}, 0.1)
    _take(answer, {"choices": [{"token_ids": []}], "decentllm": {"nodes": [{"name": "a"}, {"name": "b"}]}}, 0.2)
    _take(answer, {"choices": [{"token_ids": [5, 6]}]}, 0.3)
    _take(answer, {"choices": [{"token_ids": [7], "finish_reason": "length"}]}, 0.4)
    assert answer.token_times_s == [0.3, 0.3, 0.4]
    assert (answer.nodes, answer.num_chains, answer.is_whole) == (("a", "b"), 1, True)
    _take(answer, {"error": {"code": "no_capacity"}}, 0.5)
    assert answer.error == "no_capacity"
    assert not answer.is_whole
