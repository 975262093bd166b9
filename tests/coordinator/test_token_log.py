"""The record of what was generated."""

from __future__ import annotations

from coordinator.token_log import MemoryTokenLog
from tests.fakes import pool_facts as facts

ONE, TWO = facts.session_id(1), facts.session_id(2)


async def test_tokens_of_a_session_follow_each_other() -> None:
    log = MemoryTokenLog()
    await log.commit([(ONE, 3, (7, 8)), (TWO, 1, (9,)), (ONE, 5, (1,))])
    await log.commit([(ONE, 6, (2,))])
    assert log.tokens == {ONE: [7, 8, 1, 2], TWO: [9]}


async def test_a_forgotten_session_leaves_nothing() -> None:
    log = MemoryTokenLog()
    await log.commit([(ONE, 0, (7,)), (TWO, 0, (8,))])
    await log.forget(ONE)
    await log.forget(ONE)
    assert log.tokens == {TWO: [8]}


async def test_an_empty_commit_is_nothing() -> None:
    log = MemoryTokenLog()
    await log.commit([])
    assert log.tokens == {}
