"""A migration never leaves the pool without a whole chain, ends, and is given up when the pool has changed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.flow import Outlook
from coordinator.scheduler.moves import (
    BYTES_WORTH,
    HEADROOM,
    HORIZON_S,
    LEAST_GAIN,
    LEAST_SOONER,
    MOST_S,
    PATIENCE_S,
    Holding,
    Interruption,
    Migration,
    Step,
    cost_tokens,
    gain_tokens,
    pays,
)
from coordinator.scheduler.pieces import Piece, on_paths
from coordinator.scheduler.plan import Placement
from coordinator.scheduler.state import DeviceKey
from protocol.values import LayerRange
from tests.fakes import pool_facts as facts

Layout = dict[int, Piece | None]


def placement(number: int, start: int, stop: int) -> Placement:
    return Placement(facts.key(number), LayerRange(start, stop), "a reason")


def migration(*lanes: dict[int, Piece], may_stop: bool = False) -> Migration:
    return Migration(
        8, tuple(tuple(placement(n, *piece) for n, piece in lane.items()) for lane in lanes), 0.0, may_stop
    )


def ready(layout: Layout, busy: frozenset[int] = frozenset()) -> dict[DeviceKey, Holding]:
    return {facts.key(n): Holding(p, p is not None, int(n in busy)) for n, p in layout.items()}


def numbers(step: Step) -> tuple[set[int], set[int]]:
    """Who changes, who retires."""
    return {facts.number_of(p.key.node_id) for p in step.changes}, {facts.number_of(k.node_id) for k in step.retiring}


TWO_LANES: Layout = {1: (0, 4), 2: (4, 8), 3: (0, 4), 4: (4, 8)}


def test_free_devices_load_first() -> None:
    move = migration({1: (0, 5), 2: (5, 8)}, {5: (0, 8)})
    assert numbers(move.step(ready({**TWO_LANES, 5: None}), 0.0)) == ({5}, set())


def test_while_something_loads_nothing_that_serves_is_touched() -> None:
    move = migration({1: (0, 5), 2: (5, 8)}, {5: (0, 8)})
    held = {**ready(TWO_LANES), facts.key(5): Holding((0, 8))}
    assert move.step(held, 0.0) == Step()


def test_one_lane_changes_at_a_time() -> None:
    move = migration({1: (0, 5), 2: (5, 8)}, {3: (0, 5), 4: (5, 8)})
    changed, _ = numbers(move.step(ready(TWO_LANES), 0.0))
    assert changed == {1, 2}
    held = {**ready(TWO_LANES), facts.key(1): Holding((0, 5)), facts.key(2): Holding((5, 8))}
    assert move.step(held, 1.0) == Step(), "the other one serves meanwhile"
    assert numbers(move.step(ready({**TWO_LANES, 1: (0, 5), 2: (5, 8)}), 2.0)) == ({3, 4}, set())
    assert move.step(ready({1: (0, 5), 2: (5, 8), 3: (0, 5), 4: (5, 8)}), 3.0).is_over


def test_a_busy_device_gets_nothing_new_and_is_waited_for() -> None:
    move = migration({1: (0, 5), 2: (5, 8)})
    assert numbers(move.step(ready(TWO_LANES, frozenset({1})), 0.0)) == ({2}, {1})
    held = {**ready(TWO_LANES, frozenset({1})), facts.key(2): Holding((5, 8))}
    assert numbers(move.step(held, PATIENCE_S - 1)) == (set(), {1})
    assert numbers(move.step(held, PATIENCE_S)) == ({1}, set())


def test_the_only_whole_chain_is_left_alone() -> None:
    move = migration({1: (0, 5), 2: (5, 8)})
    assert move.step(ready({1: (0, 4), 2: (4, 8)}), 0.0) == Step(is_over=True)


def test_the_only_whole_chain_changes_when_the_new_one_is_ready() -> None:
    move = migration({1: (0, 5), 2: (5, 8)}, {3: (0, 8)})
    assert numbers(move.step(ready({1: (0, 4), 2: (4, 8), 3: None}), 0.0)) == ({3}, set())
    assert numbers(move.step(ready({1: (0, 4), 2: (4, 8), 3: (0, 8)}), 9.0)) == ({1, 2}, set())


def test_what_may_stop_serving_does() -> None:
    move = migration({1: (0, 5), 2: (5, 8)}, may_stop=True)
    assert numbers(move.step(ready({1: (0, 4), 2: (4, 8)}), 0.0)) == ({1, 2}, set())


def test_it_is_given_up_when_a_device_of_the_new_layout_is_gone() -> None:
    move = migration({1: (0, 5), 2: (5, 8)})
    assert move.step(ready({1: (0, 4), 3: (4, 8)}), 0.0).is_over


def test_it_is_given_up_when_nothing_serves_any_more() -> None:
    move = migration({1: (0, 5), 2: (5, 8)})
    move.step(ready(TWO_LANES), 0.0)
    assert move.step(ready({1: (0, 5), 2: (4, 8)}), 1.0).is_over


def test_it_is_given_up_after_a_while() -> None:
    move = migration({1: (0, 5), 2: (5, 8)})
    held = {**ready(TWO_LANES), facts.key(1): Holding((0, 5)), facts.key(2): Holding((5, 8))}
    assert move.step(held, MOST_S) == Step()
    assert move.step(held, MOST_S + 1).is_over


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, list[dict[int, Piece]]]:
    """Lanes of two that serve, devices that are free, and other lanes of the same devices."""
    num_lanes, num_free = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    cuts = st.integers(1, 7)
    before: Layout = {}
    for lane in range(num_lanes):
        cut = draw(cuts)
        before |= {2 * lane + 1: (0, cut), 2 * lane + 2: (cut, 8)}
    before |= dict.fromkeys(range(2 * num_lanes + 1, 2 * num_lanes + 1 + num_free))
    order = draw(st.permutations(sorted(before)))
    wanted = []
    for first, second in zip(order[::2], order[1::2], strict=False):
        cut = draw(cuts)
        wanted.append({first: (0, cut), second: (cut, 8)})
    return before, wanted


@given(layouts())
def test_the_pool_serves_at_every_step_and_the_migration_ends(layout: tuple[Layout, list[dict[int, Piece]]]) -> None:
    before, wanted = layout
    move, held = migration(*wanted), ready(before)
    for now_s in range(200):
        step = move.step(held, float(now_s))
        if step.is_over:
            return
        loading = {key for key, holding in held.items() if holding.piece and not holding.is_ready}
        held |= {p.key: Holding((p.layers.start, p.layers.stop)) for p in step.changes}
        held |= {key: Holding(held[key].piece, is_ready=True) for key in loading}
        assert on_paths({h.piece for h in held.values() if h.piece and h.is_ready}, 8)
    raise AssertionError("it never ends")


# ---------------------------------------------------------------- whether it pays


def seen(tokens_per_s: float, answer_s: float = 10.0) -> Outlook:
    return Outlook(tokens_per_s, answer_s)


def test_more_tokens_than_anybody_wants_are_no_gain() -> None:
    assert gain_tokens(seen(100.0), seen(200.0), math.inf, []) == pytest.approx(100.0 * HORIZON_S)
    assert gain_tokens(seen(100.0), seen(200.0), 120.0 / HEADROOM, []) == pytest.approx(20.0 * HORIZON_S)
    assert gain_tokens(seen(100.0), seen(200.0), 50.0, []) == 0.0


def test_sooner_answers_are_a_gain_even_where_all_are_served() -> None:
    assert gain_tokens(seen(100.0), seen(100.0, 5.0), 80.0, []) > 0.0
    assert gain_tokens(seen(100.0, 5.0), seen(100.0), 80.0, []) < 0.0


def test_answers_that_come_sooner_by_less_than_people_notice_are_none() -> None:
    assert gain_tokens(seen(100.0), seen(100.0, 10.0 * (1.01 - LEAST_SOONER)), 80.0, []) == 0.0


def test_a_gain_that_stands_on_devices_that_will_leave_is_small() -> None:
    steady = gain_tokens(seen(100.0), seen(200.0), math.inf, [0.0])
    assert gain_tokens(seen(100.0), seen(200.0), math.inf, [10 / HORIZON_S]) < 0.15 * steady


def test_moving_costs_what_would_have_been_served_meanwhile() -> None:
    steps = [Interruption(40.0, 60.0), Interruption(10.0, 30.0)]
    assert cost_tokens(seen(100.0), steps, 0.0, math.inf) == pytest.approx(2700.0)
    assert cost_tokens(seen(100.0), steps, 0.0, 50.0) == pytest.approx(1350.0)
    assert cost_tokens(seen(0.0), [], 0.0, math.inf) == 0.0


def test_every_byte_costs_though_nothing_is_interrupted() -> None:
    quarter = cost_tokens(seen(100.0), [], 0.25, 80.0)
    assert 0.0 < quarter < cost_tokens(seen(100.0), [], 0.5, 80.0)
    assert quarter == pytest.approx(BYTES_WORTH * 0.25 * 80.0 * HORIZON_S)


def test_nothing_is_moved_for_less_room_nor_for_a_small_gain_nor_for_one_that_costs_more() -> None:
    gained = 0.5 * 80.0 * HORIZON_S
    assert pays(seen(100.0), seen(100.0), gained, 0.9 * gained, 80.0)
    assert not pays(seen(100.0), seen(99.0), gained, 0.0, 80.0)
    assert not pays(seen(100.0), seen(200.0), gained, 1.1 * gained, 80.0)
    assert not pays(seen(100.0), seen(200.0), 0.9 * LEAST_GAIN * 80.0 * HORIZON_S, 0.0, 80.0)


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(1.0, 10.0))
def test_a_pool_that_meets_its_demand_moves_no_greater_part_of_its_bytes_than_answers_come_sooner(
    part: float, sooner: float, room: float
) -> None:
    before, after = seen(HEADROOM * 80.0), seen(HEADROOM * 80.0 * room, 10.0 * (1.0 - sooner))
    gained, cost = gain_tokens(before, after, 80.0, []), cost_tokens(before, [], part, 80.0)
    assert not pays(before, after, gained, cost, 80.0) or sooner > max(part, LEAST_SOONER) - 1e-9
