"""What is packed of a model, and its bytes: the same to the pool that plans and to the nodes that load."""

from __future__ import annotations

import pytest

from protocol.manifest import Part, TensorSpec
from protocol.quantisation import NOTHING, Packed, can_pack, has_experts, packed_as, packed_bytes
from protocol.values import Quantisation


def tensor(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, 0, "BF16", shape, 0, 0)


def test_four_bits_and_a_scale_for_each_group_are_four_and_a_half() -> None:
    assert packed_bytes((100, 64), Quantisation.INT4) == 100 * 64 * 4.5 / 8
    assert packed_bytes((100, 64), Quantisation.INT8) == 100 * (64 + 4)


@pytest.mark.parametrize("shape", [(), (64,), (4, 0), (4, 48), (2, 4, 64)])
def test_what_is_no_matrix_of_whole_groups_is_not_packed(shape: tuple[int, ...]) -> None:
    assert not can_pack(shape)
    assert packed_as(tensor("model.layers.0.x.weight", *shape), 0, Quantisation.INT4) == NOTHING


def test_layers_take_the_models_bits_and_the_ends_eight() -> None:
    name = "model.layers.3.mlp.up_proj.weight"
    assert packed_as(tensor(name, 10, 64), 3, Quantisation.INT4) == Packed(640, 360)
    for end, part in (("model.embed_tokens.weight", Part.EMBEDDING), ("lm_head.weight", Part.HEAD)):
        assert packed_as(tensor(end, 10, 64), part, Quantisation.INT4) == Packed(640, 680)


def test_norms_biases_positions_and_foreign_parts_stay_as_they_are() -> None:
    for name, part, shape in (
        ("model.layers.0.norm.weight", 0, (64,)),
        ("model.layers.0.q_proj.bias", 0, (1, 64)),
        ("transformer.wpe.weight", Part.EMBEDDING, (8, 64)),
        ("vision.lm_head.weight", Part.FOREIGN, (8, 64)),
    ):
        assert packed_as(tensor(name, *shape), part, Quantisation.INT8) == NOTHING
    assert packed_as(tensor("lm_head.weight", 8, 64), Part.HEAD, None) == NOTHING


def test_mixtures_of_experts_are_known_by_their_names() -> None:
    assert has_experts([tensor("model.layers.0.mlp.experts.3.up_proj.weight", 8, 64)])
    assert not has_experts([tensor("model.layers.0.mlp.up_proj.weight", 8, 64)])
