"""Which models are served, and that the others are refused by name before any weight is read."""

import json
import math

import pytest

from client.runtime.architecture import read_architecture
from client.runtime.errors import BadConfigError, UnsupportedArchitectureError
from tests.fakes.tiny_models import ARCHITECTURES, UNSUPPORTED, config_json


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_that_is_served_is_read_from_its_config(architecture: str) -> None:
    found = read_architecture(config_json(architecture))
    assert (found.num_layers, found.hidden_size, found.vocab_size) == (6, 64, 384)


@pytest.mark.parametrize("architecture", UNSUPPORTED)
def test_an_architecture_that_cannot_be_served_is_refused_by_name(architecture: str) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=f"models of type '{architecture}' cannot be served"):
        read_architecture(config_json(architecture))


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("jamba", "recurrent state"),
        ("bamba", "recurrent state"),
        ("mamba", "recurrent state"),
        ("gemma3n_text", "KV cache of others"),
        ("bloom", "attention interface"),
        ("t5", "not causal language models"),
    ],
)
def test_a_refusal_says_why(architecture: str, reason: str) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=reason):
        read_architecture(config_json(architecture))


def test_a_model_type_that_nobody_knows_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="'gpt_17'"):
        read_architecture('{"model_type": "gpt_17", "auto_map": {"AutoConfig": "evil.Config"}}')


def test_code_that_comes_with_a_checkpoint_is_not_run() -> None:
    config = {**json.loads(config_json("llama")), "auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    assert read_architecture(json.dumps(config)).model_class.__module__.startswith("transformers.models.llama")


def test_a_quantised_checkpoint_is_refused() -> None:
    config = {**json.loads(config_json("llama")), "quantization_config": {"quant_method": "gptq", "bits": 4}}
    with pytest.raises(UnsupportedArchitectureError, match="quantised"):
        read_architecture(json.dumps(config))


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_a_rotary_embedding_that_looks_at_the_whole_batch_is_refused(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    if kind == "longrope":
        rope |= {"original_max_position_embeddings": 64, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config = {**json.loads(config_json("phi3" if kind == "longrope" else "llama")), "rope_parameters": rope}
    with pytest.raises(UnsupportedArchitectureError, match="longest session in a batch"):
        read_architecture(json.dumps(config))


def test_infinity_is_read_as_transformers_writes_it() -> None:
    config = {**json.loads(config_json("granitemoehybrid")), "time_step_limit": [0.0, {"__float__": "Infinity"}]}
    assert read_architecture(json.dumps(config)).config.time_step_limit == (0.0, math.inf)


@pytest.mark.parametrize("text", ["", "not json", "[]", "{}", '{"model_type": 7}', "null"])
def test_what_is_no_configuration_is_a_bad_config(text: str) -> None:
    with pytest.raises(BadConfigError):
        read_architecture(text)


def test_values_that_make_no_sense_are_a_bad_config() -> None:
    with pytest.raises(BadConfigError, match="llama refuses it"):
        read_architecture('{"model_type": "llama", "num_hidden_layers": "many"}')
