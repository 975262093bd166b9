"""Weights in fewer bits: which of a model's tensors they are, and what they take. The pool plans and nodes load by it.

It is part of a model's manifest, and so of its hash: what is packed otherwise is another model to the pool, and no
chain mixes the two. The bytes in the manifest are the original ones; nodes pack them while they load.

The linear layers of decoder layers are packed in 8 or 4 bits, embedding and lm_head always in 8: they are few, and
every token goes through them. Norms, biases and learned positions stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protocol.manifest import Manifest, Part, TensorSpec, parts_of
from protocol.values import Quantisation

GROUP = 32
"""Weights of a row in 4 bits that share a scale; a row is a multiple of it, or it stays as it is."""
SCALE_BYTES = {Quantisation.INT8: 4, Quantisation.INT4: 2}
"""A float32 for each row, a bfloat16 for each group."""
_TABLE = re.compile(r"\b(embed_tokens|wte|embed_in|word_embeddings?|lm_head|embed_out)\.weight\Z")
_ROUTED = re.compile(r"\.experts?\b|\.block_sparse_moe\.")


@dataclass(frozen=True, slots=True)
class Packed:
    """What is packed of a part of a model: elements, and the bytes that they take with their scales."""

    numel: int = 0
    num_bytes: int = 0

    def __add__(self, other: Packed) -> Packed:
        return Packed(self.numel + other.numel, self.num_bytes + other.num_bytes)


NOTHING = Packed()


def can_pack(shape: Sequence[int]) -> bool:
    """Whether a weight [rows, depth] can be packed."""
    return len(shape) == 2 and shape[1] > 0 and shape[1] % GROUP == 0


def packed_bytes(shape: Sequence[int], kind: Quantisation) -> int:
    """Bytes of a packed weight [rows, depth], scales included."""
    rows, depth = shape
    if kind is Quantisation.INT8:
        return rows * (depth + SCALE_BYTES[kind])
    return rows * (depth // 2 + depth // GROUP * SCALE_BYTES[kind])


def packed_as(tensor: TensorSpec, part: int | Part, kind: Quantisation | None) -> Packed:
    """What of a tensor is packed: all of it, or nothing."""
    if kind is None or part is Part.FOREIGN or not can_pack(tensor.shape):
        return NOTHING
    if isinstance(part, Part):
        kind = Quantisation.INT8
        is_packed = _TABLE.search(tensor.name) is not None
    else:
        is_packed = tensor.name.endswith(".weight")
    return Packed(tensor.numel, packed_bytes(tensor.shape, kind)) if is_packed else NOTHING


def packed_sum(manifest: Manifest, names: Iterable[str]) -> Packed:
    """What is packed of these tensors together."""
    parts, wanted = parts_of(manifest), set(names)
    tensors = (tensor for tensor in manifest.tensors if tensor.name in wanted)
    return sum((packed_as(tensor, parts[tensor.name], manifest.quantisation) for tensor in tensors), NOTHING)


def has_experts(tensors: Iterable[TensorSpec]) -> bool:
    """Whether they are of a mixture of experts, which is not packed yet."""
    return any(_ROUTED.search(tensor.name) for tensor in tensors)
