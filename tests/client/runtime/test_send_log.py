"""Rows that were sent: whole beginnings of sessions, within bounds, as they were."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.runtime.send_log import ROWS_PER_CHUNK, SESSION_SHARE, SendLog
from protocol.values import KV_BLOCK_TOKENS, SessionId

ALICE, BOB, CAROL = SessionId("a" * 32), SessionId("b" * 32), SessionId("c" * 32)
ROW_BYTES = 8


def rows(position: int, number: int) -> Tensor:
    """Each row says which it is."""
    return torch.arange(position, position + number, dtype=torch.float32)[:, None].expand(-1, 2).contiguous()


def filled(log: SendLog, session_id: SessionId, number: int) -> None:
    for position in range(number):
        log.add(session_id, position, rows(position, 1))


def read(log: SendLog, session_id: SessionId, start: int, stop: int, max_rows: int = 10**6) -> list[float]:
    return [value for _, part in log.read(session_id, start, stop, max_rows) for value in part[:, 0].tolist()]


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 3 * ROWS_PER_CHUNK), min_size=1, max_size=12),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    max_rows=st.integers(1, 100),
    share=st.floats(0, 1),
)
def test_rows_are_read_as_they_were_added(
    sizes: list[int], ends: tuple[float, float], max_rows: int, share: float
) -> None:
    log = SendLog()
    position = 0
    for size in sizes:
        log.add(ALICE, position, rows(position, size))
        position += size
    cut = round(share * position)
    log.cut(ALICE, cut)
    log.add(ALICE, cut, rows(cut, 5))
    log.validate()
    assert log.num_rows(ALICE) == cut + 5
    start, stop = sorted(round(end * (cut + 5)) for end in ends)
    assert read(log, ALICE, start, stop, max_rows) == list(range(start, stop))
    assert all(len(part) <= max_rows for _, part in log.read(ALICE, start, stop, max_rows))


@pytest.mark.parametrize("position", [1, 3, 9])
def test_rows_with_a_gap_before_them_are_of_no_use(position: int) -> None:
    log = SendLog()
    log.add(ALICE, position, rows(position, 2))
    assert log.num_rows(ALICE) == 0
    filled(log, BOB, 2)
    log.add(BOB, position + 2, rows(position + 2, 1))
    assert log.num_rows(BOB) == 2


def test_a_session_with_too_many_rows_is_not_kept_at_all_and_does_not_begin_anew() -> None:
    log = SendLog(max_session_bytes=10 * ROW_BYTES)
    filled(log, ALICE, 10)
    assert log.num_rows(ALICE) == 10
    log.add(ALICE, 10, rows(10, 1))
    log.add(ALICE, 11, rows(11, 1))
    assert (log.num_rows(ALICE), log.num_bytes) == (0, 0)


def test_when_all_together_are_too_many_the_oldest_session_goes_first() -> None:
    log = SendLog(10 * ROW_BYTES, 10 * ROW_BYTES)
    filled(log, ALICE, 4)
    filled(log, BOB, 4)
    log.add(ALICE, 4, rows(4, 1))
    filled(log, CAROL, 2)
    assert [log.num_rows(session_id) for session_id in (ALICE, BOB, CAROL)] == [0, 4, 2]
    log.validate()


def test_what_is_forgotten_makes_room() -> None:
    log = SendLog()
    filled(log, ALICE, 3)
    log.forget(ALICE)
    log.forget(ALICE)
    assert log.num_bytes == 0
    log.cut(ALICE, 1)
    assert log.num_rows(ALICE) == 0


def test_rows_do_not_keep_the_batches_alive_that_they_came_from() -> None:
    """A row is a slice of a batch's tensor: after a while none of the batches' memory is held."""
    log = SendLog()
    batches = [torch.zeros(1000, 2) for _ in range(ROWS_PER_CHUNK)]
    for position, batch in enumerate(batches):
        log.add(ALICE, position, batch[5:6])
    held = [part.untyped_storage().nbytes() for _, part in log.read(ALICE, 0, ROWS_PER_CHUNK, ROWS_PER_CHUNK)]
    own = [piece.untyped_storage().nbytes() for piece in log._rows[ALICE].between(0, ROWS_PER_CHUNK)]
    assert held == own == [ROWS_PER_CHUNK * ROW_BYTES]


def test_one_session_gets_its_share_of_what_there_is_at_most() -> None:
    log = SendLog(max_total_bytes=40 * ROW_BYTES)
    filled(log, ALICE, 40 // SESSION_SHARE)
    assert log.num_rows(ALICE) == 10
    log.add(ALICE, 10, rows(10, 1))
    assert log.num_rows(ALICE) == 0


def test_a_device_that_may_keep_nothing_keeps_nothing() -> None:
    log = SendLog(max_total_bytes=0)
    log.add(ALICE, 0, rows(0, 1))
    log.validate()
    assert (log.num_rows(ALICE), log.num_bytes) == (0, 0)


# ---------------------------------------------------------------- beginnings that others have sent


NAMES = tuple(f"{number:032x}" for number in range(1, 9))


@pytest.mark.parametrize(("number", "found"), [(15, 0), (16, 16), (40, 32)])
def test_whole_blocks_of_an_ended_session_are_as_if_the_next_had_sent_them(number: int, found: int) -> None:
    log = SendLog()
    filled(log, ALICE, number)
    log.leave(ALICE, NAMES)
    assert log.num_rows(ALICE) == 0
    log.begin(BOB, NAMES[: found // KV_BLOCK_TOKENS])
    log.add(BOB, found, rows(found, 4))
    log.validate()
    assert read(log, BOB, 0, found + 4) == list(range(found + 4))


def test_a_beginning_of_which_a_block_is_missing_is_of_no_use() -> None:
    log = SendLog()
    filled(log, ALICE, 2 * KV_BLOCK_TOKENS)
    log.leave(ALICE, NAMES)
    log.begin(BOB, NAMES[:3])
    log.begin(CAROL, ("f" * 32, *NAMES[1:2]))
    log.add(BOB, 3 * KV_BLOCK_TOKENS, rows(48, 1))
    assert (log.num_rows(BOB), log.num_rows(CAROL)) == (0, 0)


def test_what_nobody_runs_with_gives_way_first_and_its_end_before_its_beginning() -> None:
    log = SendLog(max_total_bytes=6 * KV_BLOCK_TOKENS * ROW_BYTES, max_session_bytes=10**6)
    filled(log, ALICE, 4 * KV_BLOCK_TOKENS)
    log.leave(ALICE, NAMES[:4])
    filled(log, BOB, 5 * KV_BLOCK_TOKENS)
    log.validate()
    assert log.num_rows(BOB) == 5 * KV_BLOCK_TOKENS
    log.leave(BOB, ())
    log.begin(CAROL, NAMES[:2])
    assert log.num_rows(CAROL) == 0
    log.begin(CAROL, NAMES[:1])
    assert log.num_rows(CAROL) == KV_BLOCK_TOKENS


def test_a_beginning_that_is_too_large_for_one_session_is_not_taken() -> None:
    log = SendLog(max_total_bytes=10**6, max_session_bytes=2 * KV_BLOCK_TOKENS * ROW_BYTES)
    filled(log, ALICE, 2 * KV_BLOCK_TOKENS)
    log.leave(ALICE, NAMES)
    log.begin(BOB, NAMES[:2])
    assert log.num_rows(BOB) == 2 * KV_BLOCK_TOKENS
    log.add(BOB, 2 * KV_BLOCK_TOKENS, rows(32, 1))
    assert log.num_rows(BOB) == 0
    log.validate()


def test_the_same_block_is_counted_once() -> None:
    log = SendLog()
    for session_id in (ALICE, BOB):
        filled(log, session_id, KV_BLOCK_TOKENS)
        log.leave(session_id, NAMES)
    log.validate()
    assert log.num_bytes == KV_BLOCK_TOKENS * ROW_BYTES
