from __future__ import annotations

import pytest

from benchmarks.scheduling.baselines.capacity import (
    Capacity,
    CapacityRule,
    changes_of,
    is_served,
    on_whole_paths,
    placements_of,
    reaches_end,
)
from protocol.values import MEMORY_FOR_ACTIVATIONS
from tests.benchmarks.scheduling.pool import LAYER_BYTES, NEED_BYTES, offer, problem


def test_a_span_fits_to_the_byte_with_its_kv_floor() -> None:
    capacity = Capacity(problem([offer("a0", 3), offer("a1", 3 - 1 / NEED_BYTES)]))
    assert capacity.fits(0, (4, 7))
    assert not capacity.fits(0, (4, 8))
    assert not capacity.fits(1, (4, 7))


def test_embedding_and_head_count_where_they_are() -> None:
    capacity = Capacity(problem([offer("a0", 4)], ends=500))  # 1000 bytes each: most of a layer's 1100
    assert [capacity.fits(0, span) for span in ((0, 4), (0, 3), (4, 8), (8, 12), (9, 12))] == [
        False,
        True,
        True,
        False,
        True,
    ]
    assert capacity.count(0) == 4
    assert capacity.count(0, first=True) == 3
    assert capacity.count(0, first=True, last=True) == 2


@pytest.mark.parametrize("start", range(12))
def test_reach_is_the_farthest_stop_that_fits(start: int) -> None:
    capacity = Capacity(problem([offer("a0", 4)], ends=500))
    stops = [stop for stop in range(start + 1, 13) if capacity.fits(0, (start, stop))]
    assert capacity.reach(0, start) == max(stops, default=start)


def test_a_weight_share_leaves_the_rest_of_the_memory_to_kv() -> None:
    memory = 11 * LAYER_BYTES / (1 - MEMORY_FOR_ACTIVATIONS) * 0.65
    asked = problem([offer("a0", memory / 0.65 * (1 - MEMORY_FOR_ACTIVATIONS) / NEED_BYTES)])
    assert Capacity(asked).count(0) == 10
    assert Capacity(asked, CapacityRule(weight_share=0.65)).count(0) == 7


def test_kv_tokens_are_room_for_every_layer_up_to_the_context_length() -> None:
    asked = problem([offer("a0", 11)])
    assert Capacity(asked, CapacityRule(kv_tokens=10)).count(0) == 11, "never less than the floor"
    assert Capacity(asked, CapacityRule(kv_tokens=10**6)).count(0) == 11, "the floor is the context length here"


def test_paths_are_whole_only_from_end_to_end() -> None:
    spans = {(0, 4), (4, 8), (8, 12), (4, 9), (2, 8)}
    assert reaches_end(spans, 12)
    assert on_whole_paths(spans, 12) == {(0, 4), (4, 8), (8, 12)}
    assert not reaches_end(spans - {(8, 12)}, 12)
    assert on_whole_paths(spans - {(8, 12)}, 12) == set()


def test_what_is_held_already_is_no_change() -> None:
    asked = problem([offer("a0", 6, held=(0, 6)), offer("a1", 6)])
    assert not is_served(asked)
    assert len(placements_of(asked, {0: (0, 6), 1: (6, 12)}, "because")) == 2
    placed = changes_of(asked, {0: (0, 6), 1: (6, 12)}, "because")
    assert [(p.key, str(p.layers), p.reason) for p in placed] == [(asked.offers[1].key, "6-11", "because")]
