"""Putting packed modules in place of a cut model's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from client.runtime.cut import CutModel, NoEmbedding
from client.runtime.errors import UnsupportedArchitectureError
from client.runtime.packed_experts import PackedExperts, is_experts
from client.runtime.packed_layers import PackedEmbedding, PackedLinear
from client.runtime.packing import pack
from protocol.quantisation import can_pack, is_router
from protocol.values import Quantisation


def check_packable(cut: CutModel) -> None:
    """Raises UnsupportedArchitectureError if the layers hold matrices other than those of plain linear layers and of
    experts, which are packed, and of convolutions and what chooses experts, which are small and stay as they are; or
    the embedding is of a kind that is not known here. The model may be on meta."""
    known = {id(parameter) for layer in cut.own_layers for parameter in _known_parameters(layer)}
    for layer in cut.own_layers:
        for name, parameter in layer.named_parameters():
            if parameter.ndim > 1 and id(parameter) not in known:
                reason = f"its weights cannot be packed in fewer bits ({name} is not of a plain linear layer)"
                raise UnsupportedArchitectureError(cut.architecture.model_type, reason)
    if cut.is_first and not _is_known_embedding(cut.model.get_input_embeddings()):
        reason = "its embedding cannot be packed in fewer bits"
        raise UnsupportedArchitectureError(cut.architecture.model_type, reason)


def _known_parameters(layer: nn.Module) -> Iterator[nn.Parameter]:
    for name, module in layer.named_modules():
        if type(module) in (nn.Linear, nn.Conv1d) or is_experts(module) or is_router(f".{name}.weight"):
            yield from module.parameters(recurse=False)


def _is_known_embedding(embedding: nn.Module) -> bool:
    return type(embedding) is nn.Embedding or hasattr(embedding, "embed_scale")


def pack_layers(layers: Sequence[nn.Module], kind: Quantisation) -> None:
    """Replace the linear layers and experts below these, one after the other. What cannot be packed stays as it is."""
    for layer in layers:
        for parent in list(layer.modules()):
            for name, child in list(parent.named_children()):
                if is_experts(child):
                    setattr(parent, name, PackedExperts(child, kind))
                elif type(child) is nn.Linear and can_pack(child.weight.shape) and not is_router(f".{name}.weight"):
                    setattr(parent, name, PackedLinear.of(child, kind))


def pack_ends(cut: CutModel) -> None:
    """Pack the embedding of a first stage and the head of a last one in 8 bits."""
    model: Any = cut.model
    embedding = model.get_input_embeddings()
    if cut.is_first and can_pack(embedding.weight.shape):
        table = pack(embedding.weight.detach(), Quantisation.INT8)
        factor = getattr(embedding, "embed_scale", None)
        model.set_input_embeddings(PackedEmbedding(table, embedding.weight.dtype, factor))
    elif not cut.is_first:
        model.set_input_embeddings(NoEmbedding())  # a last stage needed it for a head that is tied to it
    head = model.get_output_embeddings() if cut.is_last else None
    if head is not None and can_pack(head.weight.shape):
        model.set_output_embeddings(PackedLinear.of(head, Quantisation.INT8))


def tie_ends(cut: CutModel) -> None:
    """The head of a whole model takes the embedding's tensors if they are tied, so that they are held once."""
    embedding, head = cut.model.get_input_embeddings(), cut.model.get_output_embeddings()
    if cut.architecture.has_tied_embeddings and isinstance(embedding, PackedEmbedding):
        assert isinstance(head, PackedLinear), "what one can be packed as, the other can"
        head.codes, head.scales = embedding.codes, embedding.scales
