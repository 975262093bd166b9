"""Defects that were found by running another scheduler of this kind (Parallax 0.1.2), each as a test of ours.

Here are those that need a whole scheduler and are nobody else's. Of the others those of the allocator (odd sizes and a
small head, hundreds of nodes, joining order, departed and dead nodes, survivors that idle) are in test_planner.py and
test_repair.py, and what a chain costs (prompt, bandwidth, the way back, waiting) is in test_routing.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.cost import Speed, device_speed, model_cost
from coordinator.scheduler.filling import Cutter
from coordinator.scheduler.links import LinkMap, LinkSeen
from coordinator.scheduler.plan import Offer, Problem
from coordinator.scheduler.state import DeviceState
from protocol.values import BatchTime, DeviceId, LayerBenchmark, LayerRange, Variant
from tests.fakes import pool_facts as facts
from tests.fakes.pool_facts import DIGEST, key
from tests.fakes.scheduler_driver import SchedulerDriver, bounds, chain, layers_of, orders, refusal


def chains(commands: list[cmd.Command]) -> list[list[int]]:
    return [chain([command]) for command in commands if isinstance(command, cmd.StartChain)]


def lan(*numbers: int, rtt_s: float) -> ev.LinksSeen:
    """These nodes are so far from each other."""
    nodes = [facts.node_id(number) for number in numbers]
    return ev.LinksSeen(tuple(LinkSeen(a, b, rtt_s, 1e9) for a in nodes for b in nodes if a != b))


# ---------------------------------------------------------------- what kills the scheduler


@pytest.mark.parametrize("layers", [0, 1, 79, 80, 81])
def test_capacity_just_below_or_above_the_model_is_no_error(layers: int) -> None:
    """There 79 layers of room for a model of 80 are an exception that ends the event loop."""
    pool = SchedulerDriver()
    pool.add_model(facts.model(80))
    for number, size in enumerate((layers // 2, layers - layers // 2), start=1):
        pool.join(number, facts.spec(size))
        pool.load(pool.measured(key(number)))
    assert pool.scheduler.is_ready(DIGEST) == (layers >= 80)
    pool.leave(1)
    assert not pool.scheduler.is_ready(DIGEST)


def test_a_node_that_leaves_while_all_is_planned_anew_is_no_error(pool: SchedulerDriver) -> None:
    """There any re-balancing on a leave stands the same nodes by twice, which is an exception."""
    pool.serve(4, 4, 4, 4)
    pool.tell(ev.Replan())
    pool.leave(1)
    pool.tell(ev.Replan())
    pool.leave(1)
    pool.settle_down(pool.tell(ev.Replan()))
    assert pool.scheduler.is_ready(DIGEST)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_more_devices_than_layers_are_no_error(num_layers: int) -> None:
    """Small ones, of which a lane with much KV room would want more than there are layers to give."""
    pool = SchedulerDriver()
    pool.add_model(facts.model(num_layers, context_length=16))
    for number, (layers, memory_bytes) in enumerate(((1, facts.GIB), (3, 10**7), (8, 10**7), (8, 10**7)), start=1):
        pool.join(number, facts.spec(layers, memory_bytes=memory_bytes))
        pool.load(pool.measured(key(number)))
    pool.settle_down(pool.tell(ev.Replan()))
    assert pool.scheduler.is_ready(DIGEST)


def test_a_lane_with_more_stages_than_the_model_has_layers_is_none() -> None:
    speed = Speed(0.0075, 0.0, 0.01, 0.0)
    offers = tuple(Offer(key(number), 1e9, 8, speed) for number in (1, 2, 3, 4))
    problem = Problem(model_cost(facts.model(3), Variant.FLOAT32), offers, LinkMap())
    assert Cutter(problem).cuts([1, 1, 1, 1], [(0,), (1,), (2,), (3,)]) is None
    assert Cutter(problem).cuts([1, 2], [(0,), (1,)]) == [LayerRange(0, 1), LayerRange(1, 3)]


# ---------------------------------------------------------------- readiness


def test_links_that_become_known_later_do_not_leave_the_pool_unready(pool: SchedulerDriver) -> None:
    """There a pool that starts before its round trips are known has no pipeline, for ever."""
    pool.serve(4, 4)
    assert pool.scheduler.is_ready(DIGEST), "distances are not needed to serve"
    pool.tell(lan(1, 2, rtt_s=0.2))
    assert pool.scheduler.is_ready(DIGEST)
    assert len(chain(pool.request(1))) == 2


def test_links_that_become_known_later_are_used(pool: SchedulerDriver) -> None:
    halves = layers_of(pool.serve(4, 4, 4, 4))
    heads = [number for number, (start, _) in halves.items() if start == 0]
    tails = [number for number in halves if number not in heads]
    near = set(zip(heads, tails, strict=True))
    for head, tail in near:
        pool.tell(lan(head, tail, rtt_s=0.001))
    for head, tail in zip(heads, reversed(tails), strict=True):
        pool.tell(lan(head, tail, rtt_s=0.5))
    pool.pass_time(5)
    assert {tuple(chain(pool.request(number))) for number in range(1, 5)} == near


# ---------------------------------------------------------------- accounting


def test_a_finished_request_frees_its_place_at_once(pool: SchedulerDriver) -> None:
    """There a pipeline takes eight requests per heartbeat of ten seconds, though all have finished."""
    pool.num_kv_tokens = 100
    pool.serve(8)
    for number in range(1, 50):
        assert chain(pool.request(number, num_tokens=100)) == [1]
        pool.finish(number)
    assert pool.now_s == 0.0


def test_no_more_requests_run_than_have_kv_room(pool: SchedulerDriver) -> None:
    """There the larger of what was asked for and what fits is used: room for one is given to eight."""
    pool.num_kv_tokens = 150
    pool.serve(8)
    started = [bool(chains(pool.request(number, num_tokens=100))) for number in range(1, 9)]
    assert started == [True] + [False] * 7
    assert refusal(pool.request(9, num_tokens=151)).code == "kv_room_exceeded"


def test_a_momentarily_full_node_is_not_unroutable_for_ever(pool: SchedulerDriver) -> None:
    """There a full node reports an infinite time, which is taken for its speed until the next heartbeat."""
    pool.num_kv_tokens = 100
    pool.serve(8)
    pool.request(1, num_tokens=100)
    assert orders(pool.request(2, num_tokens=100)) == []
    pool.tell(ev.StepsSeen(key(1), 1, num_steps=100, num_decode_rows=100, num_prompt_tokens=0, compute_s=1e9))
    assert chain(pool.finish(1)) == [1], "the moment there is room, however slow it seems"
    assert pool.scheduler.state.devices[key(1)].slowdown < float("inf")


def test_a_load_is_counted_once(pool: SchedulerDriver) -> None:
    """There what load adds to a time is added to a time that has it already."""
    pool.serve(8)
    device = pool.scheduler.state.devices[key(1)]
    alone = device_speed(device, DIGEST)
    for number in range(1, 6):
        pool.request(number)
    for _ in range(50):
        busy = 50 * alone.step_time_s(8.0, 5, last=True)
        pool.tell(ev.StepsSeen(key(1), 1, num_steps=50, num_decode_rows=250, num_prompt_tokens=0, compute_s=busy))
    assert device.slowdown == pytest.approx(1.0)
    for number in range(1, 6):
        pool.finish(number)
    assert (device.load.rows_per_s, device.num_reserved_tokens) == (0.0, 0)


def test_a_node_that_rejoins_at_once_with_the_same_id_serves_what_it_is_told_now(pool: SchedulerDriver) -> None:
    """There the registry has the new node and the pipeline the old one."""
    pool.serve(8)
    pool.request(1)
    again = [command for command in pool.join(1, facts.spec(8)) if isinstance(command, cmd.Assign)]
    assert [bounds(command) for command in again] == [(0, 8)]
    assert not pool.scheduler.state.running, "what ran over the old connection has no chain"
    resumed = ev.RequestArrived(facts.session_id(1), DIGEST, 100, resumed=True)
    assert orders(pool.tell(resumed)) == []
    [started] = pool.ready(again[0])
    assert isinstance(started, cmd.StartChain)
    assert [stage.generation for stage in started.chain] == [again[0].generation]


def test_what_was_loaded_before_is_not_served_as_what_was_assigned_since(pool: SchedulerDriver) -> None:
    """There pipelines with stale weights are served, as the time of the last change is passed as something else."""
    [old] = pool.serve(8)
    pool.remove_model()
    [new] = [command for command in pool.add_model() if isinstance(command, cmd.Assign)]
    assert new.generation > old.generation
    pool.ready(old)
    assert refusal(pool.request(1)).code == "model_not_ready"
    pool.ready(new)
    [started] = pool.request(1)
    assert isinstance(started, cmd.StartChain)
    assert [stage.generation for stage in started.chain] == [new.generation]


# ---------------------------------------------------------------- quality


def test_the_chain_counts_all_layers_of_a_slice() -> None:
    """There one layer's time stands for a slice of 36: 216 ms a token instead of 41."""
    pool = SchedulerDriver()
    pool.add_model(facts.model(36))
    pool.join(1, facts.spec(36))
    pool.load(pool.measured(key(1), 0.006))
    for number in (2, 3):
        pool.join(number, facts.spec(18))
        pool.measured(key(number), 0.001)
    halve(pool, 2, LayerRange(0, 18))
    halve(pool, 3, LayerRange(18, 36))
    pool.tell(lan(2, 3, rtt_s=0.005))
    assert chain(pool.request(1)) == [2, 3]


