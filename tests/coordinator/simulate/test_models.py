"""Published parameter counts are met by the shapes."""

from __future__ import annotations

import pytest

from coordinator.scheduler.cost import model_cost
from coordinator.simulate.models import MODELS, Experts
from protocol.values import Variant

BILLIONS = {
    "llama3-8b": (8.0, 7.5),
    "qwen3-32b": (32.8, 31.2),
    "llama3-70b": (70.6, 69.5),
    "llama3-405b-4bit": (405.0, 402.0),
    "qwen3-30b-a3b-4bit": (30.5, 3.0),
    "gpt-oss-120b-mxfp4": (116.8, 4.5),
    "qwen3-235b-a22b-4bit": (235.0, 21.5),
    "deepseek-v2-236b-4bit": (236.0, 20.5),
    "llama4-maverick-400b-4bit": (400.0, 16.0),
}
"""All parameters as published, and about what a token's decoder layers read."""


@pytest.mark.parametrize("name", BILLIONS)
def test_a_models_size_is_the_published_one(name: str) -> None:
    facts = MODELS[name].facts
    total, active = BILLIONS[name]
    numel = sum(facts.layer_numels) + facts.embedding_numel + facts.head_numel
    assert numel / 1e9 == pytest.approx(total, rel=0.03)
    assert sum(facts.active_numels) / 1e9 == pytest.approx(active, rel=0.12)


def test_latent_attention_keeps_576_numbers_a_token() -> None:
    assert set(MODELS["deepseek-v2-236b-4bit"].facts.kv_numels) == {576}


def test_dense_first_layers_and_alternating_layers_differ_from_the_others() -> None:
    first, second = MODELS["deepseek-v2-236b-4bit"].facts.layer_numels[:2]
    assert first < second / 5
    dense, mixture = MODELS["llama4-maverick-400b-4bit"].facts.layer_numels[:2]
    assert dense < mixture / 40


def test_every_model_has_a_number_per_layer_for_everything() -> None:
    for model in MODELS.values():
        facts = model.facts
        assert {len(facts.active_numels), len(facts.kv_numels), len(facts.windows), len(model.row_numels)} == {
            facts.num_layers
        }
        assert all(a <= n for a, n in zip(facts.active_numels, facts.layer_numels, strict=True))
        assert model_cost(facts, Variant.BFLOAT16).hidden_bytes > 0


def test_a_further_row_reads_fewer_experts_than_the_first() -> None:
    experts = Experts(128, 8, 1000)
    assert 0 < experts.row_numel < 8 * 1000
    assert Experts(16, 16, 1000).row_numel == 0
