"""Linear layers and embeddings whose weights are packed, in place of a model's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from client.runtime.packing import PackedWeight, pack
from protocol.values import Quantisation

PackedProduct = Callable[[Tensor, PackedWeight, Tensor | None], Tensor]
"""As F.linear: (hidden [..., depth], weight, bias) to [..., rows of the weight]."""
MAX_OWN_ROWS = 128
"""Own products read the weights once for at most so many rows; for more, a dense copy costs little beside them."""
CPU_BLOCK_ELEMENTS = 2**18
"""Unpacked at a time on a CPU: stays in its cache."""


class PackedLinear(nn.Module):
    """In place of an nn.Linear. Up to `max_own_rows` rows are multiplied by `multiply`, more with a dense copy."""

    multiply: PackedProduct
    max_own_rows = 0

    def __init__(self, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype) -> None:
        """`dtype` is that of inputs and outputs."""
        super().__init__()
        self.dtype = dtype
        self.kind, self.in_features, self.out_features = weight.kind, weight.depth, len(weight.codes)
        self.codes = nn.Parameter(weight.codes, requires_grad=False)
        self.scales = nn.Parameter(weight.scales, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @classmethod
    def of(cls, linear: nn.Linear, kind: Quantisation) -> PackedLinear:
        return cls(pack(linear.weight.detach(), kind), linear.bias, linear.weight.dtype)

    @classmethod
    def joined(cls, linears: Sequence[PackedLinear]) -> PackedLinear:
        """One layer whose result is that of these, side by side. They have the same kind, depth, and bias or none."""
        codes, scales = (torch.cat([getattr(one, name) for one in linears]) for name in ("codes", "scales"))
        first = linears[0]
        bias = None if first.bias is None else torch.cat([one.bias for one in linears if one.bias is not None])
        return cls(PackedWeight(first.kind, codes, scales, first.in_features), bias, first.dtype)

    @property
    def weight_packed(self) -> PackedWeight:
        return PackedWeight(self.kind, self.codes, self.scales, self.in_features)

    def forward(self, hidden: Tensor) -> Tensor:
        if hidden.numel() <= self.max_own_rows * self.in_features:
            return self.multiply(hidden, self.weight_packed, self.bias)
        return dense_product(hidden, self.weight_packed, self.bias)


def dense_product(hidden: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """The product with a dense copy, which is made for it: right everywhere, and quick where rows are many."""
    if hidden.device.type == "cpu":
        num_rows = max(1, CPU_BLOCK_ELEMENTS // weight.depth)
        blocks = (weight.rows(start, start + num_rows) for start in range(0, len(weight.codes), num_rows))
        product = torch.cat([_product(hidden, block) for block in blocks], dim=-1)
    else:
        product = _product(hidden, weight)
    return product if bias is None else product + bias


def _product(hidden: Tensor, weight: PackedWeight) -> Tensor:
    """Codes of 8 bits are exact in any dtype, so their scales can wait until the sums are there."""
    if weight.kind is Quantisation.INT8:
        return (F.linear(hidden, weight.codes.to(hidden.dtype)).float() * weight.scales).to(hidden.dtype)
    return F.linear(hidden, weight.dense(hidden.dtype))


class PackedEmbedding(nn.Module):
    """In place of an nn.Embedding, or of one whose result is multiplied by `factor` (Gemma)."""

    def __init__(self, weight: PackedWeight, dtype: torch.dtype, factor: Tensor | None) -> None:
        super().__init__()
        self.dtype = dtype
        self.codes = nn.Parameter(weight.codes, requires_grad=False)
        self.scales = nn.Parameter(weight.scales, requires_grad=False)
        self.factor = factor

    def forward(self, ids: Tensor) -> Tensor:
        found = (self.codes[ids].float() * self.scales[ids].unsqueeze(-1)).to(self.dtype)
        return found if self.factor is None else found * self.factor.to(self.dtype)
