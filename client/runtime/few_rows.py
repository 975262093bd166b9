"""Linear layers that multiply few rows with a kernel of our own where it was measured to be faster than the library's.

Decoding reads every weight for a few rows. Each shape of weight is tried once, for one row and for sixteen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from client.runtime.decode_graphs import Recorder
from client.runtime.trial import MAX_TRIED, is_faster

Multiply = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""F.linear by its signature: (hidden [..., depth], weight [columns, depth], bias) to [..., columns]."""
FEW_ROWS = 16
COLUMNS_MULTIPLE = 32
DTYPES = (torch.float16, torch.bfloat16)


class FewRowsLinear(nn.Linear):
    """An nn.Linear with another product for one row, for two to FEW_ROWS, or both."""

    multiply: Multiply = staticmethod(F.linear)
    owns_one = False
    owns_few = False

    @classmethod
    def of(cls, linear: nn.Linear) -> FewRowsLinear:
        """With the very same weights."""
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        made.weight, made.bias = linear.weight, linear.bias
        return made

    def forward(self, hidden: Tensor) -> Tensor:
        num_rows = hidden.numel() // hidden.shape[-1]
        if (self.owns_one and num_rows == 1) or (self.owns_few and 1 < num_rows <= FEW_ROWS):
            return self.multiply(hidden, self.weight, self.bias)
        return F.linear(hidden, self.weight, self.bias)


def adopt(roots: Iterable[nn.Module], multiply: Multiply, recorder: Recorder) -> int:
    """Put `multiply` into the linear layers below `roots` where it is faster; returns for how many shapes it is."""
    shapes: dict[tuple[int, int, bool], list[FewRowsLinear]] = {}
    for linear in list(_replaced(roots)):
        key = (linear.in_features, linear.out_features, linear.bias is not None)
        shapes.setdefault(key, []).append(linear)
    num_adopted = 0
    for linears in shapes.values():
        owns_one, owns_few = (_is_faster(linears, multiply, rows, recorder) for rows in (1, FEW_ROWS))
        num_adopted += owns_one or owns_few
        for linear in linears:
            linear.multiply, linear.owns_one, linear.owns_few = multiply, owns_one, owns_few
    return num_adopted


def _replaced(roots: Iterable[nn.Module]) -> Iterable[FewRowsLinear]:
    """Every plain linear layer that the kernel can take, replaced by one that may use it."""
    for root in roots:
        for parent in list(root.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear and _is_eligible(child):
                    made = FewRowsLinear.of(child)
                    setattr(parent, name, made)
                    yield made


def _is_eligible(linear: nn.Linear) -> bool:
    weight = linear.weight
    return weight.dtype in DTYPES and weight.is_contiguous() and linear.out_features % COLUMNS_MULTIPLE == 0


def _is_faster(linears: list[FewRowsLinear], multiply: Multiply, num_rows: int, recorder: Recorder) -> bool:
    """Whether `multiply` gives the library's result in less time."""
    tried = list(islice(linears, MAX_TRIED))
    weight = tried[0].weight
    hidden = torch.randn(1, num_rows, weight.shape[1], dtype=weight.dtype, device=weight.device)

    def all_with(product: Multiply) -> Tensor:
        return [product(hidden, linear.weight, linear.bias) for linear in tried][-1]

    what = f"{num_rows} rows with {tuple(weight.shape)}"
    return is_faster(lambda: all_with(multiply), lambda: all_with(F.linear), what, recorder)
