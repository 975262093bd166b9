"""The whole pool as one pure object: fake nodes answer, some die, and the user's tokens stay what they were."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator import core as core_module
from coordinator.arrivals import rest_s
from coordinator.core import HEARTBEAT_S, LEASE_S, MAX_FAULTS, TICK_S
from coordinator.effects import DropNode
from coordinator.nodes import DeviceActivity
from coordinator.queue_news import QUEUE_NEWS_S
from coordinator.scheduler.dispatcher import MAX_WAITING
from coordinator.sessions import Queued
from protocol import messages as m
from protocol.errors import CloseCode, MessageError
from protocol.frames import Frame, FrameKind, Phase, Segment, WireDtype, encode_frame
from protocol.values import FinishReason, LayerRange, SessionId
from tests.fakes import pool_facts as facts
from tests.fakes.fake_node import FakeNode, answer_to
from tests.fakes.pool_driver import PoolDriver

PROMPT = (5, 6, 7)


def node(number: int, max_layers: int = 8, **options: object) -> FakeNode:
    return FakeNode(number, facts.spec(max_layers), **options)  # type: ignore[arg-type]


def pool_of(*sizes: int) -> PoolDriver:
    return PoolDriver(*(node(number, size) for number, size in enumerate(sizes, start=1)))


def is_at(pool: PoolDriver, session_id: SessionId, num_tokens: int) -> Callable[[], bool]:
    return lambda: len(pool.tokens(session_id)) >= num_tokens


# ---------------------------------------------------------------- one answer


@pytest.mark.parametrize("sizes", [(8,), (4, 4), (3, 3, 3)])
def test_an_answer_over_any_number_of_nodes_is_the_same(sizes: tuple[int, ...]) -> None:
    pool = pool_of(*sizes)
    session_id = pool.request(prompt=PROMPT, num_tokens=12)
    pool.run()
    assert pool.tokens(session_id) == answer_to(PROMPT, 12)
    assert pool.finish(session_id) is FinishReason.LENGTH
    assert len(pool.chains(session_id)) == 1
    assert len(pool.chains(session_id)[0]) == len(sizes)


def test_a_finished_session_leaves_nothing_behind() -> None:
    pool = pool_of(4, 4)
    pool.request()
    pool.run()
    assert not pool.core.sessions
    assert all(not fake.legs for fake in pool.nodes.values())
    assert all(d.num_reserved_tokens == 0 for d in pool.core.scheduler.state.devices.values())


def test_many_answers_at_once_do_not_mix() -> None:
    pool = pool_of(4, 4)
    prompts = {number: (number, number + 1, 7) for number in range(1, 9)}
    sessions = {number: pool.request(number, prompt, 6) for number, prompt in prompts.items()}
    pool.run()
    assert all(pool.tokens(sessions[n]) == answer_to(prompt, 6) for n, prompt in prompts.items())


def test_a_stop_token_ends_the_answer() -> None:
    rule = lambda history: 2 if len(history) == 6 else 9  # noqa: E731
    pool = PoolDriver(node(1, rule=rule))
    session_id = pool.request(prompt=PROMPT, num_tokens=50)
    pool.run()
    assert pool.tokens(session_id) == [9, 9, 9, 2]
    assert pool.finish(session_id) is FinishReason.STOP


def test_a_prompt_longer_than_a_frame_arrives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.openings.MAX_ROWS_PER_FRAME", 4)
    pool = pool_of(4, 4)
    prompt = tuple(range(10, 21))
    session_id = pool.request(prompt=prompt, num_tokens=3)
    pool.run()
    assert pool.tokens(session_id) == answer_to(prompt, 3)


def test_neighbours_learn_each_others_addresses() -> None:
    pool = PoolDriver(node(1, 4, address="ws://127.0.0.1:1"), node(2, 4))
    pool.request()
    pool.run()
    head, tail = sorted(
        (order for fake in pool.nodes.values() for order in fake.of_type(m.OpenSession)),
        key=lambda order: order.stage,  # type: ignore[union-attr]
    )
    assert isinstance(head, m.OpenSession)
    assert isinstance(tail, m.OpenSession)
    assert {head.next.address, tail.next.address} == {None, "ws://127.0.0.1:1"}
    assert {head.next.ticket, tail.next.ticket} == {None, "a-ticket"}
    assert {head.next.fingerprint, tail.next.fingerprint} == {None, "4e" * 32}
    assert (head.previous.node_id, head.next.node_id) == (tail_id := head.next.node_id, tail_id)
    assert head.sampling is None
    assert tail.sampling is not None
    assert tail.history == PROMPT


# ---------------------------------------------------------------- losing nodes


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("after", [0, 1, 4, 9])
def test_a_node_lost_in_mid_answer_changes_no_token(lost: int, after: int) -> None:
    pool = pool_of(4, 4, 4, 4)
    session_id = pool.request(prompt=PROMPT, num_tokens=10)
    pool.run_until(is_at(pool, session_id, after))
    first_chain = pool.chains(session_id)[0]
    pool.lose(pool.nodes[facts.node_id(first_chain[lost])])
    pool.run()
    assert pool.tokens(session_id) == answer_to(PROMPT, 10)
    assert pool.finish(session_id) is FinishReason.LENGTH
    assert len(pool.chains(session_id)) == 2
    assert first_chain[lost] not in pool.chains(session_id)[1]
    assert all(not fake.legs for fake in pool.nodes.values())


def test_the_new_chain_gets_prompt_and_committed_tokens() -> None:
    pool = pool_of(8, 8)
    session_id = pool.request(prompt=PROMPT, num_tokens=10)
    pool.run_until(is_at(pool, session_id, 4))
    pool.lose(pool.nodes[facts.node_id(pool.chains(session_id)[0][0])])
    pool.run()
    [survivor] = pool.nodes.values()
    [order] = survivor.of_type(m.OpenSession)
    assert isinstance(order, m.OpenSession)
    assert order.epoch == 2
    assert order.history[:3] == PROMPT
    assert order.num_prompt_tokens == len(order.history) >= 7
    assert order.stop is not None
    assert order.stop.max_position == 13


def test_a_user_waits_while_there_is_no_chain_and_goes_on_when_one_comes() -> None:
    pool = pool_of(8)
    session_id = pool.request(prompt=PROMPT, num_tokens=10)
    pool.run_until(is_at(pool, session_id, 5))
    pool.lose(pool.nodes[facts.node_id(1)])
    pool.pass_time(30)
    assert pool.failure(session_id) is None
    pool.join(node(2))
    assert pool.tokens(session_id) == answer_to(PROMPT, 10)


def test_a_user_is_told_when_no_chain_comes() -> None:
    pool = pool_of(8)
    session_id = pool.request()
    pool.run_until(is_at(pool, session_id, 2))
    pool.lose(pool.nodes[facts.node_id(1)])
    pool.pass_time(121)
    failure = pool.failure(session_id)
    assert failure is not None
    assert (failure.code, failure.started) == ("no_capacity", True)
    assert not pool.core.sessions


def test_a_node_that_connects_again_counts_as_lost_before() -> None:
    pool = pool_of(8, 8)
    session_id = pool.request(prompt=PROMPT, num_tokens=10)
    pool.run_until(is_at(pool, session_id, 3))
    pool.join(node(pool.chains(session_id)[0][0]))
    assert pool.tokens(session_id) == answer_to(PROMPT, 10)


def test_a_node_that_leaves_on_purpose_is_replaced() -> None:
    pool = pool_of(8, 8)
    session_id = pool.request(prompt=PROMPT, num_tokens=10)
    pool.run_until(is_at(pool, session_id, 3))
    leaver = pool.nodes[facts.node_id(pool.chains(session_id)[0][0])]
    pool.say(leaver, m.Leaving("paused"))
    pool.run()
    assert pool.tokens(session_id) == answer_to(PROMPT, 10)
    assert [drop.node_id for drop in pool.dropped] == [leaver.node_id]


@settings(max_examples=40)
@given(st.data())
def test_whatever_dies_when_every_answer_stays_the_same(data: st.DataObject) -> None:
    """Nodes die and come at any step, up to the limits of what a session survives."""
    pool = pool_of(4, 4, 4, 4, 8)
    sessions = {n: pool.request(n, (n, 9), 8) for n in range(1, 4)}
    number = 10
    for steps in data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=6)):
        for _ in range(steps):
            pool.step()
        if pool.nodes and data.draw(st.booleans()):
            pool.lose(pool.nodes[data.draw(st.sampled_from(sorted(pool.nodes)))])
        else:
            number += 1
            pool.nodes[facts.node_id(number)] = fresh = node(number, data.draw(st.integers(2, 8)))
            pool.carry_out(pool.core.node_joined(fresh.hello, pool.now_s))
    pool.join(node(99))
    assert all(pool.tokens(session_id) == answer_to((n, 9), 8) for n, session_id in sessions.items())


# ---------------------------------------------------------------- late and wrong news


def tail_of(pool: PoolDriver, session_id: SessionId, chain: int = -1) -> FakeNode:
    return pool.nodes[facts.node_id(pool.chains(session_id)[chain][-1])]


def test_tokens_that_are_not_the_next_ones_of_this_chain_are_dropped() -> None:
    pool = pool_of(8, 8)
    session_id = pool.request(prompt=PROMPT, num_tokens=10)
    pool.run_until(is_at(pool, session_id, 2))
    tail = tail_of(pool, session_id)
    other = next(fake for fake in pool.nodes.values() if fake is not tail)
    here = 3 + len(pool.tokens(session_id))
    for speaker, epoch, position in (
        (tail, 0, here),
        (tail, 2, here),
        (tail, 1, here + 1),
        (tail, 1, 3),
        (other, 1, here),
    ):
        pool.say(speaker, m.TokensSampled(session_id, epoch, position, (999,)))
    pool.say(other, m.TokensSampled("f" * 32, 1, 3, (999,)))
    pool.run()
    assert pool.tokens(session_id) == answer_to(PROMPT, 10)


def test_late_tokens_of_a_chain_that_was_left_are_dropped() -> None:
    pool = pool_of(4, 4, 8)
    session_id = pool.request(prompt=PROMPT, num_tokens=10)
    pool.run_until(is_at(pool, session_id, 3))
    old_tail = tail_of(pool, session_id)
    position = 3 + len(pool.tokens(session_id))
    pool.say(old_tail, m.SessionBroken(session_id, 1, len(pool.chains(session_id)[0]) - 1, "kv_full", "No room."))
    pool.say(old_tail, m.TokensSampled(session_id, 1, position, (999,)))
    pool.run()
    assert pool.tokens(session_id) == answer_to(PROMPT, 10)


def test_opened_by_a_node_that_is_no_stage_means_nothing() -> None:
    pool = pool_of(8)
    pool.nodes[facts.node_id(1)].silent = True
    session_id = pool.request()
    stranger = node(5, 1)
    pool.join(stranger)
    pool.say(stranger, m.SessionOpened(session_id, 1, 0))
    pool.say(stranger, m.SessionOpened(session_id, 1, 7))
    pool.say(stranger, m.SessionBroken(session_id, 1, 0, "kv_full", "x"))
    assert not any(isinstance(data, bytes) for _, data in pool.mail)
    assert pool.core.sessions[session_id].epoch == 1


def test_a_tail_that_says_too_much_is_not_believed() -> None:
    pool = pool_of(8, 8)
    session_id = pool.request(prompt=PROMPT, num_tokens=4)
    pool.run_until(is_at(pool, session_id, 2))
    tail = tail_of(pool, session_id)
    position = 3 + len(pool.tokens(session_id))
    pool.say(tail, m.TokensSampled(session_id, 1, position, (1,) * 5))
    pool.run()
    assert pool.tokens(session_id) == answer_to(PROMPT, 4)
    assert len(pool.chains(session_id)) == 2


def test_a_tail_that_forgets_to_finish_does_not_keep_the_user_waiting() -> None:
    pool = pool_of(8)
    session_id = pool.request(prompt=PROMPT, num_tokens=3)
    pool.nodes[facts.node_id(1)].silent = True
    pool.mail.clear()
    fake = pool.nodes[facts.node_id(1)]
    pool.say(fake, m.SessionOpened(session_id, 1, 0))
    pool.say(fake, m.TokensSampled(session_id, 1, 3, (7, 8, 9)))
    assert pool.finish(session_id) is FinishReason.LENGTH
    assert not pool.core.sessions


def test_a_session_that_breaks_its_chains_again_and_again_is_given_up() -> None:
    pool = pool_of(8, 8)
    session_id = pool.request(prompt=PROMPT, num_tokens=50)
    pool.run_until(is_at(pool, session_id, 2))
    for epoch in range(1, 5):
        assert pool.failure(session_id) is None
        pool.say(tail_of(pool, session_id), m.SessionBroken(session_id, epoch, 0, "non_finite", "NaN in a row."))
        pool.wait(rest_s(epoch) + 0.1)
    failure = pool.failure(session_id)
    assert failure is not None
    assert (failure.code, failure.started) == ("non_finite", True)
    assert "NaN in a row." in failure.message
    assert not pool.core.sessions
    pool.run()
    assert all(not fake.legs for fake in pool.nodes.values())


def test_cancelling_closes_the_session_on_every_node_and_is_harmless_twice() -> None:
    pool = pool_of(4, 4)
    session_id = pool.request(num_tokens=50)
    pool.run_until(is_at(pool, session_id, 3))
    pool.cancel(session_id)
    pool.cancel(session_id)
    seen = len(pool.tokens(session_id))
    pool.run()
    assert len(pool.tokens(session_id)) == seen
    assert all(not fake.legs for fake in pool.nodes.values())


def test_cancelling_a_request_that_waits_takes_it_from_the_queue() -> None:
    pool = pool_of(8)
    first = pool.request(1, num_tokens=6000)
    waiting = pool.request(2, num_tokens=6000)
    pool.cancel(waiting)
    assert waiting not in pool.core.scheduler.state.waiting
    pool.cancel(first)
    assert not pool.core.sessions


# ---------------------------------------------------------------- the queue


def test_who_need_not_wait_hears_nothing_of_the_queue() -> None:
    pool = pool_of(8)
    session_id = pool.request()
    pool.run()
    assert pool.places(session_id) == []
    assert pool.core.queue_place(session_id) is None


def test_who_waits_is_told_the_place_at_once_and_whenever_it_changes() -> None:
    pool = pool_of(8)
    sessions = [pool.request(number, num_tokens=6000) for number in range(1, 5)]
    assert [pool.places(session_id) for session_id in sessions] == [[], [1], [2], [3]]
    pool.nodes[facts.node_id(1)].hangs = True
    pool.pass_time(2)
    pool.cancel(sessions[1])
    assert [pool.places(session_id) for session_id in sessions[2:]] == [[2], [3]]
    pool.pass_time(1)
    assert [pool.places(session_id) for session_id in sessions[2:]] == [[2, 1], [3, 2]]
    place = pool.core.queue_place(sessions[3])
    assert place is not None
    assert (place.place, place.num_waiting) == (2, 2)


def test_news_of_the_queue_come_at_most_once_a_second() -> None:
    pool = pool_of(8)
    sessions = [pool.request(number, num_tokens=6000) for number in range(1, 10)]
    pool.nodes[facts.node_id(1)].hangs = True
    for session_id in sessions[1:8]:
        pool.cancel(session_id)
        pool.pass_time(TICK_S)
    assert len(pool.places(sessions[8])) <= 1 + round(7 * TICK_S / QUEUE_NEWS_S)
    pool.pass_time(QUEUE_NEWS_S)
    assert pool.places(sessions[8])[-1] == 1


def test_who_waits_is_told_how_long_it_may_take_as_soon_as_that_is_known() -> None:
    pool = pool_of(8)
    short, _, waiting = (pool.request(number, num_tokens=size) for number, size in enumerate((100, 9000, 6000)))
    pool.mail.clear()
    pool.now_s += 30
    pool.cancel(short)
    pool.pass_time(1)
    told = [item for item in pool.items[waiting] if isinstance(item, Queued)]
    assert [item.place for item in told] == [1, 1]
    assert told[0].expected_wait_s is None
    assert told[1].expected_wait_s == pytest.approx(60.0, abs=1.5), "two ran for half a minute, one has ended"


def test_a_session_that_lost_its_chain_is_told_no_place() -> None:
    pool = pool_of(8)
    session_id = pool.request(num_tokens=10)
    pool.run_until(is_at(pool, session_id, 3))
    pool.lose(pool.nodes[facts.node_id(1)])
    pool.pass_time(5)
    assert pool.places(session_id) == []


def test_a_full_queue_is_a_refusal() -> None:
    pool = pool_of(8)
    for number in range(1, MAX_WAITING + 2):
        pool.request(number, num_tokens=6000)
    failure = pool.failure(pool.request(999, num_tokens=6000))
    assert failure is not None
    assert (failure.code, failure.started, failure.retry_after_s) == ("queue_full", False, 60.0)


# ---------------------------------------------------------------- what an operator does


def test_a_drained_node_finishes_its_answer_and_is_then_released() -> None:
    pool = pool_of(8, 8)
    session_id = pool.request(prompt=PROMPT, num_tokens=10)
    pool.run_until(is_at(pool, session_id, 3))
    [number] = pool.chains(session_id)[0]
    pool.drain(number)
    drained = pool.nodes[facts.node_id(number)]
    assert pool.core.nodes[drained.node_id].is_draining
    second = pool.request(2, num_tokens=5)
    pool.run()
    assert pool.tokens(session_id) == answer_to(PROMPT, 10)
    assert len(pool.chains(session_id)) == 1
    assert pool.chains(second) == [[3 - number]]
    assert len(drained.of_type(m.ReleaseSlice)) == 1
    assert device_view(pool, number) == (DeviceActivity.IDLE, "")


def test_a_node_that_is_drained_no_more_serves_again() -> None:
    pool = pool_of(8)
    pool.drain(1)
    pool.run()
    assert not pool.core.scheduler.is_ready(facts.DIGEST)
    pool.drain(1, on=False)
    pool.run()
    assert not pool.core.nodes[facts.node_id(1)].is_draining
    assert pool.core.scheduler.is_ready(facts.DIGEST)


def test_a_drained_node_that_comes_back_is_still_drained() -> None:
    pool = pool_of(8)
    pool.drain(1)
    pool.lose(pool.nodes[facts.node_id(1)])
    pool.join(node(1))
    assert pool.core.nodes[facts.node_id(1)].is_draining
    assert not pool.core.scheduler.is_ready(facts.DIGEST)


def test_a_removed_model_fails_its_answers_and_closes_them_before_the_slices_go() -> None:
    pool = pool_of(4, 4)
    running, waiting = pool.request(1, num_tokens=6000), pool.request(2, num_tokens=6000)
    pool.run_until(is_at(pool, running, 3))
    pool.carry_out(pool.core.remove_model(facts.DIGEST, pool.now_s))
    pool.run()
    failures = [pool.failure(session_id) for session_id in (running, waiting)]
    assert [failure and (failure.code, failure.started) for failure in failures] == [
        ("model_unloaded", True),
        ("model_unloaded", False),
    ]
    for fake in pool.nodes.values():
        last = [type(data) for data in fake.heard if isinstance(data, m.CloseSession | m.ReleaseSlice)]
        assert last == [m.CloseSession, m.ReleaseSlice]
        assert not fake.legs
    assert not pool.core.sessions


def test_a_model_that_is_not_served_is_removed_without_harm() -> None:
    pool = pool_of(8)
    pool.carry_out(pool.core.remove_model("3d" * 32, pool.now_s))
    assert pool.core.scheduler.is_ready(facts.DIGEST)


def test_late_news_of_a_removed_model_disturbs_nobody() -> None:
    pool = pool_of()
    fake = node(1)
    fake.silent = True
    pool.join(fake)
    pool.carry_out(pool.core.remove_model(facts.DIGEST, pool.now_s))
    assert device_view(pool, 1) == (DeviceActivity.IDLE, "")
    other = facts.model(4, digest="3d" * 32)
    pool.carry_out(pool.core.add_model(other, pool.now_s))
    pool.say(fake, m.DeviceMeasured(facts.CPU, facts.DIGEST, facts.benchmark()))
    pool.say(fake, m.DeviceFailed(facts.CPU, facts.DIGEST, 0, "measuring_failed", "It failed."))
    pool.say(fake, m.SliceReady(facts.CPU, 1, 1000, True))
    assert device_view(pool, 1) == (DeviceActivity.MEASURING, "")
    pool.say(fake, m.DeviceMeasured(facts.CPU, other.manifest_hash, facts.benchmark()))
    assert device_view(pool, 1) == (DeviceActivity.DOWNLOADING, "0-3")


def test_a_removed_node_is_dropped_and_its_answers_go_on_elsewhere() -> None:
    pool = pool_of(8, 8)
    session_id = pool.request(prompt=PROMPT, num_tokens=10)
    pool.run_until(is_at(pool, session_id, 3))
    removed = facts.node_id(pool.chains(session_id)[0][0])
    pool.carry_out(pool.core.remove_node(removed, "The operator removed it.", pool.now_s))
    pool.run()
    assert pool.dropped == [DropNode(removed, "The operator removed it.", CloseCode.NOT_ALLOWED)]
    assert pool.tokens(session_id) == answer_to(PROMPT, 10)
    assert pool.core.remove_node(removed, "again", pool.now_s) == []


# ---------------------------------------------------------------- devices


def device_view(pool: PoolDriver, number: int) -> tuple[DeviceActivity, str]:
    view = pool.core.nodes[facts.node_id(number)].devices[facts.CPU]
    return view.activity, view.layers


def test_the_view_follows_what_a_device_does() -> None:
    pool = PoolDriver()
    fake = node(1)
    fake.silent = True
    pool.join(fake)
    assert device_view(pool, 1) == (DeviceActivity.MEASURING, "")
    pool.say(fake, m.DeviceMeasured(facts.CPU, facts.DIGEST, facts.benchmark()))
    assert device_view(pool, 1) == (DeviceActivity.DOWNLOADING, "0-7")
    pool.say(fake, m.SliceProgress(facts.CPU, 1, True, 3, 4))
    assert device_view(pool, 1) == (DeviceActivity.LOADING, "0-7")
    pool.say(fake, m.SliceReady(facts.CPU, 1, 1000, True))
    assert device_view(pool, 1) == (DeviceActivity.SERVING, "0-7")
    pool.say(fake, m.DeviceFailed(facts.CPU, facts.DIGEST, 1, "worker_died", "It died."))
    assert device_view(pool, 1) == (DeviceActivity.FAILED, "")
    assert pool.core.nodes[fake.node_id].devices[facts.CPU].reason == "It died."


@pytest.mark.parametrize(
    "stale",
    [
        m.DeviceFailed(facts.CPU, facts.DIGEST, 7, "worker_died", "It died."),
        m.DeviceFailed(facts.CPU, facts.DIGEST, 0, "measuring_failed", "It failed."),
        m.DeviceFailed(facts.DeviceId("cuda:9"), facts.DIGEST, 1, "worker_died", "It died."),
        m.SliceProgress(facts.CPU, 7, True, 3, 4),
        m.SliceReady(facts.CPU, 7, 1, True),
        m.SliceReady(facts.DeviceId("cuda:9"), 1, 1, True),
        m.DeviceMeasured(facts.CPU, facts.DIGEST, facts.benchmark(9.0)),
    ],
    ids=lambda message: f"{type(message).__name__}-{getattr(message, 'generation', '')}",
)
def test_stale_news_of_a_device_disturbs_nobody(stale: m.NodeMessage) -> None:
    pool = pool_of(8)
    session_id = pool.request(prompt=PROMPT, num_tokens=10)
    pool.run_until(is_at(pool, session_id, 3))
    pool.say(pool.nodes[facts.node_id(1)], stale)
    assert device_view(pool, 1) == (DeviceActivity.SERVING, "0-7")
    pool.run()
    assert pool.tokens(session_id) == answer_to(PROMPT, 10)
    assert len(pool.chains(session_id)) == 1


def test_a_device_that_fails_in_mid_answer_hands_over() -> None:
    pool = pool_of(8, 8)
    session_id = pool.request(prompt=PROMPT, num_tokens=10)
    pool.run_until(is_at(pool, session_id, 3))
    pool.say(tail_of(pool, session_id), m.DeviceFailed(facts.CPU, facts.DIGEST, 1, "out_of_memory", "No memory."))
    pool.run()
    assert pool.tokens(session_id) == answer_to(PROMPT, 10)
    assert len(pool.chains(session_id)) == 2


def test_a_released_slice_is_told_to_the_node_and_shown() -> None:
    pool = pool_of(5, 5)
    survivor = pool.nodes[facts.node_id(2)]
    pool.lose(pool.nodes[facts.node_id(1)])
    pool.join(node(3, 3))
    assert len(survivor.of_type(m.ReleaseSlice)) == 1
    orders = [order for order in survivor.of_type(m.AssignSlice) if isinstance(order, m.AssignSlice)]
    assert [order.generation for order in orders] == [1, 2]
    assert orders[-1].layers in (LayerRange(0, 5), LayerRange(3, 8)), "the newcomer has room for three"
    assert orders[-1].num_layers == 8
    assert device_view(pool, 2) == (DeviceActivity.SERVING, str(orders[-1].layers))


# ---------------------------------------------------------------- the relay


def rows(*parts: tuple[SessionId, int, int], position: int = 3) -> bytes:
    """A frame with one row for each (session, epoch, stage)."""
    segments = tuple(Segment(sid, epoch, position, 1, 0, stage, Phase.DECODE) for sid, epoch, stage in parts)
    payload = struct.pack(f"<{len(parts)}f", *range(len(parts)))
    return encode_frame(Frame(FrameKind.HIDDEN, WireDtype.FLOAT32, 1, segments, payload))


class RelayPool:
    """Two stages, two open sessions, nothing under way."""

    def __init__(self) -> None:
        self.pool = pool_of(4, 4)
        self.first, self.second = self.pool.request(1), self.pool.request(2)
        for fake in self.pool.nodes.values():
            fake.silent = True
        self.pool.mail.clear()
        head, tail = self.pool.chains(self.first)[0]
        assert self.pool.chains(self.second)[0] == [head, tail]
        self.head, self.tail = self.pool.nodes[facts.node_id(head)], self.pool.nodes[facts.node_id(tail)]

    def targets(self, sender: FakeNode, data: bytes) -> list[FakeNode]:
        self.pool.mail.clear()
        self.pool.say(sender, data)
        return [fake for fake, _ in self.pool.mail]

    def num_faults(self, fake: FakeNode) -> int:
        return self.pool.core.nodes[fake.node_id].num_faults


def test_rows_are_relayed_to_the_next_stage_and_tokens_to_the_head() -> None:
    relay = RelayPool()
    assert relay.targets(relay.head, rows((relay.first, 1, 1))) == [relay.tail]
    assert relay.targets(relay.tail, rows((relay.first, 1, 0))) == [relay.head]
    assert relay.targets(relay.head, rows((relay.first, 1, 1), (relay.second, 1, 1))) == [relay.tail]


def test_a_batch_goes_on_when_one_of_its_sessions_has_ended() -> None:
    """The frame's other sessions would wait for their rows for ever."""
    relay = RelayPool()
    relay.pool.cancel(relay.first)
    batch = rows((relay.first, 1, 1), (relay.second, 1, 1))
    assert relay.targets(relay.head, batch) == [relay.tail]
    assert relay.num_faults(relay.head) == 0


