"""What is computed again when a chain is lost: only what went with it. And nodes that go softly."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.arrivals import rest_s
from coordinator.scheduler.kept import KEEP_S
from coordinator.scheduler.state import DeviceState
from coordinator.sessions import MAX_BREAKS, Deliver, Rerouted
from protocol import RECOVERY_VERSION
from protocol import messages as m
from protocol.values import KV_BLOCK_TOKENS, FinishReason, SessionId
from tests.fakes import pool_facts as facts
from tests.fakes.fake_node import FakeNode, answer_to
from tests.fakes.pool_driver import PoolDriver

PROMPT = (5, 6, 7, 8, 9)
NUM_TOKENS = 20
NUM_ROWS = len(PROMPT) + NUM_TOKENS - 1
"""That each stage computes in all: the last token goes through none."""
NUM_STAGES = 4
ROOM = 2 * KV_BLOCK_TOKENS
"""For one session: whole blocks."""


def lanes(num_lanes: int = 2, **options: object) -> PoolDriver:
    """Chains of four nodes with two layers each; no session gets a second one (test_hedging.py)."""
    numbers = range(1, num_lanes * NUM_STAGES + 1)
    pool = PoolDriver(*(FakeNode(number, facts.spec(2), **options) for number in numbers))  # type: ignore[arg-type]
    pool.core.hedging.least_pause_s = math.inf
    return pool


def begun(pool: PoolDriver, num_tokens: int = 6, number: int = 1) -> SessionId:
    """A request, so many of whose tokens are there."""
    session_id = pool.request(number, PROMPT, NUM_TOKENS)
    pool.run_until(lambda: len(pool.tokens(session_id)) >= num_tokens)
    return session_id


def chain_of(pool: PoolDriver, session_id: SessionId, which: int = -1) -> list[FakeNode]:
    return [pool.nodes[facts.node_id(number)] for number in pool.chains(session_id)[which]]


def computed(pool: PoolDriver, session_id: SessionId, epoch: int) -> list[int]:
    """Rows of that epoch by stage of the session's last chain."""
    return [fake.computed.get((session_id, epoch), 0) for fake in chain_of(pool, session_id)]


def assert_answered(pool: PoolDriver, session_id: SessionId) -> None:
    assert pool.tokens(session_id) == answer_to(PROMPT, NUM_TOKENS)
    assert pool.finish(session_id) is FinishReason.LENGTH
    assert all(not fake.legs for fake in pool.nodes.values())
    assert not pool.core.scheduler.state.kept


def opens(pool: PoolDriver, session_id: SessionId, epoch: int) -> list[m.OpenSession]:
    """By stage."""
    found = [o for fake in pool.nodes.values() for o in fake.of_type(m.OpenSession) if isinstance(o, m.OpenSession)]
    return sorted((o for o in found if (o.session_id, o.epoch) == (session_id, epoch)), key=lambda order: order.stage)


# ---------------------------------------------------------------- what is computed again


@pytest.mark.parametrize("lost", [{0}, {1}, {3}, {1, 2}, {0, 3}, {0, 1}, {2, 3}])
def test_only_the_stages_that_were_lost_compute_everything_again(lost: set[int]) -> None:
    pool = lanes()
    session_id = begun(pool)
    chain = chain_of(pool, session_id)
    num_kept = len(PROMPT) + len(pool.tokens(session_id)) - 1
    for stage in lost:
        pool.lose(chain[stage])
    pool.run()
    assert_answered(pool, session_id)
    epoch = len(pool.chains(session_id))
    rest = [NUM_ROWS if stage in lost else NUM_ROWS - num_kept for stage in range(NUM_STAGES)]
    assert computed(pool, session_id, epoch) == rest
    assert [stage for stage in range(NUM_STAGES) if chain_of(pool, session_id)[stage] is not chain[stage]] == [*lost]


def test_before_the_first_token_everything_is_computed_again() -> None:
    pool = lanes()
    session_id = pool.request(1, PROMPT, NUM_TOKENS)
    chain = chain_of(pool, session_id)
    pool.run_until(lambda: bool(chain[1].computed))
    pool.lose(chain[2])
    pool.run()
    assert_answered(pool, session_id)
    assert computed(pool, session_id, 2) == [NUM_ROWS] * NUM_STAGES


