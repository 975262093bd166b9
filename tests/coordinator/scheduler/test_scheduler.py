"""One event in, a list of commands out; the invariants are checked after each."""

from __future__ import annotations

import pytest

from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.plan import Placement, Problem
from coordinator.scheduler.policy import Policy, Route, RouteRequest
from coordinator.scheduler.routing import ChainRouter
from coordinator.scheduler.scheduler import MAX_RETRY_S, PROBE_AGAIN_S, PROBES_PER_TICK, RETRY_BASE_S, Scheduler
from coordinator.scheduler.state import Device, DeviceKey, State
from protocol.values import LayerRange, Variant
from tests.fakes import pool_facts as facts
from tests.fakes.pool_facts import DIGEST, key
from tests.fakes.scheduler_driver import SchedulerDriver, bounds, chain, layers_of, orders, refusal

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


# ---------------------------------------------------------------- links


def asked_for_links(commands: list[cmd.Command]) -> list[int]:
    return [facts.number_of(command.node_id) for command in commands if isinstance(command, cmd.MeasureLinks)]


def test_newcomers_measure_their_links_first(pool: SchedulerDriver) -> None:
    for number in range(1, PROBES_PER_TICK + 3):
        pool.join(number)
    first = asked_for_links(pool.pass_time(0.5))
    assert first == list(range(1, PROBES_PER_TICK + 1))
    pool.join(20)
    assert asked_for_links(pool.pass_time(0.5)) == [PROBES_PER_TICK + 1, PROBES_PER_TICK + 2, 20]


def test_a_node_that_measures_is_not_asked_again_at_once(pool: SchedulerDriver) -> None:
    """A new order ends what the node measures: asked at each tick it would never answer."""
    for number in (1, 2, 3):
        pool.join(number)
    asked = [asked_for_links(pool.pass_time(1)) for _ in range(round(PROBE_AGAIN_S))]
    assert asked == [[1, 2, 3]] + [[]] * (len(asked) - 1)
    assert asked_for_links(pool.pass_time(1)) == [1, 2, 3]


def test_a_node_that_connects_again_is_a_newcomer_and_one_that_left_is_not_asked(pool: SchedulerDriver) -> None:
    for number in (1, 2, 3):
        pool.join(number)
    pool.pass_time(1)
    pool.join(1)
    pool.leave(2)
    assert asked_for_links(pool.pass_time(1)) == [1]
    assert asked_for_links(pool.pass_time(PROBE_AGAIN_S)) == [3, 1]


def test_a_lone_node_has_nobody_to_measure(pool: SchedulerDriver) -> None:
    pool.join(1)
    assert asked_for_links(pool.pass_time(1)) == asked_for_links(pool.pass_time(PROBE_AGAIN_S)) == []


# ---------------------------------------------------------------- draining


def test_a_drained_node_without_requests_is_released_at_once_and_idles(pool: SchedulerDriver) -> None:
    pool.serve(8, 8)
    assert pool.drain(1) == [cmd.Release(key(1), 1)]
    assert orders(pool.pass_time(100)) == []
    assert chain(pool.request(1)) == chain(pool.request(2)) == [2]


def test_a_drained_node_finishes_what_runs_and_gets_nothing_new(pool: SchedulerDriver) -> None:
    pool.serve(8, 8)
    first = chain(pool.request(1))
    second = [3 - first[0]]
    assert pool.drain(first[0]) == []
    assert [chain(pool.request(number)) for number in (2, 3, 4)] == [second] * 3
    assert pool.finish(1) == [cmd.Release(key(first[0]), 1)]


def test_a_resumed_request_does_not_go_back_to_a_drained_node(pool: SchedulerDriver) -> None:
    pool.serve(8, 8)
    [first] = chain(pool.request(1))
    pool.drain(first)
    commands = pool.tell(ev.RequestArrived(facts.session_id(1), DIGEST, 100, resumed=True))
    assert isinstance(commands[0], cmd.StartChain)
    assert commands[0].chain[0].device == key(3 - first)
    assert commands[1:] == [cmd.Release(key(first), 1)]


