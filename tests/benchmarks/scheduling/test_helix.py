from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest

from benchmarks.scheduling.baselines.capacity import FLOOR, Capacity, Span
from benchmarks.scheduling.baselines.flow import bottleneck, max_flow, node_rates, span_flow, token_rate
from benchmarks.scheduling.baselines.helix import HelixAllocator, cluster_of
from benchmarks.scheduling.baselines.helix_milp import Effort, solve
from benchmarks.scheduling.baselines.helix_routing import HelixRouter, RoundRobin, flows_of, kept_links
from coordinator.scheduler.cost import Workload
from coordinator.scheduler.plan import Problem
from protocol.values import Variant
from tests.benchmarks.scheduling.pool import chain, device, offer, problem, request, spans_of, speed, state_of

EFFORT = Effort(num_tree_nodes=5_000, time_limit_s=20.0)


def tiny() -> Problem:
    return problem([offer("a0", 3, 1.0), offer("a1", 2, 2.0), offer("a2", 2, 1.0), offer("a3", 1, 3.0)], num_layers=4)


@cache
def greatest_flow() -> float:
    """Of the tiny pool, over every placement."""
    asked = tiny()
    capacity, rates = Capacity(asked), node_rates(asked)
    num_layers = asked.model.num_layers
    every = [(a, b) for a in range(num_layers) for b in range(a + 1, num_layers + 1)]
    options: list[list[Span | None]] = [
        [None, *(span for span in every if capacity.fits(i, span))] for i in range(len(asked.offers))
    ]
    placements = ({i: s for i, s in enumerate(chosen) if s} for chosen in itertools.product(*options))
    return max(span_flow(spans, rates, num_layers) for spans in placements)


def test_a_flow_is_limited_by_its_narrowest_place() -> None:
    edges = [(0, 1, 5.0), (0, 2, 3.0), (1, 3, 2.0), (2, 3, 9.0), (1, 2, 1.0)]
    value, flows = max_flow(4, edges, 0, 3)
    assert value == pytest.approx(6.0)
    assert flows[2] == pytest.approx(2.0)
    assert flows[3] == pytest.approx(4.0)


def test_edges_between_the_same_nodes_share_their_flow() -> None:
    value, flows = max_flow(3, [(0, 1, 1.0), (0, 1, 3.0), (1, 2, 2.0)], 0, 2)
    assert value == pytest.approx(2.0)
    assert flows == pytest.approx([0.5, 1.5, 2.0])


def test_a_link_without_a_limit_does_not_limit() -> None:
    assert max_flow(3, [(0, 1, np.inf), (1, 2, 2.0)], 0, 2)[0] == pytest.approx(2.0)
    assert max_flow(2, [], 0, 1) == (0.0, [])


def test_a_nodes_rate_counts_the_prompts_share() -> None:
    alone = token_rate(speed(), 2.0, Workload(num_prompt_tokens=0, num_answer_tokens=100))
    assert alone == pytest.approx(1 / (2 * (0.9e-3 / 16 + 0.1e-3)))
    assert token_rate(speed(), 2.0, Workload(200, 100)) == pytest.approx(1 / (1 / alone + 2 * 2 * 0.05e-3))


def test_the_flow_of_a_placement_adds_up_holders_and_takes_the_weakest_place() -> None:
    asked = problem([offer("a0", 6, 1.0), offer("a1", 6, 1.0), offer("a2", 6, 4.0)])
    rates = node_rates(asked)
    spans = {0: (0, 6), 1: (6, 12), 2: (6, 12)}
    fast, slow = rates.slice_rate(1, (6, 12)), rates.slice_rate(2, (6, 12))
    assert span_flow(spans, rates, 12) == pytest.approx(fast)
    assert span_flow({0: (0, 6), 2: (6, 12)}, rates, 12) == pytest.approx(slow)
    assert bottleneck({0: (0, 6), 2: (6, 12)}, rates, 12) == [(6, 12)]