def test_a_loss_while_a_loss_is_made_good_keeps_what_the_first_one_left() -> None:
    pool = lanes(3)
    session_id = begun(pool)
    for stage in (2, 1):
        pool.lose(chain_of(pool, session_id)[stage])
        for _ in range(3):
            pool.step()
    assert len(pool.tokens(session_id)) == 6
    pool.run()
    assert_answered(pool, session_id)
    num_kept = len(PROMPT) + 6 - 1
    assert computed(pool, session_id, 3) == [NUM_ROWS - num_kept, NUM_ROWS, NUM_ROWS, NUM_ROWS - num_kept]


def test_a_chain_of_one_stage_that_is_all_there_goes_on_where_it_was() -> None:
    """Its agent has lost some news, say: the session is opened again, at the same place for want of another."""
    pool = PoolDriver(FakeNode(1, facts.spec(8)))
    session_id = begun(pool)
    [fake] = chain_of(pool, session_id)
    pool.say(fake, m.SessionBroken(session_id, 1, 0, "rows_lost", "A row was lost."))
    pool.run()
    assert_answered(pool, session_id)
    assert computed(pool, session_id, 2) == [NUM_ROWS - (len(PROMPT) + 6 - 1)]


def test_of_a_lost_link_the_far_end_is_avoided_and_the_near_one_goes_on() -> None:
    pool = lanes()
    session_id = begun(pool)
    chain = chain_of(pool, session_id)
    pool.say(chain[0], m.SessionBroken(session_id, 1, 0, "link_lost", "The link to the next node broke."))
    pool.run()
    assert_answered(pool, session_id)
    after = chain_of(pool, session_id)
    assert [here is there for here, there in zip(chain, after, strict=True)] == [True, False, True, True]


# ---------------------------------------------------------------- when nothing was kept


def test_a_stage_that_kept_nothing_is_not_blamed_and_computes_everything_with_those_before_it() -> None:
    pool = lanes()
    session_id = begun(pool)
    chain = chain_of(pool, session_id)
    chain[2].keeps_kv = False
    pool.lose(chain[3])
    pool.run()
    assert_answered(pool, session_id)
    assert chain_of(pool, session_id)[:3] == chain[:3]
    assert computed(pool, session_id, 3) == [NUM_ROWS] * NUM_STAGES


def test_it_costs_no_session_its_answer_however_often_it_happens() -> None:
    pool = lanes()
    for fake in pool.nodes.values():
        fake.keeps_kv = False
    session_id = begun(pool, 2)
    for num_tokens in range(3, 3 + 2 * MAX_BREAKS):
        pool.lose(gone := chain_of(pool, session_id)[3])
        pool.run_until(lambda at=num_tokens: len(pool.tokens(session_id)) >= at)  # type: ignore[misc]
        bring_back(pool, {1: gone}, 1)
        pool.run_until(lambda at=num_tokens: len(pool.tokens(session_id)) >= at + 1)  # type: ignore[misc]
    pool.run()
    assert pool.failure(session_id) is None
    assert_answered(pool, session_id)


def test_without_its_old_rows_a_stage_before_a_lost_one_computes_them_again() -> None:
    pool = lanes()
    for fake in pool.nodes.values():
        fake.max_sent_rows = 3
    session_id = begun(pool)
    pool.lose(chain_of(pool, session_id)[2])
    pool.run()
    assert_answered(pool, session_id)
    num_kept = opens(pool, session_id, 2)[3].num_kept_tokens
    assert computed(pool, session_id, 3) == [NUM_ROWS, NUM_ROWS, NUM_ROWS, NUM_ROWS - num_kept]


def test_a_stage_that_was_to_keep_nothing_and_says_so_is_broken_like_any_other() -> None:
    pool = lanes()
    session_id = begun(pool)
    for epoch in range(1, MAX_BREAKS + 1):
        session = pool.core.sessions[session_id]
        [*_, tail] = chain_of(pool, session_id)
        session.survivors.forget(set(session.chain))
        pool.say(tail, m.SessionBroken(session_id, epoch, 3, "nothing_kept", "It is gone."))
        session.num_kept = (0,) * len(session.num_kept)
        pool.wait(rest_s(epoch) + 0.1)
    assert pool.failure(session_id) is not None


# ---------------------------------------------------------------- older nodes


