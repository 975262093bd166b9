"""One event in, a list of commands out; the invariants are checked after each."""

from __future__ import annotations

import pytest

from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.scheduler import MAX_RETRY_S, QUEUE_TTL_S, RETRY_BASE_S
from protocol.values import HeldSlice, LayerRange, Variant
from tests.fakes import pool_facts as facts
from tests.fakes.pool_facts import DIGEST, key
from tests.fakes.scheduler_driver import SchedulerDriver


@pytest.fixture
def pool() -> SchedulerDriver:
    """Knows a model of 8 layers."""
    driver = SchedulerDriver()
    driver.add_model()
    return driver


def layers_of(commands: list[cmd.Command]) -> dict[int, tuple[int, int]]:
    """Node number -> assigned layers."""
    return {int(c.device.node_id, 16): (c.layers.start, c.layers.stop) for c in commands if isinstance(c, cmd.Assign)}


def refusal(commands: list[cmd.Command]) -> cmd.RefuseRequest:
    [command] = commands
    assert isinstance(command, cmd.RefuseRequest)
    return command


def chain(commands: list[cmd.Command]) -> list[int]:
    [command] = commands
    assert isinstance(command, cmd.StartChain)
    return [int(stage.device.node_id, 16) for stage in command.chain]


# ---------------------------------------------------------------- measuring


def test_a_new_device_measures_first(pool: SchedulerDriver) -> None:
    assert pool.join(1) == [cmd.Measure(key(1), DIGEST, Variant.FLOAT32)]


def test_a_device_waits_for_the_first_model() -> None:
    pool = SchedulerDriver()
    assert pool.join(1) == []
    assert pool.add_model() == [cmd.Measure(key(1), DIGEST, Variant.FLOAT32)]


def test_a_device_measures_every_model_once(pool: SchedulerDriver) -> None:
    other = facts.model(digest="3d" * 32)
    pool.add_model(other)
    pool.join(1, facts.spec(2))
    assert pool.measured(key(1)) == [cmd.Measure(key(1), other.manifest_hash, Variant.FLOAT32)]
    assert pool.measured(key(1), digest=other.manifest_hash) == []
    assert pool.pass_time(1) == []


def test_a_measurement_of_another_model_than_asked_for_is_ignored(pool: SchedulerDriver) -> None:
    pool.join(1)
    assert pool.measured(key(1), digest="ff" * 32) == []
    assert layers_of(pool.measured(key(1))) == {1: (0, 8)}


def test_a_measurement_nobody_asked_for_is_ignored(pool: SchedulerDriver) -> None:
    assert pool.measured(key(9)) == []
    pool.serve(8)
    assert pool.measured(key(1)) == []


# ---------------------------------------------------------------- assigning


def test_one_large_device_takes_the_whole_model(pool: SchedulerDriver) -> None:
    pool.join(1)
    [command] = pool.measured(key(1))
    assert isinstance(command, cmd.Assign)
    assert (command.generation, command.layers, command.variant) == (1, LayerRange(0, 8), Variant.FLOAT32)
    assert "8 layers" in command.reason


def test_small_devices_wait_until_they_can_hold_all_layers_together(pool: SchedulerDriver) -> None:
    pool.join(1, facts.spec(5))
    assert pool.measured(key(1)) == []
    pool.join(2, facts.spec(5))
    assert layers_of(pool.measured(key(2))) == {1: (0, 4), 2: (4, 8)}


def test_a_quicker_device_gets_more_layers(pool: SchedulerDriver) -> None:
    pool.join(1, facts.spec(7))
    pool.measured(key(1), 0.01)
    pool.join(2, facts.spec(7))
    assert sorted(len(range(*layers)) for layers in layers_of(pool.measured(key(2), 0.03)).values()) == [2, 6]


def test_variants_are_never_mixed_in_a_pipeline(pool: SchedulerDriver) -> None:
    pool.join(1, facts.spec(5))
    pool.measured(key(1))
    pool.join(2, facts.spec(5, variant=Variant.BFLOAT16))
    assert pool.measured(key(2)) == []


def test_two_devices_of_one_node_may_share_a_model(pool: SchedulerDriver) -> None:
    gpu = facts.DeviceId("cuda:0")
    pool.join(1, facts.spec(5), facts.spec(5, device_id=gpu))
    pool.measured(key(1))
    commands = pool.measured(key(1, gpu))
    assert {command.device for command in commands if isinstance(command, cmd.Assign)} == {key(1), key(1, gpu)}


def test_further_devices_make_a_second_pipeline(pool: SchedulerDriver) -> None:
    pool.serve(8, 8)
    assert chain(pool.request(1)) != chain(pool.request(2))


def test_the_model_with_fewer_holders_is_served_first(pool: SchedulerDriver) -> None:
    other = facts.model(digest="3d" * 32)
    pool.serve(8)
    pool.add_model(other)
    pool.join(2)
    pool.measured(key(2))
    [command] = pool.measured(key(2), digest=other.manifest_hash)
    assert isinstance(command, cmd.Assign)
    assert command.manifest_hash == other.manifest_hash


