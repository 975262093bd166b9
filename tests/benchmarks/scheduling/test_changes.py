"""Small pools of which the least possible is known by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from benchmarks.scheduling.baselines import POLICIES
from benchmarks.scheduling.changes import (
    Change,
    ChangingPool,
    Effect,
    changes_table,
    measure_changes,
    scenario_of,
    sequence,
)
from benchmarks.scheduling.downloads import Layout, copies_bytes, lacking_bytes, least_bytes, num_copies, parts_of
from coordinator.scheduler.cost import model_cost
from coordinator.scheduler.pieces import Piece
from coordinator.scheduler.plan import Placement, Problem
from coordinator.scheduler.policy import Policy
from coordinator.scheduler.state import DeviceKey
from coordinator.simulate.hardware import VARIANT
from coordinator.simulate.models import MODELS
from coordinator.simulate.scenario import Scenario
from protocol.values import LayerRange, Variant
from tests.benchmarks.scheduling.pool import LAYER_BYTES, facts, key
from tests.coordinator.simulate import pools

TOY = model_cost(facts(12), Variant.BFLOAT16)
SMALL = MODELS["llama3-8b-4bit"]
WHOLE_BYTES = model_cost(SMALL.facts, VARIANT).weight_bytes(LayerRange(0, 32))
LEAVE, JOIN = Change(0, is_join=False), Change(3, is_join=True)


def layout(held: dict[str, Piece], stored: dict[str, Piece] | None = None) -> Layout:
    """Disks have what is held, and what is `stored` besides."""
    on_disk = {**held, **(stored or {})}
    disks = {key(name): parts_of(TOY, piece).keys() for name, piece in on_disk.items()}
    return Layout({key(name): piece for name, piece in held.items()}, disks)


# ---------------------------------------------------------------- the least


def test_copies_are_counted_on_whole_chains_only() -> None:
    held = {key("a"): (0, 6), key("b"): (6, 12), key("c"): (6, 12), key("d"): (0, 5)}
    assert num_copies(TOY, held) == 1
    assert num_copies(TOY, {key("a"): (0, 6), key("d"): (5, 12)}) == 0


def test_a_second_copy_needs_the_layers_that_only_one_disk_has() -> None:
    disks = [range(12), range(4), range(8, 12)]
    ends = {-1: 0.0, -2: 0.0}
    assert copies_bytes(TOY, [*disks, ends], 1) == 0.0
    assert copies_bytes(TOY, disks, 2) == 4 * LAYER_BYTES


def test_a_leave_that_opens_a_hole_costs_the_hole() -> None:
    before = layout({"a": (0, 6)}, {"c": (9, 12)})
    after = layout({"a": (0, 6), "c": (6, 12)})
    assert least_bytes(TOY, before, after, None) == (3 * LAYER_BYTES, 3 * LAYER_BYTES)


def test_a_leave_after_which_everybody_reloads_has_still_the_hole_as_its_least() -> None:
    before = layout({"a": (0, 6)}, {"c": (0, 6)})
    after = layout({"a": (6, 12), "c": (0, 6)})
    assert least_bytes(TOY, before, after, None)[0] == 6 * LAYER_BYTES


def test_a_leave_that_leaves_a_copy_fewer_and_restores_none_needs_nothing() -> None:
    before = layout({"a": (0, 6), "b": (6, 12), "c": (0, 6)})
    assert least_bytes(TOY, before, before, None) == (0.0, 0.0)


def test_a_newcomer_must_load_the_slice_that_it_serves_with() -> None:
    before = layout({"a": (0, 6), "b": (6, 12)})
    after = layout({"a": (0, 6), "b": (6, 12), "n": (6, 12)})
    assert least_bytes(TOY, before, after, key("n")) == (6 * LAYER_BYTES, 6 * LAYER_BYTES)


def test_a_newcomer_that_serves_nobody_needs_nothing() -> None:
    before = layout({"a": (0, 12)})
    after = layout({"a": (0, 12), "n": (2, 5)})
    assert least_bytes(TOY, before, after, key("n")) == (0.0, 0.0)


def test_a_survivor_that_is_put_to_use_counts_in_the_second_figure_only() -> None:
    before = layout({"a": (0, 12), "s": (0, 6)})
    after = layout({"a": (0, 12), "s": (0, 12)})
    least, used = least_bytes(TOY, before, after, None)
    assert (least, used) == (6 * LAYER_BYTES, 6 * LAYER_BYTES)  # a second copy
    after = layout({"a": (0, 6), "b": (6, 12), "s": (6, 12)})
    before = layout({"a": (0, 6), "b": (6, 12), "s": (0, 5)})
    assert least_bytes(TOY, before, after, None) == (0.0, 6 * LAYER_BYTES)


def test_the_ends_own_parts_are_bytes_too() -> None:
    cost = model_cost(SMALL.facts, VARIANT)
    assert lacking_bytes(cost, (0, 32), ()) == pytest.approx(WHOLE_BYTES)
    assert lacking_bytes(cost, (0, 32), range(32)) == pytest.approx(cost.embedding_bytes + cost.head_bytes)


# ---------------------------------------------------------------- sequences


def test_a_sequence_depends_on_its_seed_alone() -> None:
    assert sequence(16, 40, 3) == sequence(16, 40, 3)
    assert sequence(16, 40, 3) != sequence(16, 40, 4)


def test_only_who_is_here_leaves_and_every_newcomer_is_new() -> None:
    here = set(range(5))
    for change in sequence(5, 40, 0):
        assert (change.node in here) is not change.is_join
        here ^= {change.node}
        assert len(here) in {4, 5}


@pytest.mark.parametrize("name", ["petals", "hexgen"])
def test_every_policy_meets_the_same_nodes(name: str) -> None:
    changes = sequence(4, 1, 0)
    ours, theirs = (ChangingPool(scenario_of(4), policy, 1, 0) for policy in (None, POLICIES[name]()))
    for change in changes:
        ours.apply(change)
        theirs.apply(change)
        assert ours.layout().disks.keys() == theirs.layout().disks.keys()


# ---------------------------------------------------------------- pools


class EverybodyMoves:
    """Whatever happens, everybody changes the half of the model, and then what would be left out has all of it."""

    def __init__(self) -> None:
        self._turn = 0
        self._known: frozenset[DeviceKey] = frozenset()

    def allocate(self, problem: Problem) -> list[Placement]:
        return self._halves(problem)

    def adapt(self, problem: Problem) -> list[Placement]:
        keys = frozenset(offer.key for offer in problem.offers)
        if keys == self._known:
            return []
        self._known = keys
        self._turn += 1
        return self._halves(problem)

    def _halves(self, problem: Problem) -> list[Placement]:
        halves = (LayerRange(0, 16), LayerRange(16, 32))
        return [Placement(o.key, halves[(i + self._turn) % 2], "moves") for i, o in enumerate(problem.offers)]


def three_cards() -> Scenario:
    """Each holds the whole model."""
    return pools.scenario(3)


def effects(policy: Policy | None, changes: Sequence[Change]) -> list[Effect]:
    return list(measure_changes(three_cards(), policy, changes, seed=0).effects)


def test_where_everybody_has_all_a_leave_moves_nothing_and_a_join_one_copy() -> None:
    gone, came = effects(None, [LEAVE, JOIN])
    assert (gone.moved, gone.least, gone.num_devices) == (0.0, 0.0, 0)
    assert came.moved == came.least == came.least_used == pytest.approx(WHOLE_BYTES)
    assert (came.num_devices, came.by_serving, came.copies_before, came.copies_after) == (1, 0.0, 2, 3)
    assert gone.served_s == gone.passed_s


def test_a_policy_that_moves_everything_is_counted_with_all_bytes() -> None:
    ours = POLICIES["hexgen"]()
    moves = replace(ours, name="moves", allocator=EverybodyMoves())
    gone, came = effects(moves, [LEAVE, JOIN])
    assert gone.num_devices + came.num_devices >= 3
    assert came.moved > came.least
    assert gone.moved + came.moved > WHOLE_BYTES
    assert came.by_serving > 0.0


def test_the_table_has_a_line_for_each_policy() -> None:
    row = measure_changes(three_cards(), None, [LEAVE, JOIN], seed=0)
    lines = changes_table([row, replace(row, seed=1), replace(row, policy="other")]).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["ours", "other"]
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].split(" | ")[4] == "1.00"
