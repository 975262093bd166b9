"""What counts for one token, on tiny models with the names and fields of real families."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from coordinator.models.active import active_numels, kv_numels
from coordinator.models.shape import model_shape
from protocol.manifest import Manifest, ManifestFile, TensorSpec

ATTENTION = {"self_attn.q_proj.weight": (8, 4), "self_attn.k_proj.weight": (4, 4), "self_attn.v_proj.weight": (4, 4),
             "input_layernorm.weight": (4,)}  # fmt: skip
NUM_ATTENTION = 32 + 16 + 16 + 4
DENSE = {"mlp.gate_proj.weight": (20, 4), "mlp.up_proj.weight": (20, 4), "mlp.down_proj.weight": (4, 20)}
SHARED = {"mlp.shared_experts.gate_proj.weight": (6, 4), "mlp.shared_experts.down_proj.weight": (4, 6)}
ROUTER = {"mlp.gate.weight": (8, 4)}
NUM_EXPERT = 3 * 24
QWEN3_MOE = {"num_experts": 8, "num_experts_per_tok": 2}
DEEPSEEK = {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 2}

Tensors = Mapping[str, tuple[int, ...]]


def experts(number: int, name: str = "mlp.experts.{}.{}.weight") -> Tensors:
    parts = {"gate_proj": (6, 4), "up_proj": (6, 4), "down_proj": (4, 6)}
    return {name.format(i, part): shape for i in range(number) for part, shape in parts.items()}


def manifest_of(config: Mapping[str, Any], *layers: Tensors, prefix: str = "model.layers") -> Manifest:
    """A model of these layers."""
    named = {f"{prefix}.{number}.{name}": shape for number, layer in enumerate(layers) for name, shape in layer.items()}
    tensors = {"model.embed_tokens.weight": (100, 4), **named, "model.norm.weight": (4,), "lm_head.weight": (100, 4)}
    return Manifest(
        version=1,
        name="tiny",
        architecture="TinyForCausalLM",
        config_json=json.dumps(config),
        num_layers=len(layers),
        hidden_size=4,
        vocab_size=100,
        context_length=512,
        chunk_bytes=2**20,
        files=(ManifestFile("model.safetensors", 1, ("ab" * 32,), 1),),
        tensors=tuple(TensorSpec(name, 0, "BF16", shape, 0, 0) for name, shape in tensors.items()),
    )


# ---------------------------------------------------------------- weights


def test_of_qwen3_moe_the_chosen_experts_count_and_router_and_attention_in_full() -> None:
    layer = {**ATTENTION, **ROUTER, **experts(8)}
    manifest = manifest_of(QWEN3_MOE, layer, layer, layer)
    assert active_numels(manifest) == (NUM_ATTENTION + 32 + 2 * NUM_EXPERT,) * 3
    assert model_shape(manifest, 16).layer_numels == (NUM_ATTENTION + 32 + 8 * NUM_EXPERT,) * 3


def test_of_deepseek_v3_dense_first_layers_and_shared_experts_count_in_full() -> None:
    mixture = {**ATTENTION, **ROUTER, **SHARED, **experts(8)}
    manifest = manifest_of(DEEPSEEK, {**ATTENTION, **DENSE}, {**ATTENTION, **DENSE}, mixture, mixture)
    dense, mixed = NUM_ATTENTION + 240, NUM_ATTENTION + 32 + 48 + 2 * NUM_EXPERT
    assert active_numels(manifest) == (dense, dense, mixed, mixed)


@pytest.mark.parametrize(
    ("config", "routed"),
    [
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, {"mlp.experts.gate_up_proj": (8, 4, 12)}),
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, {"mlp.experts.gate_up_proj_bias": (8, 48)}),
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, {"block_sparse_moe.input_linear.weight": (8, 12, 4)}),
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, experts(8, "block_sparse_moe.experts.{}.{}.weight")),
        ({"text_config": {"num_experts": 8, "num_experts_per_tok": 2}}, experts(8)),
        ({"num_experts": [8, 8], "moe_topk": [2, 2]}, experts(8)),
    ],
    ids=["merged", "bias", "granite", "mixtral", "multimodal", "lists"],
)
def test_families_name_their_experts_in_several_ways(config: dict[str, Any], routed: Tensors) -> None:
    manifest = manifest_of(config, {**ATTENTION, **routed}, {**ATTENTION, **routed})
    whole = model_shape(manifest, 16).layer_numels[0] - NUM_ATTENTION
    assert active_numels(manifest) == (NUM_ATTENTION + whole // 4,) * 2


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_experts": 8},
        {"num_experts": 8, "num_experts_per_tok": 8},
        {"num_experts": 8, "num_experts_per_tok": 9},
        {"num_experts": 0, "num_experts_per_tok": 2},
        {"num_experts": "8", "num_experts_per_tok": True},
        {"num_experts": 8, "num_experts_per_tok": [], "top_k": 50},
    ],
)
def test_all_experts_count_where_the_configuration_does_not_say_how_many_are_chosen(config: dict[str, Any]) -> None:
    assert active_numels(manifest_of(config, {**ATTENTION, **experts(8)})) == ()


def test_a_dense_model_reads_everything_whatever_its_configuration_says() -> None:
    assert active_numels(manifest_of(QWEN3_MOE, {**ATTENTION, **DENSE, **SHARED})) == ()


# ---------------------------------------------------------------- KV


def test_layers_that_cache_the_same_need_no_numbers_of_their_own() -> None:
    gemma3 = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "sliding_window": 16}
    assert kv_numels(manifest_of(gemma3, ATTENTION, ATTENTION, ATTENTION)) == ()


def test_layers_of_different_kv_heads_are_counted_each() -> None:
    wide = {**ATTENTION, "self_attn.k_proj.weight": (12, 4), "self_attn.v_proj.weight": (8, 4)}
    assert kv_numels(manifest_of({}, ATTENTION, wide, ATTENTION)) == (8, 20, 8)


def test_projections_of_other_forms_say_nothing_about_kv() -> None:
    latent = {"self_attn.kv_a_proj_with_mqa.weight": (6, 4), "self_attn.kv_b_proj.weight": (20, 4)}
    assert kv_numels(manifest_of({}, latent, ATTENTION)) == ()
    assert kv_numels(manifest_of({}, {"attn.c_attn.weight": (4, 12)}, {"attn.c_attn.weight": (4, 24)})) == ()


def test_the_models_shape_has_both() -> None:
    wide = {**ATTENTION, "self_attn.v_proj.weight": (8, 4)}
    shape = model_shape(manifest_of(QWEN3_MOE, {**ATTENTION, **experts(8)}, {**wide, **experts(8)}), 16)
    assert shape.active_numels == (NUM_ATTENTION + 2 * NUM_EXPERT, NUM_ATTENTION + 16 + 2 * NUM_EXPERT)
    assert (shape.kv_numels, shape.hidden_size) == ((8, 12), 4)