def test_a_node_that_cannot_keep_anything_is_never_asked_to() -> None:
    pool = PoolDriver(*(FakeNode(n, facts.spec(2), version=RECOVERY_VERSION - (n in (2, 6))) for n in range(1, 9)))
    session_id = begun(pool)
    older = {facts.node_id(2), facts.node_id(6)}
    chain = chain_of(pool, session_id)
    lost = next(fake for fake in chain[::-1] if fake.node_id not in older)
    pool.lose(lost)
    pool.run()
    assert_answered(pool, session_id)
    for before, order in pairwise([None, *opens(pool, session_id, 2)]):
        assert order is not None
        holder = chain_of(pool, session_id)[order.stage]
        is_older = holder.node_id in older
        fed_by_older = before is not None and chain_of(pool, session_id)[before.stage].node_id in older
        assert not (is_older and (order.num_kept_tokens or order.next_from))
        assert (order.num_kept_tokens > 0) == (holder in chain and not is_older and not fed_by_older)


# ---------------------------------------------------------------- room


def full_pool() -> tuple[PoolDriver, SessionId]:
    """One lane, with room for one session only, and a second lane's worth of no stage but the third."""
    pool = PoolDriver(*(FakeNode(number, facts.spec(2), num_kv_tokens=ROOM) for number in range(1, 5)))
    return pool, begun(pool)


def test_what_is_kept_for_one_that_waits_is_not_given_to_others() -> None:
    pool, session_id = full_pool()
    chain = chain_of(pool, session_id)
    other = pool.request(2, PROMPT, NUM_TOKENS)
    pool.lose(chain[2])
    pool.run()
    state = pool.core.scheduler.state
    assert set(state.waiting) == {session_id, other}
    kept = {fake.node_id for fake in chain} - {chain[2].node_id}
    assert {key.node_id for key in state.kept[session_id].devices} == kept
    assert {n for n, fake in pool.nodes.items() if fake.legs} == kept
    num_kept = len(PROMPT) + len(pool.tokens(session_id)) - 1
    pool.join(FakeNode(5, facts.spec(2), num_kv_tokens=ROOM))
    pool.run()
    assert_answered(pool, session_id)
    assert computed(pool, session_id, 2) == [NUM_ROWS - num_kept] * 2 + [NUM_ROWS] + [NUM_ROWS - num_kept]
    assert pool.tokens(other) == answer_to(PROMPT, NUM_TOKENS)


def test_what_was_kept_for_long_is_let_go() -> None:
    pool, session_id = full_pool()
    pool.lose(chain_of(pool, session_id)[2])
    pool.run()
    assert any(fake.legs for fake in pool.nodes.values())
    pool.pass_time(KEEP_S + 1.0)
    assert not any(fake.legs for fake in pool.nodes.values())
    assert not pool.core.scheduler.state.kept
    pool.join(FakeNode(5, facts.spec(2), num_kv_tokens=ROOM))
    pool.run()
    assert_answered(pool, session_id)
    assert computed(pool, session_id, 2) == [NUM_ROWS] * NUM_STAGES


def test_a_user_who_leaves_while_something_is_kept_frees_it() -> None:
    pool, session_id = full_pool()
    pool.lose(chain_of(pool, session_id)[2])
    pool.run()
    pool.cancel(session_id)
    pool.run()
    assert not any(fake.legs for fake in pool.nodes.values())
    assert all(d.num_reserved_tokens == 0 for d in pool.core.scheduler.state.devices.values())


def test_a_survivor_that_is_lost_while_the_session_waits_keeps_nothing() -> None:
    pool, session_id = full_pool()
    chain = chain_of(pool, session_id)
    pool.lose(chain[2])
    pool.run()
    pool.lose(chain[0])
    pool.run()
    for number in (5, 6):
        pool.join(FakeNode(number, facts.spec(2), num_kv_tokens=100))
    pool.run()
    assert_answered(pool, session_id)
    kept = [order.num_kept_tokens > 0 for order in opens(pool, session_id, 2)]
    assert kept == [False, True, False, True]


# ---------------------------------------------------------------- leaving softly


def leave(pool: PoolDriver, fake: FakeNode, within_s: float = 30.0) -> None:
    pool.say(fake, m.Leaving("manual", within_s))


