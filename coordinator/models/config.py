"""Reads a model's config.json: whether this pool can serve it, and its sizes.

transformers' own config classes would need torch (see tokenizer.py), and most of what they do is not needed here;
the fields have the same names in nearly all models, and the older names are listed below.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.models.errors import BrokenModelError, UnsupportedModelError, shown
from coordinator.models.files import optional_json, required_json

_DECODER = re.compile(r"\A[A-Za-z0-9_]+(ForCausalLM|LMHeadModel)\Z")
_WRAPPER = re.compile(r"\A[A-Za-z0-9_]+ForConditionalGeneration\Z")
"""A multimodal model around a decoder, which its `text_config` describes."""

# What did not give the whole model's logits when 48 architectures of transformers 5.23 were run cut into stages.
_UNSERVED = {
    re.compile(
        r"bailing_hybrid|bamba|deepseek_v4|falcon_h1|falcon_mamba|glm5_next|inkling.*|jamba|kimi_linear|lfm2_vl|lfm3.*"
        r"|mamba.*|minimax|nemotron_h.*|qwen4_exp|recurrent_gemma|rwkv.*|xlstm|zamba.*|zaya"
    ): "its layers keep a recurrent state of a kind that cannot be kept apart per session yet",
    re.compile(r"gemma3n.*|gemma4.*"): "its layers share their cache with one another and cannot be cut apart",
    re.compile(r"bloom|falcon|mpt|gptj|codegen|gpt_neo|xglm"): "its attention in transformers cannot be replaced",
}

# What a node's check_packable refuses, of those that are served (see client.runtime.packed_model).
_NOT_PACKED = re.compile(r"gpt2|gpt_bigcode|llama4.*")

UNPACKED = frozenset({"awq", "compressed-tensors", "fbgemm_fp8", "fp8", "gptq", "mxfp4"})
"""Formats of weights that are turned to plain numbers when a model is added (unpack.py). The nodes hold it in 16 bits
then, or packed again."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes in numbers of elements; `kv_numel_per_token` is of one layer, keys and values together."""

    text: str
    architecture: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    context_length: int
    kv_numel_per_token: int


def read_config(folder: Path, *, may_be_packed: bool = False) -> ModelConfig:
    """What config.json in `folder` says. `may_be_packed`: weights in a format of UNPACKED are fine here.

    Raises UnsupportedModelError for a model that is not a plain decoder or wants its own code run,
    BrokenModelError for a missing or nonsensical file."""
    config = required_json(folder, "config.json")
    _refuse_own_code(folder, config)
    architecture = _architecture(folder.name, config)
    decoder = decoder_config(config)
    if not (may_be_packed and packing_of(config) in UNPACKED):
        _refuse_packed(folder.name, packing_of(config))
    _refuse_unserved(folder.name, config, decoder)
    return ModelConfig(
        text=(folder / "config.json").read_text(encoding="utf-8"),
        architecture=architecture,
        num_layers=count(decoder, "num_hidden_layers", "n_layer", "num_layers", "n_layers"),
        hidden_size=_hidden_size(decoder),
        vocab_size=count(decoder, "vocab_size"),
        context_length=count(decoder, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", default=2048),
        kv_numel_per_token=kv_numel_per_token(decoder),
    )


def kv_numel_per_token(decoder: Mapping[str, Any]) -> int:
    """Elements that one token adds to one layer's KV cache.

    Multi-head latent attention (`kv_lora_rank`) counts expanded, as it is cached when attention goes through the
    attention interface: keys of nope + rope, values of their own size, for every head."""
    num_heads = count(decoder, "num_attention_heads", "n_head", "n_heads")
    if decoder.get("kv_lora_rank"):
        sizes = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        return num_heads * sum(count(decoder, size) for size in sizes)
    num_kv_heads = 1 if decoder.get("multi_query") else count(decoder, "num_key_value_heads", default=num_heads)
    return 2 * num_kv_heads * count(decoder, "head_dim", default=max(1, _hidden_size(decoder) // num_heads))


def _hidden_size(decoder: Mapping[str, Any]) -> int:
    return count(decoder, "hidden_size", "n_embd", "d_model")


def _refuse_own_code(folder: Path, config: Mapping[str, Any]) -> None:
    tokenizer = optional_json(folder, "tokenizer_config.json") or {}
    for file, fields in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        for field in ("auto_map", "trust_remote_code"):
            if fields.get(field):
                reason = f"{file} asks to run the model's own program code ({field}), which is never run"
                raise UnsupportedModelError(folder.name, reason)


def _architecture(name: str, config: Mapping[str, Any]) -> str:
    listed = config.get("architectures")
    if not isinstance(listed, list) or not listed or not isinstance(listed[0], str):
        raise BrokenModelError("config.json", "it names no architecture (field architectures)")
    architecture: str = listed[0]
    wraps_decoder = _WRAPPER.match(architecture) and isinstance(config.get("text_config"), dict)
    if config.get("is_encoder_decoder") or not (_DECODER.match(architecture) or wraps_decoder):
        reason = f"{shown(architecture)} is not a decoder that writes text (...ForCausalLM)"
        raise UnsupportedModelError(name, reason)
    return architecture


def decoder_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields that describe the decoder: those of a multimodal model are in a part of their own."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def packing_config(config: Mapping[str, Any]) -> Any:
    """What a config.json says of how its weights are packed, or its decoder's; nothing: they are not."""
    return config.get("quantization_config") or decoder_config(config).get("quantization_config")


def packing_of(config: Mapping[str, Any]) -> str:
    """How a checkpoint's weights are packed: quant_method of its quantization_config, "" if they are not."""
    packing = packing_config(config)
    if not packing:
        return ""
    return str(packing.get("quant_method") or "unknown") if isinstance(packing, dict) else "unknown"


def one_of(names: Collection[str]) -> str:
    """Such as "a, b or c"."""
    *first, last = sorted(names)
    return f"{', '.join(first)} or {last}" if first else last


def _refuse_packed(name: str, packing: str) -> None:
    if packing:
        reason = (
            f"its weights are quantised ({shown(packing)}, by quantization_config); use the original model, or one in"
            f" {one_of(UNPACKED)}"
        )
        raise UnsupportedModelError(name, reason)


def _refuse_unserved(name: str, config: Mapping[str, Any], decoder: Mapping[str, Any]) -> None:
    for model_type in (config.get("model_type"), decoder.get("model_type")):
        for pattern, reason in _UNSERVED.items():
            if isinstance(model_type, str) and pattern.fullmatch(model_type):
                raise UnsupportedModelError(name, f"{model_type}: {reason}")


def refuse_unpackable(name: str, config_json: str, quantisation: str) -> None:
    """Raises UnsupportedModelError for a model whose nodes could not pack its weights."""
    config = json.loads(config_json)
    for model_type in (config.get("model_type"), decoder_config(config).get("model_type")):
        if isinstance(model_type, str) and _NOT_PACKED.fullmatch(model_type):
            raise UnsupportedModelError(name, f"the weights of a {model_type} model cannot be packed as {quantisation}")


def count(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    """The first of these fields that is given, else the default. Raises BrokenModelError if there is neither, or it is
    not a number from 1 on."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if type(value) is not int or not 1 <= value < 2**31:
            raise BrokenModelError("config.json", f"{name} is {shown(value)!r}, not a number from 1 on")
        return value
    if default is None:
        raise BrokenModelError("config.json", f"the field {names[0]} is missing")
    return default
