"""Chains for requests, and the queue of those that have none yet."""

from __future__ import annotations

import pytest

from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.dispatcher import MAX_WAITING
from coordinator.scheduler.queue_forecast import QueuePlace
from coordinator.scheduler.scheduler import QUEUE_TTL_S
from protocol.values import LayerRange
from tests.fakes import pool_facts as facts
from tests.fakes.pool_facts import DIGEST, key
from tests.fakes.scheduler_driver import SchedulerDriver, chain, refusal

# ---------------------------------------------------------------- requests


def test_a_request_runs_over_a_complete_chain_in_order(pool: SchedulerDriver) -> None:
    assigned = pool.serve(4, 4)
    [command] = pool.request(1)
    assert isinstance(command, cmd.StartChain)
    assert [stage.layers for stage in command.chain] == [LayerRange(0, 4), LayerRange(4, 8)]
    assert [stage.generation for stage in command.chain] == [1, 1]
    assert {stage.device for stage in command.chain} == {a.device for a in assigned}


def test_requests_spread_over_equal_pipelines(pool: SchedulerDriver) -> None:
    pool.serve(8, 8)
    assert sorted(node for n in range(6) for node in chain(pool.request(n))) == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("stage", ["no node", "measuring", "too small", "loading"])
def test_a_request_to_a_model_that_is_not_ready_is_refused_with_what_it_waits_for(
    pool: SchedulerDriver, stage: str
) -> None:
    words = {"no node": "No node is connected", "measuring": "1 device(s)", "too small": "5 of 8 layers"}
    if stage != "no node":
        pool.join(1, facts.spec(5 if stage == "too small" else 8))
    if stage in ("too small", "loading"):
        pool.measured(key(1))
    refused = refusal(pool.request(1))
    assert refused.code == "model_not_ready"
    assert words.get(stage, "1 device(s)") in refused.message
    assert refused.retry_after_s


def test_a_broken_pipeline_names_the_layers_without_holder(pool: SchedulerDriver) -> None:
    pool.serve(4, 4)
    pool.leave(2)
    assert "Layers 4-7" in refusal(pool.request(1)).message


def test_a_request_larger_than_the_pool_is_refused_for_good(pool: SchedulerDriver) -> None:
    pool.serve(8)
    refused = refusal(pool.request(1, num_tokens=10_001))
    assert (refused.code, refused.retry_after_s) == ("kv_room_exceeded", None)
    assert "10001" in refused.message
    assert "10000" in refused.message


def test_the_tightest_stage_decides_how_large_a_request_may_be(pool: SchedulerDriver) -> None:
    pool.join(1, facts.spec(4))
    pool.measured(key(1))
    pool.join(2, facts.spec(4))
    commands = pool.measured(key(2))
    for command, tokens in zip(commands, (500, 300), strict=True):
        pool.ready(command, tokens)  # type: ignore[arg-type]
    assert pool.scheduler.largest_request(DIGEST) == 300
    assert pool.scheduler.largest_request(DIGEST) == 300
    assert len(pool.request(1, num_tokens=300)) == 1


def test_a_request_waits_for_room_and_starts_when_another_ends(pool: SchedulerDriver) -> None:
    pool.serve(8)
    chain(pool.request(1, num_tokens=6000))
    assert pool.request(2, num_tokens=6000) == []
    assert chain(pool.finish(1)) == [1]


def test_a_small_request_passes_one_that_must_wait(pool: SchedulerDriver) -> None:
    pool.serve(8)
    pool.request(1, num_tokens=6000)
    assert pool.request(2, num_tokens=6000) == []
    assert chain(pool.request(3, num_tokens=100)) == [1]


def test_a_request_gives_up_after_its_time(pool: SchedulerDriver) -> None:
    pool.serve(8)
    pool.request(1, num_tokens=6000)
    pool.request(2, num_tokens=6000)
    assert pool.pass_time(QUEUE_TTL_S - 1) == []
    refused = refusal(pool.pass_time(1))
    assert (refused.session_id, refused.code, refused.retry_after_s) == (facts.session_id(2), "no_capacity", 10.0)
    assert pool.pass_time(QUEUE_TTL_S) == []


def test_a_place_in_the_queue_counts_those_of_the_same_model(pool: SchedulerDriver) -> None:
    other = facts.model(8, digest="3d" * 32)
    pool.add_model(other)
    for number in (1, 2):
        pool.join(number)
        pool.measured(key(number))
        pool.load(pool.measured(key(number), digest=other.manifest_hash))
    for number, digest in enumerate([DIGEST, other.manifest_hash] * 3):
        pool.request(number, num_tokens=6000, digest=digest)
    places = {number: pool.place(number) for number in range(6)}
    assert {number: place and (place.place, place.num_waiting) for number, place in places.items()} == {
        0: None, 1: None, 2: (1, 2), 3: (1, 2), 4: (2, 2), 5: (2, 2)
    }  # fmt: skip


