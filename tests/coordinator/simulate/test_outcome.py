"""Figures of finished requests, and the record's account of time."""

from __future__ import annotations

import pytest

from coordinator.scheduler.cost import Bound
from coordinator.simulate.outcome import BUCKET_S, Answer, Record, Spread, spread

ANSWER = Answer(arrived_s=10.0, first_token_s=12.0, finished_s=22.0, num_tokens=101)


def test_an_answers_times_are_counted_from_its_arrival() -> None:
    assert (ANSWER.latency_s, ANSWER.ttft_s) == (12.0, 2.0)
    assert ANSWER.tpot_s == pytest.approx(0.1)


def test_an_answer_is_within_the_bound_only_with_both_times() -> None:
    assert ANSWER.is_within(Bound(2.0, 0.1 + 1e-9))
    assert not ANSWER.is_within(Bound(1.9, 1.0))
    assert not ANSWER.is_within(Bound(5.0, 0.09))


def test_an_answer_of_one_token_has_no_time_per_token() -> None:
    assert Answer(0.0, 1.0, 1.0, 1).tpot_s == 0.0


def test_a_spread_of_nothing_is_zero() -> None:
    assert spread([]) == Spread()
    assert spread([1.0, 2.0, 3.0]).p50 == 2.0


def test_silence_counts_between_tokens_while_somebody_waits() -> None:
    record = Record()
    record.nobody_waits(5.0)
    record.tokens(16, 8.0, 10.0)
    record.tokens(16, 9.0, 12.0)
    assert record.longest_gap_s == 3.0
    record.nobody_waits(100.0)
    record.tokens(16, 101.0, 102.0)
    assert record.longest_gap_s == 3.0
    record.silence_ends(112.0)
    assert record.longest_gap_s == 10.0


def test_a_moment_has_the_rate_of_its_bucket_and_the_next_begins_at_zero() -> None:
    record = Record(start_s=100.0)
    record.tokens(50, 101.0, 105.0)
    record.moment(110.0, 3, 1, 7)
    record.moment(120.0, 0, 0, 7)
    assert [(m.at_s, m.tokens_per_s) for m in record.series] == [(10.0, 50 / BUCKET_S), (20.0, 0.0)]


def test_bytes_add_up_by_cause() -> None:
    record = Record()
    for cause, num_bytes in (("join", 1.0), ("leave", 2.0), ("join", 3.0)):
        record.moved(cause, num_bytes)
    assert record.bytes_moved == {"join": 4.0, "leave": 2.0}
