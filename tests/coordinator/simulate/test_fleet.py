"""What nodes do: measure, download only what is missing, load, crash, come back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.commands import Command
from coordinator.scheduler.cost import model_cost
from coordinator.simulate.churn import Fate, Turn
from coordinator.simulate.engine import Simulation
from coordinator.simulate.fleet import kv_room
from coordinator.simulate.hardware import CLASSES, VARIANT, device_spec
from coordinator.simulate.models import MODELS
from coordinator.simulate.scenario import Pool
from coordinator.simulate.users import Users
from protocol.values import LayerRange
from tests.coordinator.simulate import pools

MODEL = MODELS["llama3-8b-4bit"]
DIGEST = MODEL.facts.manifest_hash


@dataclass
class Listener:
    """A scheduler that gives no orders."""

    seen: list[ev.Event] = field(default_factory=list)

    def handle(self, event: ev.Event, now_s: float) -> Sequence[Command]:
        self.seen.append(event)
        return []


class Bench:
    """A fleet whose scheduler only listens, so that a test gives the orders."""

    def __init__(self, num_nodes: int = 2, **changes: Any) -> None:
        self.scheduler = Listener()
        self.simulation = Simulation(pools.scenario(num_nodes, **changes), self.scheduler)
        self.fleet, self.timeline = self.simulation.fleet, self.simulation.timeline
        for node in self.fleet.nodes:
            self.fleet.join(node)

    def assign(self, node: int, generation: int, start: int, stop: int) -> None:
        key = self.fleet.nodes[node].device.key
        command = cmd.Assign(key, generation, DIGEST, VARIANT, LayerRange(start, stop), "")
        self.fleet.assign(command, "join")

    def pass_time(self, seconds: float) -> None:
        until_s = self.timeline.now_s + seconds
        self.timeline.run(until_s, lambda: False)
        self.timeline.now_s = until_s

    def told(self, kind: type) -> list[Any]:
        return [event for event in self.scheduler.seen if isinstance(event, kind)]

    @property
    def moved(self) -> float:
        return self.simulation.record.bytes_moved.get("join", 0.0)


def num_bytes(start: int, stop: int) -> float:
    return model_cost(MODEL.facts, VARIANT).weight_bytes(LayerRange(start, stop))


def test_measuring_takes_its_time_and_gives_the_true_speed() -> None:
    bench = Bench()
    bench.fleet.measure(cmd.Measure(bench.fleet.nodes[0].device.key, DIGEST, VARIANT))
    bench.pass_time(5.9)
    assert not bench.told(ev.DeviceMeasured)
    bench.pass_time(0.2)
    [news] = bench.told(ev.DeviceMeasured)
    assert news.benchmark.head_s == bench.fleet.nodes[0].device.speeds[DIGEST].head_s


def test_a_slice_is_ready_after_download_and_loading_and_only_its_bytes_move() -> None:
    bench = Bench()
    bench.assign(0, 1, 0, 16)
    node = bench.fleet.nodes[0]
    expected_s = num_bytes(0, 16) / node.site.down_bytes_per_s + num_bytes(0, 16) / 2e9
    bench.pass_time(expected_s * 0.99)
    assert not bench.told(ev.SliceReady)
    bench.pass_time(expected_s * 0.02)
    [news] = bench.told(ev.SliceReady)
    assert news.num_kv_tokens == kv_room(node.device.spec.memory_bytes, MODEL, LayerRange(0, 16))
    assert bench.moved == pytest.approx(num_bytes(0, 16))


def test_layers_on_the_disk_are_not_downloaded_again() -> None:
    bench = Bench()
    bench.assign(0, 1, 0, 16)
    bench.pass_time(300.0)
    bench.assign(0, 2, 8, 24)
    bench.pass_time(300.0)
    assert bench.moved == pytest.approx(num_bytes(0, 24))
    assert [news.generation for news in bench.told(ev.SliceReady)] == [1, 2]


def test_downloads_share_the_mirror() -> None:
    bench = Bench(pool=Pool(2, {"rtx4090-24g": 1.0}, access="lan", mirror_bits_per_s=80e6))
    bench.assign(0, 1, 0, 8)
    bench.assign(1, 1, 8, 16)
    alone_s = num_bytes(8, 16) / 10e6
    bench.pass_time(alone_s * 1.5)
    assert not bench.told(ev.SliceReady)
    bench.pass_time(alone_s * 2)
    assert len(bench.told(ev.SliceReady)) == 2


def test_a_new_order_in_mid_download_makes_the_old_one_void_but_keeps_its_whole_layers() -> None:
    bench = Bench()
    bench.assign(0, 1, 8, 24)
    bench.pass_time(num_bytes(8, 24) / 117.5e6 / 2)
    bench.assign(0, 2, 8, 16)
    bench.pass_time(300.0)
    assert [news.generation for news in bench.told(ev.SliceReady)] == [2]
    assert bench.moved < num_bytes(8, 24)


def test_a_node_that_crashes_is_missed_only_after_the_lease() -> None:
    bench = Bench()
    bench.fleet.meet(Fate(0.0, 0, Turn.CRASH))
    bench.pass_time(4.4)
    assert not bench.told(ev.NodeLeft)
    bench.pass_time(0.2)
    assert [news.node_id for news in bench.told(ev.NodeLeft)] == [bench.fleet.nodes[0].node_id]


def test_a_node_that_is_back_before_the_lease_ends_has_joined_and_not_left() -> None:
    bench = Bench()
    bench.fleet.meet(Fate(0.0, 0, Turn.CRASH))
    bench.pass_time(2.0)
    bench.fleet.meet(Fate(0.0, 0, Turn.RETURN))
    bench.pass_time(10.0)
    assert not bench.told(ev.NodeLeft)
    assert len(bench.told(ev.NodeJoined)) == 3


def test_a_node_that_says_goodbye_is_missed_at_once_and_forgets_its_orders() -> None:
    bench = Bench()
    bench.assign(0, 1, 0, 16)
    bench.fleet.meet(Fate(0.0, 0, Turn.LEAVE))
    assert len(bench.told(ev.NodeLeft)) == 1
    bench.pass_time(300.0)
    assert not bench.told(ev.SliceReady)


def test_a_slice_that_does_not_fit_fails() -> None:
    bench = Bench(pool=Pool(1, {"laptop-8g": 1.0}, access="lan"), num_nodes=1)
    key, big = bench.fleet.nodes[0].device.key, MODELS["llama3-70b-4bit"]
    bench.fleet.models[big.facts.manifest_hash] = big
    speeds = bench.fleet.nodes[0].device.speeds
    speeds[big.facts.manifest_hash] = speeds[DIGEST]
    layers = LayerRange(0, 80)
    bench.fleet.assign(cmd.Assign(key, 1, big.facts.manifest_hash, VARIANT, layers, ""), "join")
    bench.pass_time(3600.0)
    assert bench.told(ev.DeviceFailed) == [ev.DeviceFailed(key, 1)]


def test_links_are_measured_with_jitter_and_dead_targets_are_left_out() -> None:
    bench = Bench(4, calibration=pools.EXACT)
    ids = [node.node_id for node in bench.fleet.nodes]
    bench.fleet.meet(Fate(0.0, 3, Turn.CRASH))
    bench.scheduler.seen.clear()
    bench.fleet.measure_links(cmd.MeasureLinks(bench.fleet.nodes[0].device.key.node_id, tuple(ids[1:])))  # type: ignore[arg-type]
    bench.pass_time(1.0)
    [news] = bench.told(ev.LinksSeen)
    assert [link.target for link in news.links] == ids[1:3]
    assert 0 < news.links[0].rtt_s < 1e-3


def test_a_busy_device_reports_its_work_and_an_idle_one_is_silent() -> None:
    bench = Bench()
    bench.assign(0, 1, 0, 32)
    bench.pass_time(300.0)
    device = bench.fleet.nodes[0].device
    device.seen_steps, device.seen_rows, device.seen_s = 10.6, 20.2, 0.5
    bench.fleet.report()
    assert bench.told(ev.StepsSeen) == [ev.StepsSeen(device.key, 1, 10, 20, 0, 0.5)]
    assert device.seen_steps == pytest.approx(0.6)
    bench.fleet.report()
    assert len(bench.told(ev.StepsSeen)) == 1


def test_kv_room_is_what_weights_leave() -> None:
    memory = device_spec(CLASSES["rtx4090-24g"]).memory_bytes
    all_layers, half = (kv_room(memory, MODEL, LayerRange(0, stop)) for stop in (32, 16))
    assert half > 2 * all_layers > 0
    assert all_layers == pytest.approx((memory * 0.9 - num_bytes(0, 32)) / (32 * 2048 * 2), rel=1e-3)


def test_slow_downs_and_bad_lines_change_the_truth_and_recover() -> None:
    bench = Bench()
    node = bench.fleet.nodes[0]
    rate = node.up_bytes_per_s
    bench.fleet.meet(Fate(0.0, 0, Turn.SLOW, 4.0))
    bench.fleet.meet(Fate(0.0, 0, Turn.LINE, 0.5, 0.1))
    assert (node.device.slowdown, node.up_bytes_per_s, node.line_delay_s) == (4.0, rate / 2, 0.1)
    bench.fleet.meet(Fate(1.0, 0, Turn.SLOW))
    bench.fleet.meet(Fate(1.0, 0, Turn.LINE))
    assert (node.device.slowdown, node.up_bytes_per_s, node.line_delay_s) == (1.0, rate, 0.0)


def test_nodes_ids_do_not_rise_with_their_numbers() -> None:
    ids = [node.node_id for node in Bench(20).fleet.nodes]
    assert len(set(ids)) == 20
    assert all(len(one) == 32 for one in ids)
    assert ids != sorted(ids)


def test_users_are_the_ones_who_hear_of_broken_chains() -> None:
    simulation = pools.simulation(pools.scenario())
    assert isinstance(simulation.users, Users)
    assert simulation.fleet.on_break == simulation.users.resume
