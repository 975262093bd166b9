"""Of a hybrid model: which layers keep recurrent states instead of keys and values, and what these take.

A state has one size however long a session is. Workers count it as a share of the first MIN_STATEFUL_TOKENS tokens,
which every session reserves (client/runtime/state_pool.py); the planner counts the same share for every token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from coordinator.models.config import count, decoder_config
from protocol.manifest import Manifest, parts_of
from protocol.values import MIN_STATEFUL_TOKENS, STATE_COPIES

_CONVOLUTION = re.compile(r"\.([qkv]_)?conv(1d)?\.weight\Z")
"""[channels, 1, kernel size], of a layer with a state and of no other. As many elements does a session keep of it."""
_FLOAT32_ITEMS = 2
"""Recurrent states are float32 whatever the variant, at most two of its items."""


def state_shares(manifest: Manifest) -> dict[int, int]:
    """By layer with recurrent states: a token's share of them in elements of the variant, rounded up.

    Raises BrokenModelError if config.json does not say how large they are."""
    convolutions: dict[int, int] = {}
    parts = parts_of(manifest)
    for tensor in manifest.tensors:
        layer = parts[tensor.name]
        if isinstance(layer, int) and len(tensor.shape) == 3 and _CONVOLUTION.search(tensor.name):
            convolutions[layer] = convolutions.get(layer, 0) + tensor.numel
    if not convolutions:
        return {}
    recurrent = _FLOAT32_ITEMS * _recurrent_numel(decoder_config(json.loads(manifest.config_json)))
    return {
        layer: -(-STATE_COPIES * (numel + recurrent) // MIN_STATEFUL_TOKENS) for layer, numel in convolutions.items()
    }


def _recurrent_numel(decoder: Mapping[str, Any]) -> int:
    """Elements of one layer's recurrent state; 0 of a family that has convolutions only."""
    measure = _MEASURES.get(str(decoder.get("model_type")))
    return 0 if measure is None else measure(decoder)


def _delta_rule(decoder: Mapping[str, Any]) -> int:
    sizes = ("linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
    heads, key_dim, value_dim = (count(decoder, size) for size in sizes)
    return heads * key_dim * value_dim


def _state_space(decoder: Mapping[str, Any]) -> int:
    return count(decoder, "mamba_expand", default=2) * count(decoder, "hidden_size") * count(decoder, "mamba_d_state")


_MEASURES: Mapping[str, Callable[[Mapping[str, Any]], int]] = {
    "granitemoehybrid": _state_space,
    "olmo_hybrid": _delta_rule,
    "qwen3_5": _delta_rule,
    "qwen3_5_moe": _delta_rule,
    "qwen3_5_moe_text": _delta_rule,
    "qwen3_5_text": _delta_rule,
    "qwen3_next": _delta_rule,
}
