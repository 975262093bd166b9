"""The index of ready devices, and what a device costs a request."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.candidates import MANY, Ask, Candidates, StageTime, stage_time, suspect, suspicion
from coordinator.scheduler.cost import Speed, model_cost
from coordinator.scheduler.state import IDLE, Load
from protocol.values import LayerRange, Variant
from tests.fakes import pool_facts as facts
from tests.fakes.chain_pool import ChainPool, benchmark, key

ASK = Ask(10.0, 20.0, 30)


@pytest.fixture
def pool() -> ChainPool:
    return ChainPool()


@pytest.fixture
def wide() -> ChainPool:
    """Its rows are large enough to be felt on a line."""
    return ChainPool(model=replace(facts.model(), hidden_size=1024))


def index(pool: ChainPool) -> Candidates:
    made = Candidates(model_cost(pool.model, Variant.FLOAT32), pool.links)
    for device in pool.state.devices.values():
        made.put(device, pool.now_s)
    return made


def test_a_cost_is_the_answers_time_and_the_prompts(pool: ChainPool) -> None:
    pool.hold(1, 0, 8, layer_s=0.01)
    [cost] = index(pool).costs(ASK)
    assert cost == pytest.approx(10 * 8 * 0.01 + 20 * 8 * 0.001)


def test_a_long_prompts_later_chunks_pass_while_earlier_ones_are_elsewhere(pool: ChainPool) -> None:
    for number in range(4):
        pool.hold(number, 2 * number, 2 * number + 2)
    candidates = index(pool)
    assert candidates.num_stages == 4
    assert candidates.prompt_weight(100) == 100
    assert candidates.prompt_weight(512 + 400) == 512 + 100


def test_there_is_room_if_some_whole_chain_has_it(pool: ChainPool) -> None:
    pool.hold(1, 0, 4, room=100)
    pool.hold(2, 4, 8, room=29)
    pool.hold(3, 3, 8, room=100)
    assert not index(pool).have_room(ASK)
    pool.hold(2, 4, 8, room=30)
    assert index(pool).have_room(ASK)
    assert not index(pool).have_room(replace(ASK, avoid=frozenset({key(1), key(77)})))


def test_a_device_without_room_or_to_be_avoided_is_no_candidate(pool: ChainPool) -> None:
    pool.hold(1, 0, 8, room=29)
    pool.hold(2, 0, 8, room=30)
    candidates = index(pool)
    assert np.isinf(candidates.costs(ASK)).tolist() == [True, False]
    assert np.isinf(candidates.costs(replace(ASK, avoid=frozenset({key(2), key(77)})))).all()


def test_costs_of_some_are_those_of_all(pool: ChainPool) -> None:
    for number in range(5):
        pool.hold(number, 0, 8, layer_s=0.01 * (number + 1))
    candidates = index(pool)
    ask = replace(ASK, avoid=frozenset({key(3)}), penalties_s=((key(1), 5.0), (key(2), 7.0)))
    some = np.array([3, 1])
    assert candidates.costs(ask, some).tolist() == candidates.costs(ask)[some].tolist()


def test_a_slot_that_became_free_is_used_again_and_nothing_of_its_last_device_stays(pool: ChainPool) -> None:
    for number in range(40):
        pool.hold(number, 0, 4)
    candidates = index(pool)
    for number in range(40):
        candidates.drop(key(number))
        candidates.drop(key(number))
    assert not len(candidates)
    assert np.isinf(candidates.costs(ASK)).all()
    pool.hold(77, 4, 8, layer_s=0.03)
    candidates.put(pool.device(77), 0.0)
    assert len(candidates.costs(ASK)) == 40
    [slot] = candidates.slots.values()
    assert candidates.piece(slot) == (4, 8)
    assert np.isfinite(candidates.costs(ASK)).sum() == 1


def test_a_new_slice_of_a_device_replaces_the_old_one(pool: ChainPool) -> None:
    device = pool.hold(1, 0, 4)
    candidates = index(pool)
    version = candidates.version
    candidates.put(device, 0.0)
    assert candidates.version == version, "only its load may have changed"
    device.layers = LayerRange(4, 8)
    candidates.put(device, 0.0)
    assert candidates.version > version
    assert [candidates.piece(slot) for slot in candidates.slots.values()] == [(4, 8)]


def test_groups_are_devices_of_one_slice_in_one_region(pool: ChainPool) -> None:
    for number, (start, stop, region) in enumerate([(0, 4, 7), (4, 8, 7), (0, 4, 9), (0, 4, 7), (4, 8, 9)]):
        pool.hold(number, start, stop)
        pool.links.set(key(number).node_id, x=0.1 * (region == 9), region=region)
    candidates = index(pool)
    groups = candidates.groups()
    ends = [*groups.first[1:].tolist(), len(groups.members)]
    found = {
        (int(a), int(b), int(r)): sorted(int(candidates.device(m).key.node_id, 16) for m in groups.members[i:j])
        for a, b, r, i, j in zip(groups.start, groups.stop, groups.region, groups.first, ends, strict=True)
    }
    assert found == {(0, 4, 0): [0, 3], (0, 4, 1): [2], (4, 8, 0): [1], (4, 8, 1): [4]}
    assert groups.delays_s[0, 1] == pytest.approx(0.1)


# ---------------------------------------------------------------- load


def test_measured_speed_is_corrected_by_what_live_work_has_shown(pool: ChainPool) -> None:
    device = pool.hold(1, 0, 8)
    candidates = index(pool)
    before = candidates.costs(ASK)[0]
    device.slowdown = 3.0
    candidates.put(device, 0.0)
    assert candidates.costs(ASK)[0] == pytest.approx(3 * before)
    device.benchmarks[pool.model.manifest_hash] = benchmark(0.02)
    candidates.put(device, 0.0)
    assert candidates.costs(ASK)[0] == pytest.approx(6 * before)


loads = st.builds(Load, st.floats(0, 1e4), st.floats(0, 1e5))
speeds = st.builds(Speed, st.floats(1e-6, 1), st.floats(0, 0.1), st.floats(0, 0.1), st.floats(0, 0.1))


@given(speeds, st.floats(0.1, 100), st.booleans(), loads, st.integers(0, 200))
def test_time_under_any_load_is_finite_and_no_less_than_idle(
    speed: Speed, work: float, last: bool, load: Load, num_requests: int
) -> None:
    stage = StageTime(speed, work, last)
    token_s, prompt_s = stage.times_s(load, num_requests)
    assert stage.idle_token_s() * (1 - 1e-9) <= token_s < math.inf
    assert stage.times_s(IDLE, 0)[1] <= prompt_s < math.inf


def test_no_row_waits_for_more_than_the_others_that_run(pool: ChainPool) -> None:
    stage = stage_time(pool.hold(1, 0, 8, layer_s=0.01, row_s=0.001), index(pool).model)
    assert stage.times_s(Load(1e6), 3)[0] == pytest.approx(stage.speed.step_time_s(8, 4, last=True))


def test_rows_wait_for_a_busy_uplink_unless_they_are_the_tails(wide: ChainPool) -> None:
    head, tail = wide.hold(1, 0, 4), wide.hold(2, 4, 8)
    candidates = index(wide)
    row_s = candidates.model.hidden_bytes / 1e6
    waits_s = []
    for device in (head, tail):
        stage = stage_time(device, candidates.model, 1e6)
        quick = replace(stage, up_s=0.0)
        half_busy = Load(0.25 / row_s, 0.25 / row_s)
        waits_s.append([a - b for a, b in zip(stage.times_s(half_busy, 9), quick.times_s(half_busy, 9), strict=True)])
    assert waits_s == [[pytest.approx(row_s), pytest.approx(row_s)], [0.0, 0.0]]


def test_no_row_waits_for_more_rows_on_the_uplink_than_others_have(wide: ChainPool) -> None:
    stage = stage_time(wide.hold(1, 0, 4), index(wide).model, 1e3)
    assert stage.uplink_wait_s(Load(1e9), 3) == pytest.approx(3 * stage.up_s)
    assert stage.uplink_wait_s(IDLE, 0) == 0.0


def test_a_line_that_became_slower_is_seen_when_its_device_is_put_again(wide: ChainPool) -> None:
    device = wide.hold(1, 0, 4)
    device.num_requests, device.load = 2, Load(1e3)
    candidates = index(wide)
    [before] = candidates.costs(ASK)
    wide.links.rates[wide.links.row(device.key.node_id)] /= 100
    candidates.put(device, 0.0)
    assert candidates.costs(ASK)[0] > before


def test_a_request_that_looks_after_itself_pays_only_its_own_time(pool: ChainPool) -> None:
    device = pool.hold(1, 0, 8, row_s=0.005)
    device.num_requests, device.load = 4, Load(20.0)
    candidates = index(pool)
    token_s, prompt_s, _ = (value for [value] in candidates.times_s([0]))
    [own] = candidates.costs(replace(ASK, for_itself=True))
    assert own == pytest.approx(10 * token_s + 20 * prompt_s)
    assert own < candidates.costs(ASK)[0]


busy_devices = st.tuples(
    st.floats(1e-4, 0.1), st.floats(0, 0.01), st.floats(0, 50), st.floats(0, 1e4), st.integers(0, 9),
    st.sampled_from([4, 8]),
)  # fmt: skip


@given(st.lists(busy_devices, min_size=MANY, max_size=MANY + 4))
def test_times_of_many_at_once_are_those_of_each(drawn: list[tuple[float, float, float, float, int, int]]) -> None:
    pool = ChainPool(model=replace(facts.model(), hidden_size=1024))
    for number, (layer_s, row_s, rows_per_s, prompts_per_s, num_requests, stop) in enumerate(drawn):
        device = pool.hold(number, 0, stop, layer_s=layer_s, row_s=row_s)
        at = pool.links.row(device.key.node_id)
        pool.links.rates[at] = 10.0 ** (3 + number % 4)
        device.num_requests = num_requests
        device.load = Load(rows_per_s, prompts_per_s) if num_requests else IDLE
        device.suspicion = float(number % 2)
    one_by_one, at_once = index(pool), Candidates(index(pool).model, pool.links)
    at_once.put_all(list(pool.state.devices.values()), pool.now_s)
    slots = list(range(len(drawn)))
    assert np.allclose(at_once.costs(ASK), one_by_one.costs(ASK), rtol=1e-9)
    assert np.allclose(at_once.times_s(slots), one_by_one.times_s(slots), rtol=1e-9)


def test_of_equal_devices_the_one_with_fewer_requests_costs_less(pool: ChainPool) -> None:
    pool.hold(1, 0, 8).num_requests = 1
    pool.hold(2, 0, 8)
    busy, idle = index(pool).costs(ASK)
    assert busy > idle


# ---------------------------------------------------------------- trust


def test_suspicion_halves_every_thirty_seconds_and_adds_up(pool: ChainPool) -> None:
    device = pool.hold(1, 0, 8)
    assert suspicion(device, 5.0) == 0.0
    suspect(device, 10.0)
    assert suspicion(device, 10.0) == 1.0
    assert suspicion(device, 40.0) == pytest.approx(0.5)
    suspect(device, 40.0)
    assert suspicion(device, 40.0) == pytest.approx(1.5)


def test_a_suspected_devices_cost_is_as_many_times_higher(pool: ChainPool) -> None:
    device = pool.hold(1, 0, 8)
    before = index(pool).costs(ASK)[0]
    for _ in range(3):
        suspect(device, 0.0)
    assert index(pool).costs(ASK)[0] == pytest.approx(4 * before)
