"""Mixtures of experts whose weights are packed, in place of a model's own module of experts.

transformers (5.23, integrations/moe.py) marks such modules with how their weights lie; they are read as it reads them.
Own products read each expert where it lies, pair by pair of a row and an expert where these are few, else in blocks of
rows that share one. Without them few pairs are multiplied with dense copies of their experts on a GPU, and all others
expert by expert, so that there is one dense expert at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from client.runtime.packed_layers import dense_product
from client.runtime.packing import PackedWeight, pack
from protocol.quantisation import can_pack_experts
from protocol.values import Quantisation

MAX_GATHERED_PAIRS = 64
"""With dense copies, on a GPU: their number must not depend on the tokens, or no graph could be captured."""
GATHERED_ELEMENTS = 2**26
"""Of dense copies at a time."""
FEW_ROWS, MANY_ROWS = 16, 64
"""Of a block: 16 are the least that tensor cores take."""
_MARKS = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm")


@dataclass(frozen=True, slots=True)
class ExpertBlocks:
    """Pairs in order of their experts, [pairs], and blocks of `num_rows` or fewer of them: [blocks, 3] of expert, place
    of the first in that order, and number. There are as many blocks as could be needed; what is not has number 0."""

    order: Tensor
    table: Tensor
    num_rows: int


PairsProduct = Callable[[Tensor, PackedWeight, Tensor, Tensor | None], Tensor]
"""(rows [pairs, depth], weights [experts, ...], each pair's expert, biases [experts, columns]) to [pairs, columns]."""
BlocksProduct = Callable[[Tensor, PackedWeight, ExpertBlocks, Tensor | None], Tensor]
"""The same of rows [pairs or tokens, depth]: pair i is of row i * rows / pairs."""


def is_experts(module: nn.Module) -> bool:
    """Whether it is a module of experts that PackedExperts can stand for."""
    return all(hasattr(module, mark) for mark in _MARKS) and can_pack_experts(_shape_of_down(module))


def _shape_of_down(module: Any) -> tuple[int, ...]:
    found = getattr(module, "down_proj", None)
    return tuple(found.shape) if isinstance(found, Tensor) else ()


class PackedExperts(nn.Module):
    """In place of the module `experts`, whose gate, activation, biases and norm it goes on using."""

    multiply_pairs: PairsProduct
    max_own_pairs = 0
    multiply_blocks: BlocksProduct | None = None

    def __init__(self, experts: Any, kind: Quantisation) -> None:
        super().__init__()
        names = ("gate_up_proj" if experts.has_gate else "up_proj", "down_proj")
        self.dtype = experts.down_proj.dtype
        self.up, self.down = (
            PackedStack(_packed(getattr(experts, name), kind, experts.is_transposed)) for name in names
        )
        self.bias_names = tuple(f"{name}_bias" for name in names) if experts.has_bias else ()
        for name in names:
            setattr(experts, name, None)
        self.experts = experts

    def forward(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """[tokens, hidden size] of such rows, of the experts that each token has, and of their weights."""
        num_tokens, num_chosen = top_k_index.shape
        out = self._pairs(hidden, top_k_index.reshape(-1), num_chosen) * top_k_weights.reshape(-1, 1)
        return out.view(num_tokens, num_chosen, -1).sum(dim=1).to(hidden.dtype)

    def _pairs(self, hidden: Tensor, expert_of: Tensor, num_chosen: int) -> Tensor:
        num_pairs, multiply_blocks = len(hidden) * num_chosen, self.multiply_blocks
        if num_pairs > self.max_own_pairs and multiply_blocks is not None:
            blocks = blocks_of(expert_of, num_pairs, self.up.num_experts)
            return self._through(hidden, lambda x, stack, bias: multiply_blocks(x, stack.weight, blocks, bias))
        rows = hidden.repeat_interleave(num_chosen, dim=0)
        if num_pairs <= self.max_own_pairs:
            return self._through(rows, lambda x, stack, bias: self.multiply_pairs(x, stack.weight, expert_of, bias))
        if hidden.is_cuda and num_pairs <= MAX_GATHERED_PAIRS:
            return self._through(rows, lambda x, stack, bias: gathered_product(x, stack.weight, expert_of, bias))
        one_by_one: Tensor = self._by_expert(rows, expert_of)
        return one_by_one

    def _through(self, rows: Tensor, product: Callable[[Tensor, PackedStack, Tensor | None], Tensor]) -> Tensor:
        """What experts make of rows, before they are weighted: the same steps whichever way products are made."""
        up_bias, down_bias = [getattr(self.experts, name) for name in self.bias_names] or (None, None)
        inner = product(rows, self.up, up_bias)
        inner = self.experts._apply_gate(inner) if self.experts.has_gate else self.experts.act_fn(inner)
        out: Tensor = product(inner, self.down, down_bias)
        if self.experts.has_post_expert_norm:
            out = self.experts.post_expert_norm(out)
        return out

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _by_expert(self, rows: Tensor, expert_of: Tensor) -> Tensor:
        order = torch.argsort(expert_of, stable=True)
        counts = torch.bincount(expert_of, minlength=self.up.num_experts).tolist()
        parts = []
        for expert, group in enumerate(torch.split(order, counts)):
            if len(group):
                parts.append(self._through(rows[group], _product_of(expert)))
        out = torch.empty_like(rows)
        out[order] = torch.cat(parts)
        return out


class PackedStack(nn.Module):
    """One matrix for each expert: codes [experts, rows, ...], scales likewise."""

    def __init__(self, packed: PackedWeight) -> None:
        super().__init__()
        self.kind, self.depth = packed.kind, packed.depth
        self.codes = nn.Parameter(packed.codes, requires_grad=False)
        self.scales = nn.Parameter(packed.scales, requires_grad=False)
        self.num_experts = len(packed.codes)

    @property
    def weight(self) -> PackedWeight:
        return PackedWeight(self.kind, self.codes, self.scales, self.depth)


def _packed(weights: Tensor, kind: Quantisation, is_transposed: bool) -> PackedWeight:
    """Expert by expert, so that what lies between takes little room."""
    parts = [pack(weight.T.contiguous() if is_transposed else weight, kind) for weight in weights.detach()]
    codes, scales = torch.stack([part.codes for part in parts]), torch.stack([part.scales for part in parts])
    return PackedWeight(kind, codes, scales, parts[0].depth)


def _product_of(expert: int) -> Callable[[Tensor, PackedStack, Tensor | None], Tensor]:
    def product(rows: Tensor, stack: PackedStack, bias: Tensor | None) -> Tensor:
        one = PackedWeight(stack.kind, stack.codes[expert], stack.scales[expert], stack.depth)
        return dense_product(rows, one, None if bias is None else bias[expert])

    return product


def gathered_product(rows: Tensor, weight: PackedWeight, expert_of: Tensor, bias: Tensor | None) -> Tensor:
    """A PairsProduct with a dense copy of each pair's expert, some pairs at a time."""
    _, num_columns, _ = weight.codes.shape
    num_together = max(1, GATHERED_ELEMENTS // (num_columns * weight.depth))
    outs = []
    for x, chosen in zip(torch.split(rows, num_together), torch.split(expert_of, num_together), strict=True):
        codes, scales = weight.codes[chosen].flatten(0, 1), weight.scales[chosen].flatten(0, 1)
        dense = PackedWeight(weight.kind, codes, scales, weight.depth).dense(x.dtype)
        outs.append(torch.bmm(dense.view(len(x), num_columns, weight.depth), x.unsqueeze(-1)).squeeze(-1))
    product = torch.cat(outs)
    return product if bias is None else product + bias[expert_of]


def blocks_of(expert_of: Tensor, num_pairs: int, num_experts: int) -> ExpertBlocks:
    """Made on the device, of sizes that do not depend on what is in `expert_of`, so that it can be captured."""
    num_rows = FEW_ROWS if num_pairs <= FEW_ROWS * num_experts else MANY_ROWS
    ones = torch.ones_like(expert_of)
    counts = torch.zeros(num_experts, dtype=torch.int64, device=expert_of.device).scatter_add_(0, expert_of, ones)
    num_blocks = (counts + (num_rows - 1)) // num_rows
    ends, last_pairs = num_blocks.cumsum(0), counts.cumsum(0)
    number = torch.arange(num_pairs // num_rows + min(num_experts, num_pairs), device=expert_of.device)
    expert = torch.searchsorted(ends, number, right=True).clamp_(max=num_experts - 1)
    first = (number - ends[expert] + num_blocks[expert]) * num_rows
    left = (counts[expert] - first).clamp_(0, num_rows)
    table = torch.stack([expert, last_pairs[expert] - counts[expert] + first, left], dim=1)
    return ExpertBlocks(torch.argsort(expert_of, stable=True).int(), table.int(), num_rows)
