"""Times follow the roofline: bandwidth for decode, arithmetic for prompts."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.scheduler.cost import speed_of
from coordinator.simulate.hardware import CLASSES, Calibration, device_spec, measured, true_speed
from coordinator.simulate.models import MODELS

CALIBRATION = Calibration()


def test_decode_of_one_layer_takes_its_active_bytes_over_the_bandwidth() -> None:
    device, model = CLASSES["rtx4090-24g"], MODELS["llama3-70b-4bit"]
    speed = true_speed(device, model, CALIBRATION)
    num_bytes = model.facts.active_numels[40] * 4.5 / 8
    expected_s = num_bytes / (1008e9 * CALIBRATION.bandwidth_share) + CALIBRATION.layer_overhead_s
    assert speed.step_s == pytest.approx(expected_s)


def test_a_faster_memory_decodes_faster_and_more_arithmetic_reads_prompts_faster() -> None:
    model = MODELS["llama3-8b"]
    slow, fast = (true_speed(CLASSES[name], model, CALIBRATION) for name in ("rtx3060-12g", "h100-80g"))
    assert slow.step_s > 5 * fast.step_s
    assert slow.prefill_s > 20 * fast.prefill_s


def test_a_mixture_of_experts_reads_a_prompt_no_faster_than_its_weights() -> None:
    device, model = CLASSES["h100-80g"], MODELS["llama4-maverick-400b-4bit"]
    speed = true_speed(device, model, CALIBRATION)
    assert speed.prefill_s >= 2 * model.facts.active_numels[24] / (device.flops * CALIBRATION.flops_share)


def test_a_measurement_without_noise_gives_the_true_speed_back() -> None:
    speed = true_speed(CLASSES["rtx3090-24g"], MODELS["qwen3-32b-4bit"], CALIBRATION)
    seen = speed_of(measured(speed, 0.0, np.random.default_rng(0)))
    assert seen.step_s == pytest.approx(speed.step_s, rel=0.1)
    assert seen.prefill_s == speed.prefill_s


def test_measurements_are_off_by_about_the_noise() -> None:
    speed = true_speed(CLASSES["rtx3090-24g"], MODELS["qwen3-32b-4bit"], CALIBRATION)
    rng = np.random.default_rng(0)
    factors = [measured(speed, 0.1, rng).prefill_layer_s_per_token / speed.prefill_s for _ in range(300)]
    assert np.mean(factors) == pytest.approx(1.0, abs=0.03)
    assert np.std(factors) == pytest.approx(0.1, abs=0.02)


def test_nodes_offer_less_than_the_box_says() -> None:
    spec = device_spec(CLASSES["rtx4090-24g"])
    assert 20 * 2**30 < spec.memory_bytes < 24 * 2**30
