from __future__ import annotations

import dataclasses

from benchmarks.scheduling.baselines.grouping import OWN_SHARE, GroupAllocator
from protocol.values import LayerRange
from tests.benchmarks.scheduling.pool import KnownLinks, covers, offer, problem, spans_of

ALLOCATOR = GroupAllocator(OWN_SHARE)


def test_groups_are_of_one_region_and_of_like_devices() -> None:
    speeds = {"a0": 1.0, "a1": 4.0, "a2": 1.0, "a3": 4.0, "b0": 1.0, "b1": 1.0}
    asked = problem([offer(name, 9, ms) for name, ms in speeds.items()])
    spans = spans_of(asked, ALLOCATOR.allocate(asked))
    for group in ([0, 2], [1, 3], [4, 5]):
        assert covers([spans[i] for i in group], 12)


def test_a_pipeline_is_asymmetric() -> None:
    asked = problem([offer("a0", 12, 1.0), offer("a1", 12, 2.0)])
    spans = spans_of(asked, ALLOCATOR.allocate(asked))
    assert sorted(stop - start for start, stop in spans.values()) == [4, 8]


def test_stages_follow_the_links() -> None:
    far = dict.fromkeys((("a0", "a1"), ("a1", "a0")), 0.3)
    asked = problem([offer(f"a{i}", 6) for i in range(3)], links=KnownLinks(far))
    spans = spans_of(asked, ALLOCATOR.allocate(asked))
    assert sorted(spans.values()) == [(0, 4), (4, 8), (8, 12)]
    assert spans[2] == (4, 8), "in the middle, as it alone is near to both"


def test_nothing_adapts_to_a_newcomer_but_new_groups_are_used() -> None:
    held = [offer("a0", 12, held=(0, 6)), offer("a1", 12, held=(6, 12))]
    assert ALLOCATOR.adapt(problem([*held, offer("a2", 9)])) == []
    asked = problem([*held, offer("a2", 9), offer("a3", 9)])
    assert covers(spans_of(asked, ALLOCATOR.adapt(asked)).values(), 12)


def test_a_device_that_comes_back_takes_its_own_slice_again() -> None:
    held = [offer("a0", 12, held=(0, 6)), offer("a1", 12, held=(6, 12)), offer("a2", 12, held=(5, 12))]
    back = dataclasses.replace(offer("a3", 12), stored=(LayerRange(0, 5),))
    asked = problem([*held, back])
    assert spans_of(asked, ALLOCATOR.adapt(asked)) == {3: (0, 5)}
    other = dataclasses.replace(back, stored=(LayerRange(0, 4),))
    assert ALLOCATOR.adapt(problem([*held, other])) == [], "nobody continues at 4 any more"