def test_the_integer_program_finds_the_greatest_flow() -> None:
    asked = tiny()
    capacity, rates = Capacity(asked), node_rates(asked)
    spans = solve(cluster_of(capacity, rates), EFFORT)
    assert spans is not None
    assert span_flow(spans, rates, 4) == pytest.approx(greatest_flow(), rel=1e-3)


def test_the_integer_program_knows_what_fits_beside_the_ends() -> None:
    asked = problem([offer("a0", 4), offer("a1", 4), offer("a2", 4)], num_layers=8, ends=1_000)
    capacity, rates = Capacity(asked), node_rates(asked)
    spans = solve(cluster_of(capacity, rates), EFFORT)
    assert spans is not None
    useful = {i: span for i, span in spans.items() if capacity.fits(i, span)}
    assert span_flow(useful, rates, 8) > 0


def test_the_allocator_places_for_the_greatest_flow() -> None:
    asked = tiny()
    allocator = HelixAllocator(rule=FLOOR, effort=EFFORT)
    spans = spans_of(asked, allocator.allocate(asked))
    assert span_flow(spans, node_rates(asked), 4) == pytest.approx(greatest_flow(), rel=1e-3)


def test_local_search_alone_comes_near_to_it() -> None:
    asked = tiny()
    spans = spans_of(asked, HelixAllocator(rule=FLOOR, effort=None).allocate(asked))
    assert span_flow(spans, node_rates(asked), 4) >= 0.8 * greatest_flow()


def test_a_newcomer_strengthens_the_weakest_place() -> None:
    asked = problem([offer("a0", 6, 1.0, (0, 6)), offer("a1", 6, 5.0, (6, 12)), offer("a2", 20)])
    assert spans_of(asked, HelixAllocator().adapt(asked)) == {2: (6, 12)}


# ---------------------------------------------------------------- requests


def test_turns_are_taken_by_weight_and_interleaved() -> None:
    turn = RoundRobin({1: 3.0, 2: 1.0})
    taken = []
    for _ in range(8):
        taken.append(turn.order([1, 2])[0])
        turn.take(taken[-1], [1, 2])
    assert taken.count(1) == 6
    assert taken[:4] != [1, 1, 1, 2], "not all of one and then the other"


def test_a_masked_node_has_no_turn_and_no_debt() -> None:
    turn = RoundRobin({1: 1.0, 2: 1.0})
    for _ in range(10):
        turn.take(1, [1])
    taken = []
    for _ in range(4):
        taken.append(turn.order([1, 2])[0])
        turn.take(taken[-1], [1, 2])
    assert sorted(taken) == [1, 1, 2, 2]


def test_requests_are_shared_in_proportion_to_flow() -> None:
    devices = [device("a0", (0, 6), 0.5), device("a1", (6, 12), 1.0), device("a2", (6, 12), 3.0)]
    router = HelixRouter(state_of(devices))
    graph = router.graphs.get("m", Variant.BFLOAT16)
    assert graph is not None
    flows = flows_of(graph, dict.fromkeys(kept_links(graph, 0.0), np.inf))
    share = flows[0, 2] / (flows[0, 1] + flows[0, 2])
    chains = [chain(router, request(1)) for _ in range(100)]
    assert sum(c[-1] == "a2" for c in chains) == pytest.approx(100 * share, abs=1.5)
    assert 0.1 < share < 0.5


def test_a_dead_end_further_on_leads_to_another_way() -> None:
    devices = [device("a0", (0, 6)), device("a1", (6, 12)), device("a2", (0, 4)), device("a3", (4, 12))]
    router = HelixRouter(state_of(devices))
    devices[1].num_reserved_tokens = devices[1].num_kv_tokens
    router.changed(devices[1])
    assert [chain(router) for _ in range(3)] == [["a2", "a3"]] * 3
