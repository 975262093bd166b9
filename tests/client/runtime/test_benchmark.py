"""Measuring layers on random weights: plausible, bounded figures, and the same refusals as for loading."""

import pytest
import torch

from client.runtime import benchmark
from client.runtime.architecture import read_architecture
from client.runtime.benchmark import StepClock, measure_layers, random_cut
from client.runtime.device import Device
from client.runtime.errors import ChannelClosedError, UnsupportedArchitectureError
from protocol.values import LayerBenchmark
from tests.fakes.tiny_models import config_json


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "MEASURE_S", 0.01)


def measure(architecture: str, device: Device, num_prefill_tokens: int = 32, **changes: int) -> LayerBenchmark:
    config = config_json(architecture, **changes)
    return measure_layers(config, torch.float32, device, (8, 1), num_prefill_tokens)


@pytest.mark.parametrize(
    "architecture", ["llama", "gemma3", "qwen3_moe", "gpt_oss", "deepseek_v3", "gpt2", "llama4", "lfm2"]
)
def test_every_figure_is_a_time(architecture: str, device: Device) -> None:
    measured = measure(architecture, device)
    assert [time.batch_size for time in measured.decode] == [1, 8]
    assert all(0 < time.layer_s < 1 for time in measured.decode)
    assert 0 < measured.prefill_layer_s_per_token < measured.decode[0].layer_s
    assert 0 < measured.head_s < 1


def test_a_layer_with_more_weights_takes_longer(device: Device) -> None:
    small, large = measure("llama", device), measure("llama", device, intermediate_size=40_000)
    assert large.decode[0].layer_s > small.decode[0].layer_s


def test_a_head_with_a_larger_vocabulary_takes_longer(device: Device) -> None:
    assert measure("llama", device, vocab_size=100_000).head_s > measure("llama", device).head_s


def test_a_prefill_that_would_take_too_long_is_timed_over_fewer_tokens(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "PREFILL_BUDGET_S", 0.0)
    lengths: list[int] = []

    def prefill_s(timer: benchmark.LayerTimer, number: int) -> float:
        lengths.append(number)
        return 0.0

    monkeypatch.setattr(benchmark.LayerTimer, "prefill_s", prefill_s)
    measure("llama", device, num_prefill_tokens=4096)
    assert lengths == [16]


def test_the_random_layer_is_one_from_the_middle_with_every_weight_set(device: Device) -> None:
    cut = random_cut(read_architecture(config_json("qwen3_moe")), 3, 4, torch.float32, device)
    weights = dict(cut.model.named_parameters())
    assert all(name.startswith("model.layers.3.") for name in weights)
    assert all(0.015 < float(weight.std()) < 0.025 for weight in weights.values() if weight.numel() > 1000)


def test_unsupported_models_are_refused(device: Device) -> None:
    with pytest.raises(UnsupportedArchitectureError):
        measure("bloom", device)


def test_repetitions_are_bounded_and_interruptible(device: Device) -> None:
    steps: list[int] = []
    StepClock(device, lambda: None).median_s(lambda: steps.append(1))
    assert len(steps) == benchmark.MAX_REPETITIONS + 1

    def closed() -> None:
        raise ChannelClosedError

    with pytest.raises(ChannelClosedError):
        StepClock(device, closed).median_s(lambda: steps.append(1))
    assert len(steps) == benchmark.MAX_REPETITIONS + 1
