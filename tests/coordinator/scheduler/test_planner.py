"""Who measures, who is assigned which layers, and who gets back what it held."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.scheduler import Scheduler
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
    assert sorted(layers_of(pool.measured(key(2))).values()) == [(0, 4), (4, 8)]


def test_a_quicker_device_gets_more_layers(pool: SchedulerDriver) -> None:
    pool.join(1, facts.spec(7))
    pool.measured(key(1), 0.01)
    pool.join(2, facts.spec(7))
    shares = {number: len(range(*layers)) for number, layers in layers_of(pool.measured(key(2), 0.03)).items()}
    assert shares[1] > shares[2]


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
    assert pool.ready(command, num_kv_tokens=20_000) == []
    assert pool.scheduler.largest_request(DIGEST) == pool.num_kv_tokens


# ---------------------------------------------------------------- repair


def test_a_spare_strengthens_a_stage_at_once_and_fills_the_hole_that_a_lost_node_left(pool: SchedulerDriver) -> None:
    before = layers_of(list(pool.serve(4, 4)))
    pool.join(3, facts.spec(4))
    beside = layers_of(pool.load_all(pool.measured(key(3))))[3]
    assert beside in before.values()
    alone, hole = next((number, piece) for number, piece in before.items() if piece != beside)
    commands = pool.leave(alone)
    assert hole in layers_of(commands).values()
    assert not pool.scheduler.is_ready(DIGEST)
    pool.load(commands)
    assert pool.scheduler.is_ready(DIGEST)


def test_nothing_stops_when_a_node_leaves_beside_which_a_spare_stands(pool: SchedulerDriver) -> None:
    before = layers_of(list(pool.serve(4, 4)))
    pool.join(3, facts.spec(4))
    beside = layers_of(pool.load_all(pool.measured(key(3))))[3]
    assert pool.leave(next(number for number, piece in before.items() if piece == beside)) == []
    assert pool.scheduler.is_ready(DIGEST)


def test_a_hole_is_filled_by_two_when_one_is_too_small(pool: SchedulerDriver) -> None:
    start, stop = layers_of(list(pool.serve(4, 4)))[2]
    pool.leave(2)
    pool.join(3, facts.spec(2))
    assert pool.measured(key(3)) == []
    pool.join(4, facts.spec(2))
    assert sorted(layers_of(pool.measured(key(4))).values()) == [(start, start + 2), (start + 2, stop)]


def test_without_a_spare_the_rest_waits_for_the_next_node(pool: SchedulerDriver) -> None:
    first = layers_of(list(pool.serve(4, 4)))[1]
    assert pool.leave(1) == []
    pool.join(3, facts.spec(4))
    assert layers_of(pool.measured(key(3))) == {3: first}


def test_what_is_left_takes_more_layers_when_no_spare_fits_the_hole(pool: SchedulerDriver) -> None:
    """Two nodes hold 4 + 4 and could hold 5 each; one leaves, and a smaller one comes."""
    assigned = layers_of(list(pool.serve(5, 5)))
    assert sorted(assigned.values()) == [(0, 4), (4, 8)]
    pool.leave(1)
    pool.join(3, facts.spec(3))
    commands = pool.measured(key(3))
    assert [type(c) for c in commands if c.device == key(2)] == [cmd.Release, cmd.Assign]  # type: ignore[union-attr]
    assert sorted(layers_of(commands).values()) in ([(0, 3), (3, 8)], [(0, 5), (5, 8)])
    assert {command.generation for command in commands if command.device == key(2)} == {1, 2}  # type: ignore[union-attr]


def test_survivors_of_a_broken_pipeline_serve_again_when_together_they_can(pool: SchedulerDriver) -> None:
    pool.serve(4, 3, 3)
    pool.leave(1)
    assert not pool.scheduler.is_ready(DIGEST)
    assert "have no holder" in pool.scheduler.shortfall(DIGEST)
    pool.join(4, facts.spec(2))
    pool.load(pool.measured(key(4)))
    assert pool.scheduler.is_ready(DIGEST)


# ---------------------------------------------------------------- nodes that come back


def test_a_node_that_comes_back_is_not_measured_again_and_gets_its_layers(pool: SchedulerDriver) -> None:
    first = layers_of(list(pool.serve(4, 4)))[1]
    pool.leave(1)
    [command] = pool.join(1, facts.spec(4))
    assert isinstance(command, cmd.Assign)
    assert (command.layers, command.generation) == (LayerRange(*first), 2)
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
    pool.serve(8)
    pool.join(2, facts.spec(4))
    pool.join(3, facts.spec(4))
    pool.measured(key(2))
    before = layers_of(pool.load_all(pool.measured(key(3))))
    assert sorted(before.values()) == [(0, 4), (4, 8)]
    for number in (2, 3):
        pool.leave(number)
    after = layers_of(pool.join(3, facts.spec(4)))
    assert after | layers_of(pool.join(2, facts.spec(4))) == before


def test_a_node_that_comes_back_strengthens_its_own_layers_again(pool: SchedulerDriver) -> None:
    before = layers_of(list(pool.serve(4, 4, 4, 4)))
    assert sorted(before.values()) == [(0, 4), (0, 4), (4, 8), (4, 8)]
    for number in (4, 3, 2, 1):
        pool.leave(number)
        commands = pool.join(number, facts.spec(4))
        assert layers_of(commands) == {number: before[number]}
        pool.load(commands)


def test_of_two_devices_the_one_that_held_the_layers_gets_them_back(pool: SchedulerDriver) -> None:
    gpu = facts.DeviceId("cuda:0")
    pool.serve(4)
    pool.join(3, facts.spec(3), facts.spec(4, device_id=gpu))
    pool.measured(key(3))
    before = {c.device: c.layers for c in pool.load(pool.measured(key(3, gpu)))}
    pool.leave(3)
    after = pool.join(3, facts.spec(3), facts.spec(4, device_id=gpu))
    assert {c.device: c.layers for c in after if isinstance(c, cmd.Assign) and c.device.device_id == gpu} == {
        key(3, gpu): before[key(3, gpu)]
    }


def test_layers_that_somebody_else_still_loads_are_served_by_who_has_them_on_disk(pool: SchedulerDriver) -> None:
    first = layers_of(list(pool.serve(4, 4)))[1]
    pool.leave(1)
    pool.join(3, facts.spec(4))
    assert layers_of(pool.measured(key(3))) == {3: first}
    commands = pool.join(1, facts.spec(4))
    assert layers_of(commands) == {1: first}
    pool.load(commands)
    assert pool.scheduler.is_ready(DIGEST)


def test_a_broken_model_gets_its_node_back_before_another_model_takes_it(pool: SchedulerDriver) -> None:
    first = layers_of(list(pool.serve(4, 4)))[1]
    pool.leave(1)
    pool.add_model(facts.model(4, digest="3d" * 32))
    assert layers_of(pool.join(1, facts.spec(4))) == {1: first}


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


def test_a_node_that_flaps_waits_longer_each_time_unless_its_layers_are_missing(pool: SchedulerDriver) -> None:
    pool.serve(8, 8)
    for _ in range(2):
        pool.leave(2)
        assert layers_of(pool.join(2)) == {2: (0, 8)}
    pool.leave(2)
    assert pool.join(2) == [], "the third leave within an hour"
    assert layers_of(pool.pass_time(4)) == {}
    assert layers_of(pool.pass_time(2)) == {2: (0, 8)}
    pool.leave(2)
    assert pool.join(2) == []
    assert layers_of(pool.pass_time(9)) == {}
    assert layers_of(pool.leave(1)) == {2: (0, 8)}, "now it is needed"


def test_generations_grow_over_a_pause_though_the_node_holds_nothing(pool: SchedulerDriver) -> None:
    pool.serve(8)
    for generation in range(2, 5):
        pool.leave(1)
        [command] = pool.join(1)
        assert isinstance(command, cmd.Assign)
        assert command.generation == generation


# ---------------------------------------------------------------- plans from scratch


def test_a_replan_moves_to_the_best_layout_and_serves_it(pool: SchedulerDriver) -> None:
    """The slow one came first and got everything."""
    pool.join(1)
    pool.load(pool.measured(key(1), 0.05))
    pool.join(2)
    pool.load(pool.measured(key(2), 0.001))
    pool.settle_down(pool.tell(ev.Replan()))
    assert pool.scheduler.is_ready(DIGEST)
    assert not pool.scheduler.state.retiring


def test_a_replan_of_nothing_changes_nothing() -> None:
    assert SchedulerDriver().tell(ev.Replan()) == []


def test_who_stands_by_says_why(pool: SchedulerDriver) -> None:
    pool.serve(8)
    pool.join(2, facts.spec(0))
    assert pool.measured(key(2)) == []
    assert "stands by" in pool.scheduler.state.devices[key(2)].reason


def test_a_joining_wave_of_hundreds_is_planned_within_a_second_of_quiet() -> None:
    pool = SchedulerDriver()
    pool.add_model()
    gpus = [facts.DeviceId(f"cuda:{n}") for n in range(100)]
    for number in (1, 2, 3):
        pool.join(number, *(facts.spec(8, device_id=gpu) for gpu in gpus))
    for number in (1, 2, 3):
        for gpu in gpus:
            pool.load(pool.measured(key(number, gpu)))
    pool.load(pool.pass_time(1))
    assert all(device.layers for device in pool.scheduler.state.devices.values())


# ---------------------------------------------------------------- defects of the field (Parallax, 2.4), at the door


def test_three_devices_of_20_3_and_21_layers_do_not_kill_the_scheduler() -> None:
    """Its scheduler puts the smallest one last, where the head does not fit, and dies of the error."""
    layer_bytes = 4 * (1_000_000 + 10 * 1000)
    model = replace(facts.model(36), embedding_numel=3_000_000, head_numel=4_000_000)
    pool = SchedulerDriver()
    pool.add_model(model)
    for number, layers in enumerate((23, 3, 25), start=1):
        pool.join(number, facts.spec(memory_bytes=int(layers * layer_bytes / 0.9)))
        pool.load(pool.measured(key(number)))
    assert pool.scheduler.is_ready(DIGEST)
    pool.load(pool.leave(2))
    pool.join(4, facts.spec(memory_bytes=int(3.1 * layer_bytes / 0.9)))
    pool.load(pool.measured(key(4)))
    assert pool.scheduler.is_ready(DIGEST)


def test_a_device_too_small_for_the_embedding_changes_nothing(pool: SchedulerDriver) -> None:
    pool.serve(8)
    pool.join(2, facts.spec(memory_bytes=1000))
    assert pool.measured(key(2)) == []
    assert pool.scheduler.is_ready(DIGEST)


def test_600_nodes_do_not_exhaust_anything() -> None:
    """Its planner recurses once per node and, beyond 490, never starts without a word."""
    pool = SchedulerDriver(scheduler=Scheduler())
    gpus = [facts.DeviceId(f"cuda:{n}") for n in range(60)]
    for number in range(1, 11):
        pool.scheduler.handle(
            ev.NodeJoined(facts.node_id(number), tuple(facts.spec(5, device_id=g) for g in gpus)), 0.0
        )
    commands = pool.add_model()
    for command in commands:
        assert isinstance(command, cmd.Measure)
        done = ev.DeviceMeasured(command.device, DIGEST, facts.benchmark())
        for assign in pool.scheduler.handle(done, pool.now_s):
            if isinstance(assign, cmd.Assign):
                pool.scheduler.handle(ev.SliceReady(assign.device, assign.generation, 1000), pool.now_s)
    pool.load(pool.pass_time(1))
    assert pool.scheduler.is_ready(DIGEST)
    assert len(pool.scheduler.state.holders(DIGEST)) == 600


def test_a_node_that_rejoins_with_the_same_id_is_one_node_with_new_layers(pool: SchedulerDriver) -> None:
    """There the pipeline keeps the old node, and the new one is active without layers."""
    first = layers_of(list(pool.serve(4, 4)))[1]
    commands = pool.join(1, facts.spec(4))
    assert layers_of(commands) == {1: first}
    assert len(pool.scheduler.state.devices) == 2
    pool.load(commands)
    assert pool.scheduler.is_ready(DIGEST)


def test_what_departed_nodes_held_counts_no_more(pool: SchedulerDriver) -> None:
    """There departed nodes keep counting as holders, so that the wrong layers seem to be the weakest."""
    pool.serve(4, 4, 4, 4, 4, 4)
    for number in (1, 3, 5):
        pool.load(pool.leave(number))
    held = [d.layers for d in pool.scheduler.state.holders(DIGEST)]
    assert len(held) == 3
    assert pool.scheduler.is_ready(DIGEST)


def test_a_dead_node_that_stood_by_gets_no_layers(pool: SchedulerDriver) -> None:
    """There only active nodes are watched: dead ones that stand by are planned with for ever."""
    pool.serve(4, 4)
    pool.join(3, facts.spec(1))
    pool.measured(key(3))
    pool.leave(3)
    assert all(c.device != key(3) for c in pool.leave(1) + pool.pass_time(100) if isinstance(c, cmd.Assign))


def test_who_stands_by_waits_for_ever(pool: SchedulerDriver) -> None:
    """There a node without layers gives up after 300 s."""
    pool.serve(4, 4)
    pool.join(3, facts.spec(0), facts.spec(4, device_id=facts.DeviceId("cuda:0")))
    pool.measured(key(3))
    pool.pass_time(1e7)
    assert key(3) in pool.scheduler.state.devices


def test_a_plan_from_scratch_does_not_depend_on_who_came_first() -> None:
    """There the same thirty nodes idle thirteen of them or two, by the order in which they came."""
    plans = []
    for order in ((1, 2, 3), (3, 2, 1), (2, 3, 1)):
        pool = SchedulerDriver()
        for number in order:
            pool.join(number, facts.spec(2 + number))
        for command in pool.add_model():
            assert isinstance(command, cmd.Measure)
            pool.load(pool.measured(command.device))
        pool.settle_down(pool.tell(ev.Replan()))
        plans.append({d.key: d.layers for d in pool.scheduler.state.holders(DIGEST)})
    assert plans[0] == plans[1] == plans[2]


def test_layers_follow_measured_time_not_what_the_device_is_called(pool: SchedulerDriver) -> None:
    """There FLOPs of a table decide: twice the time per stage of what bandwidth would."""
    pool.join(1, facts.spec(7))
    pool.measured(key(1), 0.02)
    pool.join(2, facts.spec(7))
    shares = {number: stop - start for number, (start, stop) in layers_of(pool.measured(key(2), 0.002)).items()}
    assert shares[2] > 2 * shares[1]
