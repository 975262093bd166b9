"""When the planner moves to a new layout by itself, and that it serves on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from coordinator.scheduler.commands import Assign, Command, Release
from coordinator.scheduler.cost import Workload
from coordinator.scheduler.migrations import CHECK_S, LEAST_BETWEEN_S, QUIET_S, RECHECK_S
from coordinator.scheduler.moves import PATIENCE_S
from coordinator.scheduler.pieces import Piece, on_paths
from coordinator.scheduler.plan import Placement, Problem
from coordinator.scheduler.planner import Planner
from coordinator.scheduler.policy import Policy, SchedulerConfig
from coordinator.scheduler.state import Device, DeviceKey, DeviceState, Signal, Slice, State
from protocol.values import LayerRange
from tests.fakes import pool_facts as facts

MODEL = facts.model(8)
BALANCED: dict[int, Piece] = {1: (0, 4), 2: (4, 8), 3: (0, 4), 4: (4, 8)}
UNEVEN: dict[int, Piece] = {1: (0, 1), 2: (1, 8), 3: (0, 1), 4: (1, 8)}


@dataclass
class Wants:
    """An allocator that always wants the same."""

    wanted: dict[int, Piece]
    repairs: Sequence[Placement] = ()
    num_asked: int = 0

    def allocate(self, problem: Problem) -> Sequence[Placement]:
        self.num_asked += 1
        keys = {o.key for o in problem.offers}
        placements = [Placement(facts.key(n), LayerRange(*piece), "wanted") for n, piece in self.wanted.items()]
        return [p for p in placements if p.key in keys]

    def adapt(self, problem: Problem) -> Sequence[Placement]:
        held = {offer.key: offer.held for offer in problem.offers}
        return [p for p in self.repairs if held.get(p.key) not in (None, p.layers)]


class Asked:
    def workload(self, manifest_hash: str) -> Workload:
        return Workload(tokens_per_s=1000.0)


@dataclass
class Pool:
    """Devices that hold something, and a planner that may move them."""

    allocator: Wants
    held: dict[int, Piece]
    replans: bool = True
    state: State = field(default_factory=State)
    dropped: list[DeviceKey] = field(default_factory=list)
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.state.models[MODEL.manifest_hash] = MODEL
        for number, piece in self.held.items():
            device = Device(facts.key(number), facts.spec(8), state=DeviceState.FREE)
            device.benchmarks[MODEL.manifest_hash] = facts.benchmark(0.01)
            self.state.devices[device.key] = device
            device.assign(Slice(MODEL.manifest_hash, LayerRange(*piece)), "", 0.0)
            device.move(Signal.LOADED)
        policy = Policy("fake", self.allocator, lambda state: pytest.fail("not needed"), self.replans)
        self.planner = Planner(self.state, policy, SchedulerConfig(), Asked(), self.drop)

    def drop(self, keys: Sequence[DeviceKey]) -> None:
        self.dropped += keys
        for key in keys:
            self.state.devices[key].num_requests = 0

    def layout(self) -> dict[int, Piece]:
        devices = [d for d in self.state.devices.values() if d.layers]
        return {facts.number_of(d.key.node_id): (d.layers.start, d.layers.stop) for d in devices if d.layers}

    def pass_time(self, seconds: float, step_s: float = 10.0) -> list[Command]:
        """What is assigned is ready a step later; at each step something serves."""
        commands: list[Command] = []
        for _ in range(int(seconds / step_s)):
            self.now_s += step_s
            loading = self.state.in_state(DeviceState.ASSIGNED)
            commands += self.planner.passed(self.now_s)
            for device in loading:
                device.move(Signal.LOADED)
            ready = [d.layers for d in self.state.in_state(DeviceState.READY) if d.layers]
            assert on_paths({(layers.start, layers.stop) for layers in ready}, 8), "it never stops serving"
        return commands


def test_a_layout_that_gains_much_is_moved_to() -> None:
    pool = Pool(Wants(BALANCED), UNEVEN)
    commands = pool.pass_time(CHECK_S + QUIET_S + 200)
    assert pool.layout() == BALANCED
    assert {type(command) for command in commands} == {Assign, Release}
    assert not pool.state.retiring


def test_a_layout_that_repairs_would_undo_at_once_is_not() -> None:
    undone = Placement(facts.key(2), LayerRange(*UNEVEN[2]), "repaired")
    pool = Pool(Wants(BALANCED, repairs=[undone]), UNEVEN)
    assert pool.pass_time(CHECK_S + QUIET_S + 200) == []


def test_a_layout_that_gains_little_is_not() -> None:
    pool = Pool(Wants({**BALANCED, 1: (0, 5), 2: (5, 8)}), BALANCED)
    assert pool.pass_time(RECHECK_S - 10) == []
    assert pool.allocator.num_asked == 1, "asked once, as nothing has changed since"
    assert pool.pass_time(RECHECK_S) == []
    assert pool.allocator.num_asked == 2, "links and speeds may have changed without a word"


def test_other_policies_than_those_that_replan_stay() -> None:
    pool = Pool(Wants(BALANCED), UNEVEN, replans=False)
    assert pool.pass_time(1000) == []


def test_nothing_is_moved_while_devices_come_and_go() -> None:
    pool = Pool(Wants(BALANCED), UNEVEN)
    for _ in range(20):
        pool.state.devices.num_changes += 1
        assert pool.pass_time(10) == []


def test_a_pool_that_is_never_quiet_is_planned_anew_nevertheless() -> None:
    """Among a thousand volunteers somebody comes or goes every few seconds."""
    pool = Pool(Wants(BALANCED), UNEVEN)
    for _ in range(int(RECHECK_S / 10) + 30):
        pool.state.devices.num_changes += 1
        pool.pass_time(10)
    assert pool.layout() == BALANCED


@pytest.fixture
def giving() -> Pool:
    """Two lanes, of which the first is wanted for another model; requests run over it still."""
    pool = Pool(Wants(BALANCED), BALANCED)
    other = facts.model(8, digest="3d" * 32)
    pool.state.models[other.manifest_hash] = other
    migrations = pool.planner._migrations
    migrations.give_way({facts.key(number): other.manifest_hash for number in (1, 2)}, 0.0)
    for number in (1, 2):
        pool.state.devices[facts.key(number)].num_requests = 1
    assert migrations.gone_way(1.0) == []
    assert pool.state.retiring == {facts.key(1), facts.key(2)}
    return pool


def test_a_holder_that_another_model_needs_more_is_waited_for_and_then_released(giving: Pool) -> None:
    giving.state.devices[facts.key(1)].num_requests = 0
    migrations = giving.planner._migrations
    assert [d.key for d in migrations.gone_way(2.0)] == [facts.key(1)]
    assert {d.key for d in migrations.gone_way(PATIENCE_S)} == {facts.key(1), facts.key(2)}


def test_a_holder_stays_if_those_that_were_to_serve_without_it_have_left(giving: Pool) -> None:
    del giving.state.devices[facts.key(3)]
    assert giving.planner._migrations.gone_way(PATIENCE_S) == []
    assert not giving.state.retiring


def test_a_holder_that_has_come_back_with_other_layers_does_not_give_way(giving: Pool) -> None:
    back = Device(facts.key(1), facts.spec(8), state=DeviceState.FREE, generation=1)
    giving.state.devices[back.key] = back
    back.assign(Slice(MODEL.manifest_hash, LayerRange(0, 4)), "", 0.0)
    assert back not in giving.planner._migrations.gone_way(PATIENCE_S)


def test_a_migration_is_given_up_when_one_of_its_devices_leaves() -> None:
    pool = Pool(Wants(BALANCED), UNEVEN)
    for _ in range(30):
        if pool.pass_time(10):
            break
    moved = {n for n, piece in pool.layout().items() if piece != UNEVEN[n]}
    assert len(moved) == 2
    del pool.state.devices[facts.key(min(moved))]
    assert pool.pass_time(300) == []
    assert not pool.state.retiring


def test_a_node_that_comes_back_meanwhile_as_another_device_is_not_the_one_that_was_meant() -> None:
    pool = Pool(Wants(BALANCED), UNEVEN)
    for _ in range(30):
        if pool.pass_time(10):
            break
    left = max(n for n, piece in pool.layout().items() if piece == UNEVEN[n])
    pool.state.devices[facts.key(left)] = Device(facts.key(left), facts.spec(1), state=DeviceState.FREE)
    pool.pass_time(300)
    assert left not in pool.layout()


def test_after_a_migration_there_is_none_for_a_while() -> None:
    pool = Pool(Wants(BALANCED), UNEVEN)
    pool.pass_time(400)
    pool.allocator.wanted = UNEVEN
    pool.state.devices.num_changes += 1
    num_asked = pool.allocator.num_asked
    pool.pass_time(LEAST_BETWEEN_S - 400)
    assert pool.allocator.num_asked == num_asked


def test_a_device_that_stays_busy_is_waited_for_and_then_its_requests_move() -> None:
    pool = Pool(Wants(BALANCED), UNEVEN)
    for device in pool.state.devices.values():
        device.num_requests = 1
    pool.pass_time(80)
    assert pool.state.retiring
    assert pool.layout() == UNEVEN
    pool.pass_time(300)
    assert pool.layout() == BALANCED
    assert set(pool.dropped) == set(pool.state.devices)


def test_the_operators_word_moves_everything_at_once_even_where_serving_stops() -> None:
    pool = Pool(Wants({1: (0, 4), 2: (4, 8)}), {1: (0, 1), 2: (1, 8)})
    assert {type(command) for command in pool.planner.replan(0.0)} == {Assign, Release}
    assert pool.layout() == {1: (0, 4), 2: (4, 8)}
