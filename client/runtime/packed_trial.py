"""Whether the own products with packed weights are right and faster on this device: tried for each shape of weight."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from client.runtime.decode_graphs import Recorder
from client.runtime.packed_experts import (
    MAX_GATHERED_PAIRS,
    BlocksProduct,
    PackedExperts,
    PairsProduct,
    blocks_of,
    gathered_product,
)
from client.runtime.packed_layers import MAX_OWN_ROWS, PackedLinear, PackedProduct, dense_product
from client.runtime.packing import PackedWeight
from client.runtime.trial import MAX_TRIED, is_faster

COLUMNS_MULTIPLE = 64
TRIED_ROWS = (MAX_OWN_ROWS, 64, 16, 1)
"""From the most on: the first at which the own product is faster, it is for all fewer rows too, for a dense copy costs
the same whatever the rows."""
TRIED_PAIRS = (256, 64, 16)


def adopt_packed(roots: Iterable[nn.Module], multiply: PackedProduct, recorder: Recorder) -> int:
    """Put `multiply` into the packed layers below `roots` where it is faster; returns for how many shapes it is."""
    shapes: dict[tuple[object, ...], list[PackedLinear]] = {}
    for root in roots:
        for module in root.modules():
            if isinstance(module, PackedLinear) and module.out_features % COLUMNS_MULTIPLE == 0:
                key = module.kind, module.in_features, module.out_features, module.bias is None
                shapes.setdefault(key, []).append(module)
    num_adopted = 0
    for linears in shapes.values():
        most = next((rows for rows in TRIED_ROWS if _is_faster(linears, multiply, rows, recorder)), 0)
        num_adopted += most > 0
        for linear in linears:
            linear.multiply, linear.max_own_rows = multiply, most
    return num_adopted


def _is_faster(linears: list[PackedLinear], multiply: PackedProduct, num_rows: int, recorder: Recorder) -> bool:
    tried = list(islice(linears, MAX_TRIED))
    shape = tried[0].weight_packed
    hidden = torch.randn(1, num_rows, shape.depth, device=shape.codes.device).to(tried[0].dtype)

    def all_with(product: PackedProduct) -> Tensor:
        return [product(hidden, linear.weight_packed, linear.bias) for linear in tried][-1]

    what = f"{num_rows} rows with {shape.kind} {tuple(shape.codes.shape)}"
    return is_faster(lambda: all_with(multiply), lambda: all_with(dense_product), what, recorder)


def adopt_experts(
    roots: Iterable[nn.Module], multiply_pairs: PairsProduct, multiply_blocks: BlocksProduct, recorder: Recorder
) -> int:
    """Put the products into the packed experts below `roots` if they are right; returns for how many shapes they are.

    Blocks need only be faster than dense copies are for a few pairs: what there is for more cannot be recorded, and is
    slower by far. Pairs take the steps of up to so many for which they are faster than blocks."""
    shapes: dict[tuple[object, ...], list[PackedExperts]] = {}
    for root in roots:
        for module in root.modules():
            if isinstance(module, PackedExperts):
                shapes.setdefault((module.up.kind, module.up.codes.shape, module.down.codes.shape), []).append(module)
    num_adopted = 0
    for mixtures in shapes.values():
        trial = _ExpertsTrial(mixtures[0], multiply_pairs, multiply_blocks, recorder)
        if trial.blocks_are_faster():
            num_adopted += 1
            most = next((pairs for pairs in TRIED_PAIRS if trial.pairs_are_faster(pairs)), 0)
            for mixture in mixtures:
                mixture.multiply_pairs, mixture.max_own_pairs = multiply_pairs, most
                mixture.multiply_blocks = multiply_blocks
    return num_adopted


@dataclass(frozen=True)
class _ExpertsTrial:
    """Both matrices of one mixture with as many pairs as a trial asks for, of experts drawn at random."""

    mixture: PackedExperts
    multiply_pairs: PairsProduct
    multiply_blocks: BlocksProduct
    recorder: Recorder

    def blocks_are_faster(self) -> bool:
        return self._is_faster(MAX_GATHERED_PAIRS, self._blocks, gathered_product, "blocks and dense copies")

    def pairs_are_faster(self, num_pairs: int) -> bool:
        return self._is_faster(num_pairs, self.multiply_pairs, self._blocks, "pairs and blocks")

    def _blocks(self, rows: Tensor, weight: PackedWeight, expert_of: Tensor, bias: Tensor | None) -> Tensor:
        return self.multiply_blocks(rows, weight, blocks_of(expert_of, len(rows), len(weight.codes)), bias)

    def _is_faster(self, num_pairs: int, own: PairsProduct, usual: PairsProduct, what: str) -> bool:
        stacks = (self.mixture.up, self.mixture.down)
        generator = torch.Generator().manual_seed(0)
        expert_of = torch.randint(0, stacks[0].num_experts, (num_pairs,), generator=generator).to(
            stacks[0].codes.device
        )
        rows = [torch.randn(num_pairs, stack.depth, device=expert_of.device).to(self.mixture.dtype) for stack in stacks]

        def both_with(product: PairsProduct) -> Tensor:
            return torch.cat([product(x, s.weight, expert_of, None) for x, s in zip(rows, stacks, strict=True)], dim=1)

        what = f"{num_pairs} pairs with {stacks[0].kind} experts {tuple(stacks[0].codes.shape)}, {what}"
        return is_faster(lambda: both_with(own), lambda: both_with(usual), what, self.recorder)