def halve(pool: SchedulerDriver, number: int, layers: LayerRange) -> None:
    """The device holds this, whatever was planned."""
    device = pool.scheduler.state.devices[key(number)]
    device.layers = layers
    if device.state is DeviceState.ASSIGNED:
        pool.tell(ev.SliceReady(device.key, device.generation, 10_000))


def test_a_burst_spreads_evenly_over_equal_nodes(pool: SchedulerDriver) -> None:
    """There loads are seen at heartbeats only, and 18 requests go 8-8-2."""
    pool.serve(8, 8, 8)
    used = Counter(node for number in range(1, 19) for node in chain(pool.request(number)))
    assert used == {1: 6, 2: 6, 3: 6}


def test_a_burst_spreads_by_speed() -> None:
    """Nodes whose step takes longer with every row: the quick one gets more, and the slow ones are not spared."""
    pool = SchedulerDriver(num_kv_tokens=100_000)
    pool.add_model()
    for number, factor in ((1, 1.0), (2, 2.0), (3, 2.0)):
        pool.join(number, facts.spec(8))
        times = (BatchTime(1, 0.001 * factor), BatchTime(32, 0.01 * factor))
        benchmark = LayerBenchmark(times, 0.0001 * factor, 0.0)
        pool.load(pool.tell(ev.DeviceMeasured(key(number), DIGEST, benchmark)))
    used = Counter(node for number in range(1, 61) for node in chain(pool.request(number)))
    assert used[2] == pytest.approx(used[3], abs=1)
    assert 1.5 < used[1] / used[2] < 4.0


