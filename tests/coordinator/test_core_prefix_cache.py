"""Prompts that begin like others': what all stages of a chain have is not computed again, and answers stay the same."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from coordinator.sessions import Deliver
from protocol import RECOVERY_VERSION
from protocol import messages as m
from protocol.values import KV_BLOCK_TOKENS, SessionId
from tests.fakes import pool_facts as facts
from tests.fakes.fake_node import FakeNode, answer_to
from tests.fakes.pool_driver import PoolDriver

NUM_STAGES = 4
NUM_TOKENS = 20
PROMPT = tuple(range(100, 140))
ALICE = {"tenant": "key alice"}


def lane(*, caches: bool = True, num_lanes: int = 1, **options: object) -> PoolDriver:
    """Chains of four nodes with two layers each; no session gets a second one."""
    fakes = (
        FakeNode(number, facts.spec(2), caches=caches, **options)  # type: ignore[arg-type]
        for number in range(1, num_lanes * NUM_STAGES + 1)
    )
    pool = PoolDriver(*fakes)
    pool.core.hedging.least_pause_s = math.inf
    return pool


def ask(pool: PoolDriver, number: int, prompt: tuple[int, ...], tenant: str = "key alice") -> SessionId:
    """To the end of the answer, which is that of an undisturbed pool."""
    session_id = pool.request(number, prompt, NUM_TOKENS, tenant=tenant)
    pool.run()
    assert pool.tokens(session_id) == answer_to(prompt, NUM_TOKENS)
    return session_id


def num_cached(pool: PoolDriver, session_id: SessionId) -> list[int]:
    return [item.num_cached_tokens for item in pool.items[session_id] if isinstance(item, Deliver)]


def computed(pool: PoolDriver, session_id: SessionId, epoch: int = 1) -> set[int]:
    """Rows that its stages have computed in that epoch."""
    numbers = pool.chains(session_id)[-1]
    return {pool.nodes[facts.node_id(number)].computed.get((session_id, epoch), 0) for number in numbers}


def second_turn(prompt: tuple[int, ...]) -> tuple[int, ...]:
    return (*prompt, *answer_to(prompt, NUM_TOKENS), 7, 8, 9)


def test_a_second_turn_computes_only_what_is_new() -> None:
    pool = lane()
    first = ask(pool, 1, PROMPT)
    assert set(num_cached(pool, first)) == {0}
    prompt = second_turn(PROMPT)
    second = ask(pool, 2, prompt)
    expected = (len(PROMPT) + NUM_TOKENS - 1) // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS
    assert num_cached(pool, second) == [expected, *[0] * (NUM_TOKENS - 1)]
    assert computed(pool, second) == {len(prompt) + NUM_TOKENS - 1 - expected}


def test_a_prompt_that_is_there_altogether_computes_its_last_block() -> None:
    pool = lane()
    prompt = PROMPT[: 2 * KV_BLOCK_TOKENS]
    ask(pool, 1, prompt)
    assert num_cached(pool, ask(pool, 2, prompt))[0] == KV_BLOCK_TOKENS


def test_tenants_share_nothing_and_nobody_shares_with_nobody() -> None:
    pool = lane()
    ask(pool, 1, PROMPT)
    assert num_cached(pool, ask(pool, 2, PROMPT, tenant="key bob"))[0] == 0
    for number in (3, 4):
        assert num_cached(pool, ask(pool, number, PROMPT, tenant=""))[0] == 0


def test_a_chain_with_a_stage_that_lacks_it_computes_everything() -> None:
    pool = lane()
    ask(pool, 1, PROMPT)
    pool.lose(pool.nodes[facts.node_id(2)])
    pool.run()
    pool.join(FakeNode(5, facts.spec(2), caches=True))
    second = ask(pool, 2, PROMPT)
    assert (num_cached(pool, second)[0], computed(pool, second)) == (0, {len(PROMPT) + NUM_TOKENS - 1})
    assert num_cached(pool, ask(pool, 3, PROMPT))[0] == 2 * KV_BLOCK_TOKENS


def test_a_chain_begins_behind_what_the_stage_with_the_least_has() -> None:
    pool = lane()
    ask(pool, 1, PROMPT)
    fake = pool.nodes[facts.node_id(3)]
    fake.cached = dict(list(fake.cached.items())[:1])
    second = ask(pool, 2, PROMPT)
    assert num_cached(pool, second)[0] == KV_BLOCK_TOKENS
    assert computed(pool, second) == {len(PROMPT) + NUM_TOKENS - 1 - KV_BLOCK_TOKENS}
    assert not any(fake.num_refused_rows for fake in pool.nodes.values())


@pytest.mark.parametrize("version", [RECOVERY_VERSION - 1, RECOVERY_VERSION])
def test_nodes_that_know_nothing_of_it_are_told_nothing_of_it(version: int) -> None:
    """Unknown fields are refused, so a name would cost the connection."""
    pool = PoolDriver(
        *(FakeNode(number, facts.spec(2), caches=number > 1, version=version if number == 1 else RECOVERY_VERSION)
          for number in range(1, NUM_STAGES + 1))
    )  # fmt: skip
    for number in (1, 2):
        assert num_cached(pool, ask(pool, number, PROMPT))[0] == 0
    for number, fake in enumerate(pool.nodes.values(), start=1):
        said = [msg for msg in fake.heard if isinstance(msg, m.OpenSession | m.CloseSession)]
        assert all(bool(msg.prefix_hashes) == (number > 1) for msg in said)


def test_room_is_reserved_as_if_nothing_were_shared() -> None:
    pool = lane()
    ask(pool, 1, PROMPT)
    session_id = pool.request(2, PROMPT, NUM_TOKENS, **ALICE)
    pool.run_until(lambda: len(pool.tokens(session_id)) == 3)
    room = -(-(len(PROMPT) + NUM_TOKENS) // KV_BLOCK_TOKENS) * KV_BLOCK_TOKENS
    assert {device.num_reserved_tokens for device in pool.core.scheduler.state.devices.values()} == {room}


def test_a_session_goes_back_to_the_chain_that_has_its_beginning() -> None:
    """Which chain that is the scheduler learns from what nodes say of themselves."""
    pool = lane(num_lanes=2)
    prompt = tuple(range(3, 603))
    first = ask(pool, 1, prompt)
    for number in pool.chains(first)[0]:
        pool.core.scheduler.state.devices[facts.key(number)].slowdown = 1.05
        pool.core.scheduler._dispatcher.changed(pool.core.scheduler.state.devices[facts.key(number)])
    assert pool.chains(ask(pool, 2, prompt))[0] == pool.chains(first)[0]
    assert pool.chains(ask(pool, 3, tuple(range(9, 609))))[0] != pool.chains(first)[0]


def test_a_coordinator_that_was_restarted_finds_what_nodes_have_kept() -> None:
    before = lane()
    ask(before, 1, PROMPT)
    after = PoolDriver()
    for fake in before.nodes.values():
        fake.hello = structs.replace(fake.hello, held=tuple(fake.held.values()))
        after.join(fake)
    after.pass_time(60.0)
    assert num_cached(after, ask(after, 2, PROMPT))[0] == 2 * KV_BLOCK_TOKENS


# ---------------------------------------------------------------- chains that break


@pytest.mark.parametrize("stage", range(NUM_STAGES))
@pytest.mark.parametrize("num_before", [0, 1, 5])
@pytest.mark.parametrize("keeps_sent", [False, True])
def test_a_session_that_began_behind_a_cached_prefix_outlives_its_nodes(
    stage: int, num_before: int, keeps_sent: bool
) -> None:
    """Where nobody knows any more what was sent of the prefix, it is computed."""
    pool = lane(num_lanes=2)
    for fake in pool.nodes.values():
        fake.keeps_sent = keeps_sent
    ask(pool, 1, PROMPT)
    pool.now_s += 1.0
    session_id = pool.request(2, PROMPT, NUM_TOKENS, **ALICE)
    pool.run_until(lambda: len(pool.tokens(session_id)) == num_before and computed(pool, session_id) != {0})
    pool.lose(pool.nodes[facts.node_id(pool.chains(session_id)[-1][stage])])
    pool.run()
    pool.pass_time(1.0)
    assert pool.tokens(session_id) == answer_to(PROMPT, NUM_TOKENS)
    assert not any(fake.legs for fake in pool.nodes.values())


def test_survivors_of_a_chain_that_began_behind_a_cached_prefix_compute_one_row_anew() -> None:
    pool = lane(num_lanes=2)
    ask(pool, 1, PROMPT)
    session_id = pool.request(2, PROMPT, NUM_TOKENS, **ALICE)
    pool.run_until(lambda: len(pool.tokens(session_id)) == 6)
    num_left = NUM_TOKENS - len(pool.tokens(session_id))
    pool.lose(pool.nodes[facts.node_id(pool.chains(session_id)[-1][1])])
    pool.run()
    assert pool.tokens(session_id) == answer_to(PROMPT, NUM_TOKENS)
    assert computed(pool, session_id, 2) == {len(PROMPT) + NUM_TOKENS - 1, num_left}


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whatever_is_cached_lost_and_asked_answers_are_right(data: st.DataObject) -> None:
    """Turns of a few conversations of two tenants, while caches lose blocks and nodes go and come."""
    pool = lane(num_lanes=2)
    turns: dict[str, tuple[int, ...]] = {"key alice": PROMPT, "key bob": PROMPT}
    spare = iter(range(9, 13))
    for number in range(1, 7):
        tenant = data.draw(st.sampled_from(sorted(turns)))
        prompt = turns[tenant][: data.draw(st.integers(1, len(turns[tenant])))]
        session_id = pool.request(number, prompt, NUM_TOKENS, tenant=tenant)
        num_before = data.draw(st.integers(0, NUM_TOKENS))
        pool.run_until(lambda s=session_id, n=num_before: len(pool.tokens(s)) >= n)  # type: ignore[misc]
        what = data.draw(st.sampled_from(("nothing", "forgets", "leaves")))
        chosen = data.draw(st.sampled_from(pool.chains(session_id)[-1]))
        fake = pool.nodes[facts.node_id(chosen)]
        if what == "forgets":
            fake.cached = {key: rows for key, rows in fake.cached.items() if data.draw(st.booleans())}
        if what == "leaves" and (newcomer := next(spare, None)) is not None:
            pool.lose(fake)
            pool.join(FakeNode(newcomer, facts.spec(2), caches=True))
        pool.run()
        pool.pass_time(5.0)
        assert pool.tokens(session_id) == answer_to(prompt, NUM_TOKENS)
        turns[tenant] = (*prompt, *pool.tokens(session_id), number)
    assert not any(fake.num_refused_rows for fake in pool.nodes.values())