@pytest.mark.parametrize("stage", range(NUM_STAGES))
def test_a_session_leaves_with_the_node_between_two_tokens(stage: int) -> None:
    pool = lanes()
    session_id = begun(pool)
    chain = chain_of(pool, session_id)
    leave(pool, chain[stage])
    assert len(pool.chains(session_id)) == 1, "the token that is under way is waited for"
    pool.run_until(lambda: len(pool.chains(session_id)) == 2)
    num_kept = len(PROMPT) + len(pool.tokens(session_id)) - 1
    assert len(pool.tokens(session_id)) == 7
    pool.run()
    assert_answered(pool, session_id)
    assert computed(pool, session_id, 2) == [NUM_ROWS if s == stage else NUM_ROWS - num_kept for s in range(NUM_STAGES)]
    assert not pool.dropped, "it goes when it likes"


def test_before_its_first_token_a_session_leaves_at_once() -> None:
    pool = lanes()
    session_id = pool.request(1, PROMPT, NUM_TOKENS)
    leave(pool, chain_of(pool, session_id)[1])
    assert len(pool.chains(session_id)) == 2
    pool.run()
    assert_answered(pool, session_id)


def test_without_another_chain_it_stays_until_the_node_goes() -> None:
    pool = lanes(1)
    session_id = begun(pool)
    chain = chain_of(pool, session_id)
    leave(pool, chain[2])
    for _ in range(8):
        pool.step()
    assert len(pool.chains(session_id)) == 1
    assert len(pool.tokens(session_id)) > 6
    pool.join(FakeNode(5, facts.spec(2)))
    pool.pass_time(1.0)
    assert_answered(pool, session_id)


def test_a_chain_that_comes_up_later_is_still_in_time() -> None:
    pool = lanes(1)
    session_id = begun(pool, 2)
    leave(pool, gone := chain_of(pool, session_id)[2])
    pool.step()
    newcomer = FakeNode(5, facts.spec(2))
    pool.nodes[newcomer.node_id] = newcomer
    pool.carry_out(pool.core.node_joined(newcomer.hello, pool.now_s))
    pool.run_until(lambda: bool(pool.core.scheduler.state.devices[facts.key(5)].num_kv_tokens))
    assert len(pool.tokens(session_id)) < NUM_TOKENS - 2
    pool.carry_out(pool.core.tick(pool.now_s))
    pool.run()
    assert_answered(pool, session_id)
    assert gone not in chain_of(pool, session_id)
    assert len(pool.chains(session_id)) == 2


def test_nothing_new_starts_on_a_node_that_leaves() -> None:
    pool = lanes()
    session_id = begun(pool)
    gone = chain_of(pool, session_id)[0]
    leave(pool, gone)
    other = pool.request(2, PROMPT, NUM_TOKENS)
    pool.run()
    assert facts.number_of(gone.node_id) not in pool.chains(other)[0]
    assert_answered(pool, session_id)


def test_a_node_that_has_left_softly_is_as_good_as_any_other_when_it_comes_back() -> None:
    pool = lanes(1)
    gone = pool.nodes[facts.node_id(3)]
    leave(pool, gone)
    pool.run()
    pool.say(gone, m.Leaving("manual"))
    pool.nodes.pop(gone.node_id, None)
    assert not pool.core.scheduler.state.draining
    pool.join(gone)
    pool.pass_time(2.0)
    assert pool.core.scheduler.is_ready(facts.DIGEST)


def test_the_operators_word_outlasts_a_leave() -> None:
    pool = lanes(1)
    gone = pool.nodes[facts.node_id(3)]
    pool.drain(3)
    leave(pool, gone)
    pool.run()
    pool.lose(gone)
    assert pool.core.scheduler.state.draining == {gone.node_id}
    pool.join(gone)
    pool.drain(3, on=False)
    assert not pool.core.scheduler.state.draining


def test_what_the_operator_takes_back_does_not_bring_a_node_back_that_leaves() -> None:
    pool = lanes(1)
    pool.drain(3)
    leave(pool, pool.nodes[facts.node_id(3)])
    pool.drain(3, on=False)
    assert pool.core.scheduler.state.draining == {facts.node_id(3)}
    pool.lose(pool.nodes[facts.node_id(3)])
    assert not pool.core.scheduler.state.draining


def test_the_operators_drain_moves_nothing() -> None:
    pool = lanes()
    session_id = begun(pool)
    pool.drain(pool.chains(session_id)[0][1])
    pool.run()
    assert_answered(pool, session_id)
    assert len(pool.chains(session_id)) == 1


