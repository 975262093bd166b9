"""Whether the own products with packed weights are right and faster on this device: tried for each shape of weight."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor, nn

from client.runtime.decode_graphs import Recorder
from client.runtime.packed_layers import MAX_OWN_ROWS, PackedLinear, PackedProduct, dense_product
from client.runtime.trial import MAX_TRIED, is_faster

COLUMNS_MULTIPLE = 64
TRIED_ROWS = (MAX_OWN_ROWS, 64, 16, 1)
"""From the most on: the first at which the own product is faster, it is for all fewer rows too, for a dense copy costs
the same whatever the rows."""


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
