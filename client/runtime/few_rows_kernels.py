"""Products of few rows with a large matrix in Triton: bound by reading the matrix, which cuBLAS does at 0.7 to 0.9 of
an H100's bandwidth for the shapes of decoder layers. Import this module only where Triton is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from client.runtime.few_rows import FEW_ROWS


@triton.jit  # type: ignore[untyped-decorator]
def _one_row_kernel(  # type: ignore[no-untyped-def]
    hidden, weight, bias, out, depth,
    HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,  # noqa: N803
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    at = tl.arange(0, TILE)
    lines = weight + column.to(tl.int64)[:, None] * depth + at[None, :]
    sums = tl.zeros([COLUMNS, TILE], tl.float32)
    for start in range(0, depth, TILE):
        if EVEN:
            w = tl.load(lines + start)
            x = tl.load(hidden + start + at)
        else:
            is_there = start + at < depth
            w = tl.load(lines + start, mask=is_there[None, :], other=0.0)
            x = tl.load(hidden + start + at, mask=is_there, other=0.0)
        sums += w.to(tl.float32) * x.to(tl.float32)[None, :]
    result = tl.sum(sums, 1)
    if HAS_BIAS:
        result += tl.load(bias + column).to(tl.float32)
    tl.store(out + column, result.to(out.dtype.element_ty))


@triton.jit  # type: ignore[untyped-decorator]
def _few_rows_kernel(  # type: ignore[no-untyped-def]
    hidden, weight, bias, out, num_rows, num_columns, depth,
    HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row, at = tl.arange(0, ROWS), tl.arange(0, TILE)
    lines = weight + column.to(tl.int64)[:, None] * depth + at[None, :]
    inputs = hidden + row[None, :] * depth + at[:, None]
    is_row = row[None, :] < num_rows
    sums = tl.zeros([COLUMNS, ROWS], tl.float32)
    for start in range(0, depth, TILE):
        if EVEN:
            w = tl.load(lines + start)
            x = tl.load(inputs + start, mask=is_row, other=0.0)
        else:
            is_there = start + at < depth
            w = tl.load(lines + start, mask=is_there[None, :], other=0.0)
            x = tl.load(inputs + start, mask=is_row & is_there[:, None], other=0.0)
        sums = tl.dot(w, x, sums)
    if HAS_BIAS:
        sums += tl.load(bias + column).to(tl.float32)[:, None]
    tl.store(out + row[None, :] * num_columns + column[:, None], sums.to(out.dtype.element_ty), mask=is_row)


@torch.library.custom_op("decentllm::multiply_few_rows", mutates_args=())
def multiply_few_rows(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear for at most FEW_ROWS rows, summed in float32. `weight` [columns, depth] is dense."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    num_rows, (num_columns, depth) = len(rows), weight.shape
    out = hidden.new_empty(*hidden.shape[:-1], num_columns)
    extra = weight if bias is None else bias
    if num_rows == 1:
        _one_row_kernel[num_columns // 4,](
            rows, weight, extra, out, depth,
            HAS_BIAS=bias is not None, EVEN=depth % 1024 == 0, COLUMNS=4, TILE=1024, num_warps=4,
        )  # fmt: skip
    else:
        _few_rows_kernel[num_columns // 32,](
            rows, weight, extra, out, num_rows, num_columns, depth,
            HAS_BIAS=bias is not None, EVEN=depth % 256 == 0, ROWS=FEW_ROWS, COLUMNS=32, TILE=256,
            num_warps=4, num_stages=4,
        )  # fmt: skip
    return out


@multiply_few_rows.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return hidden.new_empty(*hidden.shape[:-1], weight.shape[0])