def test_rows_that_are_only_late_are_dropped_without_blame() -> None:
    relay = RelayPool()
    assert relay.targets(relay.head, rows((relay.first, 0, 1))) == []
    assert relay.targets(relay.head, rows((SessionId("f" * 32), 1, 1))) == []
    relay.pool.cancel(relay.first)
    assert relay.targets(relay.head, rows((relay.first, 1, 1))) == []
    assert relay.num_faults(relay.head) == 0


@pytest.mark.parametrize("stage", [0, 2, 65_535])
def test_rows_for_a_stage_that_is_not_the_senders_neighbour_are_a_fault(stage: int) -> None:
    relay = RelayPool()
    assert relay.targets(relay.head, rows((relay.first, 1, stage))) == []
    assert relay.num_faults(relay.head) == 1


def test_a_stranger_may_not_speak_in_a_session() -> None:
    relay = RelayPool()
    stranger = node(7, 1)
    relay.pool.join(stranger)
    for stage in (0, 1):
        assert relay.targets(stranger, rows((relay.first, 1, stage))) == []
    assert relay.targets(relay.head, rows((relay.first, 1, 1), (relay.second, 1, 0))) == []
    assert relay.num_faults(stranger) == 2


def test_a_node_that_sends_too_many_bad_frames_is_dropped() -> None:
    pool = pool_of(8)
    [fake] = pool.nodes.values()
    for _ in range(MAX_FAULTS - 1):
        pool.say(fake, b"nonsense")
    assert not pool.dropped
    pool.say(fake, b"nonsense")
    assert [(drop.node_id, drop.code) for drop in pool.dropped] == [(fake.node_id, CloseCode.TOO_MANY_FAULTS)]
    assert not pool.core.nodes