def test_a_generation_grows_with_each_assignment_and_over_a_reconnect(pool: SchedulerDriver) -> None:
    held = HeldSlice(facts.CPU, DIGEST, Variant.FLOAT32, LayerRange(0, 8), 41, 100)
    pool.tell(ev.NodeJoined(facts.node_id(1), (facts.spec(),), (held,)))
    [command] = pool.measured(key(1))
    assert isinstance(command, cmd.Assign)
    assert command.generation == 42


def test_answers_to_an_older_generation_are_dropped(pool: SchedulerDriver) -> None:
    pool.join(1)
    [command] = pool.measured(key(1))
    assert isinstance(command, cmd.Assign)
    assert pool.tell(ev.SliceReady(key(1), command.generation - 1, 100)) == []
    assert pool.tell(ev.SliceReady(key(1), command.generation + 1, 100)) == []
    assert pool.tell(ev.DeviceFailed(key(1), command.generation + 1)) == []
    assert not pool.scheduler.is_ready(DIGEST)
    pool.ready(command)
    assert pool.scheduler.is_ready(DIGEST)
    assert pool.ready(command, num_kv_tokens=1) == []
    assert pool.scheduler.largest_request(DIGEST) == pool.num_kv_tokens


# ---------------------------------------------------------------- failing


def test_a_device_that_failed_is_tried_again_later_and_later(pool: SchedulerDriver) -> None:
    pool.join(1)
    for failure in range(8):
        pool.tell(ev.DeviceFailed(key(1), 0))
        wait_s = min(MAX_RETRY_S, RETRY_BASE_S * 2**failure)
        assert pool.pass_time(wait_s - 1) == []
        assert pool.pass_time(1) == [cmd.Measure(key(1), DIGEST, Variant.FLOAT32)]


def test_loading_well_forgives_earlier_failures(pool: SchedulerDriver) -> None:
    pool.join(1)
    [first] = pool.measured(key(1))
    pool.tell(ev.DeviceFailed(key(1), first.generation))  # type: ignore[union-attr]
    [again] = pool.pass_time(RETRY_BASE_S)
    assert isinstance(again, cmd.Assign)
    assert again.generation == 2
    pool.ready(again)
    pool.tell(ev.DeviceFailed(key(1), 2))
    assert layers_of(pool.pass_time(RETRY_BASE_S)) == {1: (0, 8)}


def test_a_failure_of_an_unknown_device_is_ignored(pool: SchedulerDriver) -> None:
    assert pool.tell(ev.DeviceFailed(key(5), 1)) == []
    pool.join(1, facts.spec(2))
    pool.measured(key(1))
    assert pool.tell(ev.DeviceFailed(key(1), 0)) == []


def test_measuring_that_failed_is_not_taken_for_a_serving_slices_failure(pool: SchedulerDriver) -> None:
    """generation 0 is about measuring; late news of it must not take down what serves."""
    pool.serve(8)
    assert pool.tell(ev.DeviceFailed(key(1), 0)) == []
    assert pool.scheduler.is_ready(DIGEST)


# ---------------------------------------------------------------- repair


def test_a_spare_fills_the_hole_that_a_lost_node_left(pool: SchedulerDriver) -> None:
    pool.serve(4, 4)
    pool.join(3, facts.spec(4))
    assert pool.measured(key(3)) == []
    assert layers_of(pool.leave(1)) == {3: (0, 4)}


def test_a_hole_is_filled_by_two_when_one_is_too_small(pool: SchedulerDriver) -> None:
    pool.serve(4, 4)
    for number in (3, 4):
        pool.join(number, facts.spec(2))
        pool.measured(key(number))
    assert sorted(layers_of(pool.leave(2)).values()) == [(4, 6), (6, 8)]


def test_without_a_spare_the_rest_waits_for_the_next_node(pool: SchedulerDriver) -> None:
    pool.serve(4, 4)
    assert pool.leave(1) == []
    pool.join(3, facts.spec(4))
    assert layers_of(pool.measured(key(3))) == {3: (0, 4)}


def test_fragments_are_rebuilt_into_a_pipeline_when_no_spare_fits(pool: SchedulerDriver) -> None:
    """Three nodes hold 3+3+2; one leaves; the two others have room for 4 each and are split anew."""
    assigned = layers_of(list(pool.serve(5, 5)))
    assert sorted(assigned.values()) == [(0, 4), (4, 8)]
    pool.leave(1)
    pool.join(3, facts.spec(3))
    commands = pool.measured(key(3))
    assert isinstance(commands[0], cmd.Release)
    assert commands[0].device == key(2)
    assert sorted(layers_of(commands).values()) == [(0, 5), (5, 8)]
    assert {command.generation for command in commands if command.device == key(2)} == {1, 2}  # type: ignore[union-attr]


def test_a_node_that_comes_back_with_the_same_id_starts_anew(pool: SchedulerDriver) -> None:
    pool.serve(8)
    assert pool.join(1) == [cmd.Measure(key(1), DIGEST, Variant.FLOAT32)]
    assert not pool.scheduler.is_ready(DIGEST)


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
