"""Who measures, who is assigned which layers, and who gets back what it held."""

from __future__ import annotations

import pytest

from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from protocol.values import HeldSlice, LayerRange, Variant
from tests.fakes import pool_facts as facts
from tests.fakes.pool_facts import DIGEST, key
from tests.fakes.scheduler_driver import SchedulerDriver, chain, layers_of

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


# ---------------------------------------------------------------- nodes that come back


def test_a_node_that_comes_back_is_not_measured_again_and_gets_its_layers(pool: SchedulerDriver) -> None:
    pool.serve(4, 4)
    pool.leave(1)
    [command] = pool.join(1, facts.spec(4))
    assert isinstance(command, cmd.Assign)
    assert (command.layers, command.generation) == (LayerRange(0, 4), 2)
    assert "held before" in command.reason
    pool.ready(command)
    assert pool.scheduler.is_ready(DIGEST)


def test_a_node_that_connects_again_without_having_left_comes_back_too(pool: SchedulerDriver) -> None:
    pool.serve(8)
    assert layers_of(pool.join(1)) == {1: (0, 8)}
    assert not pool.scheduler.is_ready(DIGEST)


def test_all_nodes_of_a_pool_come_back_to_their_layers_in_any_order(pool: SchedulerDriver) -> None:
    before = layers_of(list(pool.serve(3, 3, 3)))
    for number in (1, 2, 3):
        pool.leave(number)
    after: dict[int, tuple[int, int]] = {}
    for number in (3, 1, 2):
        after |= layers_of(pool.join(number, facts.spec(3)))
    assert after == before
    assert len(after) == 3


def test_nodes_of_a_replica_come_back_to_their_layers_together(pool: SchedulerDriver) -> None:
    """One alone is kept as a spare: half a second pipeline serves nobody. A new plan would put the roomiest first."""
    pool.serve(8, 4, 4)
    for number in (2, 3):
        pool.leave(number)
    assert pool.join(3, facts.spec(5)) == []
    assert layers_of(pool.join(2, facts.spec(4))) == {2: (0, 4), 3: (4, 8)}


def test_a_node_that_comes_back_strengthens_its_layers_where_they_are_held_by_fewer(pool: SchedulerDriver) -> None:
    before = layers_of(list(pool.serve(4, 4, 4, 4)))
    assert sorted(before.values()) == [(0, 4), (0, 4), (4, 8), (4, 8)]
    for number in (4, 3, 2, 1):
        pool.leave(number)
        assert layers_of(pool.join(number, facts.spec(4))) == {number: before[number]}


def test_of_two_devices_the_one_that_held_the_layers_gets_them_back(pool: SchedulerDriver) -> None:
    gpu = facts.DeviceId("cuda:0")
    pool.serve(8, 4)
    pool.join(3, facts.spec(3), facts.spec(4, device_id=gpu))
    pool.measured(key(3))
    pool.load(pool.measured(key(3, gpu)))
    pool.leave(3)
    [command] = pool.join(3, facts.spec(4), facts.spec(4, device_id=gpu))
    assert isinstance(command, cmd.Assign)
    assert (command.device, command.layers) == (key(3, gpu), LayerRange(4, 8))


def test_layers_that_somebody_else_has_ready_are_not_given_back(pool: SchedulerDriver) -> None:
    pool.serve(4, 4)
    pool.join(3, facts.spec(4))
    pool.measured(key(3))
    pool.load(pool.leave(1))
    assert pool.join(1, facts.spec(4)) == []
    assert pool.scheduler.is_ready(DIGEST)


def test_layers_that_somebody_else_still_loads_are_served_by_who_has_them_on_disk(pool: SchedulerDriver) -> None:
    pool.serve(4, 4)
    pool.join(3, facts.spec(4))
    pool.measured(key(3))
    assert layers_of(pool.leave(1)) == {3: (0, 4)}
    commands = pool.join(1, facts.spec(4))
    assert layers_of(commands) == {1: (0, 4)}
    pool.load(commands)
    assert pool.scheduler.is_ready(DIGEST)


def test_a_broken_model_gets_its_node_back_before_another_model_takes_it(pool: SchedulerDriver) -> None:
    pool.serve(4, 4)
    pool.leave(1)
    pool.add_model(facts.model(4, digest="3d" * 32))
    assert layers_of(pool.join(1, facts.spec(4))) == {1: (0, 4)}


def test_a_node_that_comes_back_with_less_memory_is_planned_anew(pool: SchedulerDriver) -> None:
    pool.serve(4, 4)
    pool.leave(1)
    assert pool.join(1, facts.spec(3)) == []


@pytest.mark.parametrize("spec", [facts.spec(variant=Variant.BFLOAT16), facts.spec(device_id=facts.DeviceId("cuda:0"))])
def test_another_device_is_measured(pool: SchedulerDriver, spec: facts.DeviceSpec) -> None:
    pool.serve(8)
    pool.leave(1)
    assert pool.join(1, spec) == [cmd.Measure(key(1, spec.device_id), DIGEST, spec.variant)]


def test_a_model_that_came_meanwhile_is_measured(pool: SchedulerDriver) -> None:
    other = facts.model(4, digest="3d" * 32)
    pool.serve(8, 4)
    pool.leave(2)
    pool.add_model(other)
    assert pool.join(2) == [cmd.Measure(key(2), other.manifest_hash, Variant.FLOAT32)]


def test_generations_grow_over_a_pause_though_the_node_holds_nothing(pool: SchedulerDriver) -> None:
    pool.serve(8)
    for generation in range(2, 5):
        pool.leave(1)
        [command] = pool.join(1)
        assert isinstance(command, cmd.Assign)
        assert command.generation == generation