def test_nobody_knows_how_long_a_queue_takes_before_the_first_answer_has_ended(pool: SchedulerDriver) -> None:
    pool.serve(8)
    for number in range(4):
        pool.request(number, num_tokens=6000)
    assert pool.place(3) == QueuePlace(3, 3, None)
    pool.now_s += 20
    pool.finish(0)
    assert pool.place(3) == QueuePlace(2, 2, 40.0)


def test_a_request_that_leaves_the_queue_moves_the_others_up_at_once(pool: SchedulerDriver) -> None:
    pool.serve(8)
    for number in range(4):
        pool.request(number, num_tokens=6000)
    pool.finish(1)
    assert pool.place(1) is None
    assert pool.place(3) == QueuePlace(2, 2, None)


def test_a_full_queue_refuses_with_the_time_after_which_to_try_again(pool: SchedulerDriver) -> None:
    pool.serve(8)
    for number in range(MAX_WAITING + 1):
        pool.request(number, num_tokens=6000)
    refused = refusal(pool.request(1000, num_tokens=6000))
    assert (refused.code, refused.retry_after_s) == ("queue_full", 60.0)
    assert str(MAX_WAITING) in refused.message
    assert chain(pool.request(1001, num_tokens=100)) == [1], "what can start need not wait"
    pool.now_s += 0.1
    pool.finish(1001)
    refused = refusal(pool.request(1002, num_tokens=6000))
    assert refused.retry_after_s == pytest.approx(0.1 * (MAX_WAITING + 1))


def test_a_full_queue_refuses_nobody_who_ran_already(pool: SchedulerDriver) -> None:
    pool.serve(8)
    for number in range(MAX_WAITING + 1):
        pool.request(number, num_tokens=6000)
    pool.leave(1)
    assert pool.tell(ev.RequestArrived(facts.session_id(0), DIGEST, 6000, resumed=True)) == []
    assert len(pool.scheduler.state.waiting) == MAX_WAITING + 1


def test_a_request_that_ran_already_goes_before_those_that_never_did(pool: SchedulerDriver) -> None:
    pool.serve(8)
    for number in range(3):
        pool.request(number, num_tokens=6000)
    pool.leave(1)
    pool.tell(ev.RequestArrived(facts.session_id(0), DIGEST, 6000, resumed=True))
    assert pool.place(0) == QueuePlace(1, 3, None)
    pool.load(pool.join(1))
    assert set(pool.scheduler.state.running) == {facts.session_id(0)}


def test_a_request_waits_over_a_nodes_loss_and_is_served_by_the_repair(pool: SchedulerDriver) -> None:
    pool.serve(8)
    pool.request(1, num_tokens=6000)
    pool.leave(1)
    resumed = ev.RequestArrived(facts.session_id(1), DIGEST, 6000, resumed=True, avoid=frozenset({key(1)}))
    assert pool.tell(resumed) == []
    pool.join(2)
    [assign] = pool.measured(key(2))
    assert isinstance(assign, cmd.Assign)
    assert chain(pool.ready(assign)) == [2]


def test_devices_to_avoid_are_used_only_if_there_is_nothing_else(pool: SchedulerDriver) -> None:
    pool.serve(8, 8)
    for number, avoided in enumerate((1, 2), start=1):
        event = ev.RequestArrived(facts.session_id(number), DIGEST, 10, resumed=True, avoid=frozenset({key(avoided)}))
        assert chain(pool.tell(event)) == [3 - avoided]
    both = ev.RequestArrived(facts.session_id(3), DIGEST, 10, resumed=True, avoid=frozenset({key(1), key(2)}))
    assert len(chain(pool.tell(both))) == 1


def test_a_resumed_request_gives_its_old_reservation_back(pool: SchedulerDriver) -> None:
    pool.serve(8)
    pool.request(1, num_tokens=6000)
    event = ev.RequestArrived(facts.session_id(1), DIGEST, 6000, resumed=True)
    assert chain(pool.tell(event)) == [1]


def test_an_idle_pool_reserves_nothing(pool: SchedulerDriver) -> None:
    pool.serve(4, 4, 8)
    for number in range(6):
        pool.request(number, num_tokens=3000)
    for number in range(6):
        pool.finish(number)
        pool.finish(number)
    assert all(d.num_reserved_tokens == d.num_requests == 0 for d in pool.scheduler.state.devices.values())
    assert not pool.scheduler.state.running
    assert not pool.scheduler.state.waiting


def test_a_device_that_fails_frees_its_requests(pool: SchedulerDriver) -> None:
    [assign] = pool.serve(8)
    pool.request(1)
    pool.tell(ev.DeviceFailed(key(1), assign.generation))
    assert not pool.scheduler.state.running
