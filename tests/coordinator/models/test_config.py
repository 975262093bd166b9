from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coordinator.models.config import kv_numel_per_token, read_config
from coordinator.models.errors import BrokenModelError, UnsupportedModelError
from tests.coordinator.models.conftest import CONFIG, write_json


def _config(folder: Path, **changes: Any) -> Path:
    write_json(folder / "config.json", CONFIG | changes)
    return folder


def test_a_plain_decoder_is_read(tmp_path: Path) -> None:
    config = read_config(_config(tmp_path))
    assert (config.architecture, config.num_layers, config.hidden_size) == ("LlamaForCausalLM", 3, 16)
    assert (config.vocab_size, config.context_length, config.kv_numel_per_token) == (400, 512, 16)
    assert config.text == (tmp_path / "config.json").read_text()


def test_the_decoder_of_a_multimodal_model_is_read(tmp_path: Path) -> None:
    wrapper = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": CONFIG}
    write_json(tmp_path / "config.json", wrapper)
    assert read_config(tmp_path).num_layers == 3


def test_older_names_of_the_fields_are_known(tmp_path: Path) -> None:
    old = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 64, "vocab_size": 9}
    write_json(tmp_path / "config.json", {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **old})
    config = read_config(tmp_path)
    assert (config.num_layers, config.context_length, config.kv_numel_per_token) == (2, 64, 64)


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "an encoder": ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM is not a decoder"),
    "an encoder and decoder": ({"is_encoder_decoder": True}, "not a decoder"),
    "own code": ({"auto_map": {"AutoModel": "evil.Model"}}, r"config.json asks to run .*\(auto_map\)"),
    "trust_remote_code": ({"trust_remote_code": True}, "trust_remote_code"),
    "quantised weights": ({"quantization_config": {"quant_method": "fp8"}}, "quantised"),
    "a recurrent state of another kind": ({"model_type": "jamba"}, "jamba: its layers keep a recurrent state"),
    "a shared cache": ({"text_config": CONFIG | {"model_type": "gemma3n_text"}}, "share their cache"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_a_model_is_not_supported_that_has(tmp_path: Path, case: str) -> None:
    changes, match = UNSUPPORTED[case]
    with pytest.raises(UnsupportedModelError, match=match):
        read_config(_config(tmp_path, **changes))


@pytest.mark.parametrize(
    "model_type", ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid", "lfm2", "lfm2_moe"]
)
def test_hybrids_whose_states_are_kept_per_session_are_supported(tmp_path: Path, model_type: str) -> None:
    assert read_config(_config(tmp_path, model_type=model_type)).num_layers > 0


def test_own_code_of_the_tokenizer_is_refused_too(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}})
    with pytest.raises(UnsupportedModelError, match=r"tokenizer_config.json asks to run"):
        read_config(_config(tmp_path))


@pytest.mark.parametrize("value", [0, -1, 2**31, "3", 3.5, True, [3]])
def test_a_size_that_is_no_number_from_one_on_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(BrokenModelError, match="num_hidden_layers"):
        read_config(_config(tmp_path, num_hidden_layers=value))


@pytest.mark.parametrize("field", ["num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads"])
def test_a_missing_size_is_named(tmp_path: Path, field: str) -> None:
    with pytest.raises(BrokenModelError, match=f"the field {field} is missing"):
        read_config(_config(tmp_path, **{field: None}))


@pytest.mark.parametrize("value", [None, [], "LlamaForCausalLM", [3]])
def test_a_missing_architecture_is_named(tmp_path: Path, value: object) -> None:
    with pytest.raises(BrokenModelError, match="architectures"):
        read_config(_config(tmp_path, architectures=value))


def test_latent_attention_counts_expanded() -> None:
    # DeepSeek-V3: 128 heads of 128 + 64 for keys and 128 for values
    config = {"num_attention_heads": 128, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
    assert kv_numel_per_token(config | {"v_head_dim": 128}) == 128 * 320


def test_heads_default_to_the_query_heads_and_their_share_of_the_hidden_size() -> None:
    assert kv_numel_per_token({"num_attention_heads": 4, "hidden_size": 64}) == 2 * 64
    assert kv_numel_per_token({"num_attention_heads": 4, "hidden_size": 64, "multi_query": True}) == 2 * 16
    assert kv_numel_per_token({"num_attention_heads": 4, "hidden_size": 64, "head_dim": 32}) == 2 * 128
