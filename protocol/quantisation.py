"""Weights in fewer bits: which of a model's tensors they are, and what they take. The pool plans and nodes load by it.

It is part of a model's manifest, and so of its hash: what is packed otherwise is another model to the pool, and no
chain mixes the two. The bytes in the manifest are the original ones; nodes pack them while they load.

The linear layers and experts of decoder layers are packed in 8 or 4 bits, embedding and lm_head always in 8: they are
few, and every token goes through them. Norms, biases, learned positions and what chooses experts stay as they are.
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
_ROUTER = re.compile(r"\.(gate|router|router\.layer|shared_expert_gate)\.weight\Z")
_ONE_EXPERT = re.compile(r"\.experts\.\d+\.")
_EXPERTS = re.compile(r"\.experts\.(gate_up_proj|up_proj|down_proj)\Z|\.block_sparse_moe\.(in|out)put_linear\.weight\Z")
"""Those of a layer in one tensor; the second is Granite's name for them."""


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


def can_pack_experts(shape: Sequence[int]) -> bool:
    """Whether a layer's experts can be packed: [experts, rows, depth] of one of their matrices, either way round."""
    return len(shape) == 3 and all(size > 0 and size % GROUP == 0 for size in shape[1:])


def is_router(name: str) -> bool:
    """Whether a weight of this name chooses experts. Little of a model and much of its quality: it is not packed."""
    return _ROUTER.search(name) is not None


def packed_bytes(shape: Sequence[int], kind: Quantisation) -> int:
    """Bytes of a packed weight [rows, depth], scales included."""
    rows, depth = shape
    if kind is Quantisation.INT8:
        return rows * (depth + SCALE_BYTES[kind])
    return rows * (depth // 2 + depth // GROUP * SCALE_BYTES[kind])


def packed_as(tensor: TensorSpec, part: int | Part, kind: Quantisation | None) -> Packed:
    """What of a tensor is packed: all of it, or nothing."""
    if kind is None or part is Part.FOREIGN:
        return NOTHING
    if isinstance(part, Part):
        is_table = _TABLE.search(tensor.name) is not None and can_pack(tensor.shape)
        return Packed(tensor.numel, packed_bytes(tensor.shape, Quantisation.INT8)) if is_table else NOTHING
    num_bytes = _experts_bytes(tensor, kind) if len(tensor.shape) == 3 else _matrix_bytes(tensor, kind)
    return Packed(tensor.numel, num_bytes) if num_bytes else NOTHING


def _matrix_bytes(tensor: TensorSpec, kind: Quantisation) -> int:
    is_one_expert = _ONE_EXPERT.search(tensor.name) is not None
    fits = can_pack_experts((1, *tensor.shape)) if is_one_expert else can_pack(tensor.shape)
    return packed_bytes(tensor.shape, kind) if fits and _is_linear(tensor.name) else 0


def _is_linear(name: str) -> bool:
    return name.endswith(".weight") and not is_router(name)


def _experts_bytes(tensor: TensorSpec, kind: Quantisation) -> int:
    """Which of the two last sizes is the depth, a name does not say: that with more scales counts."""
    if not (_EXPERTS.search(tensor.name) and can_pack_experts(tensor.shape)):
        return 0
    num_experts, *sizes = tensor.shape
    return num_experts * max(packed_bytes(shape, kind) for shape in (sizes, sizes[::-1]))


def packed_sum(manifest: Manifest, names: Iterable[str]) -> Packed:
    """What is packed of these tensors together."""
    parts, wanted = parts_of(manifest), set(names)
    tensors = (tensor for tensor in manifest.tensors if tensor.name in wanted)
    return sum((packed_as(tensor, parts[tensor.name], manifest.quantisation) for tensor in tensors), NOTHING)
