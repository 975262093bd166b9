"""Phase 2: the chain on which a request is expected to be done first."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.scheduler.candidates import Ask, Candidates, suspect
from coordinator.scheduler.cost import model_cost
from coordinator.scheduler.net import APART_PENALTY_S, PairTimes, cheapest_way, make_net
from coordinator.scheduler.policy import SchedulerConfig
from coordinator.scheduler.routing import SMALL_POOL, exact_chain
from coordinator.scheduler.state import Device, DeviceState, Load
from protocol.values import DeviceId, LayerRange, Variant
from tests.fakes import pool_facts as facts
from tests.fakes.chain_pool import ChainPool, chains, key, node, number_of


@pytest.fixture
def pool() -> ChainPool:
    return ChainPool()


# ---------------------------------------------------------------- whole chains


def test_the_chain_holds_every_layer_once_in_order(pool: ChainPool) -> None:
    pool.hold(1, 4, 8)
    pool.hold(2, 0, 4)
    pool.hold(3, 2, 8)
    assert pool.route() == [2, 1]


def test_there_is_none_with_a_hole_or_with_overlaps_only(pool: ChainPool) -> None:
    assert pool.route() == []
    pool.hold(1, 0, 5)
    pool.hold(2, 4, 8)
    pool.hold(3, 6, 8)
    assert pool.route() == []


def test_a_device_without_room_loading_draining_or_of_another_variant_is_passed_over(pool: ChainPool) -> None:
    pool.hold(1, 0, 8, layer_s=0.0001, room=19)
    loading = pool.hold(2, 0, 8, layer_s=0.0001)
    loading.state = DeviceState.ASSIGNED
    pool.dispatcher.changed(loading)
    pool.hold(3, 0, 8, layer_s=0.0001)
    pool.state.draining.add(node(3))
    pool.hold(4, 0, 8, layer_s=0.0001, variant=Variant.BFLOAT16)
    assert pool.route() == []
    pool.hold(5, 0, 8)
    assert pool.route() == [5]
    pool.state.draining.clear()
    assert pool.route() == [3]


def test_a_device_that_changed_without_a_word_is_not_used(pool: ChainPool) -> None:
    pool.hold(1, 0, 8, layer_s=0.001)
    pool.hold(2, 0, 8, layer_s=0.002)
    pool.hold(3, 0, 8, layer_s=0.003)
    pool.hold(4, 0, 8, layer_s=0.004)
    assert pool.route() == [1]
    pool.device(1).state = DeviceState.FAILED
    del pool.state.devices[key(2)]
    pool.device(3).layers = LayerRange(0, 4)
    assert pool.route() == [4]


def test_devices_to_avoid_are_avoided(pool: ChainPool) -> None:
    pool.hold(1, 0, 8)
    pool.hold(2, 0, 8, layer_s=0.5)
    assert pool.route(avoid=frozenset({key(1)})) == [2]
    assert pool.route(avoid=frozenset({key(1), key(2)})) == []


# ---------------------------------------------------------------- what costs


def test_the_quicker_device_is_taken_layers_counted(pool: ChainPool) -> None:
    """PARALLAX.md, 2.4, 12: one latency per node, whatever the layers, chose 216 ms over 41."""
    pool.hold(1, 0, 7, layer_s=0.02)
    pool.hold(2, 7, 8, layer_s=0.001)
    pool.hold(3, 0, 1, layer_s=0.02)
    pool.hold(4, 1, 8, layer_s=0.001)
    assert pool.route() == [3, 4]


def test_a_nearer_chain_is_better_than_a_quicker_one_far_apart(pool: ChainPool) -> None:
    pool.hold(1, 0, 4, layer_s=0.005)
    pool.hold(2, 4, 8, layer_s=0.005)
    pool.hold(3, 4, 8, layer_s=0.001)
    pool.links.set(node(3), x=0.08)
    assert pool.route() == [1, 2]


def test_the_way_back_from_the_tail_counts_too(pool: ChainPool) -> None:
    for number, x in enumerate([0.0, 0.0, 0.04], start=1):
        pool.links.set(node(number), x=x)
    pool.hold(1, 0, 4)
    pool.hold(2, 4, 8, layer_s=0.02)
    pool.hold(3, 4, 8, layer_s=0.005)
    assert pool.route() == [1, 2], "40 ms there and 40 ms back are more than the 60 ms saved"
    pool.links.set(node(3), x=0.025)
    pool.now_s += 100
    assert pool.route() == [1, 3]


def test_a_long_prompt_goes_where_prompts_are_quick_or_uploads_are(pool: ChainPool) -> None:
    model = facts.model()
    pool = ChainPool(model=replace(model, hidden_size=10_000))
    for number, rate in ((1, 1e6), (2, 1e8)):
        pool.hold(number, 0, 4, layer_s=0.001 * number)
        pool.links.set(node(number))
        pool.links.rates[pool.links.row(node(number))] = rate
    pool.hold(3, 4, 8, layer_s=0.001)
    assert pool.route(num_prompt_tokens=0, num_new_tokens=1) == [2, 3], "40 kB take 40 ms from node 1"
    pool.links.rates[:] = 1e12
    pool.now_s += 100
    assert pool.route(num_prompt_tokens=0, num_new_tokens=1) == [1, 3]


def test_requests_spread_over_equal_devices_from_the_first_on(pool: ChainPool) -> None:
    for number in range(3):
        pool.hold(number, 0, 8)
    used = [tuple(chain) for number in range(9) for chain in chains(pool.arrive(number))]
    assert Counter(used) == {(0,): 3, (1,): 3, (2,): 3}


def test_a_burst_fills_the_quick_device_only_until_the_slow_one_is_as_good(pool: ChainPool) -> None:
    pool.hold(1, 0, 8, layer_s=0.001, row_s=0.001)
    pool.hold(2, 0, 8, layer_s=0.003, row_s=0.001)
    used = Counter(chain[0] for number in range(12) for chain in chains(pool.arrive(number)))
    assert used[1] >= used[2] > 0


def test_a_chain_within_the_bound_is_found_where_a_slow_one_would_cost_others_less(pool: ChainPool) -> None:
    bound_s = SchedulerConfig().bound.tpot_s
    pool.hold(1, 0, 8, layer_s=1.01 * bound_s / 8)
    quick = pool.hold(2, 0, 8, layer_s=0.2 * bound_s / 8, row_s=0.02 * bound_s / 8)
    quick.num_requests, quick.load = 30, Load(100.0)
    pool.dispatcher.changed(quick)
    candidates = index_of(pool)
    slow_cost, quick_cost = candidates.costs(Ask(100.0, 10.0, 20))
    assert slow_cost < quick_cost
    assert pool.route(num_new_tokens=100) == [2]


def test_a_device_that_broke_chains_is_left_alone_for_a_while(pool: ChainPool) -> None:
    """A black hole: it fails fast, so it is always idle."""
    pool.hold(1, 0, 8, layer_s=0.001)
    pool.hold(2, 0, 8, layer_s=0.0025)
    assert pool.route() == [1]
    pool.dispatcher.broke(key(1), 0.0)
    pool.dispatcher.broke(key(1), 0.0)
    assert pool.route() == [2]
    pool.now_s = 31.0
    assert pool.route() == [1]
    pool.now_s = 1000.0
    pool.route()
    assert pool.device(1).suspicion == 0.0


def test_a_hung_device_keeps_the_load_of_what_it_never_finishes(pool: ChainPool) -> None:
    pool.hold(1, 0, 8, layer_s=0.0010, row_s=0.001)
    pool.hold(2, 0, 8, layer_s=0.0011, row_s=0.001)
    for number in range(40):
        pool.arrive(number)
        if number_of(pool.state.running[facts.session_id(number)].devices[0]) == 2:
            pool.finish(number)
    assert pool.device(1).num_requests <= 2, "after a few that did not come back, all go elsewhere"


# ---------------------------------------------------------------- cached prefixes


def cached(pool: ChainPool, *numbers: int) -> None:
    for number in numbers:
        pool.device(number).has_prefix_cache = True


def run(pool: ChainPool, number: int, affinity: tuple[int, ...]) -> list[int]:
    commands = pool.arrive(number, 900, num_prompt=800, affinity=affinity)
    pool.finish(number)
    return chains(commands)[0]


def test_a_session_comes_back_to_the_chain_that_has_its_prefix(pool: ChainPool) -> None:
    for number in (1, 2):
        pool.hold(number, 0, 4, layer_s=0.001 + 0.0001 * number)
        pool.hold(number + 2, 4, 8, layer_s=0.001 + 0.0001 * number)
    cached(pool, 1, 2, 3, 4)
    for number in (1, 1, 3, 3):
        pool.dispatcher.broke(key(number), 0.0)
    assert run(pool, 1, (11, 12, 13)) == [2, 4]
    pool.now_s = 1000.0
    assert run(pool, 2, (21,)) == [1, 3]
    assert run(pool, 3, (11, 12, 13, 14)) == [2, 4]
    assert run(pool, 4, (98, 99)) == [1, 3], "another beginning"


def test_a_prefix_counts_only_if_every_stage_has_it(pool: ChainPool) -> None:
    pool.hold(1, 0, 4, layer_s=0.001)
    pool.hold(2, 0, 4, layer_s=0.0015)
    pool.hold(3, 4, 8, layer_s=0.001)
    cached(pool, 2)
    pool.dispatcher.broke(key(1), 0.0)
    assert run(pool, 1, (11, 12)) == [2, 3]
    pool.now_s = 1000.0
    assert run(pool, 2, (11, 12)) == [1, 3]


def test_a_cache_does_not_outlive_its_slice(pool: ChainPool) -> None:
    pool.hold(1, 0, 8, layer_s=0.0015)
    cached(pool, 1)
    assert run(pool, 1, (11, 12)) == [1]
    pool.hold(2, 0, 8, layer_s=0.001)
    assert run(pool, 2, (11, 12)) == [1]
    pool.device(1).generation += 1
    assert run(pool, 3, (11, 12)) == [2]


def test_a_cached_prefix_is_not_worth_any_wait(pool: ChainPool) -> None:
    pool.hold(1, 0, 8, layer_s=0.001)
    cached(pool, 1)
    assert run(pool, 1, (11,)) == [1]
    pool.hold(2, 0, 8, layer_s=0.001)
    pool.device(1).slowdown = 100.0
    pool.dispatcher.changed(pool.device(1))
    assert run(pool, 2, (11,)) == [2]


# ---------------------------------------------------------------- diversity

APART = SchedulerConfig(keeps_apart=True)


def test_neighbouring_stages_are_on_different_nodes_if_that_is_wanted_and_possible() -> None:
    pool = ChainPool(APART)
    pool.hold(1, 0, 4)
    pool.hold(1, 4, 8, device_id=DeviceId("cuda:1"))
    assert pool.route() == [1, 1], "there is no other chain"
    pool.hold(2, 4, 8, layer_s=0.1)
    assert pool.route() == [1, 2]
    together = ChainPool()
    together.hold(1, 0, 4)
    together.hold(1, 4, 8, device_id=DeviceId("cuda:1"))
    together.hold(2, 4, 8)
    together.links.set(node(2), x=0.01)
    assert together.route() == [1, 1]


def test_a_tenants_parallel_requests_go_over_different_chains_if_that_is_wanted_and_possible() -> None:
    pool = ChainPool(APART)
    for number in (1, 2, 3):
        pool.hold(number, 0, 8, layer_s=0.001 * 4**number)
    assert chains(pool.arrive(1, tenant="a")) == [[1]]
    assert chains(pool.arrive(2, tenant="a")) == [[2]]
    assert chains(pool.arrive(3, tenant="b")) == [[1]]
    assert chains(pool.arrive(4, tenant="a")) == [[3]]
    assert len(chains(pool.arrive(5, tenant="a"))) == 1, "no other chain is left, so one is shared"


# ---------------------------------------------------------------- against all chains there are


def all_chains(devices: list[Device], num_layers: int, start: int = 0) -> list[list[Device]]:
    if start == num_layers:
        return [[]]
    found = []
    for device in devices:
        if device.layers is not None and device.layers.start == start:
            found += [[device, *rest] for rest in all_chains(devices, num_layers, device.layers.stop)]
    return found


def index_of(pool: ChainPool) -> Candidates:
    full = Candidates(model_cost(pool.model, Variant.FLOAT32), pool.links)
    for device in pool.state.devices.values():
        full.put(device, pool.now_s)
    return full


def cost_of(pool: ChainPool, full: Candidates, chain: list[Device]) -> float:
    slots = [full.slots[device.key] for device in chain]
    way = cheapest_way(make_net(full, slots, PairTimes(pool.links), keeps_apart=False), full, Ask(10, 10, 20))
    assert way is not None
    return way.cost_s


places = st.tuples(st.floats(0, 0.1), st.floats(0, 0.1))
pieces = st.tuples(st.integers(0, 5), st.integers(1, 6), st.floats(0.001, 0.1), places).filter(lambda s: s[0] < s[1])


@settings(deadline=None)
@given(st.lists(pieces, max_size=7))
def test_no_chain_is_cheaper_than_the_exact_one_and_none_is_overlooked(
    drawn: list[tuple[int, int, float, tuple[float, float]]],
) -> None:
    pool = ChainPool(model=facts.model(6))
    for number, (start, stop, layer_s, (x, y)) in enumerate(drawn):
        pool.hold(number, start, stop, layer_s=layer_s)
        pool.links.set(node(number), x, y)
    every = all_chains(list(pool.state.devices.values()), 6)
    exact = exact_chain(pool.state, pool.ask(), Variant.FLOAT32, 0.0)
    found = pool.route()
    assert bool(found) == bool(exact) == bool(every)
    if exact is not None:
        full = index_of(pool)
        costs = [cost_of(pool, full, chain) for chain in every]
        assert exact[0] == pytest.approx(min(costs))
        assert exact[1] in every
        chosen = [pool.device(number) for number in found]
        assert chosen in every
        assert cost_of(pool, full, chosen) <= 1.5 * exact[0]


def random_pool(seed: int, *, num_devices: int, cuts: list[int] | None, num_regions: int) -> ChainPool:
    """Chains of four slices, all cut alike or each for itself, in regions up to 100 ms apart."""
    pool = ChainPool(model=replace(facts.model(24), hidden_size=4096))
    draw = np.random.default_rng(seed)
    centres = draw.uniform(0, 0.1, (num_regions, 2))
    number = 0
    while number < num_devices:
        region = int(draw.integers(num_regions))
        ends = cuts or [0, *sorted(draw.choice(np.arange(1, 24), 3, replace=False).tolist()), 24]
        for start, stop in itertools.pairwise(ends):
            x, y = centres[region] + draw.normal(0, 0.003, 2)
            pool.links.set(node(number), x, y, draw.uniform(0, 0.003), region=region)
            pool.hold(number, start, stop, layer_s=draw.uniform(0.0002, 0.001), row_s=0.00005)
            number += 1
    return pool


@pytest.mark.parametrize("cuts", [[0, 6, 12, 18, 24], None])
@pytest.mark.parametrize("num_regions", [1, 4])
def test_a_shortlists_best_is_near_the_best_of_all(cuts: list[int] | None, num_regions: int) -> None:
    pool = random_pool(7, num_devices=120, cuts=cuts, num_regions=num_regions)
    assert len(pool.state.devices) > SMALL_POOL
    distances = []
    for number in range(30):
        exact = exact_chain(pool.state, pool.ask(), Variant.FLOAT32, pool.now_s)
        full = index_of(pool)
        found = [pool.device(n) for n in pool.route()]
        assert exact is not None
        distances.append(cost_of(pool, full, found) / exact[0] - 1)
        pool.arrive(number)
    assert np.mean(distances) < 0.07
    assert min(distances) > -1e-9


@pytest.mark.parametrize("cuts", [[0, 6, 12, 18, 24], None])
def test_a_shortlist_finds_the_last_chain_that_has_room(cuts: list[int] | None) -> None:
    pool = random_pool(3, num_devices=80, cuts=cuts, num_regions=3)
    assert pool.route()
    for device in pool.state.devices.values():
        if number_of(device.key) not in (8, 9, 10, 11):
            device.num_reserved_tokens = device.num_kv_tokens
            pool.router.changed(device)
    assert pool.route() == [8, 9, 10, 11]
    pool.lose(9)
    assert pool.route() == []


def test_devices_that_join_and_leave_are_seen_at_once() -> None:
    pool = random_pool(5, num_devices=60, cuts=None, num_regions=2)
    pool.hold(777, 0, 24, layer_s=0.00001)
    assert pool.route() == [777]
    pool.lose(777)
    assert pool.route() != [777]


def test_penalties_for_being_together_exceed_any_chain() -> None:
    pool = random_pool(5, num_devices=60, cuts=None, num_regions=4)
    exact = exact_chain(pool.state, pool.ask(num_new_tokens=4000), Variant.FLOAT32, 0.0)
    assert exact is not None
    assert exact[0] < APART_PENALTY_S


def test_the_same_events_lead_to_the_same_chains() -> None:
    def used() -> list[list[int]]:
        pool = random_pool(11, num_devices=60, cuts=None, num_regions=2)
        return [chain for number in range(40) for chain in chains(pool.arrive(number))]

    assert used() == used()


def test_what_is_predicted_is_what_the_parts_take(pool: ChainPool) -> None:
    pool = ChainPool(model=replace(facts.model(), hidden_size=1000))
    pool.hold(1, 0, 4, layer_s=0.01)
    pool.hold(2, 4, 8, layer_s=0.02)
    pool.links.set(node(2), x=0.03)
    found = pool.router.route(pool.ask(num_prompt_tokens=100, num_new_tokens=50), Variant.FLOAT32, 0.0)
    assert found is not None
    tpot_s = 0.04 + 0.08 + 0.03 + 4000 / 12.5e6 + 0.03 + 4 / 12.5e6
    assert found.tpot_s == found.idle_tpot_s == pytest.approx(tpot_s)
    assert found.rows_per_s == pytest.approx(1 / tpot_s)
    ttft_s = 100 * (0.004 + 0.008 + 4000 / 12.5e6) + 0.03
    assert found.prompt_tokens_per_s == pytest.approx(100 / (ttft_s + 50 * tpot_s))


def test_suspicion_is_no_part_of_what_is_predicted(pool: ChainPool) -> None:
    device = pool.hold(1, 0, 8)
    suspect(device, 0.0)
    found = pool.router.route(pool.ask(), Variant.FLOAT32, 0.0)
    assert found is not None
    assert found.tpot_s == pytest.approx(0.08)
