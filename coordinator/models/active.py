"""Which of a layer's elements count for one token: of a mixture of experts those that are chosen; KV by its layer.

By the names that transformers gives to tensors, as in protocol.manifest: a routed expert is below `experts`, a shared
one below `shared_expert` or `shared_experts`, and a layer without either is dense.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from coordinator.models.config import decoder_config
from protocol.manifest import Manifest, parts_of

_ROUTED = re.compile(r"\.experts\.|\.block_sparse_moe\.(input|output)_linear\.")
"""The second is Granite's, whose experts are merged into two tensors without being called so."""
_KEYS_AND_VALUES = re.compile(r"\.(k_proj|v_proj)\.weight\Z")
NO_SHARES: Mapping[int, int] = MappingProxyType({})
_NUM_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
_NUM_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_top_k")


def active_numels(manifest: Manifest) -> tuple[int, ...]:
    """Per layer, the elements that one token's step reads; empty if that is all of them in every layer."""
    share = _chosen_share(decoder_config(json.loads(manifest.config_json)))
    parts = parts_of(manifest)
    numels = [0.0] * manifest.num_layers
    num_routed = 0
    for tensor in manifest.tensors:
        layer = parts[tensor.name]
        if isinstance(layer, int):
            is_routed = _ROUTED.search(tensor.name) is not None
            num_routed += is_routed
            numels[layer] += tensor.numel * (share if is_routed else 1.0)
    return tuple(round(numel) for numel in numels) if num_routed and share < 1.0 else ()


def kv_numels(manifest: Manifest, shares: Mapping[int, int] = NO_SHARES) -> tuple[int, ...]:
    """Per layer, the elements that one token adds to the KV cache; empty if all layers add the same.

    Seen in the projections' shapes ([rows, hidden size]), for configurations name such differences in many ways. A
    layer with recurrent states has its token's share of them instead (`recurrent.state_shares`)."""
    parts = parts_of(manifest)
    numels = [shares.get(layer, 0) for layer in range(manifest.num_layers)]
    for tensor in manifest.tensors:
        layer = parts[tensor.name]
        if not isinstance(layer, int) or layer in shares:
            continue
        if tensor.shape and _KEYS_AND_VALUES.search(tensor.name):
            numels[layer] += tensor.shape[0]
    return tuple(numels) if all(numels) and len(set(numels)) > 1 else ()


def _chosen_share(decoder: Mapping[str, Any]) -> float:
    """Chosen experts of all; 1 where the configuration does not say."""
    num_experts, num_chosen = _count(decoder, _NUM_EXPERTS), _count(decoder, _NUM_CHOSEN)
    return min(1.0, num_chosen / num_experts) if num_experts and num_chosen else 1.0


def _count(decoder: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """The first of these fields that is a number (a list of one per layer counts as its largest); 0 if none is."""
    for name in names:
        given = decoder.get(name)
        numbers = given if isinstance(given, list) else [given]
        if numbers and all(type(number) is int and number > 0 for number in numbers):
            return int(max(numbers))
    return 0
