"""Loading a slice in 8 or 4 bits: layer by layer, each packed before the next one is read.

So a card that holds the packed slice can load it: beside what is packed there is never more than one layer as it was
published, with the embedding at the first one and the head at the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from client.runtime.architecture import read_architecture
from client.runtime.attention import INTERFACE_NAME
from client.runtime.checkpoint import Checkpoint, plan_tensors
from client.runtime.cut import CutModel, NoEmbedding, Skip, meta_cut
from client.runtime.device import Device
from client.runtime.errors import UnsupportedArchitectureError
from client.runtime.loading import Progress, check_range, load_cut, read_config
from client.runtime.packed_model import check_packable, pack_ends, pack_layers, tie_ends
from protocol.values import LayerRange, Quantisation


def load_packed(
    folder: Path, layers: LayerRange, kind: Quantisation, place: tuple[torch.dtype, Device],
    on_progress: Callable[[int, int], None],
) -> CutModel:  # fmt: skip
    """As load_folder, with packed weights; `place`: dtype of everything else, and the device."""
    architecture = read_architecture(read_config(folder))
    check_range(architecture, layers)
    whole = meta_cut(architecture, layers.start, layers.stop)
    check_packable(whole)
    checkpoint = Checkpoint.open(folder)
    try:
        plan = plan_tensors(whole, checkpoint.file_of)
        progress = Progress(sum(checkpoint.size_bytes(name) for name in plan), on_progress)
        pieces = []
        for index in range(layers.start, layers.stop):
            piece = load_cut(checkpoint, architecture, index, index + 1, place, progress)
            pieces.append(pack_cut(piece, kind))
            place[1].release_cached()
        progress.finish()
        return assemble(whole, pieces)
    finally:
        checkpoint.close()


def pack_cut(cut: CutModel, kind: Quantisation) -> CutModel:
    """Pack a loaded cut in place. Raises UnsupportedArchitectureError if that cannot be."""
    check_packable(cut)
    pack_layers(cut.own_layers, kind)
    pack_ends(cut)
    return cut


def assemble(whole: CutModel, pieces: Sequence[CutModel]) -> CutModel:
    """Fill a cut that is on meta with the modules of cuts that hold its layers one by one."""
    target = whole.model.get_submodule(whole.layers_path)
    for piece in pieces:
        target[piece.start] = piece.model.get_submodule(whole.layers_path)[piece.start]
    _adopt(whole.model, [piece.model for piece in (pieces[-1], pieces[0])], target)
    if not whole.is_first:
        whole.model.set_input_embeddings(NoEmbedding())
    elif whole.is_last:
        tie_ends(whole)
    for name, tensor in _tensors(whole.model):
        if tensor.is_meta:
            reason = f"{name} is outside of its layers and was not loaded"
            raise UnsupportedArchitectureError(whole.architecture.model_type, reason)
    whole.model.set_attn_implementation(INTERFACE_NAME)  # as the pieces have; else it would build masks
    whole.model.eval().requires_grad_(False)
    return whole


def _adopt(target: Any, sources: Sequence[Any], layers: nn.Module) -> None:
    """Give `target` what surrounds its layers, from the first source that has more than a stand-in."""
    for name, child in list(target.named_children()):
        if child is layers or _is_stand_in(child):
            continue
        found = [source.get_submodule(name) for source in sources]
        if any(module is layers for module in child.modules()):
            _adopt(child, found, layers)
        else:
            setattr(target, name, next((one for one in found if not _is_stand_in(one)), found[0]))


def _is_stand_in(module: nn.Module) -> bool:
    return isinstance(module, Skip | NoEmbedding)


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