def test_a_second_hello_is_refused() -> None:
    pool = pool_of(8)
    with pytest.raises(MessageError):
        pool.say(pool.nodes[facts.node_id(1)], facts.hello(1))


# ---------------------------------------------------------------- time


def test_a_silent_node_is_dropped_after_its_lease_and_its_sessions_move() -> None:
    pool = pool_of(8, 8)
    session_id = pool.request(prompt=PROMPT, num_tokens=10)
    pool.run_until(is_at(pool, session_id, 3))
    tail_of(pool, session_id).silent = True
    pool.run()
    pool.pass_time(LEASE_S - 1)
    assert not pool.dropped
    pool.pass_time(3)
    assert len(pool.dropped) == 1
    assert pool.tokens(session_id) == answer_to(PROMPT, 10)


def test_a_node_that_speaks_keeps_its_lease() -> None:
    pool = pool_of(8)
    pool.pass_time(10 * LEASE_S)
    assert not pool.dropped


def test_the_coordinators_own_stall_is_forgiven() -> None:
    pool = pool_of(8)
    pool.pass_time(5)
    pool.now_s += 1000
    pool.carry_out(pool.core.tick(pool.now_s))
    assert not pool.dropped
    pool.nodes[facts.node_id(1)].silent = True
    pool.pass_time(LEASE_S + 2)
    assert len(pool.dropped) == 1


