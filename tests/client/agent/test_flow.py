"""What the agent knows of rows under way: how far they are, and since when something waits."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.agent.flow import MAX_MARKS, Flow


def test_where_nothing_came_in_nothing_waits() -> None:
    assert Flow().waiting_s(100.0) == 0.0


def test_a_row_waits_from_when_it_came_until_it_has_gone_on() -> None:
    flow = Flow()
    flow.came_in(1, 10.0)
    assert flow.waiting_s(13.0) == pytest.approx(3.0)
    flow.went_on(1, 13.5)
    assert flow.waiting_s(20.0) == 0.0
    assert flow.num_sent == 1


def test_a_prompt_that_goes_on_in_parts_waits_since_the_last_part_left() -> None:
    """A long prompt is not stuck as long as chunks of it leave."""
    flow = Flow()
    flow.came_in(1000, 0.0)
    flow.went_on(512, 7.0)
    assert flow.waiting_s(8.0) == pytest.approx(1.0)
    flow.went_on(1000, 14.0)
    assert flow.waiting_s(100.0) == 0.0


def test_a_row_that_comes_behind_the_last_waits_since_it_came_itself() -> None:
    flow = Flow()
    flow.came_in(1, 0.0)
    flow.went_on(1, 1.0)
    flow.came_in(2, 5.0)
    assert flow.waiting_s(6.0) == pytest.approx(1.0)


def test_a_tail_owes_nothing_before_the_prompts_last_row() -> None:
    tail = Flow(num_silent=9, lead=1)
    tail.came_in(8, 0.0)
    assert tail.waiting_s(50.0) == 0.0
    tail.came_in(10, 50.0)
    assert tail.waiting_s(52.0) == pytest.approx(2.0)


def test_a_tail_has_answered_a_row_with_the_token_behind_it() -> None:
    tail = Flow(num_silent=9, lead=1)
    tail.came_in(10, 0.0)
    tail.went_on(11, 1.0)
    assert tail.waiting_s(9.0) == 0.0
    tail.came_in(11, 10.0)
    assert tail.waiting_s(11.0) == pytest.approx(1.0)
    tail.went_on(12, 12.0)
    assert tail.waiting_s(20.0) == 0.0


def test_what_is_kept_of_many_arrivals_is_bounded_and_nothing_seems_older_than_it_is() -> None:
    flow = Flow()
    for number in range(10 * MAX_MARKS):
        flow.came_in(number + 1, float(number))
    assert len(flow._marks) == MAX_MARKS
    flow.went_on(10 * MAX_MARKS - 1, 0.0)
    assert flow.waiting_s(10 * MAX_MARKS) == pytest.approx(1.0)
    flow.went_on(10 * MAX_MARKS, 0.0)
    assert flow.waiting_s(1e6) == 0.0


@given(st.lists(st.tuples(st.integers(1, 4), st.floats(0.0, 10.0), st.floats(0.0, 10.0)), max_size=30))
def test_it_waits_exactly_while_more_came_in_than_went_on(steps: list[tuple[int, float, float]]) -> None:
    flow, stop, now_s = Flow(), 0, 0.0
    stops = [0]
    for num_rows, before_s, after_s in steps:
        stop, now_s = stop + num_rows, now_s + before_s
        flow.came_in(stop, now_s)
        stops.append(stop)
        now_s += after_s
        assert flow.waiting_s(now_s) == pytest.approx(after_s)
        if num_rows > 1:
            flow.went_on(stop - 1, now_s)
            assert flow.waiting_s(now_s + 1.0) == pytest.approx(1.0)
        flow.went_on(stop, now_s)
        assert flow.waiting_s(now_s + 1.0) == 0.0
    assert all(a < b for a, b in pairwise(stops))