def test_layers_are_split_by_measured_time_so_that_stages_take_equally_long() -> None:
    """There peak FLOPs split 36 layers 16 to 20, which takes 15.4 and 7.7 ms; measured times say about 10 to 26."""
    pool = SchedulerDriver()
    pool.add_model(facts.model(36))
    layer_s = {1: 0.0154 / 16, 2: 0.0077 / 20}
    for number, seconds in layer_s.items():
        pool.join(number, facts.spec(30))
        pool.measured(key(number), seconds)
    layers = [device.layers for device in pool.scheduler.state.devices.values()]
    stages_s = [len(held) * layer_s[number] for number, held in enumerate(layers, start=1) if held]
    assert len(stages_s) == 2
    assert max(stages_s) < 0.0115


def test_a_mixture_of_experts_costs_what_is_active_and_a_batch_costs_what_was_measured() -> None:
    """There FLOPs are multiplied by the experts of the whole batch: 5.5 times too high for one row, 34 for eight."""
    dense = facts.model(4)
    sparse = replace(dense, active_numels=(100_000,) * 4, layer_numels=(1_000_000,) * 4)
    first_dense = replace(sparse, active_numels=(300_000, 100_000, 100_000, 100_000))
    assert model_cost(sparse, Variant.BFLOAT16).work[-1] == model_cost(dense, Variant.BFLOAT16).work[-1]
    assert model_cost(first_dense, Variant.BFLOAT16).work[1] == 3.0
    assert model_cost(sparse, Variant.BFLOAT16).weights[-1] == 8_000_000
    pool = SchedulerDriver()
    pool.add_model(sparse)
    pool.join(1)
    times = (BatchTime(1, 0.001), BatchTime(8, 0.0024))
    pool.tell(ev.DeviceMeasured(key(1), DIGEST, LayerBenchmark(times, 0.0001, 0.0)))
    speed = device_speed(pool.scheduler.state.devices[key(1)], DIGEST)
    assert speed.step_time_s(4.0, 8, last=False) == pytest.approx(4 * 0.0024)


# ---------------------------------------------------------------- large pools and odd figures


def test_a_thousand_joins_in_a_row_are_all_told_to_measure(pool: SchedulerDriver) -> None:
    gpus = [DeviceId(f"cuda:{number}") for number in range(64)]
    told = [
        command
        for number in range(1, 17)
        for command in pool.scheduler.handle(
            ev.NodeJoined(facts.node_id(number), tuple(facts.spec(8, device_id=gpu) for gpu in gpus)), 0.0
        )
    ]
    assert len(told) == 1024
    assert all(isinstance(command, cmd.Measure) for command in told)
