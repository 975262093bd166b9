"""Which devices form a lane, before anything is searched for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.forecast import tables_of
from coordinator.scheduler.grouping import (
    Grouper,
    all_sketches,
    by_region,
    group,
    layer_capacities,
    needed_layers,
    sketch_of,
)
from tests.fakes import lane_problems as pools
from tests.fakes.lane_problems import Given


def grouped(caps: list[float], needed: float) -> tuple[list[list[float]], list[float]]:
    """In layers instead of devices."""
    lanes, left = group(range(len(caps)), caps, needed)
    return [[caps[i] for i in lane] for lane in lanes], [caps[i] for i in left]


def test_a_lane_takes_the_roomiest_until_they_suffice() -> None:
    assert grouped([20, 3, 5, 9], 24) == ([[20, 9]], [5, 3])


def test_devices_of_a_lane_are_alike() -> None:
    lanes, left = grouped([12, 8, 12, 8, 8], 24)
    assert lanes == [[12, 12], [8, 8, 8]]
    assert left == []


def test_a_device_that_holds_everything_is_a_lane() -> None:
    lanes, left = grouped([24, 30], 24)
    assert sorted(lanes) == [[24], [30]]
    assert left == []


def test_devices_too_small_for_a_layer_are_in_no_lane() -> None:
    lanes, left = group(range(3), [0.5, 24.0, 0.0], 24)
    assert lanes == [[1]]
    assert left == []


@given(st.lists(st.integers(1, 40), max_size=20), st.integers(1, 60))
def test_lanes_suffice_what_is_left_does_not_and_nobody_is_twice(caps: list[int], needed: int) -> None:
    lanes, left = group(range(len(caps)), caps, needed)
    assert all(sum(caps[i] for i in lane) >= needed for lane in lanes)
    assert sum(caps[i] for i in left) < needed
    assert sorted([*(i for lane in lanes for i in lane), *left]) == list(range(len(caps)))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 60))
def test_no_device_of_a_lane_is_superfluous(caps: list[int], needed: int) -> None:
    for lane in group(range(len(caps)), caps, needed)[0]:
        assert sum(caps[i] for i in lane) - min(caps[i] for i in lane) < needed


def test_the_roomiest_devices_take_the_ends() -> None:
    sketch = sketch_of([0, 1, 2], [5.0, 9.0, 7.0], [0, 0, 0])
    assert sketch[1] == (0,)
    assert {sketch[0], sketch[2]} == {(1,), (2,)}


def test_a_lane_over_regions_crosses_as_rarely_as_it_can() -> None:
    regions = [i % 2 for i in range(8)]
    ring = [regions[stage[0]] for stage in sketch_of(range(8), [5.0] * 8, regions)]
    assert sum(a != b for a, b in zip(ring, [*ring[1:], ring[0]], strict=True)) == 2


def test_offers_are_sorted_by_their_regions() -> None:
    p = tables_of(pools.problem([Given(5, region=1), Given(5), Given(5, region=1)]))
    assert by_region(p.offers) == {1: [0, 2], 0: [1]}


def test_room_for_more_kv_means_fewer_layers_but_never_less_than_the_floor() -> None:
    p = tables_of(pools.problem([Given(10, max_layers=6), Given(10)]))
    assert layer_capacities(p.offers, p.model, 0.0).tolist() == [6.0, 10.0]
    assert layer_capacities(p.offers, p.model, 100_000.0)[1] < 10.0


def test_a_lane_needs_room_for_its_ends_too() -> None:
    p = tables_of(pools.problem([Given(10)]))
    assert needed_layers(p.model, 0.0) == 24 + 2


def test_a_grouper_leaves_out_whoever_is_not_asked_about() -> None:
    p = tables_of(pools.problem([Given(30), Given(30), Given(20), Given(20)]))
    lanes, left = Grouper(p.offers, p.model).lanes([1, 2], 0.0)
    assert lanes == [((1,),)]
    assert left == [2]


def test_a_grouper_asked_for_more_kv_puts_more_devices_into_a_lane() -> None:
    p = tables_of(pools.problem([Given(30), Given(30)]))
    grouper = Grouper(p.offers, p.model)
    few, many = (grouper.lanes(range(2), kv_tokens)[0] for kv_tokens in (0.0, 200_000.0))
    assert [len(lane) for lane in few] == [1, 1]
    assert [len(lane) for lane in many] != [1, 1]
    assert grouper.lanes(range(2), 0.0)[0] == few, "what was asked before does not count"


def test_all_lanes_of_two_devices_are_each_alone_both_orders_and_both_beside_each_other() -> None:
    assert set(all_sketches([3, 7])) == {((3,),), ((7,),), ((3,), (7,)), ((7,), (3,)), ((3, 7),)}


def test_no_lane_of_a_handful_of_devices_is_looked_at_twice() -> None:
    found = all_sketches(range(5))
    assert len(found) == len(set(found)) == 1081  # sum over k of C(5, k) times the ordered partitions of k things
