"""Slices in fewer bits: what their dense weights would compute, the same for every cut, a layer at a time in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from client.runtime import packed_loading
from client.runtime.batch import lay_out
from client.runtime.checkpoint import Checkpoint
from client.runtime.cut import CutModel
from client.runtime.device import Device
from client.runtime.errors import UnsupportedArchitectureError
from client.runtime.loading import load_folder
from client.runtime.packed_experts import PackedExperts, is_experts
from client.runtime.packed_layers import PackedLinear
from client.runtime.packed_loading import load_packed
from client.runtime.packing import pack
from client.runtime.stage import Stage
from protocol.manifest import TensorSpec
from protocol.quantisation import can_pack, packed_as
from protocol.values import LayerRange, Quantisation
from tests.client.runtime.recording import PagedOpener

TOKENS = [3, 7, 100, 200, 31, *range(40, 60)]
"""More than a sliding window of the tiny models."""
NUM_LAYERS = 6
Checkpoints = Callable[[str], Path]
KINDS = pytest.mark.parametrize("kind", list(Quantisation))


def packed(folder: Path, start: int, stop: int, kind: Quantisation, device: Device) -> CutModel:
    return load_packed(folder, LayerRange(start, stop), kind, (torch.float32, device), lambda done, total: None)


def staged(cut: CutModel, device: Device, open_paged: Any = None) -> Stage:
    return Stage(cut, 2**21, torch.float32, device, open_paged)


def logits(stages: Sequence[Stage]) -> Tensor:
    """Of the last token, of a prompt and one step of decoding."""
    values: list[Tensor] = []
    tables = [stage.cache.open(len(TOKENS) + 1) for stage in stages]
    for tokens in (TOKENS, [11]):
        x = torch.tensor(tokens)
        for stage, table in zip(stages, tables, strict=True):
            x = stage.forward(lay_out([(table, len(tokens))]), x, [len(tokens) - 1] if stage.is_last else []).clone()
            table.advance(len(tokens))
        values.append(x[-1])
    return torch.stack(values)


def replaced_by_dense(cut: CutModel, kind: Quantisation) -> CutModel:
    """The unpacked model with every weight put to what its packed form stands for."""
    for layer in cut.own_layers:
        for module in layer.modules():
            if is_experts(module):
                _replace_experts(module, kind)
            elif type(module) is nn.Linear and can_pack(module.weight.shape) and len(module.weight) > 1:
                module.weight.data = pack(module.weight, kind).dense(torch.float32)
    embedding, head = cut.model.get_input_embeddings(), cut.model.get_output_embeddings()
    for end in {id(end.weight): end for end in (embedding, head)}.values():
        end.weight.data = pack(end.weight, Quantisation.INT8).dense(torch.float32)
    return cut


def _replace_experts(experts: Any, kind: Quantisation) -> None:
    """Each expert's matrix by itself, the way round that it is stored in."""
    for stacked in (experts.gate_up_proj, experts.down_proj):
        for weight in stacked.data:
            matrix = weight.T.contiguous() if experts.is_transposed else weight
            dense = pack(matrix, kind).dense(torch.float32)
            weight.copy_(dense.T if experts.is_transposed else dense)


EXPERTS = ("qwen3_moe", "qwen2_moe", "gpt_oss", "granitemoe", "deepseek_v3", "mixtral", "qwen3_next")


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3", "qwen3_5", *EXPERTS])
@KINDS
def test_every_cut_gives_what_the_dense_weights_would(
    architecture: str, kind: Quantisation, checkpoint: Checkpoints, device: Device
) -> None:
    folder = checkpoint(architecture)
    whole = load_folder(folder, LayerRange(0, NUM_LAYERS), torch.float32, device, lambda done, total: None)
    wanted = logits([staged(replaced_by_dense(whole, kind), device)])
    one = logits([staged(packed(folder, 0, NUM_LAYERS, kind, device), device)])
    torch.testing.assert_close(one, wanted, rtol=1e-3, atol=1e-4)
    three = [staged(packed(folder, start, stop, kind, device), device) for start, stop in ((0, 1), (1, 4), (4, 6))]
    assert torch.equal(logits(three), one)


