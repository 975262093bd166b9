"""What the pool knows of a node, for people."""

from __future__ import annotations

from coordinator.nodes import DeviceActivity, DeviceView, NodeView
from coordinator.scheduler.commands import Assign, Measure
from protocol.messages import SliceProgress
from protocol.values import LayerRange, Variant
from tests.fakes import pool_facts as facts

ASSIGN = Assign(facts.key(1), 1, facts.DIGEST, Variant.FLOAT32, LayerRange(2, 6), "its share by measured speed")


def test_a_node_shows_each_device_it_offered() -> None:
    gpu = facts.DeviceId("cuda:0")
    view = NodeView(facts.hello(1, facts.spec(), facts.spec(device_id=gpu)), 5.0)
    assert set(view.devices) == {facts.CPU, gpu}
    assert all(device.activity is DeviceActivity.IDLE for device in view.devices.values())
    assert (view.num_faults, view.num_tokens, view.heard_at_s) == (0, 0, 5.0)


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
    device.serve()
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
