"""How many layers each stage takes, and where exactly the cuts are."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.filling import MOST_KV, Cutter, capacities, fill, most_kv_tokens
from coordinator.scheduler.forecast import tables_of
from coordinator.scheduler.plan import Problem
from coordinator.scheduler.tables import Sketch, lane_batch
from protocol.values import LayerRange
from tests.fakes import lane_problems as pools
from tests.fakes import pool_facts as facts
from tests.fakes.lane_problems import Given


def filled(caps: list[int], times: list[float], num_layers: int, extras: list[float] | None = None) -> list[int]:
    """One lane, one holder a stage."""
    batch = lane_batch([tuple((i,) for i in range(len(caps)))])
    columns = (np.array(caps, dtype=float), np.array(times), np.array(extras or [0.0] * len(caps)))
    return [int(count) for count in fill(*columns, batch, num_layers)]


@st.composite
def lanes_that_suffice(draw: st.DrawFn) -> tuple[list[int], list[float], int]:
    caps = draw(st.lists(st.integers(1, 60), min_size=1, max_size=8))
    times = draw(st.lists(st.floats(1e-6, 1.0), min_size=len(caps), max_size=len(caps)))
    return caps, times, draw(st.integers(len(caps), sum(caps)))


# ---------------------------------------------------------------- counts


@given(lanes_that_suffice())
def test_all_layers_are_dealt_out_within_everybodys_room(lane: tuple[list[int], list[float], int]) -> None:
    caps, times, num_layers = lane
    counts = filled(caps, times, num_layers)
    assert sum(counts) == num_layers
    assert all(1 <= count <= cap for count, cap in zip(counts, caps, strict=True))


@given(lanes_that_suffice(), lanes_that_suffice())
def test_a_lane_is_filled_the_same_whoever_is_beside_it(
    one: tuple[list[int], list[float], int], other: tuple[list[int], list[float], int]
) -> None:
    num_layers = one[2]
    stages = [tuple((i,) for i in range(len(one[0]))), tuple((i,) for i in range(len(other[0])))]
    caps, times = np.array([*one[0], *other[0]], dtype=float), np.array([*one[1], *other[1]])
    both = fill(caps, times, np.zeros(len(caps)), lane_batch(stages), num_layers)
    assert both[: len(one[0])].astype(int).tolist() == filled(one[0], one[1], num_layers)


def test_a_device_that_is_twice_as_fast_takes_twice_the_layers() -> None:
    assert filled([100, 100], [1.0, 2.0], 30) == [20, 10]


def test_what_the_last_stage_does_besides_is_counted_in_layers() -> None:
    assert filled([100, 100], [1.0, 1.0], 30, [0.0, 10.0]) == [20, 10]


def test_what_the_fast_one_has_no_room_for_goes_to_the_others() -> None:
    assert filled([5, 100, 100], [0.01, 1.0, 1.0], 25) == [5, 10, 10]


@given(st.lists(st.floats(0.1, 10.0), min_size=2, max_size=6), st.integers(20, 80))
def test_times_are_as_level_as_whole_layers_allow(times: list[float], num_layers: int) -> None:
    counts = filled([num_layers] * len(times), times, num_layers)
    slowest = max(count * time for count, time in zip(counts, times, strict=True))
    level = num_layers / sum(1 / time for time in times)
    assert slowest <= level + 2 * max(times)


# ---------------------------------------------------------------- room


def room_of(problem: Problem, sketch: Sketch, kv_tokens: float) -> list[float]:
    p = tables_of(problem)
    return [float(c) for c in capacities(p.offers, p.model, lane_batch([sketch]), np.array([kv_tokens]))]


def test_a_stage_holds_what_its_tightest_holder_holds() -> None:
    problem = pools.problem([Given(9), Given(5), Given(7)])
    assert room_of(problem, ((0, 1), (2,)), 0.0) == [5.0, 7.0]


def test_more_kv_leaves_room_for_fewer_layers() -> None:
    problem = pools.problem([Given(10), Given(10)])
    few, many = room_of(problem, ((0,), (1,)), 1_000.0), room_of(problem, ((0,), (1,)), 200_000.0)
    assert few == [10.0, 10.0]
    assert max(many) < 10.0


def test_holders_of_a_stage_share_the_kv_of_its_sessions() -> None:
    problem = pools.problem([Given(10), Given(10), Given(10)])
    alone, shared = room_of(problem, ((0,), (2,)), 200_000.0), room_of(problem, ((0, 1), (2,)), 200_000.0)
    assert shared[0] > alone[0]


def test_the_volunteers_limit_bounds_a_stage() -> None:
    assert room_of(pools.problem([Given(20, max_layers=3), Given(24)]), ((0,), (1,)), 0.0) == [3.0, 24.0]


@given(st.lists(st.integers(2, 30), min_size=1, max_size=5))
def test_the_most_kv_still_leaves_room_for_all_layers_and_more_would_not(rooms: list[int]) -> None:
    problem = pools.problem([Given(room) for room in rooms])
    sketch: Sketch = tuple((i,) for i in range(len(rooms)))
    p = tables_of(problem)
    most = float(most_kv_tokens(p.offers, p.model, lane_batch([sketch]))[0])
    num_layers = problem.model.num_layers
    if most < 0:
        assert sum(room_of(problem, sketch, 0.0)) < num_layers or min(room_of(problem, sketch, 0.0)) < 1
        return
    assert sum(room_of(problem, sketch, most)) >= num_layers
    beyond = room_of(problem, sketch, 1.05 * most)
    is_capped = most >= 0.9 * MOST_KV * problem.kv_floor_tokens
    assert is_capped or sum(beyond) < num_layers or min(beyond) < 1


# ---------------------------------------------------------------- exact cuts


def test_cuts_follow_the_counts_where_layers_are_equal() -> None:
    problem = pools.problem([Given(20), Given(20)])
    assert Cutter(problem).cuts([10, 14], ((0,), (1,))) == [LayerRange(0, 10), LayerRange(10, 24)]


def test_a_large_first_layer_moves_the_cut_so_that_it_fits() -> None:
    model = pools.dense_first(num_layers=12, times=4)
    plain = facts.model(12)
    problem = replace(pools.problem([Given(7), Given(11)], model=plain), model=pools.cost_of(model))
    cutter = Cutter(problem)
    found = cutter.cuts([6, 6], ((0,), (1,)))
    assert found is not None
    assert [len(layers) for layers in found] == [4, 8], "the first stage holds four plain layers' worth in one"
    assert all(cutter.fits(holder, layers.start, layers.stop) for holder, layers in enumerate(found))


def test_there_is_no_cut_where_the_large_layer_fits_nobody() -> None:
    model = pools.dense_first(num_layers=12, times=8)
    problem = replace(pools.problem([Given(7), Given(11)], model=facts.model(12)), model=pools.cost_of(model))
    assert Cutter(problem).cuts([6, 6], ((0,), (1,))) is None


def test_embedding_and_head_need_room_beside_the_layers() -> None:
    heavy = replace(facts.model(12), embedding_numel=2_000_000, head_numel=3_000_000)
    problem = replace(pools.problem([Given(6), Given(6), Given(6)], model=facts.model(12)), model=pools.cost_of(heavy))
    found = Cutter(problem).cuts([4, 4, 4], ((0,), (1,), (2,)))
    assert found is not None
    assert [len(layers) for layers in found] == [4, 5, 3]


def test_a_slice_must_fit_in_memory_and_within_the_volunteers_limit() -> None:
    cutter = Cutter(pools.problem([Given(5), Given(20, max_layers=3)]))
    assert cutter.fits(0, 3, 8)
    assert not cutter.fits(0, 3, 9)
    assert cutter.fits(1, 3, 6)
    assert not cutter.fits(1, 3, 7)


@given(st.lists(st.integers(3, 12), min_size=2, max_size=5), st.integers(1, 5))
def test_whatever_is_cut_fits(rooms: list[int], times: int) -> None:
    plain = facts.model(12)
    problem = pools.problem([Given(room) for room in rooms], model=plain)
    problem = replace(problem, model=pools.cost_of(pools.dense_first(12, times)))
    share, rest = divmod(12, len(rooms))
    counts = [share + (i < rest) for i in range(len(rooms))]
    cutter = Cutter(problem)
    found = cutter.cuts(counts, tuple((i,) for i in range(len(rooms))))
    if found is not None:
        assert [found[0].start, found[-1].stop] == [0, 12]
        assert all(a.stop == b.start for a, b in itertools.pairwise(found))
        assert all(cutter.fits(holder, layers.start, layers.stop) for holder, layers in enumerate(found))
