"""Fused projections: found by what they multiply, equal to what they replace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from client.runtime.architecture import read_architecture
from client.runtime.benchmark import random_cut
from client.runtime.cut import CutModel
from client.runtime.device import Device
from client.runtime.fused_linear import FollowingLinear, LeadingLinear, fuse, watching
from client.runtime.stage import probe_shapes
from tests.fakes.tiny_models import config_json


def groups_of(architecture: str, device: Device) -> list[tuple[str, ...]]:
    cut: CutModel = random_cut(read_architecture(config_json(architecture)), 3, 4, torch.float32, device)
    with watching(cut.own_layers) as groups:
        probe_shapes(cut, torch.float32, device)
    return [group.names for group in groups]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3", "olmo2"])
def test_projections_of_the_same_input_are_found_whatever_the_family(architecture: str, device: Device) -> None:
    assert groups_of(architecture, device) == [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")]


@pytest.mark.parametrize("architecture", ["phi3", "gpt2"])
def test_what_is_fused_already_is_left_alone(architecture: str, device: Device) -> None:
    assert groups_of(architecture, device) == []


class Mixer(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 4, bias=bias), nn.Linear(6, 10, bias=bias)
        self.other = nn.Linear(4, 3)
        self.twice = nn.Linear(10, 10)

    def forward(self, hidden: Tensor) -> Tensor:
        left, right = self.left(hidden), self.right(hidden)
        return torch.cat([self.other(left), self.twice(self.twice(right))], dim=-1)


@pytest.mark.parametrize("bias", [False, True])
def test_a_fused_group_computes_what_its_layers_did(bias: bool) -> None:
    torch.manual_seed(3)
    mixer = Mixer(bias).requires_grad_(False)
    hidden = torch.randn(1, 5, 6)
    with watching([mixer]) as groups:
        wanted = mixer(hidden)
    assert [group.names for group in groups] == [("left", "right")]
    size = sum(parameter.numel() for parameter in mixer.parameters())
    fuse(groups[0])
    assert isinstance(mixer.left, LeadingLinear)
    assert isinstance(mixer.right, FollowingLinear)
    assert sum(parameter.numel() for parameter in mixer.parameters()) == size
    torch.testing.assert_close(mixer(hidden), wanted)
    torch.testing.assert_close(mixer(hidden[:, :1]), wanted[:, :1])


def test_layers_that_differ_in_their_bias_are_not_fused() -> None:
    mixer = Mixer(bias=True)
    mixer.right = nn.Linear(6, 10, bias=False)
    with watching([mixer]) as groups:
        mixer(torch.randn(1, 5, 6))
    assert groups == []


def test_nothing_is_watched_afterwards() -> None:
    mixer = Mixer(bias=False)
    with watching([mixer]) as groups:
        pass
    mixer(torch.randn(1, 5, 6))
    assert groups == []
