"""Counting work: everything is told once, about once a second."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from client.ipc import WorkDone
from client.runtime.meter import REPORT_EVERY_S, WorkMeter


def test_without_work_there_is_nothing_to_tell_and_nothing_to_wait_for() -> None:
    meter = WorkMeter()
    assert meter.due_in_s(100.0) is None
    assert meter.take(100.0) is None


def test_what_was_counted_is_told_a_second_after_the_first_of_it() -> None:
    meter = WorkMeter()
    meter.add(2, 0, 0.25, 10.0)
    assert meter.due_in_s(10.0) == REPORT_EVERY_S
    meter.add(3, 512, 0.5, 10.75)
    assert meter.due_in_s(10.75) == 0.25
    assert meter.take(10.75) is None
    assert meter.take(11.0) == WorkDone(2, 5, 512, 0.75)
    assert meter.take(99.0) is None


def test_it_is_told_late_rather_than_not_at_all() -> None:
    meter = WorkMeter()
    meter.add(1, 0, 0.5, 10.0)
    assert meter.due_in_s(500.0) == 0.0
    assert meter.take(500.0) == WorkDone(1, 1, 0, 0.5)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 800)), max_size=30))
def test_nothing_is_lost_or_told_twice_or_too_often(steps: list[tuple[int, int, int]]) -> None:
    meter, now_s, told = WorkMeter(), 0.0, []
    for num_decode, num_prompt, wait_ms in steps:
        now_s += wait_ms / 1000
        told += [(now_s, done)] if (done := meter.take(now_s)) else []
        meter.add(num_decode, num_prompt, 0.125, now_s)
    told += [(now_s + 1, done)] if (done := meter.take(now_s + 1)) else []
    assert sum(done.num_steps for _, done in told) == len(steps)
    assert sum(done.num_decode_rows for _, done in told) == sum(step[0] for step in steps)
    assert sum(done.num_prompt_tokens for _, done in told) == sum(step[1] for step in steps)
    assert sum(done.compute_s for _, done in told) == 0.125 * len(steps)
    assert all(later - earlier >= REPORT_EVERY_S - 1e-9 for (earlier, _), (later, _) in pairwise(told))
