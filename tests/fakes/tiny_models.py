"""Tiny random models of many architectures, written as checkpoints of the real layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

transformers.logging.disable_progress_bar()  # it writes to standard error

BASE: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEAD = {"head_dim": 16}
NO_GQA = {"num_key_value_heads": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_EXPERTS = {**EXPERTS, "moe_intermediate_size": 32}
ROUTED_EXPERTS = {
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "first_k_dense_replace": 2, "n_group": 1, "topk_group": 1,
}  # fmt: skip
LATENT = {**ROUTED_EXPERTS, **NO_GQA, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8,
          "qk_nope_head_dim": 16, "v_head_dim": 12}  # fmt: skip
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0,
             "truncate": False, "original_max_position_embeddings": 64}  # fmt: skip
WINDOW = {"sliding_window": 16}

CONFIGS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "llama3-rope": ("LlamaConfig", {"tie_word_embeddings": True, **HEAD, "rope_parameters": LLAMA3_ROPE}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2-sliding": ("Qwen2Config", {"use_sliding_window": True, **WINDOW, "max_window_layers": 3}),
    "qwen3": ("Qwen3Config", {**HEAD, "tie_word_embeddings": True}),
    "qwen3_moe": ("Qwen3MoeConfig", {**HEAD, **QWEN_EXPERTS}),
    "qwen2_moe": ("Qwen2MoeConfig", {**QWEN_EXPERTS, "shared_expert_intermediate_size": 32}),
    "gemma": ("GemmaConfig", HEAD),
    "gemma2": ("Gemma2Config", {**HEAD, **WINDOW, "query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3TextConfig", {**HEAD, **WINDOW, "query_pre_attn_scalar": 16, "sliding_window_pattern": 3}),
    "gpt_oss": ("GptOssConfig", {**HEAD, **WINDOW, **LOCAL_EXPERTS, "rope_parameters": YARN_ROPE}),
    "mistral": ("MistralConfig", WINDOW),
    "mixtral": ("MixtralConfig", LOCAL_EXPERTS),
    "phi": ("PhiConfig", NO_GQA),
    "phi3": ("Phi3Config", {}),
    "glm": ("GlmConfig", HEAD),
    "glm4": ("Glm4Config", HEAD),
    "glm4_moe": ("Glm4MoeConfig", {**HEAD, **ROUTED_EXPERTS}),
    "olmo": ("OlmoConfig", {}),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": ("Olmo3Config", WINDOW),
    "olmoe": ("OlmoeConfig", EXPERTS),
    "deepseek_v2": ("DeepseekV2Config", LATENT),
    "deepseek_v3": ("DeepseekV3Config", LATENT),
    "granite": ("GraniteConfig", {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22}),
    "granitemoe": ("GraniteMoeConfig", {**LOCAL_EXPERTS, "embedding_multiplier": 12.0}),
    "cohere": ("CohereConfig", {}),
    "cohere2": ("Cohere2Config", WINDOW),
    "starcoder2": ("Starcoder2Config", WINDOW),
    "stablelm": ("StableLmConfig", {}),
    "smollm3": ("SmolLM3Config", {}),
    "seed_oss": ("SeedOssConfig", HEAD),
    "exaone4": ("Exaone4Config", {**WINDOW, "sliding_window_pattern": 3}),
    "ernie4_5": ("Ernie4_5Config", {}),
    "hunyuan": ("HunYuanDenseV1Config", HEAD),
    "nemotron": ("NemotronConfig", {}),
    "arcee": ("ArceeConfig", {}),
    "helium": ("HeliumConfig", HEAD),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_layer": 6, "n_head": 4, "n_positions": 512}),
    "opt": ("OPTConfig", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "persimmon": ("PersimmonConfig", NO_GQA),
    "minimax_m2": ("MiniMaxM2Config", {**HEAD, **LOCAL_EXPERTS}),
    "dots1": ("Dots1Config", {**HEAD, **ROUTED_EXPERTS, **WINDOW}),
    "llama4": ("Llama4TextConfig", {**HEAD, **LOCAL_EXPERTS, "intermediate_size_mlp": 128,
                                    "attention_chunk_size": 16}),
}  # fmt: skip

DELTA_RULE = {**HEAD, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
              "linear_value_head_dim": 8}  # fmt: skip
EVERY_THIRD = {"layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2}
STATE_SPACE = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 2, "mamba_chunk_size": 8}
RECURRENT: Mapping[str, tuple[str, dict[str, Any]]] = {
    "qwen3_next": ("Qwen3NextConfig", {**DELTA_RULE, **EVERY_THIRD, **QWEN_EXPERTS,
                                       "shared_expert_intermediate_size": 32}),
    "qwen3_5": ("Qwen3_5TextConfig", {**DELTA_RULE, **EVERY_THIRD}),
    "qwen3_5_moe": ("Qwen3_5MoeTextConfig", {**DELTA_RULE, **EVERY_THIRD, **QWEN_EXPERTS,
                                             "shared_expert_intermediate_size": 32}),
    "olmo_hybrid": ("OlmoHybridConfig", {**DELTA_RULE, **EVERY_THIRD}),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "conv", "full_attention"] * 2}),
    "lfm2_moe": ("Lfm2MoeConfig", {"layer_types": ["conv", "conv", "full_attention"] * 2, **QWEN_EXPERTS}),
    "granitemoehybrid": ("GraniteMoeHybridConfig", {**LOCAL_EXPERTS, **STATE_SPACE, "embedding_multiplier": 12.0,
                         "layer_types": ["mamba", "mamba", "attention"] * 2, "shared_intermediate_size": 64}),
}  # fmt: skip
"""Hybrids: some layers, or a half of each, keep a state of fixed size per session instead of a KV cache."""
CONFIGS = {**CONFIGS, **RECURRENT}
ARCHITECTURES = tuple(CONFIGS)
"""Names that `save_tiny` takes: all are served by layers."""

UNSUPPORTED: Mapping[str, tuple[str, dict[str, Any]]] = {
    "gemma3n_text": ("Gemma3nTextConfig", HEAD),
    "bloom": ("BloomConfig", {"n_layer": 6, "n_head": 4}),
    "mamba": ("MambaConfig", {}),
    "jamba": ("JambaConfig", EXPERTS),
    "bamba": ("BambaConfig", STATE_SPACE),
    "t5": ("T5Config", {}),
}

MULTIMODAL: Mapping[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "gemma3": ("Gemma3Config", "Gemma3ForConditionalGeneration",
               {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                "image_size": 28, "patch_size": 14}, {"mm_tokens_per_image": 4}),
    "qwen3_5": ("Qwen3_5Config", "Qwen3_5ForConditionalGeneration",
                {"hidden_size": 32, "intermediate_size": 32, "depth": 1, "num_heads": 2, "out_hidden_size": 64,
                 "num_position_embeddings": 16}, {}),
}  # fmt: skip
"""By the family of the text part: config and model class, the vision tower's values, and others."""

