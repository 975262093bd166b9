"""The plan for people: every device is in it once, with a reason and figures that are true."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler import Scheduler
from coordinator.scheduler import events as ev
from coordinator.scheduler.explain import NEWCOMER, DevicePlan, ModelPlan, Part, PoolPlan
from coordinator.scheduler.forecast import lane_forecast, lanes_of
from coordinator.scheduler.links import LinkSeen
from coordinator.scheduler.policy import SchedulerConfig
from coordinator.scheduler.problems import problem_of
from protocol.values import LayerRange, Variant
from tests.fakes import pool_facts as facts
from tests.fakes.scheduler_driver import SchedulerDriver, layers_of

key = facts.key


def planned(pool: SchedulerDriver) -> PoolPlan:
    return pool.scheduler.plan(pool.now_s)


def only(plan: PoolPlan) -> ModelPlan:
    [model] = plan.models
    return model


def devices(plan: PoolPlan) -> Iterator[DevicePlan]:
    """All that are in it."""
    yield from plan.idle
    for model in plan.models:
        yield from model.others
        for lane in model.lanes:
            yield from (device for stage in lane.stages for device in stage.holders)


def device(plan: PoolPlan, number: int) -> DevicePlan:
    [found] = [d for d in devices(plan) if d.key == key(number)]
    return found


# ---------------------------------------------------------------- lanes


def test_a_lane_has_its_stages_in_order_with_what_is_expected_of_it(pool: SchedulerDriver) -> None:
    pool.serve(4, 4)
    model = only(planned(pool))
    [lane] = model.lanes
    assert [stage.layers for stage in lane.stages] == [LayerRange(0, 4), LayerRange(4, 8)]
    assert lane.forecast.tpot_s >= 8 * 0.01
    assert lane.forecast.tokens_per_s > 0
    assert model.forecast == lane.forecast
    assert (model.others, model.num_replicas) == ((), 1)


def test_lanes_are_forecast_as_the_planner_forecasts_them(pool: SchedulerDriver) -> None:
    pool.serve(8, 4, 4)
    scheduler = pool.scheduler
    model = only(planned(pool))
    problem = problem_of(scheduler.state, facts.DIGEST, Variant.FLOAT32, scheduler.workloads, SchedulerConfig())
    lanes = lanes_of(problem, {i: o.held for i, o in enumerate(problem.offers) if o.held})
    for lane, expected in zip(model.lanes, (lane_forecast(problem, lane) for lane in lanes), strict=True):
        assert lane.forecast.tpot_s == pytest.approx(expected.tpot_s)
        assert lane.forecast.tokens_per_s == pytest.approx(expected.tokens_per_s)


def test_who_holds_what_completes_nothing_is_in_no_lane_and_says_so(pool: SchedulerDriver) -> None:
    pool.serve(4, 4)
    pool.leave(1)
    pool.leave(2)
    pool.join(3, facts.spec(4))
    plan = planned(pool)
    assert not plan.models or not only(plan).lanes
    assert device(plan, 3).part is not Part.SERVING


def test_a_device_that_loads_is_not_said_to_serve(pool: SchedulerDriver) -> None:
    pool.join(1)
    pool.measured(key(1))
    assert device(planned(pool), 1).part is Part.LOADING
    assert device(planned(pool), 1).layers == LayerRange(0, 8)


# ---------------------------------------------------------------- figures behind the reason


def why(pool: SchedulerDriver, number: int) -> str:
    return " ".join(device(planned(pool), number).why)


def test_the_reason_is_the_one_that_it_was_assigned_with(pool: SchedulerDriver) -> None:
    [assigned] = pool.serve(8)
    assert device(planned(pool), 1).reason == assigned.reason != ""


def test_a_device_that_the_model_cannot_do_without_is_told_from_one_that_it_can(pool: SchedulerDriver) -> None:
    pool.serve(8)
    assert "Nobody else holds all of them" in why(pool, 1)
    pool.serve(8, 8)
    assert "held by 2 devices or more" in why(pool, 1)


def test_what_slows_a_device_down_is_named(pool: SchedulerDriver) -> None:
    pool.serve(8)
    state = pool.scheduler.state
    assert "10 ms a layer" in why(pool, 1)
    assert "80 ms for its 8 layers" in why(pool, 1)
    state.devices[key(1)].slowdown = 2.0
    assert "20 ms a layer, 2.0 times its measurement" in why(pool, 1)
    state.devices[key(1)].leaves_per_s = 2 / 3600
    assert "leaving about 2.0 times an hour" in why(pool, 1)
    assert "Its owner allows 8 layers at most" in why(pool, 1)
    state.devices[key(1)].disk_layers = {facts.DIGEST: 3}
    assert "Its disk had room for 3 layers" in why(pool, 1)


def test_memory_and_distance_are_told(pool: SchedulerDriver) -> None:
    pool.serve(4, 4)
    link = LinkSeen(facts.node_id(1), facts.node_id(2), 0.03, None)
    pool.tell(ev.LinksSeen((link,)))
    assert "KV room for 10,000 tokens" in why(pool, 1)
    assert "is 15 ms away" in why(pool, 1)


# ---------------------------------------------------------------- devices without layers


def test_a_device_that_stands_by_says_why_and_what_it_has_room_for(pool: SchedulerDriver) -> None:
    pool.serve(4)
    standing = device(planned(pool), 1)
    assert (standing.part, standing.layers) == (Part.STANDBY, None)
    assert "stands by" in standing.reason
    assert "It has room for 4 of 8 layers." in standing.why


def test_a_device_that_measures_one_that_failed_and_one_that_drains_are_told_apart(pool: SchedulerDriver) -> None:
    pool.serve(8)
    pool.join(2)
    assert device(planned(pool), 2).part is Part.MEASURING
    assert device(planned(pool), 2).reason == "measures how fast it is with model-2c"
    pool.tell(ev.DeviceFailed(key(2), 0))
    failed = device(planned(pool), 2)
    assert (failed.part, failed.reason) == (Part.FAILED, "failed once; it is tried again in 10 s")
    pool.request(1)
    pool.drain(1)
    drained = device(planned(pool), 1)
    assert drained.part is Part.DRAINING
    assert "1 request(s) still run" in drained.reason
    assert drained.layers == LayerRange(0, 8)


def test_without_a_model_everybody_stands_by() -> None:
    pool = SchedulerDriver()
    pool.join(1)
    plan = planned(pool)
    assert plan.models == ()
    [idle] = plan.idle
    assert idle.part in (Part.MEASURING, Part.STANDBY)


# ---------------------------------------------------------------- one more device


def test_one_more_device_would_add_what_the_repair_would_give_it(pool: SchedulerDriver) -> None:
    pool.serve(8)
    before = only(planned(pool))
    assert before.newcomer.like == key(1)
    assert before.newcomer.num_needed == 0
    assert before.newcomer.layers == LayerRange(0, 8)
    assert before.newcomer.forecast.tokens_per_s > 1.5 * before.forecast.tokens_per_s
    assert all(d.key.device_id != NEWCOMER for d in devices(planned(pool))), "it is not there"


@pytest.mark.parametrize(("room", "needed"), [(4, 1), (3, 2), (1, 7)])
def test_without_a_lane_it_says_how_many_more_would_make_one(pool: SchedulerDriver, room: int, needed: int) -> None:
    pool.serve(room)
    model = only(planned(pool))
    assert model.lanes == ()
    assert model.newcomer.num_needed == needed


def test_a_device_that_can_hold_nothing_helps_nobody(pool: SchedulerDriver) -> None:
    pool.join(1, facts.spec(8, memory_bytes=1000))
    pool.measured(key(1))
    assert only(planned(pool)).newcomer.num_needed is None


# ---------------------------------------------------------------- in general


def test_explaining_changes_nothing(pool: SchedulerDriver) -> None:
    pool.serve(4, 4, 8)
    first = planned(pool)
    pool.scheduler.validate()
    assert planned(pool) == first
    assert layers_of(pool.pass_time(1.0)) == {}


def test_the_operators_floor_and_the_demand_are_in_it() -> None:
    scheduler = Scheduler()
    scheduler.handle(ev.ModelAdded(facts.model(), 3), 0.0)
    pool = SchedulerDriver(scheduler)
    pool.serve(8)
    model = only(planned(pool))
    assert (model.num_replicas, model.wanted_tokens_per_s) == (3, None)


@given(st.lists(st.integers(1, 10), min_size=1, max_size=7), st.integers(0, 6))
def test_every_device_is_in_the_plan_once_with_a_reason(rooms: list[int], num_gone: int) -> None:
    pool = SchedulerDriver()
    pool.add_model()
    pool.serve(*rooms)
    for number in range(1, min(num_gone, len(rooms) - 1) + 1):
        pool.load(pool.leave(number))
    plan = planned(pool)
    found = [d.key for d in devices(plan)]
    assert sorted(found) == sorted(pool.scheduler.state.devices)
    assert all(d.reason for d in devices(plan))
    for model in plan.models:
        for lane in model.lanes:
            cuts = [0, *(stage.layers.stop for stage in lane.stages)]
            assert [stage.layers.start for stage in lane.stages] == cuts[:-1]
            assert cuts[-1] == 8
