"""What phase 1 is asked, made from the state; and which layers fit where."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.cost import Workload, usable_bytes
from coordinator.scheduler.plan import Problem
from coordinator.scheduler.policy import SchedulerConfig
from coordinator.scheduler.problems import Fit, divided, fit_of, missing_bytes, problem_of
from coordinator.scheduler.state import Device, DeviceState, Signal, Slice, State
from protocol.values import LayerRange, Variant
from tests.fakes import pool_facts as facts
from tests.fakes.problem_facts import MODEL, offer, problem

OTHER = facts.model(4, digest="3d" * 32)


class Asked:
    def workload(self, manifest_hash: str) -> Workload:
        return Workload(tokens_per_s=7.0)


def pool(*numbers: int) -> State:
    """Free devices that have measured the model."""
    state = State(models={m.manifest_hash: m for m in (MODEL, OTHER)})
    for number in numbers:
        device = Device(facts.key(number), facts.spec(12), state=DeviceState.FREE)
        device.benchmarks[MODEL.manifest_hash] = facts.benchmark()
        state.devices[device.key] = device
    return state


def asked(state: State, variant: Variant = Variant.FLOAT32) -> Problem:
    return problem_of(state, MODEL.manifest_hash, variant, Asked(), SchedulerConfig())


def offered(state: State, variant: Variant = Variant.FLOAT32) -> list[int]:
    return [facts.number_of(o.key.node_id) for o in asked(state, variant).offers]


def test_offers_are_in_the_order_of_their_keys_whoever_came_first() -> None:
    assert offered(pool(3, 1, 2)) == [1, 2, 3]


@pytest.mark.parametrize(("least", "expected"), [(0, 1024.0), (1000, 1024.0), (2048, 2048.0)])
def test_a_session_is_planned_with_the_least_that_it_reserves(least: int, expected: float) -> None:
    state = pool(1)
    state.models[MODEL.manifest_hash] = replace(MODEL, min_session_tokens=least)
    assert asked(state).workload.num_reserved_tokens == expected
    assert asked(state).workload.tokens_per_s == 7.0


def test_only_who_measured_the_model_is_offered() -> None:
    state = pool(1, 2)
    state.devices[facts.key(1)].benchmarks.clear()
    assert offered(state) == [2]


def test_variants_are_apart() -> None:
    assert offered(pool(1), Variant.BFLOAT16) == []


def test_a_draining_node_and_one_that_failed_are_not_offered() -> None:
    state = pool(1, 2, 3)
    state.draining.add(facts.node_id(1))
    device = state.devices[facts.key(2)]
    device.assign(Slice(MODEL.manifest_hash, LayerRange(0, 4)), "", 0.0)
    device.let_go(Signal.FAIL)
    assert offered(state) == [3]


def test_who_holds_another_model_is_not_offered_and_what_it_has_on_disk_does_not_count() -> None:
    state = pool(1, 2)
    for number in (1, 2):
        state.devices[facts.key(number)].assign(Slice(OTHER.manifest_hash, LayerRange(0, 4)), "", 0.0)
    state.devices[facts.key(2)].let_go(Signal.RELEASE)
    [only] = asked(state).offers
    assert (only.key, only.held, only.stored) == (facts.key(2), None, ())


def test_a_device_is_offered_with_no_more_layers_than_its_disk_has_room_for() -> None:
    state = pool(1, 2, 3)
    assert [only.max_layers for only in asked(state).offers] == [12, 12, 12]
    for number, max_layers in ((1, 0), (2, 5), (3, 20)):
        state.devices[facts.key(number)].disk_layers = {MODEL.manifest_hash: max_layers}
    assert [(facts.number_of(o.key.node_id), o.max_layers) for o in asked(state).offers] == [(2, 5), (3, 12)]
    state.devices[facts.key(1)].disk_layers = {OTHER.manifest_hash: 0}
    assert offered(state) == [1, 2, 3], "another model's bytes are others"


def test_an_offer_says_what_the_device_holds_has_stored_and_does() -> None:
    state = pool(1)
    device = state.devices[facts.key(1)]
    device.assign(Slice(MODEL.manifest_hash, LayerRange(3, 9)), "", 0.0)
    device.num_requests, device.leaves_per_s = 1, 0.25
    [only] = asked(state).offers
    assert (only.held, only.stored, only.max_layers) == (LayerRange(3, 9), (LayerRange(3, 9),), 12)
    assert (only.is_busy, only.is_loading, only.leaves_per_s) == (True, True, 0.25)
    assert only.memory_bytes == usable_bytes(device)


def test_a_device_that_has_shown_to_be_slower_is_offered_as_that() -> None:
    state = pool(1)
    before = asked(state).offers[0].speed.step_s
    state.devices[facts.key(1)].slowdown = 2.0
    assert asked(state).offers[0].speed.step_s == 2.0 * before


def test_the_problem_knows_what_is_wanted() -> None:
    assert asked(pool(1)).workload.tokens_per_s == 7.0


def test_all_devices_may_be_divided_where_only_one_model_is_measured() -> None:
    state = pool(1, 2)
    assert set(divided(state, state.devices.values(), Asked()).values()) == {MODEL.manifest_hash}


# ---------------------------------------------------------------- what fits


@given(st.integers(0, 30), st.integers(0, 23), st.integers(0, 40), st.integers(0, 10), st.integers(0, 10))
def test_what_is_reached_fits_and_one_layer_more_does_not(
    limit: int, start: int, memory_layers: int, head: int, embedding: int
) -> None:
    model = replace(MODEL, head_numel=head * 500_000, embedding_numel=embedding * 500_000)
    some = replace(offer(1, limit), memory_bytes=memory_layers * 4.1e6)
    fit = fit_of(problem(some, model=model))
    stop = fit.reach(some, start)
    assert stop == start or fit.fits(some, start, stop)
    assert stop == 24 or not fit.fits(some, start, stop + 1)
    first = fit.reach_back(some, start + 1)
    assert first == start + 1 or fit.fits(some, first, start + 1)
    assert first == 0 or not fit.fits(some, first - 1, start + 1)


def test_a_device_may_hold_all_layers_but_not_the_head() -> None:
    model = replace(MODEL, head_numel=5_000_000)
    fit: Fit = fit_of(problem(model=model))
    some = replace(offer(1, 99), memory_bytes=fit.need[-1] + 4 * model.embedding_numel)
    assert fit.reach(some, 0) == 23


def test_a_mixture_of_experts_weighs_all_its_experts_and_works_with_those_that_are_chosen() -> None:
    """Parallax reckons 5 to 34 times too much work here, and no dense first layer."""
    experts = replace(MODEL, layer_numels=(1_000_000, *(64_000_000,) * 23), active_numels=(1_000_000,) * 24)
    cost = problem(model=experts).model
    assert cost.work_of(LayerRange(0, 12)) == 12.0
    assert cost.weight_bytes(LayerRange(1, 2)) == 64 * (cost.weights[1] - cost.weights[0])


def test_a_device_is_what_it_measured_not_what_it_is_called() -> None:
    """Parallax knows four families of devices and takes every other for the same one."""
    state = pool(1, 2)
    state.devices[facts.key(2)].benchmarks[MODEL.manifest_hash] = facts.benchmark(0.5)
    quick, slow = (o.speed for o in asked(state).offers)
    assert slow.step_time_s(1.0, 1.0, last=False) > 10 * quick.step_time_s(1.0, 1.0, last=False)


# ---------------------------------------------------------------- what must be downloaded


def test_what_was_ordered_but_has_not_come_is_not_on_disk() -> None:
    layer_bytes = problem().model.weights[1]
    loading = replace(offer(1, 8, (8, 16), is_loading=True), lacking_bytes=6 * layer_bytes)
    pool_ = problem(loading, replace(loading, stored=(LayerRange(4, 12),)))
    assert missing_bytes(pool_, pool_.offers[0], LayerRange(8, 16)) == 6 * layer_bytes
    assert missing_bytes(pool_, pool_.offers[1], LayerRange(4, 16)) == 4 * layer_bytes


def test_a_device_that_loads_another_slice_still_has_what_it_held_before() -> None:
    state = pool(1)
    [device] = state.devices.values()
    device.assign(Slice(MODEL.manifest_hash, LayerRange(0, 8)), "", 0.0)
    device.move(Signal.LOADED)
    assert asked(state).offers[0].stored == (LayerRange(0, 8),)
    device.let_go(Signal.RELEASE)
    device.assign(Slice(MODEL.manifest_hash, LayerRange(8, 16)), "", 0.0)
    device.lacking_bytes = 5.0
    [loading] = asked(state).offers
    assert set(loading.stored) == {LayerRange(0, 8), LayerRange(8, 16)}
    assert loading.lacking_bytes == 5.0
    device.move(Signal.LOADED)
    [ready] = asked(state).offers
    assert ready.stored[0] == LayerRange(8, 16)
    assert ready.lacking_bytes == 0.0


def test_a_download_that_was_not_finished_counts_as_far_as_it_came() -> None:
    state = pool(1)
    [device] = state.devices.values()
    layer_bytes = problem().model.weights[1]
    device.assign(Slice(MODEL.manifest_hash, LayerRange(0, 8)), "", 0.0)
    device.lacking_bytes = 5 * layer_bytes
    device.let_go(Signal.RELEASE)
    asked_ = asked(state)
    assert asked_.offers[0].stored == ()
    assert missing_bytes(asked_, asked_.offers[0], LayerRange(1, 8)) == pytest.approx(5 * layer_bytes)


def test_slices_on_disk_that_touch_are_one() -> None:
    touching = replace(offer(1, 24), stored=(LayerRange(4, 8), LayerRange(8, 12)))
    pool_ = problem(touching)
    assert missing_bytes(pool_, touching, LayerRange(4, 12)) == 0.0


def test_what_is_on_disk_or_held_is_not_downloaded() -> None:
    pool_ = problem(offer(1, 24), offer(2, 24, stored=(4, 12)), offer(3, 24, (4, 12)))
    nothing, stored, held = (missing_bytes(pool_, o, LayerRange(8, 16)) for o in pool_.offers)
    assert nothing == pool_.model.weight_bytes(LayerRange(8, 16))
    assert stored == held == nothing / 2