_FOREIGN = {"gpt2": ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads", "max_position_embeddings"),
            "opt": ("intermediate_size", "num_key_value_heads"), "gpt_neox": ("num_key_value_heads",)}  # fmt: skip
"""What of BASE a family's config calls by another name, or lacks."""


def tiny_config(architecture: str, **changes: Any) -> Any:
    """transformers' config object of a tiny model; `changes` go over the table's values."""
    class_name, own = {**CONFIGS, **UNSUPPORTED}[architecture]
    base = {name: value for name, value in BASE.items() if name not in _FOREIGN.get(architecture, ())}
    return getattr(transformers, class_name)(**{**base, **own, **changes})


def config_json(architecture: str, **changes: Any) -> str:
    """The config.json of a tiny model."""
    return json.dumps(tiny_config(architecture, **changes).to_dict())


def save_tiny(architecture: str, folder: Path, seed: int = 0, max_shard_size: str = "1GB", **changes: Any) -> Path:
    """Write a tiny random float32 model as config.json and safetensors into `folder`, and return it.

    A small `max_shard_size` such as "200KB" makes several files with an index. `changes` are config values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(architecture, **changes), dtype=torch.float32)
        _spread(model)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def save_multimodal(folder: Path, architecture: str = "gemma3", seed: int = 0) -> Path:
    """Write a tiny model with a vision tower into `folder`, whose text part is that of `architecture`."""
    config_name, model_name, vision, others = MULTIMODAL[architecture]
    text = tiny_config(architecture).to_dict()
    config = getattr(transformers, config_name)(text_config=text, vision_config=vision, **others)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, model_name)(config)
        _spread(model)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def _spread(model: torch.nn.Module) -> None:
    """Weights large enough that greedy output wanders instead of repeating one token, and norms that differ."""
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            parameter.add_(torch.randn_like(parameter) * 0.05)
        else:
            parameter.normal_(0.0, 0.01 if "embed" in name or "wte" in name else 1.5 * parameter.shape[-1] ** -0.5)
