"""The graph of slices and links, and the cheapest way through it."""

from __future__ import annotations

import math

import pytest

from coordinator.scheduler.candidates import Ask, Candidates
from coordinator.scheduler.cost import model_cost
from coordinator.scheduler.net import (
    LINK_FRESH_S,
    MAX_PAIRS,
    Net,
    PairTimes,
    cheapest_in,
    cheapest_way,
    make_net,
    prices,
    side_by_side,
)
from protocol.values import Variant
from tests.fakes.chain_pool import ChainPool, node

ASK = Ask(10.0, 0.0, 1)


def index(pool: ChainPool) -> Candidates:
    made = Candidates(model_cost(pool.model, Variant.FLOAT32), pool.links)
    for device in pool.state.devices.values():
        made.put(device, 0.0)
    return made


def net_of(pool: ChainPool, candidates: Candidates) -> Net:
    return make_net(candidates, list(candidates.slots.values()), PairTimes(pool.links), keeps_apart=False)


def test_slices_on_no_whole_chain_are_left_out() -> None:
    pool = ChainPool()
    for number, (start, stop) in enumerate([(0, 4), (4, 8), (2, 4), (4, 6), (0, 8), (0, 3)]):
        pool.hold(number, start, stop)
    candidates = index(pool)
    net = net_of(pool, candidates)
    assert sorted(candidates.piece(slot) for slot in net.slots.tolist()) == [(0, 4), (0, 8), (4, 8)]
    [part] = net.parts
    assert (len(part.heads), len(part.tails), part.num_edges, net.num_edges) == (2, 2, 1, 1)


def test_a_net_of_nothing_has_no_way() -> None:
    pool = ChainPool()
    candidates = index(pool)
    assert cheapest_way(net_of(pool, candidates), candidates, ASK) is None


def test_answers_pay_every_hop_and_the_way_back() -> None:
    pool = ChainPool()
    for number, x in ((0, 0.0), (1, 0.01), (2, 0.03)):
        pool.links.set(node(number), x=x)
    pool.hold(0, 0, 4)
    pool.hold(1, 4, 6)
    pool.hold(2, 6, 8)
    candidates = index(pool)
    way = cheapest_way(net_of(pool, candidates), candidates, ASK)
    assert way is not None
    back_s = 0.03 + 4 / 12.5e6
    assert way.cost_s == pytest.approx(10 * 8 * 0.01 + 11 * 0.03 + 10 * back_s)


def test_a_head_may_be_left_out() -> None:
    pool = ChainPool()
    pool.hold(0, 0, 8, layer_s=0.01)
    pool.hold(1, 0, 8, layer_s=0.02)
    candidates = index(pool)
    net = net_of(pool, candidates)
    best = cheapest_way(net, candidates, ASK)
    assert best is not None
    [(part, priced)] = prices(net, candidates, ASK)
    second = cheapest_in(part, priced, math.inf, not_from=best.slots[0])
    assert second is not None
    assert second.slots != best.slots
    assert second.cost_s == pytest.approx(2 * best.cost_s)
    assert cheapest_in(part, priced, second.cost_s, not_from=best.slots[0]) is None, "nothing is below the limit"


def test_a_second_look_finds_a_shorter_ring() -> None:
    pool = ChainPool()
    for number, (start, stop, x) in enumerate([(0, 4, 0.0), (0, 4, 0.02), (4, 6, 0.01), (6, 8, 0.04)]):
        pool.hold(number, start, stop, layer_s=0.01 if number else 0.0099)
        pool.links.set(node(number), x=x)
    candidates = index(pool)
    net = net_of(pool, candidates)
    once, twice = cheapest_way(net, candidates, ASK), cheapest_way(net, candidates, ASK, looks_twice=True)
    assert once is not None
    assert twice is not None
    assert [[int(candidates.device(slot).key.node_id, 16) for slot in way.slots] for way in (once, twice)] == [
        [0, 2, 3],
        [1, 2, 3],
    ]
    assert twice.cost_s < once.cost_s


def test_of_graphs_side_by_side_the_best_way_of_all_is_found() -> None:
    pool = ChainPool()
    for number, layer_s in enumerate((0.02, 0.01, 0.03)):
        pool.hold(2 * number, 0, 4, layer_s=layer_s)
        pool.hold(2 * number + 1, 4, 8, layer_s=layer_s)
    candidates = index(pool)
    slots = list(candidates.slots.values())
    nets = [
        make_net(candidates, slots[first : first + 2], PairTimes(pool.links), keeps_apart=True) for first in (0, 2, 4)
    ]
    way = cheapest_way(side_by_side(nets), candidates, ASK)
    assert way == cheapest_way(nets[1], candidates, ASK)
    assert cheapest_way(side_by_side([]), candidates, ASK) is None


def test_of_ways_with_different_heads_the_one_whose_ring_is_shorter_is_kept() -> None:
    pool = ChainPool()
    pool.hold(0, 0, 4, layer_s=0.010)
    pool.hold(1, 0, 4, layer_s=0.011)
    pool.hold(2, 4, 8)
    pool.links.set(node(0), x=0.0)
    pool.links.set(node(1), x=0.05)
    pool.links.set(node(2), x=0.05)
    candidates = index(pool)
    way = cheapest_way(net_of(pool, candidates), candidates, ASK)
    assert way is not None
    assert [int(candidates.device(slot).key.node_id, 16) for slot in way.slots] == [1, 2]


def test_links_are_asked_for_again_after_a_while() -> None:
    pool = ChainPool()
    pool.links.set(node(1), x=0.01)
    pairs = PairTimes(pool.links)
    pairs.refresh(0.0)
    assert pairs.pair(node(0), node(1)) == (0.01, 1 / 12.5e6)
    assert pairs.pair(node(1), node(1)) == (0.0, 0.0)
    pool.links.set(node(1), x=0.02)
    pairs.refresh(LINK_FRESH_S - 0.1)
    assert pairs.pair(node(0), node(1))[0] == 0.01
    pairs.refresh(LINK_FRESH_S)
    assert pairs.pair(node(0), node(1))[0] == 0.02
    assert MAX_PAIRS > 10_000
