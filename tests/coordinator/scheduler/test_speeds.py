"""How fast devices really are, learnt from what their live work took."""

from __future__ import annotations

import dataclasses

import pytest

from coordinator.scheduler import speeds as speeds_module
from coordinator.scheduler.cost import ModelCost, device_speed, model_cost, speed_of
from coordinator.scheduler.events import StepsSeen
from coordinator.scheduler.speeds import LEAST, MIN_STEPS, MOST, Speeds, expected_s
from coordinator.scheduler.state import Device, DeviceState
from protocol.values import BatchTime, LayerBenchmark, LayerRange, Variant
from tests.fakes import pool_facts as facts

BENCHMARK = LayerBenchmark((BatchTime(1, 0.011), BatchTime(11, 0.021)), 0.002, 0.03)
"""A step takes a layer 10 ms and 1 ms per row."""


@pytest.fixture
def model() -> ModelCost:
    return model_cost(facts.model(8), Variant.FLOAT32)


@pytest.fixture
def device() -> Device:
    """Serves layers 2 ... 5."""
    device = Device(facts.key(1), facts.spec(), DeviceState.READY, generation=3)
    device.benchmarks[facts.DIGEST] = BENCHMARK
    device.model, device.layers = facts.DIGEST, LayerRange(2, 6)
    return device


def report(compute_s: float = 100 * 4 * 0.011, **changes: int) -> StepsSeen:
    """Of 100 decode steps of one row each over four layers; by default as fast as measured."""
    return dataclasses.replace(StepsSeen(facts.key(1), 3, 100, 100, 0, compute_s), **changes)


def test_a_device_that_keeps_its_promise_stays_as_it_is(device: Device, model: ModelCost) -> None:
    assert not Speeds().seen(device, model, report())
    assert device.slowdown == pytest.approx(1.0)


def test_a_device_that_slows_down_is_news_and_its_speed_follows(device: Device, model: ModelCost) -> None:
    speeds = Speeds()
    assert speeds.seen(device, model, report(3 * 4.4))
    for _ in range(20):
        speeds.seen(device, model, report(3 * 4.4))
    assert device.slowdown == pytest.approx(3.0, rel=0.01)
    assert device_speed(device, facts.DIGEST).step_s == pytest.approx(3 * 0.01, rel=0.02)


def test_it_recovers_too(device: Device, model: ModelCost) -> None:
    speeds = Speeds()
    device.slowdown = 4.0
    told = [speeds.seen(device, model, report()) for _ in range(20)]
    assert any(told)
    assert device.slowdown == pytest.approx(1.0, rel=0.02)


def test_news_is_told_once(device: Device, model: ModelCost) -> None:
    speeds = Speeds()
    told = [speeds.seen(device, model, report(1.5 * 4.4)) for _ in range(40)]
    assert told[0]
    assert 1 < sum(told) < 6
    assert not any(told[10:])


def test_many_small_changes_become_news_together(device: Device, model: ModelCost) -> None:
    speeds = Speeds()
    assert not speeds.seen(device, model, report(1.2 * 4.4))
    assert speeds.seen(device, model, report(1.2 * 4.4))


@pytest.mark.parametrize(
    "event",
    [
        report(99.0, num_steps=MIN_STEPS - 1),
        report(99.0, generation=2),
        report(0.0),
    ],
)
def test_reports_that_say_nothing_of_the_slice_change_nothing(
    device: Device, model: ModelCost, event: StepsSeen
) -> None:
    assert not Speeds().seen(device, model, event)
    assert device.slowdown == 1.0


@pytest.mark.parametrize("attribute", ["layers", "model"])
def test_a_device_that_holds_nothing_of_the_model_learns_nothing(
    device: Device, model: ModelCost, attribute: str
) -> None:
    setattr(device, attribute, None)
    assert not Speeds().seen(device, model, report(99.0))
    assert device.slowdown == 1.0


def test_a_device_without_a_benchmark_learns_nothing(device: Device, model: ModelCost) -> None:
    device.benchmarks.clear()
    assert not Speeds().seen(device, model, report(99.0))


@pytest.mark.parametrize(("compute_s", "limit"), [(1e9, MOST), (1e-9, LEAST)])
def test_absurd_times_have_a_limit(device: Device, model: ModelCost, compute_s: float, limit: float) -> None:
    speeds = Speeds()
    for _ in range(100):
        speeds.seen(device, model, report(compute_s))
    assert device.slowdown == pytest.approx(limit)


def test_work_of_all_kinds_is_expected_to_take_what_the_benchmark_said(model: ModelCost) -> None:
    speed, layers = speed_of(BENCHMARK), LayerRange(2, 6)
    decode = report(num_steps=10, num_decode_rows=40)
    assert expected_s(speed, model, layers, decode) == pytest.approx(4 * (10 * 0.01 + 40 * 0.001))
    prompts = report(num_steps=2, num_decode_rows=0, num_prompt_tokens=1000)
    assert expected_s(speed, model, layers, prompts) == pytest.approx(4 * 1000 * 0.002)
    short_prompts = report(num_steps=10, num_decode_rows=0, num_prompt_tokens=10)
    assert expected_s(speed, model, layers, short_prompts) == pytest.approx(4 * 10 * 0.01)


def test_the_last_stage_has_its_head_to_do_besides(model: ModelCost) -> None:
    speed, decode = speed_of(BENCHMARK), report()
    inner, last = (expected_s(speed, model, layers, decode) for layers in (LayerRange(2, 6), LayerRange(4, 8)))
    assert last - inner == pytest.approx(100 * 0.03)


def test_what_was_announced_is_bounded(device: Device, model: ModelCost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds_module, "MAX_DEVICES", 3)
    speeds = Speeds()
    for number in range(10):
        other = dataclasses.replace(device, key=facts.key(number))
        assert speeds.seen(other, model, report(9 * 4.4, device=facts.key(number)))
    assert len(speeds._announced) == 3


def test_a_device_so_slow_that_each_report_has_few_steps_is_seen_all_the_same(device: Device, model: ModelCost) -> None:
    speeds = Speeds()
    few = report(5 * 10 * 4 * 0.011, num_steps=5, num_decode_rows=5)
    told = [speeds.seen(device, model, few) for _ in range(40)]
    assert any(told)
    assert device.slowdown == pytest.approx(10.0, rel=0.05)


def test_few_steps_of_an_older_slice_are_not_added_to_those_of_the_next(device: Device, model: ModelCost) -> None:
    speeds = Speeds()
    speeds.seen(device, model, report(5 * 10 * 4 * 0.011, num_steps=5, num_decode_rows=5))
    device.generation = 4
    speeds.seen(device, model, report(5 * 4 * 0.011, num_steps=5, num_decode_rows=5, generation=4))
    assert device.slowdown == 1.0