def test_a_coordinator_that_stalls_again_and_again_forgives_each_time() -> None:
    """The heartbeats that came meanwhile are read before or after the tick, as the loop happens to run."""
    pool = pool_of(8)
    pool.pass_time(1)
    for late in range(20):
        pool.now_s += 3 * LEASE_S
        if late % 2:
            pool.say(pool.nodes[facts.node_id(1)], m.Heartbeat(0, 0, 0))
        pool.carry_out(pool.core.tick(pool.now_s))
        assert pool.core.nodes[facts.node_id(1)].heard_at_s <= pool.now_s
    assert not pool.dropped


def test_a_stall_does_not_make_a_dead_node_live_longer() -> None:
    pool = pool_of(8)
    pool.pass_time(2)
    pool.nodes[facts.node_id(1)].silent = True
    pool.now_s += 1000
    pool.carry_out(pool.core.tick(pool.now_s))
    pool.pass_time(LEASE_S + HEARTBEAT_S)
    assert len(pool.dropped) == 1


def test_a_dead_machine_is_out_of_the_view_within_five_seconds() -> None:
    pool = pool_of(8)
    pool.pass_time(10)
    pool.nodes[facts.node_id(1)].silent = True
    pool.pass_time(5)
    assert not pool.core.nodes
    assert HEARTBEAT_S * 3 < LEASE_S, "one or two lost heartbeats are no death"


def test_a_heartbeat_is_kept_for_the_pool_page() -> None:
    pool = pool_of(8)
    pool.say(pool.nodes[facts.node_id(1)], m.Heartbeat(2, 345, 0))
    pool.now_s += 2
    pool.say(pool.nodes[facts.node_id(1)], m.Heartbeat(2, 365, 0))
    view = pool.core.nodes[facts.node_id(1)]
    assert (view.num_tokens, view.num_sessions, view.tokens_per_s) == (365, 2, 10.0)


def test_every_message_of_a_node_has_a_handler() -> None:
    handled = set(core_module.PoolCore()._message_handlers)
    assert handled == set(m.NodeMessage.__args__) - {m.Hello}
