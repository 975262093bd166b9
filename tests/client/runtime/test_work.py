"""Shares of a step: who may run ahead, who ends, and how rows are cut in halves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from client.ipc import StartSession
from client.runtime.kv_cache import KvTable
from client.runtime.sessions import Rows, Session
from client.runtime.work import Work, halves, is_untouched, num_rows_of
from protocol.values import Sampling, StepTiming, StopRule

START = StartSession("0" * 32, 1, 0, 1, 4, 32, None, 0, Sampling(), StopRule(32))
VOCAB_SIZE = 1000


def work(num_rows: int = 1, position: int = 6, blocks: tuple[int, ...] = (0, 1), **changes: Any) -> Work:
    session = Session(structs.replace(START, **changes), KvTable(list(blocks)))
    rows = Rows(position, torch.arange(num_rows), StepTiming())
    return Work(session, rows, num_rows, position + num_rows)


@pytest.mark.parametrize(
    ("num_rows", "position", "is_sampled", "num_decode_rows"),
    [(3, 0, False, 0), (4, 0, True, 0), (1, 3, True, 0), (1, 4, True, 1), (4, 2, True, 2)],
)
def test_rows_behind_the_prompt_are_decode_and_its_last_one_is_sampled_too(
    num_rows: int, position: int, is_sampled: bool, num_decode_rows: int
) -> None:
    item = work(num_rows, position)
    assert (item.is_sampled, item.num_decode_rows) == (is_sampled, num_decode_rows)


@pytest.mark.parametrize(("position", "ends_here"), [(29, False), (30, True)])
def test_an_answer_ends_with_the_token_that_fills_it(position: int, ends_here: bool) -> None:
    assert work(1, position).ends_here is ends_here


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"sampling": Sampling(1.0)}, True),
        ({"sampling": Sampling(0.7, 0.9, 20, min_p=0.1)}, True),
        ({"sampling": Sampling(0.7, 0.9)}, False),
        ({"sampling": Sampling(0.7, min_p=0.1)}, False),
        ({"sampling": Sampling(0.7, top_k=600)}, False),
        ({"sampling": Sampling(0.7, top_k=VOCAB_SIZE)}, True),
        ({"sampling": Sampling(num_logprobs=0)}, False),
        ({"next_link": 3}, False),
    ],
)
def test_only_what_the_device_can_draw_by_itself_runs_ahead(changes: dict[str, Any], expected: bool) -> None:
    assert work(**changes).may_run_ahead(VOCAB_SIZE) is expected


@pytest.mark.parametrize(("position", "max_position", "expected"), [(14, 40, True), (15, 40, False), (15, 17, True)])
def test_nobody_runs_ahead_out_of_the_room_there_is(position: int, max_position: int, expected: bool) -> None:
    """One block of 16 rows. Who ends with this token needs none for another row."""
    item = work(1, position, blocks=(0,), stop=StopRule(max_position))
    assert item.may_run_ahead(VOCAB_SIZE) is expected


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_halves_are_all_rows_in_their_order(sizes: list[int]) -> None:
    whole = [work(num_rows, position=10 * number) for number, num_rows in enumerate(sizes)]
    first, second = halves(whole)
    assert num_rows_of(first) - num_rows_of(second) in (0, 1)
    cut = [(item.rows.position + i, int(v)) for item in [*first, *second] for i, v in enumerate(item.rows.values)]
    assert cut == [(item.rows.position + i, i) for item in whole for i in range(item.num_rows)]
    assert all(item.stop == item.rows.position + item.num_rows for item in [*first, *second])


def test_what_was_computed_is_not_tried_again() -> None:
    item = work(2, position=0)
    assert is_untouched([item])
    item.session.table.advance(2)
    assert not is_untouched([item])
