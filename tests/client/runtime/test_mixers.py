"""Recurrent modules of transformers: which they are, and that each session's rows meet its own states only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from client.runtime.device import Device
from client.runtime.errors import UnsupportedArchitectureError
from client.runtime.loading import load_folder
from client.runtime.mixers import Mixer, StateProbe, States, adopt_mixers, mixing
from client.runtime.stage import probe_shapes
from protocol.values import LayerRange
from tests.fakes.tiny_models import RECURRENT

Checkpoints = Callable[[str], Path]


class Summing(nn.Module):
    """A mixer that adds up its rows, with any other arguments."""

    layer_idx = 4

    def forward(self, hidden_states: Tensor, cache_params: Any = None, **others: Any) -> Tensor:
        rows = cache_params.update_conv_state(hidden_states.transpose(1, 2), 4, conv_kernel_size=3)
        return rows.sum(-1, keepdim=True).transpose(1, 2)


def summing() -> Mixer:
    return Mixer(Summing(), "cache_params")


@pytest.mark.parametrize("architecture", RECURRENT)
def test_every_layer_has_keys_or_states_and_the_two_are_not_mixed_up(
    architecture: str, checkpoint: Checkpoints, device: Device
) -> None:
    cut = load_folder(checkpoint(architecture), LayerRange(1, 6), torch.float32, device, lambda *_: None)
    assert adopt_mixers(cut.own_layers)
    shapes, states = probe_shapes(cut, torch.float32, device)
    assert [shape.layer for shape in shapes] == [2, 5]
    assert [state.layer for state in states] == [1, 3, 4]
    assert all(state.num_bytes > 0 for state in states)


def test_models_without_recurrent_layers_have_no_mixers(checkpoint: Checkpoints, device: Device) -> None:
    cut = load_folder(checkpoint("llama"), LayerRange(0, 6), torch.float32, device, lambda *_: None)
    assert not adopt_mixers(cut.own_layers)


def test_a_mixer_is_adopted_once(checkpoint: Checkpoints, device: Device) -> None:
    cut = load_folder(checkpoint("lfm2"), LayerRange(0, 2), torch.float32, device, lambda *_: None)
    assert adopt_mixers(cut.own_layers)
    first = [layer.conv.forward for layer in cut.own_layers]
    assert adopt_mixers(cut.own_layers)
    assert [layer.conv.forward for layer in cut.own_layers] == first


def test_rows_follow_those_before_them_and_the_last_ones_are_kept() -> None:
    states = States(conv=torch.tensor([[[1.0, 2.0, 3.0]]]))
    rows = states.update_conv_state(torch.tensor([[[4.0, 5.0]]]), 0, conv_kernel_size=3)
    assert rows.tolist() == [[[1.0, 2.0, 3.0, 4.0, 5.0]]]
    assert states.conv is not None and states.conv.tolist() == [[[3.0, 4.0, 5.0]]]


def test_before_a_sessions_first_row_there_are_zeros() -> None:
    states = States()
    rows = states.update_conv_state(torch.tensor([[[4.0]]]), 0, conv_kernel_size=3)
    assert rows.tolist() == [[[0.0, 0.0, 0.0, 4.0]]]
    assert states.conv is not None and states.conv.tolist() == [[[0.0, 0.0, 4.0]]]


def test_a_second_state_of_a_kind_is_not_taken_for_the_first() -> None:
    with pytest.raises(AssertionError, match="one state of a kind"):
        States().get_conv_state(0, state_idx=1)


def test_a_probe_sees_what_a_session_would_keep() -> None:
    probe = StateProbe("summing")
    with mixing(probe):
        assert summing()(hidden_states=torch.ones(1, 1, 8), cache_params=None, attention_mask=None).shape == (1, 1, 8)
    [shape] = probe.shapes
    assert (shape.layer, shape.num_bytes, shape.recurrent) == (4, 8 * 3 * 4, None)


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ([{"attention_mask": torch.ones(1, 1)}], "looks at more than its rows"),
        ([{}, {}], "more than one recurrent state"),
    ],
)
def test_a_mixer_that_cannot_be_kept_apart_is_refused(calls: list[Mapping[str, Any]], reason: str) -> None:
    mixer = summing()
    with mixing(StateProbe("summing")), pytest.raises(UnsupportedArchitectureError, match=reason):
        for options in calls:
            mixer(hidden_states=torch.ones(1, 1, 8), **options)
