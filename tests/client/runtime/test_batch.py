"""Planning a step: single rows first, prompts in what is left of the budget, and nothing lost."""

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from client.runtime.batch import LEAST_TOKENS, STEPS_BEFORE_MORE, BatchBudget, Shortage, lay_out, plan_step
from client.runtime.kv_cache import KvTable

waiting_rows = st.lists(st.integers(1, 40), max_size=20).map(lambda rows: list(enumerate(rows)))


def test_single_rows_go_before_chunks_of_prompts() -> None:
    assert plan_step([("prompt", 30), ("a", 1), ("b", 1)], 16) == [("a", 1), ("b", 1), ("prompt", 14)]


def test_a_prompt_is_cut_to_the_budget_and_the_next_one_waits() -> None:
    assert plan_step([("first", 30), ("second", 30)], 16) == [("first", 16)]


def test_a_short_prompt_leaves_room_for_the_next() -> None:
    assert plan_step([("first", 10), ("second", 30)], 16) == [("first", 10), ("second", 6)]


def test_more_single_rows_than_the_budget_are_served_in_turn() -> None:
    assert plan_step([("a", 1), ("b", 1), ("c", 1)], 2) == [("a", 1), ("b", 1)]


@given(waiting_rows, st.integers(1, 64))
def test_a_step_takes_what_waits_up_to_the_budget(waiting: list[tuple[int, int]], max_tokens: int) -> None:
    takes = plan_step(waiting, max_tokens)
    total = sum(rows for _, rows in takes)
    assert total == min(max_tokens, sum(rows for _, rows in waiting))
    assert max(Counter(key for key, _ in takes).values(), default=1) == 1
    assert all(0 < rows <= dict(waiting)[key] for key, rows in takes)


@given(waiting_rows, st.integers(1, 64))
def test_single_rows_stand_first_in_a_step(waiting: list[tuple[int, int]], max_tokens: int) -> None:
    is_chunk = [rows > 1 for _, rows in plan_step(waiting, max_tokens)]
    assert is_chunk == sorted(is_chunk)


@given(waiting_rows, st.integers(1, 64))
def test_repeated_steps_serve_everything(waiting: list[tuple[int, int]], max_tokens: int) -> None:
    left = dict(waiting)
    num_steps = 0
    while any(left.values()):
        for key, rows in plan_step([(key, rows) for key, rows in left.items() if rows], max_tokens):
            left[key] -= rows
        num_steps += 1
    assert num_steps == -(-sum(rows for _, rows in waiting) // max_tokens)


def test_rows_are_laid_out_one_session_after_the_other() -> None:
    old, new = KvTable([3, 1]), KvTable([0])
    old.advance(17)
    layout = lay_out([(old, 1), (new, 4)])
    assert [(span.first_row, span.num_rows, span.position, span.stop) for span in layout.spans] == [
        (0, 1, 17, 18),
        (1, 4, 0, 4),
    ]
    assert layout.positions.tolist() == [17, 0, 1, 2, 3]
    assert layout.slots.tolist() == [17, 0, 1, 2, 3]
    assert layout.last_rows == [0, 4]
    assert layout.num_rows == 5


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 12)), min_size=1, max_size=8))
def test_no_two_rows_of_a_step_share_a_slot(sessions: list[tuple[int, int]]) -> None:
    tables = [KvTable([2 * number, 2 * number + 1]) for number in range(len(sessions))]
    for table, (length, _) in zip(tables, sessions, strict=True):
        table.advance(length)
    layout = lay_out([(table, rows) for table, (_, rows) in zip(tables, sessions, strict=True)])
    assert len(torch.unique(layout.slots)) == layout.num_rows
    assert layout.positions.tolist() == [at for length, rows in sessions for at in range(length, length + rows)]


def test_a_budget_is_halved_by_what_did_not_fit_and_grows_back_after_many_steps_that_did() -> None:
    budget = BatchBudget(512)
    budget.shrink(300)
    assert budget.max_tokens == 150
    for _ in range(STEPS_BEFORE_MORE - 1):
        budget.worked()
    assert budget.max_tokens == 150
    budget.worked()
    assert budget.max_tokens == 300
    for _ in range(2 * STEPS_BEFORE_MORE):
        budget.worked()
    assert budget.max_tokens == 512


def test_a_budget_never_grows_by_a_failure_nor_falls_below_a_few_rows() -> None:
    budget = BatchBudget(40)
    budget.shrink(400)
    assert budget.max_tokens == 40
    for _ in range(5):
        budget.shrink(2)
    assert budget.max_tokens == LEAST_TOKENS
    small = BatchBudget(3)
    small.shrink(3)
    assert small.max_tokens == 3


def test_a_shortage_is_told_once_a_step_with_the_most_that_was_in_use() -> None:
    shortage = Shortage()
    assert shortage.after_step() is None
    shortage.lacks(32)
    shortage.lacks(64)
    shortage.lacks(16)
    assert shortage.after_step() == (64, 1)
    shortage.lacks(48)
    assert shortage.after_step() == (48, 2)
    assert shortage.after_step() is None
    shortage.lacks(48)
    assert shortage.after_step() == (48, 1)
