"""What is packed of a model, and its bytes: the same to the pool that plans and to the nodes that load."""

from __future__ import annotations

import pytest

from protocol.manifest import Part, TensorSpec
from protocol.quantisation import NOTHING, Packed, can_pack, packed_as, packed_bytes
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


def test_experts_are_packed_and_what_chooses_them_is_not() -> None:
    one = "model.layers.0.mlp.experts.3.up_proj.weight"
    assert packed_as(tensor(one, 96, 64), 0, Quantisation.INT4).num_bytes == 96 * 64 * 4.5 / 8
    assert packed_as(tensor(one, 80, 64), 0, Quantisation.INT4) == NOTHING, (
        "merged with others, its rows may be the depth"
    )
    for name in ("model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.block_sparse_moe.input_linear.weight"):
        found = packed_as(tensor(name, 4, 96, 64), 0, Quantisation.INT4)
        assert found == Packed(4 * 96 * 64, int(4 * 96 * 64 * 4.5 / 8))
        assert packed_as(tensor(name, 4, 80, 64), 0, Quantisation.INT4) == NOTHING
    all_int8 = packed_as(tensor("model.layers.0.mlp.experts.down_proj", 4, 64, 96), 0, Quantisation.INT8)
    assert all_int8.num_bytes == 4 * 96 * (64 + 4), "whichever way round they lie, this is room enough"
    for name in ("mlp.gate", "mlp.router", "block_sparse_moe.router.layer", "mlp.shared_expert_gate"):
        assert packed_as(tensor(f"model.layers.0.{name}.weight", 64, 64), 0, Quantisation.INT8) == NOTHING
    assert packed_as(tensor("model.layers.0.mlp.experts.gate_up_proj_bias", 4, 96), 0, Quantisation.INT8) == NOTHING
