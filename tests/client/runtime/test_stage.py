"""A paced stage: never faster than its pace, no slower because of it than the pace says, with the same result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from client.pace import Pace
from client.runtime import stage as stage_module
from client.runtime.batch import lay_out
from client.runtime.device import Device
from client.runtime.loading import load_folder
from client.runtime.stage import Stage
from protocol.values import LayerRange

SHAPES = {"two decode rows": (1, 1), "a prompt": (7,), "both": (1, 5, 1)}


def forward(folder: Path, pace: Pace | None, num_rows: tuple[int, ...]) -> Tensor:
    """Layers 1 to 3 over sessions of so many rows each."""
    device = Device.open("cpu", pace)
    stage = Stage(load_folder(folder, LayerRange(1, 4), torch.float32, device, lambda *_: None), 2**20, torch.float32,
                  device)  # fmt: skip
    layout = lay_out([(stage.cache.open(8), number) for number in num_rows])
    inputs = torch.randn(layout.num_rows, stage.hidden_size, generator=torch.Generator().manual_seed(1))
    return stage.forward(layout, inputs, [])


@pytest.mark.parametrize(
    ("shape", "least_s"),
    [("two decode rows", 3 * (10 + 2 * 4)), ("a prompt", 3 * (10 + 7 * 2)), ("both", 3 * (10 + 2 * 4 + 5 * 2))],
)
def test_what_is_left_of_the_pace_is_waited_out(
    shape: str, least_s: float, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(stage_module, "sleep", slept.append)
    monkeypatch.setattr(stage_module, "perf_counter", iter([100.0, 100.0125]).__next__)
    forward(checkpoint("llama"), Pace(10.0, 4.0, 2.0), SHAPES[shape])
    assert slept == [pytest.approx(least_s / 1000 - 0.0125)]


def test_hardware_that_is_slower_than_the_pace_is_not_waited_for(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(stage_module, "sleep", slept.append)
    monkeypatch.setattr(stage_module, "perf_counter", iter([100.0, 200.0]).__next__)
    forward(checkpoint("llama"), Pace(10.0, 4.0, 2.0), (1, 1))
    assert slept == [0.0]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_result_is_the_same_at_any_pace(shape: str, checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("llama")
    assert torch.equal(forward(folder, None, SHAPES[shape]), forward(folder, Pace(1.0, 0.5, 0.1), SHAPES[shape]))


def test_without_a_pace_nothing_is_waited_for(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_module, "sleep", lambda seconds: pytest.fail("it slept"))
    forward(checkpoint("llama"), None, (1,))
