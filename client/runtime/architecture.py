"""Which model a config.json describes, and whether its layers can be served apart. No weights are looked at.

Everything that transformers' own forward expresses through the attention interface works. What cannot work is refused
by name: state that nobody here has learnt to keep per session, values shared between layers, or attention outside the
interface.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from client.runtime.errors import BadConfigError, UnsupportedArchitectureError

KNOWN_LAYER_TYPES = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
SERVED_RECURRENT = frozenset(
    {"granitemoehybrid", "lfm2", "lfm2_moe", "olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"}
)
"""Families whose recurrent states mixers.py keeps apart: each is in the walk of tests. Those of Mamba 1 (Jamba, Zamba)
are not, as transformers forgets their state between chunks of a prompt; those with layers that give back more than
their rows (Bamba, Falcon H1), or keep nothing at all (Nemotron H), cannot be cut by cut.py."""

SPECIAL_FLOATS = {name: float(name) for name in ("Infinity", "-Infinity", "NaN")}


@dataclass(frozen=True)
class Architecture:
    """A decoder-only causal language model: transformers' config object and model class, neither changed."""

    config: Any
    model_class: Any

    @property
    def model_type(self) -> str:
        return str(self.config.model_type)

    @cached_property
    def num_layers(self) -> int:
        return int(self.config.num_hidden_layers)

    @cached_property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)

    @cached_property
    def vocab_size(self) -> int:
        return int(self.config.vocab_size)

    @property
    def has_tied_embeddings(self) -> bool:
        return bool(getattr(self.config, "tie_word_embeddings", False))


def read_architecture(config_json: str) -> Architecture:
    """The model that a config.json describes; of a multimodal one, its text part.

    Raises BadConfigError or UnsupportedArchitectureError. Code that comes with a checkpoint is never run."""
    config = _text_config(_parse(config_json))
    model_class = _model_class(config)
    for applies, reason in REFUSALS:
        if applies(config, model_class):
            raise UnsupportedArchitectureError(config.model_type, reason)
    return Architecture(config, model_class)


def _parse(config_json: str) -> dict[str, Any]:
    try:
        data = json.loads(config_json, object_hook=_decode_float)
    except ValueError:
        raise BadConfigError("it is not JSON") from None
    if not isinstance(data, dict) or not isinstance(data.get("model_type"), str):
        raise BadConfigError("it names no model_type")
    return data


def _decode_float(data: dict[str, Any]) -> Any:
    """transformers writes infinity, which JSON lacks, as {"__float__": "Infinity"}."""
    return SPECIAL_FLOATS.get(str(data.get("__float__")), data)


def _text_config(data: dict[str, Any]) -> Any:
    model_type = data["model_type"]
    if model_type not in CONFIG_MAPPING:
        raise UnsupportedArchitectureError(model_type, "this build does not know them")
    try:
        config = CONFIG_MAPPING[model_type].from_dict(data)
        text_config = config.get_text_config(decoder=True)
    except Exception as error:  # whatever a config class raises on values it did not expect
        raise BadConfigError(f"{model_type} refuses it ({type(error).__name__})") from error
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedArchitectureError(model_type, "the checkpoint is quantised")
    return text_config


def _model_class(config: Any) -> Any:
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedArchitectureError(config.model_type, "they are not causal language models")
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _keeps_recurrent_state(config: Any, model_class: Any) -> bool:
    if config.model_type in SERVED_RECURRENT:
        return False
    kinds = set(getattr(config, "layer_types", None) or ())
    return bool(getattr(model_class, "_is_stateful", False) or kinds - KNOWN_LAYER_TYPES)


def _shares_kv(config: Any, model_class: Any) -> bool:
    return bool(getattr(config, "num_kv_shared_layers", 0))


def _feeds_layers_inputs(config: Any, model_class: Any) -> bool:
    return bool(getattr(config, "hidden_size_per_layer_input", 0))


def _is_encoder_decoder(config: Any, model_class: Any) -> bool:
    return bool(getattr(config, "is_encoder_decoder", False))


def _has_batch_wide_rope(config: Any, model_class: Any) -> bool:
    """transformers picks these frequencies by the largest position of a whole batch (`dynamic_rope_update`)."""
    parameters = getattr(config, "rope_parameters", None) or {}
    per_kind = [value for value in parameters.values() if isinstance(value, dict)]
    return any(rope.get("rope_type") in ("longrope", "dynamic") for rope in (parameters, *per_kind))


def _source(model_class: Any) -> str:
    return inspect.getsource(sys.modules[model_class.__module__])


def _has_no_interface(config: Any, model_class: Any) -> bool:
    return "ALL_ATTENTION_FUNCTIONS.get_interface(" not in _source(model_class)


def _has_position_bias(config: Any, model_class: Any) -> bool:
    return "position_bias=" in _source(model_class)


REFUSALS: tuple[tuple[Callable[[Any, Any], bool], str], ...] = (
    (_is_encoder_decoder, "an encoder cannot be cut by layers"),
    (_keeps_recurrent_state, "some layers keep a recurrent state that this build cannot keep apart per session"),
    (_shares_kv, "some layers read the KV cache of others"),
    (_feeds_layers_inputs, "every layer reads the token ids again"),
    (_has_no_interface, "their attention does not go through transformers' attention interface"),
    (_has_batch_wide_rope, "their rotary embedding depends on the longest session in a batch"),
    (_has_position_bias, "their attention adds a position bias"),
)
