"""What the pool knows of a node, for people."""

from __future__ import annotations

import pytest

from coordinator.nodes import MAX_BEATS, DeviceActivity, DeviceView, NodeView
from coordinator.scheduler.commands import Assign, Measure
from coordinator.scheduler.state import Device
from protocol.messages import Heartbeat, ReleaseSlice, SliceProgress
from protocol.values import DeviceId, DeviceWork, HeldSlice, LayerRange, Variant
from tests.fakes import pool_facts as facts

ASSIGN = Assign(facts.key(1), 1, facts.DIGEST, Variant.FLOAT32, LayerRange(2, 6), "its share by measured speed")


def test_a_node_shows_each_device_it_offered() -> None:
    gpu = facts.DeviceId("cuda:0")
    view = NodeView(facts.hello(1, facts.spec(), facts.spec(device_id=gpu)), 5.0)
    assert set(view.devices) == {facts.CPU, gpu}
    assert all(device.activity is DeviceActivity.IDLE for device in view.devices.values())
    assert (view.num_faults, view.num_tokens, view.num_sessions, view.heard_at_s) == (0, 0, 0, 5.0)
    assert not view.is_draining
    assert view.tokens_per_s == 0.0


def test_a_device_goes_from_measuring_to_serving() -> None:
    device = DeviceView(facts.spec())
    device.measure(Measure(facts.key(1), facts.DIGEST, Variant.FLOAT32))
    assert (device.activity, device.manifest_hash) == (DeviceActivity.MEASURING, facts.DIGEST)
    device.assign(ASSIGN)
    assert (device.activity, device.layers, device.reason) == (DeviceActivity.DOWNLOADING, "2-5", ASSIGN.reason)
    device.progress(SliceProgress(facts.CPU, 1, False, 10, 100))
    assert (device.activity, device.done_bytes, device.total_bytes) == (DeviceActivity.DOWNLOADING, 10, 100)
    device.progress(SliceProgress(facts.CPU, 1, True, 20, 50))
    assert (device.activity, device.done_bytes, device.total_bytes) == (DeviceActivity.LOADING, 20, 50)
    device.serve(can_truncate=True)
    assert device.can_truncate
    assert (device.activity, device.layers) == (DeviceActivity.SERVING, "2-5")


def test_a_new_assignment_starts_its_progress_at_nothing() -> None:
    device = DeviceView(facts.spec(), done_bytes=7, total_bytes=9)
    device.assign(ASSIGN)
    assert (device.done_bytes, device.total_bytes) == (0, 0)


def test_a_failure_shows_its_sentence_and_idling_clears_it() -> None:
    device = DeviceView(facts.spec())
    device.assign(ASSIGN)
    device.fail("Out of memory.")
    assert (device.activity, device.layers, device.reason) == (DeviceActivity.FAILED, "", "Out of memory.")
    device.idle()
    assert (device.activity, device.layers, device.reason) == (DeviceActivity.IDLE, "", "")


def beating(*beats: tuple[float, int]) -> NodeView:
    view = NodeView(facts.hello(1), 0.0)
    for now_s, num_tokens in beats:
        view.beat(Heartbeat(2, num_tokens, 0), now_s)
    return view


def test_a_heartbeat_says_what_the_node_has_done_and_does() -> None:
    view = beating((1.0, 30))
    assert (view.num_tokens, view.num_sessions, view.tokens_per_s) == (30, 2, 0.0)


def test_the_speed_is_that_of_the_last_seconds() -> None:
    assert beating((1.0, 30), (2.0, 50), (3.0, 90)).tokens_per_s == 30.0
    busy_once = [(float(second), min(second, 5) * 100) for second in range(30)]
    assert beating(*busy_once).tokens_per_s == 0.0
    assert beating(*busy_once[:11]).tokens_per_s == 50.0


def test_a_gap_in_the_heartbeats_is_part_of_the_time() -> None:
    assert beating((0.0, 0), (60.0, 600)).tokens_per_s == 10.0
    assert beating((0.0, 0), (1.0, 1000), (60.0, 1059), (60.5, 1059)).tokens_per_s == pytest.approx(59 / 59.5)


def test_nonsense_in_heartbeats_gives_no_nonsense_speed() -> None:
    assert beating((1.0, 500), (2.0, 3)).tokens_per_s == 0.0
    assert beating((1.0, 0), (1.0, 900)).tokens_per_s == 0.0
    flood = beating(*[(number * 1e-4, number) for number in range(10 * MAX_BEATS)])
    assert len(flood._beats) == MAX_BEATS


def test_measuring_that_nobody_wants_any_more_is_not_shown() -> None:
    view = NodeView(facts.hello(1), 0.0)
    device = view.devices[facts.CPU]
    device.measure(Measure(facts.key(1), facts.DIGEST, Variant.FLOAT32))
    view.drop_measuring("3d" * 32)
    assert device.activity is DeviceActivity.MEASURING
    view.drop_measuring(facts.DIGEST)
    assert device.activity is DeviceActivity.IDLE


def test_a_node_that_comes_with_layers_serves_what_is_used_and_lets_go_of_the_rest() -> None:
    gpu = DeviceId("cuda:0")
    held = [
        HeldSlice(device_id, facts.DIGEST, Variant.FLOAT32, LayerRange(0, 4), generation, 500)
        for device_id, generation in ((facts.CPU, 3), (gpu, 5))
    ]
    view = NodeView(facts.hello(1, facts.spec(), facts.spec(device_id=gpu), held=held), 0.0)
    device = Device(facts.key(1), facts.spec(), model=facts.DIGEST, layers=LayerRange(0, 4), reason="it was there")
    assert view.hold([device]) == [ReleaseSlice(gpu, 5)]
    shown = view.devices[facts.CPU]
    assert (shown.activity, shown.layers, shown.reason) == (DeviceActivity.SERVING, "0-3", "it was there")
    assert view.devices[gpu].activity is DeviceActivity.IDLE


def test_prompt_tokens_of_all_devices_add_up() -> None:
    view = NodeView(facts.hello(1), 0.0)
    for number in (3, 4):
        work = (DeviceWork(facts.CPU, 1, 1, 5, number, 0.1), DeviceWork(facts.DeviceId("cuda:0"), 1, 1, 5, 10, 0.1))
        view.beat(Heartbeat(0, 0, 0, work), float(number))
    assert view.num_prompt_tokens == 27


def test_a_device_that_has_never_decoded_alone_is_judged_by_all_of_its_steps() -> None:
    device = NodeView(facts.hello(1), 0.0).devices[facts.CPU]
    device.worked(DeviceWork(facts.CPU, 1, 2, 3, 400, 1.0))
    assert device.slowest_step_s(with_prompts=False) == device.slowest_step_s(with_prompts=True) == 0.5
    device.worked(DeviceWork(facts.CPU, 1, 2, 2, 0, 0.2))
    assert device.slowest_step_s(with_prompts=False) == 0.1
    assert device.slowest_step_s(with_prompts=True) == 0.5


def test_what_steps_took_with_other_layers_is_forgotten() -> None:
    device = NodeView(facts.hello(1), 0.0).devices[facts.CPU]
    device.worked(DeviceWork(facts.CPU, 1, 2, 2, 0, 0.2))
    device.assign(ASSIGN)
    assert device.slowest_step_s(with_prompts=False) == 0.0