@KINDS
def test_captured_steps_and_fused_projections_give_the_same(
    kind: Quantisation, checkpoint: Checkpoints, device: Device
) -> None:
    folder = checkpoint("qwen2")
    wanted = logits([staged(packed(folder, 0, 6, kind, device), device)])
    opener = PagedOpener()
    stage = staged(packed(folder, 0, 6, kind, device), device, opener)
    torch.testing.assert_close(logits([stage]), wanted, rtol=1e-4, atol=1e-5)
    assert opener.recorder.num_recorded > 0
    attention = stage.cut.own_layers[0].self_attn
    assert isinstance(attention.q_proj.product, PackedLinear), "query, key and value are one product"


def test_a_tied_embedding_is_held_once(checkpoint: Checkpoints, device: Device) -> None:
    cut = packed(checkpoint("qwen2"), 0, 6, Quantisation.INT4, device)
    assert cut.model.get_output_embeddings().codes is cut.model.get_input_embeddings().codes
    tail = packed(checkpoint("qwen2"), 5, 6, Quantisation.INT4, device)
    assert not list(tail.model.get_input_embeddings().parameters()), "its head has the table in it"


def test_no_layer_is_read_before_the_one_before_it_is_packed(
    checkpoint: Checkpoints, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide: list[int] = []
    original = packed_loading.load_cut

    def load_cut(checkpoint: Checkpoint, *others: Any) -> CutModel:
        cut = original(checkpoint, *others)
        wide.append(sum(parameter.nbytes for layer in cut.own_layers for parameter in layer.parameters()))
        assert len(cut.own_layers) == 1
        return cut

    monkeypatch.setattr(packed_loading, "load_cut", load_cut)
    cut = packed(checkpoint("llama"), 1, 5, Quantisation.INT4, device)
    assert len(wide) == 4
    held = sum(parameter.nbytes for layer in cut.own_layers for parameter in layer.parameters())
    assert held < sum(wide) / 6, "of 32 bits, 4.5 are left"
    assert not any(type(module) is nn.Linear for layer in cut.own_layers for module in layer.modules())


@pytest.mark.parametrize(("architecture", "word"), [("gpt2", "c_attn"), ("llama4", "experts")])
def test_what_cannot_be_packed_is_refused_by_name_before_a_weight_is_read(
    architecture: str, word: str, checkpoint: Checkpoints, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_loading, "load_cut", lambda *others: pytest.fail("a weight was read"))
    with pytest.raises(UnsupportedArchitectureError, match=f"fewer bits .*{word}"):
        packed(checkpoint(architecture), 0, 6, Quantisation.INT4, device)


def test_what_chooses_experts_stays_as_it_is(checkpoint: Checkpoints, device: Device) -> None:
    layer: Any = packed(checkpoint("qwen2_moe"), 0, 1, Quantisation.INT4, device).own_layers[0]
    assert isinstance(layer.mlp.experts, PackedExperts)
    assert isinstance(layer.mlp.shared_expert.up_proj, PackedLinear)
    assert layer.mlp.gate.weight.dtype == layer.mlp.shared_expert_gate.weight.dtype == torch.float32


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe", "qwen2_moe", "olmoe"])
@KINDS
def test_layers_take_the_bytes_that_the_pool_plans_with(
    architecture: str, kind: Quantisation, checkpoint: Checkpoints, device: Device
) -> None:
    folder = checkpoint(architecture)
    planned = 0
    opened = Checkpoint.open(folder)
    for name in opened.file_of:
        if ".layers.2." in name:
            shape = tuple(opened.lazy(name, lambda num_bytes: None)[...].shape)
            found = packed_as(TensorSpec(name, 0, "F32", shape, 0, 0), 2, kind)
            planned += found.num_bytes or 4 * math.prod(shape)
    opened.close()
    assert staged(packed(folder, 2, 3, kind, device), device).weight_bytes == planned
