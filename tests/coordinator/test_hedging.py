"""Second chains in a whole pool: who gets one, and what becomes of it."""

from __future__ import annotations

import pytest

from coordinator.core import TICK_S
from coordinator.hedging import LEAST_HURRIED_S, LEAST_TIME_S
from protocol import messages as m
from protocol.values import FinishReason, SessionId
from tests.fakes import pool_facts as facts
from tests.fakes.fake_node import FakeNode, answer_to
from tests.fakes.pool_driver import PoolDriver

PROMPT, NUM_TOKENS = (5, 6, 7), 24


def lanes(num_lanes: int = 2, *, least_pause_s: float = 0.0) -> PoolDriver:
    """Chains of two nodes with four layers each."""
    pool = PoolDriver(*(FakeNode(number, facts.spec(4)) for number in range(1, 2 * num_lanes + 1)))
    pool.core.hedging.least_pause_s = least_pause_s
    return pool


def whole(*, least_pause_s: float = 0.0) -> PoolDriver:
    """Two chains of one node each: of what a node that leaves has computed nothing stays."""
    pool = PoolDriver(FakeNode(1, facts.spec(8)), FakeNode(2, facts.spec(8)))
    pool.core.hedging.least_pause_s = least_pause_s
    return pool


def begun(pool: PoolDriver, number: int = 1) -> SessionId:
    session_id = pool.request(number, PROMPT, NUM_TOKENS)
    pool.run_until(lambda: len(pool.tokens(session_id)) >= 4)
    return session_id


def leave(pool: PoolDriver, session_id: SessionId, which: int, within_s: float = 30.0) -> FakeNode:
    fake = pool.nodes[facts.node_id(pool.chains(session_id)[-1][which])]
    pool.say(fake, m.Leaving("manual", within_s))
    return fake


def assert_answered(pool: PoolDriver, session_id: SessionId) -> None:
    assert pool.tokens(session_id) == answer_to(PROMPT, NUM_TOKENS)
    assert pool.finish(session_id) is FinishReason.LENGTH
    assert all(not fake.legs for fake in pool.nodes.values())
    assert not pool.core.scheduler.state.hedges


@pytest.mark.parametrize("which", [0, 1])
def test_who_leaves_softly_goes_on_until_another_chain_has_computed_the_log(which: int) -> None:
    pool = lanes()
    session_id = begun(pool)
    first = pool.chains(session_id)[0]
    leave(pool, session_id, which)
    assert pool.core.sessions[session_id].hedge is not None
    assert len(pool.chains(session_id)) == 1
    pool.run()
    assert_answered(pool, session_id)
    assert set(pool.chains(session_id)[-1]).isdisjoint(first)


def test_where_a_move_costs_next_to_nothing_and_nodes_stay_there_is_no_second_chain() -> None:
    pool = lanes(least_pause_s=10.0)
    session_id = begun(pool)
    leave(pool, session_id, 0)
    assert pool.core.sessions[session_id].hedge is None
    pool.run()
    assert_answered(pool, session_id)


def test_where_a_move_costs_next_to_nothing_who_leaves_everything_has_a_second_chain() -> None:
    pool = whole(least_pause_s=10.0)
    session_id = begun(pool)
    session = pool.core.sessions[session_id]
    assert pool.core.hedging.wanted(session, pool.now_s) is None
    leave(pool, session_id, 0)
    assert session.hedge is not None
    pool.run()
    assert_answered(pool, session_id)


def test_who_leaves_in_a_moment_is_not_waited_for() -> None:
    pool = lanes()
    session_id = begun(pool)
    leave(pool, session_id, 0, within_s=1e-6)
    assert pool.core.sessions[session_id].hedge is None
    pool.run()
    assert_answered(pool, session_id)


def test_where_all_chains_share_a_node_the_session_moves_as_ever() -> None:
    pool = PoolDriver(FakeNode(1, facts.spec(4)), FakeNode(2, facts.spec(4)), FakeNode(3, facts.spec(4)))
    pool.core.hedging.least_pause_s = 0.0
    session_id = begun(pool)
    leave(pool, session_id, 0)
    assert pool.core.sessions[session_id].hedge is None
    pool.run()
    assert_answered(pool, session_id)


@pytest.mark.parametrize("which", [0, 1])
def test_if_the_own_chain_dies_meanwhile_the_answer_goes_on(which: int) -> None:
    pool = lanes(3)
    session_id = begun(pool)
    fake = leave(pool, session_id, which)
    for _ in range(3):
        pool.step()
    pool.lose(fake)
    pool.run()
    assert_answered(pool, session_id)


