from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks.scheduling.baselines.capacity import CapacityRule
from benchmarks.scheduling.baselines.parallax import OWN_SHARE, ParallaxAllocator, greedy_groups, variation
from tests.benchmarks.scheduling.pool import covers, offer, problem, spans_of

DP = ParallaxAllocator("dp")
GREEDY = ParallaxAllocator("greedy")


@pytest.mark.parametrize("allocator", [DP, GREEDY])
def test_pipelines_stay_within_a_region_where_they_can(allocator: ParallaxAllocator) -> None:
    asked = problem([offer(f"{region}{i}", 10) for i in range(2) for region in "ab"])
    spans = spans_of(asked, allocator.allocate(asked))
    for region in ("a", "b"):
        assert covers([spans[i] for i, o in enumerate(asked.offers) if o.key.node_id[0] == region], 12)


def test_what_no_region_can_use_alone_serves_across_regions() -> None:
    asked = problem([offer("a0", 10), offer("b0", 10), offer("c0", 10), offer("c1", 10)])
    spans = spans_of(asked, DP.allocate(asked))
    assert covers([spans[2], spans[3]], 12)
    assert covers([spans[0], spans[1]], 12)


def test_layers_within_a_pipeline_follow_the_prefill_rate() -> None:
    asked = problem([offer("a0", 20, 1.0), offer("a1", 19.9, 3.0)])
    two_stages = dataclasses.replace(DP, rule=CapacityRule(weight_share=0.4))
    spans = spans_of(asked, two_stages.allocate(asked))
    assert sorted(spans.values()) == [(0, 9), (9, 12)]
    assert spans[0] == (0, 9), "three times as fast, three times as many layers"


def test_weights_take_at_most_the_released_share_of_memory() -> None:
    asked = problem([offer("a0", 14), offer("a1", 14)])
    spans = spans_of(asked, dataclasses.replace(DP, rule=OWN_SHARE).allocate(asked))
    assert sorted(spans.values()) == [(0, 6), (6, 12)], "12 layers fit one of them, but not in 0.65 of its memory"


def test_the_reason_says_when_the_dynamic_program_was_too_large() -> None:
    asked = problem([offer(f"a{i}", 2 + i % 7) for i in range(30)])
    small = dataclasses.replace(DP, max_states=50)
    assert "too large" in small.allocate(asked)[0].reason
    assert spans_of(asked, small.allocate(asked)) == spans_of(asked, GREEDY.allocate(asked))


def test_greedy_closes_a_pipeline_with_the_smallest_that_does() -> None:
    assert greedy_groups([8, 4, 6, 5], 12) == [[0, 1]]
    assert greedy_groups([8, 4, 6, 7], 12) == [[0, 1], [3, 2]]
    assert greedy_groups([12, 20], 12) == [[0], [1]]
    assert greedy_groups([5, 6], 12) == []


def test_a_newcomer_takes_the_least_provisioned_layers() -> None:
    held = [
        offer("a0", 20, 1.0, (0, 4)),
        offer("a1", 20, 1.0, (4, 8)),
        offer("a2", 20, 1.5, (8, 12)),
    ]
    asked = problem([*held, offer("b0", 7)])
    assert spans_of(asked, DP.adapt(asked)) == {3: (8, 12)}


def test_uneven_layers_start_phase_one_anew() -> None:
    held = [offer(f"a{i}", 20, 1.0, (0, 6) if i < 5 else (6, 12)) for i in range(6)]
    asked = problem(held)
    moves = spans_of(asked, DP.adapt(asked))
    after = {i: (0, 6) if i < 5 else (6, 12) for i in range(6)} | moves
    assert moves
    assert covers(after.values(), 12)
    lenient = dataclasses.replace(DP, max_variation=10.0)
    assert spans_of(asked, lenient.adapt(asked)) == {}


def test_variation_is_endless_where_a_layer_has_nobody() -> None:
    assert variation(np.array([1.0, 0.0])) == float("inf")
    assert variation(np.array([2.0, 2.0])) == 0.0
    assert variation(np.array([1.0, 3.0])) == pytest.approx(0.5)


def test_as_released_a_newcomer_stands_by_until_newcomers_form_a_pipeline() -> None:
    standby = ParallaxAllocator("dp", joins="standby")
    held = [offer("a0", 20, held=(0, 6)), offer("a1", 20, held=(6, 12))]
    assert standby.adapt(problem([*held, offer("a2", 9)])) == []
    asked = problem([*held, offer("a2", 9), offer("a3", 9)])
    assert covers(spans_of(asked, standby.adapt(asked)).values(), 12)


def test_as_released_survivors_of_a_broken_pipeline_stand_by_too() -> None:
    standby = ParallaxAllocator("dp", joins="standby")
    held = [offer("a0", 20, held=(0, 6)), offer("a1", 20, held=(6, 12))]
    survivor = offer("a2", 9, held=(0, 7))
    asked = problem([*held, survivor, offer("a3", 9)])
    assert covers(spans_of(asked, standby.adapt(asked)).values(), 12)
    busy = problem([*held, dataclasses.replace(survivor, is_busy=True), offer("a3", 9)])
    assert standby.adapt(busy) == []
