"""What follows from a late answer: who moves, who hears of it, and who stays because there is nowhere else."""

from __future__ import annotations

import pytest

from coordinator.bad_links import BAD_FOR_S
from coordinator.deadlines import MAX_PATIENCE
from coordinator.lateness import Late
from coordinator.rerouting import HANG_WEIGHT, Move, Rerouting
from coordinator.scheduler import events as ev
from protocol import messages as m
from protocol.values import SessionId
from tests.fakes import pool_facts as facts
from tests.fakes.fake_node import FakeNode
from tests.fakes.pool_driver import PoolDriver


def pool_of(num_nodes: int) -> tuple[PoolDriver, SessionId, Rerouting]:
    """Pipelines of two nodes each, which can be reached directly, with a session of which some tokens are there."""
    nodes = [FakeNode(n, facts.spec(4), address=f"ws://10.0.0.{n}:1") for n in range(1, num_nodes + 1)]
    pool = PoolDriver(*nodes)
    session_id = pool.request(num_tokens=200)
    pool.run_until(lambda: len(pool.tokens(session_id)) >= 3)
    return pool, session_id, pool.core.rerouting


def chain(pool: PoolDriver, session_id: SessionId) -> list[int]:
    return pool.chains(session_id)[-1]


def hung(pool: PoolDriver, session_id: SessionId, stage: int = 0) -> Late:
    culprit = frozenset({facts.key(chain(pool, session_id)[stage])})
    return Late(session_id, "a worker hangs", culprit, culprit)


def test_a_hung_stage_is_left_and_trusted_less() -> None:
    pool, session_id, rerouting = pool_of(4)
    late = hung(pool, session_id)
    move = rerouting._move(late, pool.now_s)
    assert move.avoid == late.avoid
    assert move.news == tuple(ev.DeviceBroke(device, HANG_WEIGHT) for device in late.blamed)
    pool.carry_out(pool.core._reroute([move], pool.now_s))
    assert not late.avoid & {facts.key(number) for number in chain(pool, session_id)}


def test_without_a_replica_the_session_stays_until_one_has_been_patient_for_long() -> None:
    pool, session_id, rerouting = pool_of(2)
    late = hung(pool, session_id)
    stays = [rerouting._move(late, pool.now_s).avoid is None for _ in range(MAX_PATIENCE + 2)]
    assert stays == [True] * MAX_PATIENCE + [False] * 2


def test_a_move_about_an_older_chain_is_dropped() -> None:
    pool, session_id, rerouting = pool_of(4)
    move = rerouting._move(hung(pool, session_id), pool.now_s)
    pool.carry_out(pool.core._reroute([move], pool.now_s))
    epoch = pool.core.sessions[session_id].epoch
    pool.carry_out(pool.core._reroute([move], pool.now_s))
    assert pool.core.sessions[session_id].epoch == epoch
    pool.cancel(session_id)
    pool.carry_out(pool.core._reroute([move], pool.now_s))


@pytest.mark.parametrize("stage", [0, 1])
def test_a_cut_link_is_not_tried_directly_for_a_while_and_nobody_is_blamed(stage: int) -> None:
    pool, session_id, rerouting = pool_of(2)
    nodes = [facts.node_id(number) for number in chain(pool, session_id)]
    receiver = frozenset({facts.key(chain(pool, session_id)[1 - stage])})
    late = Late(session_id, "rows do not arrive", receiver, cut=(nodes[stage], nodes[1 - stage]))
    move = rerouting._move(late, pool.now_s)
    assert (move.avoid, move.news) == (frozenset(), ()), "how long the relay takes is not known here"
    pool.carry_out(pool.core._reroute([move], pool.now_s))
    pool.run_until(lambda: all(opened_last(pool, node_id).epoch == 2 for node_id in nodes))
    assert opened_last(pool, nodes[stage]).next.address is None
    assert opened_last(pool, nodes[1 - stage]).next.address is not None
    assert rerouting._move(late, pool.now_s).avoid == receiver, "the relay has not helped"
    stages = pool.core.sessions[session_id].chain
    assert all(contact.address for contact in rerouting.contacts(stages, pool.now_s + BAD_FOR_S).values())


def opened_last(pool: PoolDriver, node_id: str) -> m.OpenSession:
    opened = [data for fake in pool.nodes.values() if fake.node_id == node_id for data in fake.of_type(m.OpenSession)]
    assert isinstance(opened[-1], m.OpenSession)
    return opened[-1]


def test_what_the_way_over_the_relay_takes_is_told_when_it_is_known() -> None:
    pool, session_id, rerouting = pool_of(2)
    nodes = [facts.node_id(number) for number in chain(pool, session_id)]
    for node_id, rtt_s in zip(nodes, (0.02, 0.03), strict=True):
        pool.core.nodes[node_id].pool_rtt_s = rtt_s
    [news] = rerouting._move(Late(session_id, "", cut=(nodes[0], nodes[1])), pool.now_s).news
    assert isinstance(news, ev.LinksSeen)
    [link] = news.links
    assert (link.source, link.target, link.rtt_s) == (nodes[0], nodes[1], pytest.approx(0.05))


def test_a_move_says_which_chain_it_is_about() -> None:
    pool, session_id, rerouting = pool_of(4)
    move = rerouting._move(hung(pool, session_id), pool.now_s)
    assert isinstance(move, Move)
    assert move.epoch == pool.core.sessions[session_id].epoch