def test_a_spare_covers_what_a_draining_node_still_serves(pool: SchedulerDriver) -> None:
    layers = layers_of(pool.serve(4, 4))
    pool.join(3, facts.spec(4))
    [spare] = pool.load(pool.measured(key(3)))
    first = chain(pool.request(1))
    busy = next(number for number in first if number != 3 and layers[number] != bounds(spare))
    commands = pool.drain(busy)
    assert layers_of(commands) == {3: layers[busy]}
    pool.load(commands)
    second = chain(pool.request(2))
    assert sorted(second) == sorted({1, 2, 3} - {busy})
    assert pool.finish(1) == [cmd.Release(key(busy), 1)]


def test_a_pool_that_drains_says_so_and_takes_nothing(pool: SchedulerDriver) -> None:
    pool.serve(8)
    pool.request(1)
    pool.drain(1)
    refused = refusal(pool.request(2))
    assert refused.code == "model_not_ready"
    assert "Every connected node is being drained" in refused.message
    assert not pool.scheduler.is_ready(DIGEST)
    assert pool.scheduler.largest_request(DIGEST) == 0
    assert pool.scheduler.num_preparing(DIGEST) == 0


def test_layers_that_only_a_draining_node_holds_are_missing(pool: SchedulerDriver) -> None:
    start, stop = layers_of(pool.serve(4, 4))[2]
    pool.request(1)
    pool.drain(2)
    assert f"Layers {start}-{stop - 1}" in pool.scheduler.shortfall(DIGEST)


def test_a_node_that_is_no_longer_drained_gets_its_layers_back_at_once(pool: SchedulerDriver) -> None:
    layers = layers_of(pool.serve(4, 4))
    pool.drain(2)
    commands = pool.drain(2, on=False)
    assert layers_of(commands) == {2: layers[2]}
    pool.load(commands)
    assert sorted(chain(pool.request(1))) == [1, 2]


def test_a_node_that_is_no_longer_drained_serves_at_once_what_it_still_holds(pool: SchedulerDriver) -> None:
    pool.serve(8)
    pool.request(1, num_tokens=100)
    pool.drain(1)
    resumed = ev.RequestArrived(facts.session_id(2), DIGEST, 100, resumed=True)
    assert pool.tell(resumed) == []
    assert chain(pool.drain(1, on=False)) == [1]


def test_a_draining_node_measures_and_loads_nothing_new(pool: SchedulerDriver) -> None:
    pool.join(1)
    pool.drain(1)
    assert pool.measured(key(1)) == []
    assert pool.add_model(facts.model(4, digest="3d" * 32)) == []
    assert pool.pass_time(100) == []
    pool.drain(2)
    assert pool.join(2) == [], "drained before it came, or before it came back"
    assert layers_of(pool.drain(1, on=False)) == {}, "it measures the other model first"


def test_a_slice_that_a_draining_node_still_loads_is_released(pool: SchedulerDriver) -> None:
    pool.join(1)
    [assign] = pool.measured(key(1))
    assert isinstance(assign, cmd.Assign)
    assert pool.drain(1) == [cmd.Release(key(1), 1)]
    assert pool.ready(assign) == []


# ---------------------------------------------------------------- removing models


def test_a_removed_model_ends_its_requests_and_frees_its_devices(pool: SchedulerDriver) -> None:
    pool.serve(8)
    pool.request(1, num_tokens=6000)
    pool.request(2, num_tokens=6000)
    commands = pool.remove_model()
    assert [type(command) for command in commands] == [cmd.RefuseRequest, cmd.RefuseRequest, cmd.Release]
    for command in commands[:2]:
        assert isinstance(command, cmd.RefuseRequest)
        assert (command.code, command.retry_after_s) == ("model_unloaded", None)
        assert "model-2c" in command.message
    assert not pool.scheduler.state.running
    assert not pool.scheduler.state.waiting


def test_the_devices_of_a_removed_model_serve_the_others(pool: SchedulerDriver) -> None:
    other = facts.model(4, digest="3d" * 32)
    pool.serve(8)
    pool.add_model(other)
    commands = pool.remove_model()
    assert commands == [cmd.Release(key(1), 1), cmd.Measure(key(1), other.manifest_hash, Variant.FLOAT32)]
    [assign] = pool.measured(key(1), digest=other.manifest_hash)
    assert isinstance(assign, cmd.Assign)
    assert assign.manifest_hash == other.manifest_hash


