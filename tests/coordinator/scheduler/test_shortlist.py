"""Which devices are worth looking at."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.scheduler.candidates import Ask, Candidates
from coordinator.scheduler.cost import model_cost
from coordinator.scheduler.net import Net, PairTimes, cheapest_way
from coordinator.scheduler.shortlist import MAX_EDGES, MAX_HEAD_REGIONS, MAX_NETS, best_nets
from protocol.values import Variant
from tests.fakes import pool_facts as facts
from tests.fakes.chain_pool import ChainPool, node

ASK = Ask(100.0, 50.0, 200)


def index(pool: ChainPool) -> Candidates:
    made = Candidates(model_cost(pool.model, Variant.FLOAT32), pool.links)
    for device in pool.state.devices.values():
        made.put(device, 0.0)
    return made


def nets_of(pool: ChainPool, candidates: Candidates) -> list[Net]:
    return best_nets(candidates, ASK, pool.links, PairTimes(pool.links), keeps_apart=False)


def aligned(num_devices: int, num_stages: int, num_regions: int) -> ChainPool:
    pool = ChainPool(model=facts.model(num_stages))
    draw = np.random.default_rng(1)
    for number in range(num_devices):
        region = number // num_stages % num_regions
        pool.links.set(node(number), x=0.1 * region, region=region)
        stage = number % num_stages
        pool.hold(number, stage, stage + 1, layer_s=draw.uniform(0.001, 0.01))
    return pool


@pytest.mark.parametrize(("num_stages", "num_regions"), [(4, 1), (8, 6), (40, 3)])
def test_few_edges_are_left_however_large_the_pool_is(num_stages: int, num_regions: int) -> None:
    pool = aligned(num_stages * 24, num_stages, num_regions)
    candidates = index(pool)
    nets = nets_of(pool, candidates)
    assert 1 <= len(nets) <= MAX_NETS
    assert sum(net.num_edges for net in nets) <= 2 * MAX_EDGES
    assert all(cheapest_way(net, candidates, ASK) for net in nets)


def test_the_likeliest_net_comes_first_and_stays_in_its_region() -> None:
    pool = aligned(48, 4, 3)
    for number, device in enumerate(pool.state.devices.values()):
        if number // 4 % 3 == 2:
            device.slowdown = 0.1
    candidates = index(pool)
    first = cheapest_way(nets_of(pool, candidates)[0], candidates, ASK)
    assert first is not None
    numbers = [int(candidates.device(slot).key.node_id, 16) for slot in first.slots]
    assert {number // 4 % 3 for number in numbers} == {2}


def test_a_chain_across_regions_is_found_where_no_region_has_a_whole_one() -> None:
    pool = aligned(48, 4, 2)
    for number in [n for n in range(48) if (n % 4 < 2) == (n // 4 % 2 == 0)]:
        pool.lose(number)
    candidates = index(pool)
    assert any(cheapest_way(net, candidates, ASK) for net in nets_of(pool, candidates))


def test_a_region_with_one_quick_head_is_not_overlooked_for_regions_with_many() -> None:
    num_regions = 2 * MAX_HEAD_REGIONS
    pool = aligned(4 * 3 * num_regions, 4, num_regions)
    lone = num_regions - 1
    for number, device in enumerate(list(pool.state.devices.values())):
        in_lone, stage, lane = number // 4 % num_regions == lone, number % 4, number // 4 // num_regions
        if in_lone and lane > 0:
            pool.lose(number)
        elif in_lone:
            device.slowdown = 0.01
        elif stage == 0 and lane > 0:  # more kinds of heads elsewhere
            pool.hold(number, 0, 1 + lane)
    candidates = index(pool)
    best = cheapest_way(nets_of(pool, candidates)[0], candidates, ASK)
    assert best is not None
    assert {pool.links.region(candidates.device(slot).key.node_id) for slot in best.slots} == {lone}


def test_who_holds_the_whole_model_pays_no_way_back_within_a_wide_region() -> None:
    pool = ChainPool(model=facts.model(4))
    for number in range(12):
        pool.links.set(node(number), x=0.05 * number, region=0)
        pool.links.set(node(100 + number), x=0.05 * number, region=1 + number)
        pool.hold(number, 0, 4, layer_s=0.02)
        pool.hold(100 + number, 0, 4, layer_s=0.03)
    candidates = index(pool)
    best = cheapest_way(nets_of(pool, candidates)[0], candidates, ASK)
    assert best is not None
    assert int(candidates.device(best.slots[0]).key.node_id, 16) < 100


def test_there_is_no_net_without_a_chain_that_has_room() -> None:
    pool = aligned(16, 4, 1)
    assert nets_of(ChainPool(), index(ChainPool())) == []
    for number in range(1, 16, 4):
        pool.device(number).num_kv_tokens = 199
    assert nets_of(pool, index(pool)) == []
