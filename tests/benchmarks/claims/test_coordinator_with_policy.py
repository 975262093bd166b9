from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.claims.coordinator_with_policy import WatchedScheduler
from benchmarks.claims.policies import policy_named
from benchmarks.claims.watching import Benchmarked, Held, Planned, Watch, read_notes
from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.state import DeviceKey
from protocol.values import BatchTime, DeviceId, DeviceKind, DeviceSpec, LayerBenchmark, SessionId, Variant
from tests.fakes.pool_facts import GIB, model, node_id

CPU = DeviceId("cpu")
BENCHMARK = LayerBenchmark((BatchTime(1, 0.002), BatchTime(4, 0.003)), 1e-4, 1e-3)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    with Watch.open(tmp_path / "notes.jsonl") as watch:
        yield watch


def joined(scheduler: WatchedScheduler, number: int) -> list[cmd.Command]:
    spec = DeviceSpec(CPU, DeviceKind.CPU, "processor", 4 * GIB, Variant.FLOAT32)
    scheduler.handle(ev.NodeJoined(node_id(number), (spec,)), 1.0)
    return scheduler.handle(ev.DeviceMeasured(DeviceKey(node_id(number), CPU), model().manifest_hash, BENCHMARK), 1.0)


def test_it_decides_as_its_policy_does_and_notes_what_it_did(watch: Watch, tmp_path: Path) -> None:
    scheduler = WatchedScheduler(lambda: policy_named("ours"), watch)
    scheduler.handle(ev.ModelAdded(model()), 0.0)
    commands = joined(scheduler, 0)
    assert any(isinstance(command, cmd.Assign) for command in commands)
    notes = read_notes(tmp_path / "notes.jsonl")
    assert [type(note) for note in notes] == [Benchmarked, Held]


def test_it_plans_anew_once_when_it_next_hears_of_time(watch: Watch, tmp_path: Path) -> None:
    scheduler = WatchedScheduler(lambda: policy_named("ours"), watch)
    scheduler.handle(ev.ModelAdded(model()), 0.0)
    joined(scheduler, 0)
    scheduler.want_replan(0, None)
    for now_s in (2.0, 2.5, 3.0):
        scheduler.handle(ev.TimePassed(), now_s)
    assert sum(isinstance(note, Planned) for note in read_notes(tmp_path / "notes.jsonl")) == 1


def test_a_new_plan_is_made_by_the_policy_that_is_wanted_then(watch: Watch) -> None:
    wanted = ["ours"]
    scheduler = WatchedScheduler(lambda: policy_named(wanted[0]), watch)
    scheduler.handle(ev.ModelAdded(model()), 0.0)
    joined(scheduler, 0)
    scheduler.state.devices[DeviceKey(node_id(0), CPU)].slowdown = 3.0
    wanted[0] = "petals"
    scheduler.want_replan(0, None)
    scheduler.handle(ev.TimePassed(), 2.0)
    assert scheduler.policy.name == "petals"
    assert scheduler.state.devices[DeviceKey(node_id(0), CPU)].slowdown == 1.0
    scheduler.validate()


def test_a_policy_is_not_exchanged_while_requests_wait(watch: Watch) -> None:
    scheduler = WatchedScheduler(lambda: policy_named("ours"), watch)
    scheduler.handle(ev.ModelAdded(model()), 0.0)
    [assign] = [command for command in joined(scheduler, 0) if isinstance(command, cmd.Assign)]
    scheduler.handle(ev.SliceReady(assign.device, assign.generation, 10_000), 2.0)
    scheduler.handle(ev.RequestArrived(SessionId("a" * 32), model().manifest_hash, 100, num_prompt_tokens=50), 2.5)
    scheduler.want_replan(0, None)
    with pytest.raises(ValueError, match="while requests run"):
        scheduler.handle(ev.TimePassed(), 3.0)
