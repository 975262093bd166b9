"""What a hybrid's recurrent layers count for, by the names and fields of the families that are served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from coordinator.models.errors import BrokenModelError
from coordinator.models.recurrent import state_shares
from coordinator.models.shape import model_shape
from protocol.values import MIN_STATEFUL_TOKENS, STATE_COPIES
from tests.coordinator.models.test_active import ATTENTION, DENSE, Tensors, manifest_of

KV_NUMEL = 4 + 4
DELTA_RULE = {"linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128}
FULL = {**ATTENTION, **DENSE}


def linear(*convolutions: str, num_channels: int) -> Tensors:
    """A layer of which these convolutions share the channels."""
    shape = (num_channels // len(convolutions), 1, 4)
    return {**{f"{name}.weight": shape for name in convolutions}, "linear_attn.in_proj_qkvz.weight": (8, 4), **DENSE}


def share(num_conv: int, num_recurrent: int) -> int:
    """Of a token, in elements of two bytes; the recurrent ones have four."""
    return -(-STATE_COPIES * (num_conv + 2 * num_recurrent) // MIN_STATEFUL_TOKENS)


@pytest.mark.parametrize(
    ("config", "layer", "expected"),
    [
        ({"model_type": "qwen3_next", **DELTA_RULE}, linear("linear_attn.conv1d", num_channels=8192),
         share(8192 * 4, 32 * 128 * 128)),
        ({"model_type": "qwen3_5", "text_config": {"model_type": "qwen3_5_text", **DELTA_RULE}},
         linear("linear_attn.conv1d", num_channels=8192), share(8192 * 4, 32 * 128 * 128)),
        ({"model_type": "olmo_hybrid", **DELTA_RULE},
         {**linear("linear_attn.q_conv1d", "linear_attn.k_conv1d", "linear_attn.v_conv1d", num_channels=9000),
          "linear_attn.k_proj.weight": (3000, 4), "linear_attn.v_proj.weight": (3000, 4)},
         share(9000 * 4, 32 * 128 * 128)),
        ({"model_type": "lfm2"}, linear("conv.conv", num_channels=4096), share(4096 * 4, 0)),
        ({"model_type": "granitemoehybrid", "hidden_size": 4096, "mamba_expand": 2, "mamba_d_state": 128},
         linear("mamba.conv1d", num_channels=8448), share(8448 * 4, 8192 * 128)),
    ],
    ids=["qwen3_next", "qwen3_5", "olmo_hybrid", "lfm2", "granitemoehybrid"],
)  # fmt: skip
def test_a_recurrent_layer_counts_with_a_tokens_share_of_its_states(
    config: Mapping[str, Any], layer: Tensors, expected: int
) -> None:
    manifest = manifest_of(config, layer, layer, FULL)
    assert state_shares(manifest) == {0: expected, 1: expected}
    shape = model_shape(manifest, KV_NUMEL)
    assert shape.kv_numels == (expected, expected, KV_NUMEL)
    assert shape.min_session_tokens == MIN_STATEFUL_TOKENS


def test_a_model_without_recurrent_layers_reserves_what_is_asked_for() -> None:
    shape = model_shape(manifest_of({"model_type": "llama"}, FULL, FULL), KV_NUMEL)
    assert (shape.kv_numels, shape.min_session_tokens) == ((), 0)


@pytest.mark.parametrize("field", DELTA_RULE)
def test_states_of_an_unknown_size_are_not_guessed(field: str) -> None:
    config = {"model_type": "qwen3_next", **{name: size for name, size in DELTA_RULE.items() if name != field}}
    with pytest.raises(BrokenModelError, match=field):
        state_shares(manifest_of(config, linear("linear_attn.conv1d", num_channels=64), FULL))
