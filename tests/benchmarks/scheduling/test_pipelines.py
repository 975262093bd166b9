from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scheduling.baselines.capacity import Capacity
from benchmarks.scheduling.baselines.pipelines import cut, cut_smallest, water_fill
from tests.benchmarks.scheduling.pool import offer, problem


def test_layers_are_in_proportion_to_speed() -> None:
    assert water_fill(12, [12, 12, 12], [1.0, 2.0, 3.0]) == [2, 4, 6]


def test_memory_bounds_a_share_and_the_rest_goes_to_the_others() -> None:
    assert water_fill(12, [12, 12, 3], [1.0, 2.0, 3.0]) == [3, 6, 3]


def test_the_largest_remainder_gets_the_layer_that_is_left() -> None:
    assert water_fill(10, [10, 10, 10], [1.0, 1.0, 1.2]) == [3, 3, 4]  # 3.125, 3.125, 3.75


def test_too_little_memory_or_too_many_stages_have_no_filling() -> None:
    assert water_fill(12, [5, 6], [1.0, 1.0]) is None
    assert water_fill(2, [5, 6, 7], [1.0, 1.0, 1.0]) is None
    assert water_fill(2, [5, 0], [1.0, 1.0]) is None


@given(
    st.lists(st.tuples(st.integers(1, 30), st.floats(0.01, 100)), min_size=1, max_size=8),
    st.integers(8, 60),
)
def test_every_filling_is_whole_and_within_memory(stages: list[tuple[int, float]], num_layers: int) -> None:
    capacities, rates = [c for c, _ in stages], [r for _, r in stages]
    counts = water_fill(num_layers, capacities, rates)
    assert (counts is None) == (sum(capacities) < num_layers)
    if counts is not None:
        assert sum(counts) == num_layers
        assert all(1 <= count <= capacity for count, capacity in zip(counts, capacities, strict=True))


def test_the_roomiest_take_the_ends_when_the_given_order_has_no_room_there() -> None:
    capacity = Capacity(problem([offer("a0", 1), offer("a1", 8), offer("a2", 7)], ends=500))
    spans = cut(capacity, [0, 1, 2], [1.0, 1.0, 1.0])
    assert spans is not None
    assert spans[0][0] > 0
    assert spans[0][1] < 12
    assert all(capacity.fits(i, span) for i, span in spans.items())


def test_no_more_devices_are_taken_than_it_takes() -> None:
    capacity = Capacity(problem([offer(f"a{i}", 6) for i in range(5)]))
    assert cut_smallest(capacity, range(5), [1.0] * 5) == {0: (0, 6), 1: (6, 12)}
    assert cut_smallest(capacity, [3], [1.0] * 5) is None