# ---------------------------------------------------------------- whatever happens


WHATS = ("lose", "leave", "break", "forget", "back", "tick")


@settings(max_examples=30, deadline=None)
@given(
    events=st.lists(
        st.tuples(st.integers(0, 40), st.integers(1, 12), st.sampled_from(WHATS)),
        max_size=14,
    ),
    with_second_chains=st.booleans(),
)
def test_whatever_is_lost_the_answers_stay_and_stages_that_stay_keep_their_rows(
    events: list[tuple[int, int, str]], with_second_chains: bool
) -> None:
    pool = lanes(3)
    pool.core.hedging.least_pause_s = 0.0 if with_second_chains else math.inf
    sessions = [begun(pool, 1, number) for number in (1, 2)]
    away: dict[int, FakeNode] = {}
    for num_steps, number, what in events:
        for _ in range(num_steps):
            pool.step()
        disturb(pool, away, number, what, sessions[0])
    for number in sorted(away):
        bring_back(pool, away, number)
    pool.pass_time(60.0)
    for session_id in sessions:
        assert pool.tokens(session_id) == answer_to(PROMPT, NUM_TOKENS) or pool.failure(session_id) is not None
        if not with_second_chains:  # these keep rows of their own (tests/simulation/books.py)
            assert_kept_is_right(pool, session_id)
    if not any(what == "break" for *_, what in events):
        assert not any(map(pool.failure, sessions)), "only broken chains are ever given up"
    assert not any(fake.legs for fake in pool.nodes.values())
    assert all(d.num_reserved_tokens == 0 for d in pool.core.scheduler.state.devices.values())


def disturb(pool: PoolDriver, away: dict[int, FakeNode], number: int, what: str, session_id: SessionId) -> None:
    fake = pool.nodes.get(facts.node_id(number))
    if what == "back":
        bring_back(pool, away, number)
    elif what == "tick":
        pool.now_s += 0.5
        for node in list(pool.nodes.values()):
            pool.say(node, m.Heartbeat(0, 0, 0))
        pool.carry_out(pool.core.tick(pool.now_s))
    elif fake is None:
        return
    elif what == "lose":
        pool.lose(fake)
        away[number] = fake
    elif what == "leave":
        leave(pool, fake)
    elif what == "forget":
        fake.keeps_kv = not fake.keeps_kv
    elif session_id in pool.core.sessions:
        session = pool.core.sessions[session_id]
        for stage, place in enumerate(session.chain):
            if place.device.node_id == fake.node_id:
                code = ("link_lost", "rows_lost", "non_finite")[number % 3]
                pool.say(fake, m.SessionBroken(session_id, session.epoch, stage, code, "It broke."))
                return


def bring_back(pool: PoolDriver, away: dict[int, FakeNode], number: int) -> None:
    fake = away.pop(number, None)
    if fake is not None:
        fake.legs.clear()
        pool.nodes[fake.node_id] = fake
        pool.carry_out(pool.core.node_joined(fake.hello, pool.now_s))


def assert_kept_is_right(pool: PoolDriver, session_id: SessionId) -> None:
    """A stage keeps what it has for sure, never more; and one that stays after a token keeps that, unless its node has
    said that it has nothing."""
    position, before = 0, ()
    for epoch, item in enumerate_chains(pool, session_id):
        if isinstance(item, Deliver):
            position = item.position
        else:
            for order in opens(pool, session_id, epoch):  # a node that was lost at that moment has heard of none
                assert order.num_kept_tokens in (0, position)
                assert not order.num_kept_tokens or item.chain[order.stage] in before
            before = (*before, *item.chain)


def enumerate_chains(pool: PoolDriver, session_id: SessionId) -> list[tuple[int, Deliver | Rerouted]]:
    """What the user heard of tokens and chains, each with its epoch."""
    epoch, found = 0, []
    for item in pool.items[session_id]:
        if isinstance(item, Deliver | Rerouted):
            epoch += isinstance(item, Rerouted)
            found.append((epoch, item))
    return found


def test_a_pool_at_rest_has_only_ready_devices() -> None:
    """The tests above count on it: four ready devices a lane, in two lanes."""
    assert len(lanes().core.scheduler.state.in_state(DeviceState.READY)) == 2 * NUM_STAGES
