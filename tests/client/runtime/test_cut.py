"""Cutting: every weight of a model is held by the stages that need it, and by no other."""

from collections import Counter
from itertools import pairwise

import pytest

from client.runtime.architecture import read_architecture
from client.runtime.cut import meta_cut
from tests.fakes.tiny_models import ARCHITECTURES, config_json

CUTS = (0, 2, 3, 6)


def parameters(architecture: str, start: int, stop: int) -> set[str]:
    cut = meta_cut(read_architecture(config_json(architecture)), start, stop)
    return {name for name, _ in cut.model.named_parameters()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_stages_together_hold_every_weight(architecture: str) -> None:
    whole = parameters(architecture, 0, 6)
    held = Counter(name for start, stop in pairwise(CUTS) for name in parameters(architecture, start, stop))
    assert set(held) == whole
    assert all("embed" in name or "wte" in name for name, number in held.items() if number > 1)


def test_a_middle_stage_holds_its_layers_and_nothing_else() -> None:
    assert all(name.startswith("model.layers.2.") for name in parameters("llama", 2, 3))


def test_a_tail_holds_norm_and_head_without_the_embedding() -> None:
    assert {name for name in parameters("llama", 5, 6) if "layers" not in name} == {
        "model.norm.weight",
        "lm_head.weight",
    }


def test_a_tail_with_tied_embeddings_holds_the_embedding_too() -> None:
    assert "model.embed_tokens.weight" in parameters("qwen2", 5, 6)
    assert "model.embed_tokens.weight" not in parameters("qwen2", 1, 5)


def test_a_cut_without_layers_is_the_head() -> None:
    assert parameters("llama", 6, 6) == {"model.norm.weight", "lm_head.weight"}