def test_measuring_a_removed_model_is_dropped_and_its_answer_means_nothing(pool: SchedulerDriver) -> None:
    other = facts.model(4, digest="3d" * 32)
    pool.join(1)
    pool.add_model(other)
    assert pool.remove_model() == [cmd.Measure(key(1), other.manifest_hash, Variant.FLOAT32)]
    assert pool.measured(key(1)) == []
    assert len(pool.measured(key(1), digest=other.manifest_hash)) == 1


def test_late_news_of_a_removed_model_is_ignored(pool: SchedulerDriver) -> None:
    pool.join(1)
    [assign] = pool.measured(key(1))
    assert isinstance(assign, cmd.Assign)
    pool.remove_model()
    assert pool.ready(assign) == []
    assert pool.tell(ev.DeviceFailed(key(1), assign.generation)) == []
    assert pool.finish(1) == []
    assert pool.remove_model() == []


@pytest.mark.parametrize("resumed", [False, True])
def test_a_request_for_a_model_that_is_gone_is_refused(pool: SchedulerDriver, resumed: bool) -> None:
    pool.serve(8)
    pool.remove_model()
    refused = refusal(pool.tell(ev.RequestArrived(facts.session_id(1), DIGEST, 10, resumed=resumed)))
    assert refused.code == "model_unloaded"


def test_questions_about_a_model_that_is_gone_have_answers(pool: SchedulerDriver) -> None:
    pool.remove_model()
    assert not pool.scheduler.is_ready(DIGEST)
    assert pool.scheduler.shortfall(DIGEST)
    assert pool.scheduler.largest_request(DIGEST) == pool.scheduler.num_preparing(DIGEST) == 0


def test_a_model_that_is_added_again_goes_where_it_was_without_measuring(pool: SchedulerDriver) -> None:
    before = layers_of(pool.serve(4, 4))
    pool.remove_model()
    assert layers_of(pool.add_model()) == before


# ---------------------------------------------------------------- what the router hears


class Turning:
    """An allocator that gives every device all layers first, and half of them when it is asked to plan anew."""

    def allocate(self, problem: Problem) -> list[Placement]:
        halves = (LayerRange(0, 4), LayerRange(4, 8))
        return [Placement(offer.key, layers, "half") for offer, layers in zip(problem.offers, halves, strict=False)]

    def adapt(self, problem: Problem) -> list[Placement]:
        free = [offer for offer in problem.offers if offer.held is None]
        return [Placement(offer.key, LayerRange(0, 8), "all") for offer in free]


class Trusting(ChainRouter):
    """Knows of devices what it was told."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.num_asked = 0
        self._pool = state
        self._told: dict[DeviceKey, int] = {}

    def changed(self, device: Device) -> None:
        self._told[device.key] = device.generation
        super().changed(device)

    def route(self, request: RouteRequest, variant: Variant, now_s: float) -> Route | None:
        self.num_asked += 1
        held = {device.key: device.generation for device in self._pool.devices.values() if device.layers is not None}
        assert {key: self._told.get(key) for key in held} == held
        return super().route(request, variant, now_s)


def test_the_router_hears_of_new_orders_before_anybody_is_started_over_these_devices() -> None:
    routers: list[Trusting] = []

    def make_router(state: State) -> Trusting:
        routers.append(Trusting(state))
        return routers[-1]

    pool = SchedulerDriver(Scheduler(policy=Policy("turning", Turning(), make_router, replans=False)))
    pool.add_model()
    pool.serve(8, 8)
    for number in (1, 2, 3):
        pool.request(number, pool.num_kv_tokens)
    assert list(pool.scheduler.state.waiting) == [facts.session_id(3)]
    [router] = routers
    router.num_asked = 0
    pool.tell(ev.Replan())
    pool.finish(1)
    commands = pool.pass_time(60.0)
    assert router.num_asked and any(isinstance(command, cmd.Assign) for command in commands)