@pytest.mark.parametrize("num_steps", range(8))
def test_if_the_second_chain_dies_meanwhile_the_answer_goes_on(num_steps: int) -> None:
    pool = lanes(3)
    session_id = begun(pool)
    leave(pool, session_id, 0)
    hedge = pool.core.sessions[session_id].hedge
    assert hedge is not None
    for _ in range(num_steps):
        pool.step()
    pool.lose(pool.nodes[hedge.chain[1].device.node_id])
    pool.pass_time(2 * TICK_S)
    assert_answered(pool, session_id)


def test_a_node_that_the_operator_drains_is_not_taken_over_to() -> None:
    pool = lanes()
    session_id = begun(pool)
    leave(pool, session_id, 0)
    hedge = pool.core.sessions[session_id].hedge
    assert hedge is not None
    pool.carry_out(pool.core.drain_node(hedge.chain[1].device.node_id, True, pool.now_s))
    assert pool.core.sessions[session_id].hedge is None
    pool.run()
    assert_answered(pool, session_id)


def three_begun(pool: PoolDriver) -> list[SessionId]:
    return [begun(pool, number) for number in (1, 2, 3)]


def test_one_session_in_ten_has_a_second_chain_at_a_time() -> None:
    pool = lanes()
    sessions = three_begun(pool)
    for session_id in sessions:
        pool.carry_out(pool.core._hedge(pool.core.sessions[session_id], pool.now_s))
    assert len(pool.core.scheduler.state.hedges) == 1
    pool.run()
    for session_id in sessions:
        assert_answered(pool, session_id)


def test_all_that_leave_everything_have_one_at_once() -> None:
    pool = whole()
    sessions = three_begun(pool)
    on_first = [s for s in sessions if pool.chains(s)[0] == pool.chains(sessions[0])[0]]
    assert len(on_first) > 1
    leave(pool, sessions[0], 0)
    assert set(pool.core.scheduler.state.hedges) == set(on_first)
    pool.run()
    for session_id in sessions:
        assert_answered(pool, session_id)


def test_a_second_chain_that_does_not_come_is_given_up() -> None:
    pool = lanes()
    session_id = begun(pool)
    effects = pool.core._hedge(pool.core.sessions[session_id], pool.now_s)
    session = pool.core.sessions[session_id]
    assert effects and session.hedge is not None
    pool.now_s += LEAST_TIME_S + TICK_S
    for node in pool.nodes.values():
        pool.core.nodes[node.node_id].heard_at_s = pool.now_s
    pool.core.hedging.forgive(0.0)
    assert pool.core.hedging.overdue(pool.now_s) == [session]
    pool.carry_out(pool.core._end_overdue_hedges(pool.now_s))
    assert session.hedge is None
    assert not pool.core.scheduler.state.hedges


def test_who_leaves_soon_has_another_second_chain_where_the_first_one_gives_nothing() -> None:
    pool = lanes(3)
    session_id = begun(pool)
    leave(pool, session_id, 0)
    session = pool.core.sessions[session_id]
    assert session.hedge is not None
    hung = {stage.device for stage in session.hedge.chain}
    pool.core.hedging.forgive(-LEAST_HURRIED_S)  # its time has passed without a token
    pool.carry_out(pool.core.tick(pool.now_s))
    assert session.hedge is not None
    assert hung.isdisjoint(stage.device for stage in session.hedge.chain)
    pool.run()
    assert_answered(pool, session_id)


def test_a_second_chain_that_is_only_slower_than_the_first_is_not_avoided_later() -> None:
    pool = lanes()
    session_id = begun(pool)
    session = pool.core.sessions[session_id]
    pool.core._hedge(session, pool.now_s)
    assert session.hedge is not None
    session.hedge.num_rows = 1
    pool.core.hedging._until_s[session_id] = pool.now_s
    pool.core._end_overdue_hedges(pool.now_s)
    assert session.hedge is None
    assert not session.avoid


def test_time_that_the_judge_missed_does_not_count() -> None:
    pool = lanes()
    session_id = begun(pool)
    pool.core._hedge(pool.core.sessions[session_id], pool.now_s)
    pool.core.hedging.forgive(100.0)
    assert pool.core.hedging.overdue(pool.now_s + 50.0) == []
