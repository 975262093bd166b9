"""Nodes that come back with loaded layers."""

from __future__ import annotations

import msgspec
import pytest

from coordinator.scheduler import events as ev
from coordinator.scheduler.commands import Assign, Measure, Release, StartChain
from coordinator.scheduler.returning import MOST_S, QUIET_S, START_S, Returning
from coordinator.scheduler.scheduler import Scheduler
from coordinator.scheduler.state import DeviceState
from protocol.values import HeldSlice, LayerRange, Variant
from tests.fakes import pool_facts as facts


def held(start: int = 0, stop: int = 4, **changes: object) -> HeldSlice:
    one = HeldSlice(facts.CPU, facts.DIGEST, Variant.FLOAT32, LayerRange(start, stop), 7, 500, True, facts.benchmark())
    return msgspec.structs.replace(one, **changes)


class Restarted:
    """A scheduler that has just begun, with a model."""

    def __init__(self) -> None:
        self.scheduler = Scheduler()
        self.commands: list[object] = []
        self.do(ev.ModelAdded(facts.model()), 0.0)

    def do(self, event: ev.Event, now_s: float) -> list[object]:
        self.commands = list(self.scheduler.handle(event, now_s))
        self.scheduler.validate()
        return self.commands

    def joins(self, number: int, *slices: HeldSlice, at_s: float = 1.0, max_layers: int | None = 4) -> list[object]:
        return self.do(ev.NodeJoined(facts.node_id(number), (facts.spec(max_layers),), slices), at_s)

    def planned(self, kind: type = Assign) -> list[object]:
        return [command for command in self.commands if isinstance(command, kind)]


def test_what_nodes_hold_is_ready_at_once_and_nothing_is_ordered() -> None:
    pool = Restarted()
    assert pool.joins(1, held(0, 4)) == []
    assert pool.joins(2, held(4, 8), at_s=2.0) == []
    assert pool.scheduler.is_ready(facts.DIGEST)
    device = pool.scheduler.state.devices[facts.key(1)]
    assert (device.state, device.generation, device.num_kv_tokens) == (DeviceState.READY, 7, 500)
    assert device.benchmarks == {facts.DIGEST: facts.benchmark()}
    (start,) = pool.do(ev.RequestArrived(facts.session_id(1), facts.DIGEST, 20, num_prompt_tokens=3), 3.0)
    assert isinstance(start, StartChain)
    assert [(stage.generation, str(stage.layers)) for stage in start.chain] == [(7, "0-3"), (7, "4-7")]


def test_nothing_is_planned_while_the_others_are_still_coming_back() -> None:
    """The one node alone could hold everything: it must not begin to."""
    pool = Restarted()
    pool.joins(1, held(0, 4), max_layers=8)
    for second in range(2, int(QUIET_S)):
        assert pool.do(ev.TimePassed(), float(second)) == []
    pool.joins(2, held(4, 8), at_s=QUIET_S)
    assert pool.commands == []
    for second in range(int(QUIET_S), int(3 * QUIET_S)):
        pool.do(ev.TimePassed(), float(second))
        assert not pool.planned(Release) and not pool.planned(Assign)


def test_who_does_not_come_back_is_planned_without_in_the_end() -> None:
    pool = Restarted()
    pool.joins(1, held(0, 4), max_layers=8)
    pool.do(ev.TimePassed(), 1.0 + QUIET_S)
    assert [str(assign.layers) for assign in pool.planned()] == ["0-7"]  # type: ignore[attr-defined]
    assert pool.planned()[0].generation == 8  # type: ignore[attr-defined]


def test_a_new_pool_does_not_wait() -> None:
    pool = Restarted()
    pool.joins(1, max_layers=8)
    assert [type(command) for command in pool.commands] == [Measure]


def test_a_node_that_was_here_is_no_reason_to_wait() -> None:
    pool = Restarted()
    pool.joins(1, max_layers=8)
    pool.do(ev.DeviceMeasured(facts.key(1), facts.DIGEST, facts.benchmark()), 2.0)
    pool.do(ev.SliceReady(facts.key(1), 1, 500), 3.0)
    pool.do(ev.NodeLeft(facts.node_id(1)), 4.0)
    pool.joins(1, held(0, 8, generation=1), at_s=5.0, max_layers=8)
    assert pool.scheduler.is_ready(facts.DIGEST)
    pool.joins(2, at_s=6.0, max_layers=8)
    assert [type(command) for command in pool.commands] == [Measure]


@pytest.mark.parametrize(
    "changes",
    [
        {"manifest_hash": "3d" * 32},
        {"layers": LayerRange(4, 9)},
        {"layers": LayerRange(0, 5)},
        {"variant": Variant.BFLOAT16},
        {"benchmark": None},
        {"generation": 0},
        {"device_id": "cuda:0"},
    ],
    ids=["another model", "too many layers", "beyond its limit", "another variant", "unmeasured", "none", "elsewhere"],
)
def test_what_cannot_be_used_is_assigned_anew_with_a_generation_of_its_own(changes: dict[str, object]) -> None:
    pool = Restarted()
    pool.joins(1, held(**changes))  # type: ignore[arg-type]
    device = pool.scheduler.state.devices[facts.key(1)]
    assert device.state is DeviceState.MEASURING
    assert device.generation == (0 if {"generation", "device_id"} & changes.keys() else 7)


def test_two_slices_of_one_device_are_none() -> None:
    pool = Restarted()
    pool.joins(1, held(), held(4, 8, generation=9))
    device = pool.scheduler.state.devices[facts.key(1)]
    assert (device.state, device.generation) == (DeviceState.MEASURING, 9)


def test_what_a_node_holds_of_an_assignment_that_was_replaced_is_not_served() -> None:
    """The newer order was lost with the connection."""
    pool = Restarted()
    pool.joins(1, max_layers=8)
    pool.do(ev.DeviceMeasured(facts.key(1), facts.DIGEST, facts.benchmark()), 2.0)
    for generation in (1, 2, 3):
        assert pool.scheduler.state.devices[facts.key(1)].generation == generation
        pool.do(ev.DeviceFailed(facts.key(1), generation), 10.0 * generation)
        pool.do(ev.TimePassed(), 1000.0 * generation)
    pool.do(ev.NodeLeft(facts.node_id(1)), 4000.0)
    pool.joins(1, held(0, 8, generation=2), at_s=4001.0, max_layers=8)
    assert pool.scheduler.state.devices[facts.key(1)].state is not DeviceState.READY


def test_a_drained_node_lets_go_of_what_it_brings() -> None:
    pool = Restarted()
    pool.do(ev.NodeDraining(facts.node_id(1), True), 0.5)
    pool.joins(1, held())
    assert [type(command) for command in pool.commands] == [Release]


def test_the_wait_is_bounded() -> None:
    returning = Returning()
    assert not returning.waits(0.0)
    returning.began(100.0)
    returning.began(0.0)
    at_s = 101.0
    while at_s < 101.0 + MOST_S:
        returning.came_back(at_s)
        assert returning.waits(at_s)
        at_s += QUIET_S / 2
    assert not returning.waits(101.0 + MOST_S)
    late = Returning()
    late.began(0.0)
    late.came_back(START_S)
    assert not late.waits(START_S)
