"""Phase 1 after a change: what broke is mended with the fewest bytes, and nobody who could help stands idle."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.allocation import LaneAllocator
from coordinator.scheduler.cost import Speed
from coordinator.scheduler.departed import FLAPPING_PER_S
from coordinator.scheduler.pieces import on_paths
from coordinator.scheduler.plan import Offer, Problem
from coordinator.scheduler.problems import fit_of
from coordinator.scheduler.repair import LaneBuilder, repair
from protocol.values import LayerRange
from tests.fakes import pool_facts as facts
from tests.fakes.problem_facts import MODEL, held_after, offer, placed, problem

# ---------------------------------------------------------------- holes


def test_nothing_is_changed_where_everything_serves() -> None:
    assert repair(problem(offer(1, 12, (0, 12)), offer(2, 12, (12, 24)))) == []


def test_a_free_device_fills_the_hole() -> None:
    assert placed(repair(problem(offer(1, 12, (0, 12)), offer(2, 12)))) == {2: (12, 24)}


def test_a_device_that_has_the_layers_on_its_disk_fills_the_hole() -> None:
    pool = problem(offer(1, 12, (0, 12)), offer(2, 24), offer(3, 12, stored=(12, 24), layer_s=0.1))
    [placement] = repair(pool)[:1]
    assert (placement.key, placement.layers) == (facts.key(3), LayerRange(12, 24))
    assert "held before" in placement.reason


def test_the_fewest_that_suffice_fill_a_hole() -> None:
    pool = problem(offer(1, 12, (0, 12)), *(offer(n, 5) for n in range(2, 6)), offer(6, 7))
    filled = placed(repair(pool))
    assert filled[6][0] >= 12
    assert len(on_paths({*filled.values(), (0, 12)}, 24)) == 3


def test_several_devices_share_a_hole_by_their_speed() -> None:
    pool = problem(offer(1, 12, (0, 12)), offer(2, 11, layer_s=0.001), offer(3, 11, layer_s=0.003))
    assert {len(range(*piece)) for piece in placed(repair(pool)).values()} == {3, 9}


def test_around_a_slice_that_a_returning_device_has_on_its_disk_only_the_gaps_are_downloaded() -> None:
    pool = problem(offer(1, 8, (0, 8)), offer(2, 8, stored=(11, 19)), offer(3, 3), offer(4, 5))
    assert placed(repair(pool)) == {2: (11, 19), 3: (8, 11), 4: (19, 24)}


def test_neighbours_take_a_layer_more_where_no_device_is_free() -> None:
    pool = problem(offer(1, 10, (0, 8)), offer(2, 10, (10, 16)), offer(3, 8, (16, 24)))
    assert placed(repair(pool)) in ({1: (0, 10)}, {2: (8, 16)})


def test_slices_shift_where_the_neighbours_of_a_hole_are_full() -> None:
    pool = problem(offer(1, 8, (0, 8)), offer(2, 8, (10, 18)), offer(3, 8, (18, 24)))
    assert held_after(pool, repair(pool)) == {1: (0, 8), 2: (8, 16), 3: (16, 24)}


def test_a_free_device_that_is_too_small_is_helped_by_its_neighbours() -> None:
    pool = problem(offer(1, 10, (0, 8)), offer(2, 4), offer(3, 10, (14, 24)))
    assert held_after(pool, repair(pool)) == {1: (0, 10), 2: (10, 14), 3: (14, 24)}


def test_all_holders_of_a_slice_change_together() -> None:
    pool = problem(offer(1, 12, (0, 10)), offer(2, 12, (0, 10)), offer(3, 12, (12, 24)))
    assert placed(repair(pool)) == {1: (0, 12), 2: (0, 12)}


def test_survivors_of_a_broken_pipeline_do_not_idle_while_they_could_hold_the_model() -> None:
    """42 layers of room, 36 needed, in pieces that no two of which continue each other (Parallax leaves them idle)."""
    model = facts.model(36)
    pool = problem(offer(1, 14, (0, 12)), offer(2, 14, (14, 26)), offer(3, 14, (4, 16)), model=model)
    for builder in (None, LaneAllocator()):
        assert on_paths(set(held_after(pool, repair(pool, builder)).values()), 36)


def test_what_cannot_be_mended_waits_as_it_is() -> None:
    assert repair(problem(offer(1, 12, (0, 12)), offer(2, 4))) == []


def test_a_broken_lane_is_mended_though_another_one_serves() -> None:
    pool = problem(offer(1, 24, (0, 24)), offer(2, 10, (0, 10)), offer(3, 14))
    assert placed(repair(pool)) == {3: (10, 24)}


def test_what_a_ready_slice_lacks_is_loaded_from_disk_though_another_device_loads_it() -> None:
    pool = problem(offer(1, 12, (0, 12)), offer(2, 12, (12, 24), is_loading=True), offer(3, 12, stored=(12, 24)))
    assert placed(repair(pool)) == {3: (12, 24)}


def test_a_device_that_comes_and_goes_is_not_the_only_holder_if_there_is_another() -> None:
    flapping = offer(2, 12, stored=(10, 20), leaves_per_s=2 * FLAPPING_PER_S)
    pool = problem(offer(1, 12, (0, 12)), flapping, offer(3, 12, layer_s=0.1))
    assert placed(repair(pool))[3] == (12, 24)


# ---------------------------------------------------------------- spares


def test_a_spare_stands_beside_the_slowest_stage() -> None:
    pool = problem(offer(1, 12, (0, 12), layer_s=0.01), offer(2, 12, (12, 24), layer_s=0.001), offer(3, 12))
    [placement] = repair(pool)
    assert placement.layers == LayerRange(0, 12)
    assert "narrowest" in placement.reason


def test_a_spare_that_fits_one_slice_only_takes_that() -> None:
    pool = problem(offer(1, 14, (0, 14), layer_s=0.01), offer(2, 10, (14, 24)), offer(3, 10))
    assert placed(repair(pool)) == {3: (14, 24)}


def test_a_spare_that_holds_the_whole_model_is_a_lane_of_its_own() -> None:
    pool = problem(offer(1, 12, (0, 12)), offer(2, 12, (12, 24)), offer(3, 24))
    [placement] = repair(pool)
    assert placement.layers == LayerRange(0, 24)
    assert "2 stages in a row" in placement.reason


def test_a_spare_prefers_what_is_on_its_disk_where_that_gains_about_as_much() -> None:
    lanes = [offer(n, 8, ((n - 1) * 8, n * 8)) for n in (1, 2, 3)]
    for stored in ((0, 8), (8, 16), (16, 24)):
        assert placed(repair(problem(*lanes, offer(4, 8, stored=stored)))) == {4: stored}


def test_spares_spread_over_the_stages() -> None:
    lanes = [offer(n, 8, ((n - 1) * 8, n * 8)) for n in (1, 2, 3)]
    taken = placed(repair(problem(*lanes, *(offer(n, 8) for n in (4, 5)))))
    assert len(set(taken.values())) == 2


def test_spares_that_can_hold_the_model_together_make_a_lane_for_it_or_strengthen_every_stage() -> None:
    pool = problem(offer(1, 12, (0, 12)), offer(2, 12, (12, 24)), offer(3, 12), offer(4, 12))
    for builder in (None, LaneAllocator()):
        taken = placed(repair(pool, builder))
        assert on_paths(set(taken.values()), 24), "both halves have a second holder"


def test_a_spare_smaller_than_every_slice_takes_the_end_of_one() -> None:
    pool = problem(offer(1, 12, (0, 12), layer_s=0.01), offer(2, 12, (12, 24)), offer(3, 5))
    [placement] = repair(pool)
    assert len(placement.layers) == 5
    assert placement.layers.start == 0 or placement.layers.stop == 12


def test_the_holder_of_a_split_slice_keeps_the_rest_as_soon_as_the_other_half_is_ready() -> None:
    slow = Speed(10e-3, 1e-4, 1e-4, 0.0)
    pieces = {1: offer(1, 12, (0, 12)), 2: offer(2, 12, (12, 24)), 3: offer(3, 5, (7, 12), is_loading=True)}
    pieces = {number: replace(piece, speed=slow) for number, piece in pieces.items()}
    assert repair(problem(*pieces.values())) == []
    pieces[3] = replace(pieces[3], is_loading=False)
    assert placed(repair(problem(*pieces.values()))) == {1: (0, 7)}
    pieces[1] = replace(pieces[1], is_busy=True)
    assert repair(problem(*pieces.values())) == [], "not under running requests"


def test_a_fast_device_is_not_split_for_a_slow_one() -> None:
    fast, slow = Speed(1e-3, 1e-5, 1e-5, 0.0), Speed(10e-3, 1e-4, 1e-4, 0.0)
    giant = replace(offer(1, 24, (0, 24)), speed=fast)
    beside = replace(offer(2, 5, (19, 24)), speed=slow)
    assert placed(repair(problem(giant, beside))).get(1) is None


def test_a_device_that_comes_and_goes_is_a_second_holder_but_splits_nothing() -> None:
    pool = [offer(1, 12, (0, 12), layer_s=0.01), offer(2, 12, (12, 24))]
    flapping = [offer(3, room, leaves_per_s=2 * FLAPPING_PER_S) for room in (12, 5)]
    assert placed(repair(problem(*pool, flapping[0]))) == {3: (0, 12)}
    assert repair(problem(*pool, flapping[1])) == []


def test_a_fragment_that_no_lane_needs_strengthens_one_that_serves() -> None:
    pool = problem(offer(1, 12, (0, 12)), offer(2, 12, (12, 24)), offer(3, 12, (5, 17)))
    assert placed(repair(pool)) in ({3: (0, 12)}, {3: (12, 24)})


def test_a_device_too_small_for_any_layer_stands_by() -> None:
    assert repair(problem(offer(1, 24, (0, 24)), offer(2, 0))) == []


# ---------------------------------------------------------------- defects of the field


@pytest.mark.parametrize("builder", [None, LaneAllocator()])
def test_three_devices_of_20_3_and_21_layers_hold_36_layers_with_a_large_head(builder: LaneBuilder | None) -> None:
    """Parallax sorts the smallest last, where the head does not fit, and its scheduler dies of it."""
    layer = facts.model(36).layer_numels[0]
    model = replace(facts.model(36), embedding_numel=3 * layer, head_numel=4 * layer)
    kv = 4 * 10 * 1000
    rooms = [Offer(o.key, float(n * (4 * layer + kv)), 99, o.speed) for n, o in ((23, offer(1, 0)), (3, offer(2, 0)))]
    rooms.append(Offer(facts.key(3), float(24 * (4 * layer + kv)), 99, offer(3, 0).speed))
    pool = problem(*rooms, model=model)
    pieces = held_after(pool, repair(pool, builder))
    assert on_paths(set(pieces.values()), 36)


def test_a_device_that_holds_all_layers_but_not_the_head_is_no_lane_of_its_own() -> None:
    model = replace(MODEL, head_numel=5_000_000)
    bare = Offer(facts.key(1), fit_of(problem(model=model)).need[-1] + model.embedding_numel * 4, 99, offer(1, 0).speed)
    assert repair(problem(bare, model=model)) == []
    other = Offer(facts.key(2), bare.memory_bytes / 2, 99, bare.speed)
    pool = problem(bare, other, model=model)
    assert on_paths(set(placed(repair(pool)).values()), 24)


def test_600_devices_are_planned_without_recursion() -> None:
    keys = [facts.key(1)._replace(device_id=facts.DeviceId(f"cuda:{n}")) for n in range(600)]
    pool = problem(*(replace(offer(1, 8, (n % 3 * 8, n % 3 * 8 + 8)), key=key) for n, key in enumerate(keys)))
    assert repair(pool) == []
    free = replace(pool, offers=tuple(replace(o, held=None) for o in pool.offers), budget=10)
    assert len(repair(free, LaneAllocator())) == 600


@given(st.permutations(range(6)))
def test_the_order_in_which_devices_came_does_not_matter(order: list[int]) -> None:
    rooms = [3, 5, 9, 13, 2, 7]
    state = sorted((offer(n + 1, rooms[n]) for n in order), key=lambda o: o.key)
    assert placed(repair(problem(*state))) == placed(repair(problem(*(offer(n + 1, rooms[n]) for n in range(6)))))


# ---------------------------------------------------------------- always


@st.composite
def pools(draw: st.DrawFn) -> Problem:
    """Any pool: free devices, whole lanes, fragments, things on disks."""
    offers = []
    for number in range(1, draw(st.integers(1, 9)) + 1):
        room = draw(st.integers(0, 26))
        pieces = st.tuples(st.integers(0, 23), st.integers(1, 24)).map(lambda p: (p[0], min(24, p[0] + p[1])))
        held = draw(st.none() | pieces) if room else None
        if held and held[1] - held[0] > room:
            held = (held[0], held[0] + room)
        stored = draw(st.none() | pieces)
        is_loading, leaves_per_s = draw(st.booleans()), draw(st.sampled_from([0.0, 0.0, 1e-2]))
        layer_s = draw(st.sampled_from([0.001, 0.004, 0.05]))
        is_busy = draw(st.booleans()) and held is not None
        offers.append(
            offer(
                number,
                room,
                held,
                stored=stored,
                is_loading=is_loading,
                leaves_per_s=leaves_per_s,
                layer_s=layer_s,
                is_busy=is_busy,
            )
        )
    return problem(*offers)


@given(pools(), st.booleans())
def test_a_repair_fits_keeps_what_serves_and_serves_where_it_can(pool: Problem, with_builder: bool) -> None:
    pool = replace(pool, budget=20)
    placements = repair(pool, LaneAllocator() if with_builder else None)
    fit, by_key = fit_of(pool), {o.key: o for o in pool.offers}
    assert len({p.key for p in placements}) == len(placements)
    for placement in placements:
        assert fit.fits(by_key[placement.key], placement.layers.start, placement.layers.stop)
        assert placement.reason
        assert placement.layers != by_key[placement.key].held
    before = {(o.held.start, o.held.stop) for o in pool.offers if o.held}
    after = set(held_after(pool, placements).values())
    assert bool(on_paths(after, 24)) >= bool(on_paths(before, 24))


@given(pools())
def test_a_second_look_changes_nothing_more(pool: Problem) -> None:
    """What was decided is done and loaded: whoever could be made useful has been."""
    for _ in range(12):
        placements = {p.key: p.layers for p in repair(pool)}
        if not placements:
            return
        offers = [replace(o, held=placements.get(o.key, o.held), is_loading=False, is_busy=False) for o in pool.offers]
        pool = replace(pool, offers=tuple(offers))
    assert {p.key: p.layers for p in repair(pool)} == {}


# ---------------------------------------------------------------- nothing serves


def test_while_nothing_serves_nothing_is_downloaded_but_what_is_missing() -> None:
    ready, missing, spare = offer(1, 12, (0, 12)), offer(2, 12, (12, 24)), offer(3, 12)
    loading = replace(missing, is_loading=True)
    assert repair(problem(ready, loading, spare)) == []
    assert 3 in placed(repair(problem(ready, missing, spare)))


def test_a_pool_that_begins_puts_everybody_to_use_at_once() -> None:
    first = [replace(offer(n, 12, held), is_loading=True) for n, held in ((1, (0, 12)), (2, (12, 24)))]
    assert 3 in placed(repair(problem(*first, offer(3, 12))))


def test_while_nothing_serves_a_hole_goes_to_the_faster_line_though_another_computes_faster() -> None:
    layer_bytes = problem().model.weights[1]
    slow = replace(offer(2, 12, layer_s=0.0005), fetch_bytes_per_s=layer_bytes / 60)
    fast = replace(offer(3, 12), fetch_bytes_per_s=layer_bytes)
    assert placed(repair(problem(offer(1, 12, (0, 12)), slow, fast))) == {3: (12, 24)}


def test_while_another_lane_serves_a_hole_goes_to_whom_computes_faster() -> None:
    layer_bytes = problem().model.weights[1]
    slow = replace(offer(2, 12, layer_s=0.0005), fetch_bytes_per_s=layer_bytes / 60)
    fast = replace(offer(3, 11), fetch_bytes_per_s=layer_bytes)
    assert placed(repair(problem(offer(4, 24, (0, 24)), offer(1, 12, (0, 12)), slow, fast)))[2] == (12, 24)


def test_who_is_already_loading_a_slice_goes_on_if_that_is_soon_enough() -> None:
    loading = replace(offer(2, 6, (12, 18)), is_loading=True, lacking_bytes=problem().model.weights[1])
    assert 2 not in placed(repair(problem(offer(1, 12, (0, 12)), loading, offer(3, 6))))


def test_a_chain_that_is_long_in_coming_is_given_up_for_one_that_is_nearly_there() -> None:
    layer_bytes = problem().model.weights[1]
    before = replace(offer(2, 12, (12, 24), layer_s=0.0005), fetch_bytes_per_s=layer_bytes / 60)
    slow = replace(before, is_loading=True, lacking_bytes=12 * layer_bytes)
    fast = replace(offer(4, 12, (10, 20)), fetch_bytes_per_s=layer_bytes)
    served = replace(problem(offer(1, 12, (0, 12)), slow, fast), has_served=True)
    assert placed(repair(served))[4] == (12, 24)
    assert 4 not in placed(repair(replace(served, has_served=False))), "nobody waits for a pool's first chain"


def test_a_chain_that_is_nearly_there_is_not_given_up() -> None:
    layer_bytes = problem().model.weights[1]
    loading = replace(offer(2, 12, (12, 24)), is_loading=True, lacking_bytes=2 * layer_bytes)
    pool = problem(offer(1, 12, (0, 12)), loading, offer(4, 12, (10, 20)))
    assert repair(replace(pool, has_served=True)) == []
