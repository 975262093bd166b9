"""Late answers in a whole pool on virtual time: found soon, moved once, and nobody blamed who did nothing."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.core import LEASE_S
from coordinator.scheduler import candidates
from coordinator.scheduler.state import DeviceKey
from protocol import messages as m
from protocol.values import FinishReason, SessionId
from tests.fakes import pool_facts as facts
from tests.fakes.fake_node import FakeNode, answer_to
from tests.fakes.timed_pool import Computer, TimedPool

PROMPT = (5, 6, 7)
NUM_TOKENS = 60
LAYER_S = 0.005


def node(number: int, max_layers: int = 4, **options: object) -> FakeNode:
    return FakeNode(number, facts.spec(max_layers), **{"layer_s": LAYER_S, **options})  # type: ignore[arg-type]


def replicated(**options: object) -> TimedPool:
    """Two whole pipelines of two stages."""
    return TimedPool(*(node(number, **options) for number in range(1, 5)))


def begin(pool: TimedPool, num_tokens: int = NUM_TOKENS, after: int = 12) -> SessionId:
    """A request of whose answer some tokens are there."""
    session_id = pool.request(1, PROMPT, num_tokens)
    pool.advance_until(lambda: len(pool.tokens(session_id)) >= after)
    return session_id


def stage_of(pool: TimedPool, session_id: SessionId, stage: int) -> Computer:
    return pool.computers[pool.chains(session_id)[-1][stage]]


def is_done(pool: TimedPool, session_id: SessionId) -> bool:
    return pool.finish(session_id) is not None


def until_next_token(pool: TimedPool, session_id: SessionId) -> float:
    """Seconds to the next token that comes over another chain."""
    num, num_chains = len(pool.tokens(session_id)), len(pool.chains(session_id))
    return pool.advance_until(lambda: len(pool.tokens(session_id)) > num and len(pool.chains(session_id)) > num_chains)


def suspicion(pool: TimedPool) -> dict[int, float]:
    """By node: how much its device is suspected now."""
    devices = pool.core.scheduler.state.devices.values()
    known = {facts.number_of(device.key.node_id): candidates.suspicion(device, pool.now_s) for device in devices}
    return {number: value for number, value in known.items() if value > 0.0}


def finished_well(pool: TimedPool, session_id: SessionId, num_tokens: int = NUM_TOKENS) -> bool:
    pool.advance_until(lambda: is_done(pool, session_id))
    assert pool.tokens(session_id) == answer_to(PROMPT, num_tokens)
    return pool.finish(session_id) is FinishReason.LENGTH


# ---------------------------------------------------------------- hangs


@pytest.mark.parametrize("stage", [0, 1])
def test_a_worker_that_hangs_behind_a_healthy_agent_costs_less_than_a_second_and_a_half(stage: int) -> None:
    pool = replicated()
    session_id = begin(pool)
    hung = stage_of(pool, session_id, stage)
    hung.worker_hangs = True
    assert until_next_token(pool, session_id) < 1.5
    assert suspicion(pool).keys() == {facts.number_of(hung.node_id)}
    assert hung.node_id in pool.core.nodes, "its agent is well"
    assert finished_well(pool, session_id)
    assert len(pool.chains(session_id)) == 2


@pytest.mark.parametrize("stage", [0, 1])
def test_a_node_that_stops_altogether_is_found_before_its_lease_ends(stage: int) -> None:
    pool = replicated()
    session_id = begin(pool)
    stopped = stage_of(pool, session_id, stage)
    stopped.is_stopped = True
    assert until_next_token(pool, session_id) < 1.5
    assert suspicion(pool).keys() == {facts.number_of(stopped.node_id)}
    assert finished_well(pool, session_id)


def test_what_a_hung_worker_says_when_it_wakes_up_changes_nothing() -> None:
    pool = replicated()
    session_id = begin(pool)
    hung = stage_of(pool, session_id, 1)
    hung.worker_hangs = True
    until_next_token(pool, session_id)
    pool.wake(hung)
    assert finished_well(pool, session_id)
    pool.advance(5)
    assert all(not computer.fake.legs for computer in pool.computers.values())


def test_nothing_new_begins_on_a_device_that_hung_though_it_is_the_idlest() -> None:
    pool = replicated()
    session_id = begin(pool)
    hung = stage_of(pool, session_id, 0)
    hung.worker_hangs = True
    until_next_token(pool, session_id)
    other = pool.request(2, PROMPT, 5)
    assert facts.number_of(hung.node_id) not in pool.chains(other)[0]
    pool.wake(hung)
    finished_well(pool, session_id)
    pool.advance(240)
    assert sum(suspicion(pool).values()) < 0.1, "after a while it is as good as any other"


def test_a_worker_that_hangs_before_the_session_is_open_is_found() -> None:
    pool = replicated()
    session_id = pool.request(1, PROMPT, NUM_TOKENS)
    hung = stage_of(pool, session_id, 1)
    hung.worker_hangs = True
    assert until_next_token(pool, session_id) < 2.0
    assert suspicion(pool).keys() == {facts.number_of(hung.node_id)}
    assert finished_well(pool, session_id)


@pytest.mark.parametrize("stage", [0, 1])
def test_a_worker_that_hangs_in_the_prompt_is_found(stage: int) -> None:
    pool = replicated()
    session_id = pool.request(1, PROMPT, NUM_TOKENS)
    hung = stage_of(pool, session_id, stage)
    pool.advance_until(lambda: bool(hung.fake.legs))
    pool.advance(0.0051)
    hung.worker_hangs = True
    assert until_next_token(pool, session_id) < 3.0
    assert suspicion(pool).keys() == {facts.number_of(hung.node_id)}
    assert finished_well(pool, session_id)


def test_without_anybody_else_a_session_waits_for_the_one_that_hangs_and_goes_on() -> None:
    pool = TimedPool(node(1), node(2))
    session_id = begin(pool)
    hung = stage_of(pool, session_id, 1)
    hung.worker_hangs = True
    pool.advance(10)
    assert len(pool.chains(session_id)) == 1, "to begin anew on the same device would help nobody"
    pool.wake(hung)
    assert finished_well(pool, session_id)


def test_who_waits_for_a_hung_device_moves_once_a_replica_is_there() -> None:
    pool = TimedPool(node(1), node(2))
    session_id = begin(pool)
    stage_of(pool, session_id, 1).worker_hangs = True
    pool.advance(5)
    pool.join(node(3))
    pool.join(node(4))
    assert finished_well(pool, session_id)


def test_two_that_hang_one_after_the_other_are_both_found() -> None:
    pool = TimedPool(*(node(number) for number in range(1, 7)))
    session_id = begin(pool)
    stage_of(pool, session_id, 0).worker_hangs = True
    until_next_token(pool, session_id)
    stage_of(pool, session_id, 1).worker_hangs = True
    assert until_next_token(pool, session_id) < 3.0
    assert finished_well(pool, session_id)


def test_rows_that_a_worker_throws_away_are_found_as_if_it_hung() -> None:
    pool = replicated()
    session_id = begin(pool)
    stage_of(pool, session_id, 0).loses_rows = True
    assert until_next_token(pool, session_id) < 1.5
    assert finished_well(pool, session_id)


# ---------------------------------------------------------------- links


def direct() -> TimedPool:
    return TimedPool(*(node(number, address=f"ws://10.0.0.{number}:1") for number in range(1, 5)))


@pytest.mark.parametrize("sender", [0, 1])
def test_a_cut_between_two_stages_is_no_nodes_fault_and_the_relay_takes_over(sender: int) -> None:
    pool = direct()
    session_id = begin(pool)
    chain = pool.chains(session_id)[0]
    pool.cut.add((chain[sender], chain[1 - sender]))
    assert until_next_token(pool, session_id) < 2.0
    assert not suspicion(pool)
    assert not pool.core.sessions[session_id].avoid
    assert finished_well(pool, session_id)


def test_a_cut_pair_without_replicas_goes_on_over_the_relay() -> None:
    pool = TimedPool(*(node(number, address=f"ws://10.0.0.{number}:1") for number in (1, 2)))
    session_id = begin(pool)
    chain = pool.chains(session_id)[0]
    pool.cut.add((chain[0], chain[1]))
    num_relayed = pool.num_relayed
    assert finished_well(pool, session_id)
    assert pool.num_relayed > num_relayed
    assert pool.chains(session_id)[1] == chain
    assert not suspicion(pool)


# ---------------------------------------------------------------- nobody's fault


@pytest.mark.parametrize(("seconds", "reads_first"), [(LEASE_S + 2.0, False), (3.0, True)])
def test_a_coordinator_that_stood_still_blames_nobody_for_it(seconds: float, reads_first: bool) -> None:
    pool = TimedPool(*(node(number, layer_s=0.001, num_kv_tokens=10**6) for number in range(1, 5)))
    sessions = [pool.request(number, PROMPT, 400) for number in range(1, 201)]
    pool.advance_until(lambda: all(len(pool.tokens(session_id)) >= 3 for session_id in sessions))
    pool.stall(seconds, reads_first=reads_first)
    pool.advance(3.0)
    assert not suspicion(pool)
    assert not pool.dropped
    assert all(len(pool.chains(session_id)) == 1 for session_id in sessions)


def test_an_hour_without_faults_is_an_hour_without_moves() -> None:
    pool = TimedPool(*(node(number, layer_s=0.02) for number in range(1, 5)))
    sessions = []
    for number in range(1, 241):
        prompt = tuple(3 + (number * place) % 500 for place in range(1, 2 + number * 7 % 300))
        sessions.append(pool.request(number, prompt, 20 + number % 90))
        pool.advance(15.0)
    pool.advance(60.0)
    assert pool.now_s >= 3600
    assert all(is_done(pool, session_id) for session_id in sessions)
    assert sum(len(pool.chains(session_id)) - 1 for session_id in sessions) == 0
    assert not suspicion(pool)


def test_a_long_prompt_of_somebody_else_makes_nobody_late() -> None:
    """1,900 rows at 8 ms a layer and stage take 15 s, and decode rows wait for them in the fake worker."""
    pool = TimedPool(node(1, layer_s=0.02), node(2, layer_s=0.02), model=facts.model(context_length=4000))
    session_id = begin(pool)
    pool.request(2, tuple(range(3, 1903)), 4)
    assert finished_well(pool, session_id)
    assert len(pool.chains(session_id)) == 1
    assert pool.core.lateness.counts["hangs"] == 0


def test_nodes_of_an_older_version_are_not_asked_and_not_judged() -> None:
    pool = TimedPool(*(node(number, version=3) for number in range(1, 5)))
    session_id = begin(pool)
    hung = stage_of(pool, session_id, 1)
    hung.worker_hangs = True
    assert until_next_token(pool, session_id) < 5.0
    assert not suspicion(pool)
    assert not any(computer.fake.of_type(m.WhereAreRows) for computer in pool.computers.values())
    assert finished_well(pool, session_id)


def test_rows_that_the_coordinator_lost_itself_are_no_nodes_fault() -> None:
    pool = replicated()
    session_id = begin(pool)
    pool.num_to_lose = 1
    assert until_next_token(pool, session_id) < 3.0
    assert not suspicion(pool)
    assert finished_well(pool, session_id)


def test_a_step_that_takes_a_little_longer_than_ever_is_asked_about_and_no_more() -> None:
    pool = replicated()
    session_id = begin(pool)
    slow = stage_of(pool, session_id, 0)
    slow.worker_hangs = True
    pool.advance(0.45)
    pool.wake(slow)
    assert finished_well(pool, session_id)
    assert len(pool.chains(session_id)) == 1


# ---------------------------------------------------------------- slow is not dead


def test_a_stream_on_a_device_that_became_ten_times_slower_moves_if_that_pays() -> None:
    pool = replicated()
    session_id = begin(pool, num_tokens=400)
    slow = stage_of(pool, session_id, 0)
    slow.slowdown = 10.0
    start_s = pool.now_s
    assert finished_well(pool, session_id, 400)
    assert len(pool.chains(session_id)) == 2
    assert facts.number_of(slow.node_id) not in pool.chains(session_id)[1]
    undisturbed_s = 388 * (8 * LAYER_S + 0.02)
    assert pool.now_s - start_s < 1.5 * undisturbed_s
    assert not suspicion(pool)


def test_a_stream_that_is_almost_done_stays_where_it_is_slow() -> None:
    pool = replicated()
    session_id = begin(pool, num_tokens=30, after=12)
    stage_of(pool, session_id, 0).slowdown = 10.0
    assert finished_well(pool, session_id, 30)
    assert len(pool.chains(session_id)) == 1


def test_new_work_avoids_a_slow_device() -> None:
    pool = replicated()
    session_id = begin(pool, num_tokens=400)
    slow = stage_of(pool, session_id, 0)
    slow.slowdown = 10.0
    finished_well(pool, session_id, 400)
    key = DeviceKey(slow.node_id, facts.CPU)
    assert pool.core.scheduler.state.devices[key].slowdown > 2.0
    other = pool.request(2, PROMPT, 5)
    assert facts.number_of(slow.node_id) not in pool.chains(other)[0]


# ---------------------------------------------------------------- all at once


FAULTS = ["hang", "stop", "wake", "slow", "lose rows", "cut", "heal", "lose a frame", "stall"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    history=st.lists(
        st.tuples(st.sampled_from(FAULTS), st.integers(1, 6), st.integers(1, 6), st.floats(0.0, 3.0)), max_size=12
    ),
    has_addresses=st.booleans(),
)
def test_whatever_hangs_and_wakes_up_every_answer_ends_and_is_right(
    history: list[tuple[str, int, int, float]], has_addresses: bool
) -> None:
    addresses = [f"ws://10.0.0.{number}:1" if has_addresses else None for number in range(1, 7)]
    pool = TimedPool(*(node(number, address=address) for number, address in enumerate(addresses, start=1)))
    sessions = {number: pool.request(number, (number, 6, 7), 150) for number in range(1, 5)}
    for what, number, other, seconds in history:
        pool.advance(seconds)
        happen(pool, what, number, other)
    for number in pool.computers:
        happen(pool, "wake", number, number)
    pool.cut.clear()
    pool.advance_until(lambda: all(is_done(pool, session_id) for session_id in sessions.values()), 400.0)
    for number, session_id in sessions.items():
        assert pool.failure(session_id) is None
        assert pool.tokens(session_id) == answer_to((number, 6, 7), 150)
    pool.core.validate()


def happen(pool: TimedPool, what: str, number: int, other: int) -> None:
    computer = pool.computers[number]
    is_connected = pool.nodes.get(computer.node_id) is computer.fake
    match what:
        case "hang":
            computer.worker_hangs = True
        case "stop":
            computer.is_stopped = True
        case "wake":
            computer.slowdown, computer.loses_rows = 1.0, False
            pool.wake(computer)
            if not is_connected:
                pool.rejoin(number)
        case "slow":
            computer.slowdown = 10.0
        case "lose rows":
            computer.loses_rows = True
        case "cut":
            pool.cut.add((number, other))
        case "heal":
            pool.cut.clear()
        case "lose a frame":
            pool.num_to_lose += 1
        case "stall":
            pool.stall(1.0 + number, reads_first=other > 3)
