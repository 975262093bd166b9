"""Products with packed mixtures of experts in Triton, made of those for one matrix (packed_kernels.py).

Few pairs of a row and an expert are taken one by one. Many are put in order of their experts and cut into blocks of
rows that share one, so that each expert is unpacked once for them and multiplied on tensor cores; a block has fewer
rows than it has room for where its expert's end, and may have none. Import this module only where Triton is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from client.runtime.packed_experts import ExpertBlocks
from client.runtime.packed_kernels import row4, row8, rows4, rows8
from client.runtime.packing import GROUP_WORDS, PackedWeight


@triton.jit  # type: ignore[untyped-decorator]
def _pairs4(  # type: ignore[no-untyped-def]
    hidden, words, scales, experts, bias, out, num_columns, num_words,
    HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr,  # noqa: N803
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    pair = tl.program_id(1)
    first = tl.load(experts + pair).to(tl.int64) * num_columns
    own_words, own_scales = words + first * num_words, scales + first * (num_words // GROUP)
    result = row4(hidden + pair * 8 * num_words, own_words, own_scales, column, num_words, EVEN, COLUMNS, TILE, GROUP)
    if HAS_BIAS:
        result += tl.load(bias + first + column).to(tl.float32)
    tl.store(out + pair * num_columns + column, result.to(out.dtype.element_ty))


@triton.jit  # type: ignore[untyped-decorator]
def _pairs8(  # type: ignore[no-untyped-def]
    hidden, codes, scales, experts, bias, out, num_columns, depth,
    HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,  # noqa: N803
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    pair = tl.program_id(1)
    first = tl.load(experts + pair).to(tl.int64) * num_columns
    result = row8(hidden + pair * depth, codes + first * depth, scales + first, column, depth, EVEN, COLUMNS, TILE)
    if HAS_BIAS:
        result += tl.load(bias + first + column).to(tl.float32)
    tl.store(out + pair * num_columns + column, result.to(out.dtype.element_ty))


@triton.jit  # type: ignore[untyped-decorator]
def _block4(  # type: ignore[no-untyped-def]
    hidden, words, scales, blocks, order, bias, out, num_columns, num_words, num_chosen,
    HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr, GROUP: tl.constexpr,  # noqa: N803
):  # fmt: skip
    block = blocks + 3 * tl.program_id(1)
    count = tl.load(block + 2)
    if count > 0:
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        first = tl.load(block).to(tl.int64) * num_columns
        row = tl.arange(0, ROWS)
        is_row = row < count
        pair = tl.load(order + tl.load(block + 1) + row, mask=is_row, other=0)
        own_words, own_scales = words + first * num_words, scales + first * (num_words // GROUP)
        sums = rows4(
            hidden, own_words, own_scales, pair // num_chosen, is_row, column, num_words,
            EVEN, ROWS, COLUMNS, TILE, GROUP,
        )  # fmt: skip
        if HAS_BIAS:
            sums += tl.load(bias + first + column).to(tl.float32)[:, None]
        to = out + pair[None, :] * num_columns + column[:, None]
        tl.store(to, sums.to(out.dtype.element_ty), mask=is_row[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _block8(  # type: ignore[no-untyped-def]
    hidden, codes, scales, blocks, order, bias, out, num_columns, depth, num_chosen,
    HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
):  # fmt: skip
    block = blocks + 3 * tl.program_id(1)
    count = tl.load(block + 2)
    if count > 0:
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        first = tl.load(block).to(tl.int64) * num_columns
        row = tl.arange(0, ROWS)
        is_row = row < count
        pair = tl.load(order + tl.load(block + 1) + row, mask=is_row, other=0)
        own_codes, own_scales = codes + first * depth, scales + first
        sums = rows8(
            hidden, own_codes, own_scales, pair // num_chosen, is_row, column, depth, EVEN, ROWS, COLUMNS, TILE
        )
        if HAS_BIAS:
            sums += tl.load(bias + first + column).to(tl.float32)[:, None]
        to = out + pair[None, :] * num_columns + column[:, None]
        tl.store(to, sums.to(out.dtype.element_ty), mask=is_row[None, :])


_PAIRS = "multiply_pairs(Tensor hidden, Tensor codes, Tensor scales, Tensor experts, Tensor? bias) -> Tensor"
_BLOCKS = (
    "multiply_blocks(Tensor hidden, Tensor codes, Tensor scales, Tensor blocks, Tensor order, int rows, Tensor? bias)"
    " -> Tensor"
)
for _schema in (_PAIRS, _BLOCKS):
    _name, _, _signature = _schema.partition("(")
    torch.library.define(f"decentllm::{_name}", f"({_signature}", tags=(torch.Tag.pt2_compliant_tag,))


@torch.library.impl("decentllm::multiply_pairs", ("cpu", "cuda"))
def _multiply_pairs(hidden: Tensor, codes: Tensor, scales: Tensor, experts: Tensor, bias: Tensor | None) -> Tensor:
    _, num_columns, num_lines = codes.shape
    rows = hidden.contiguous()
    out = hidden.new_empty(len(rows), num_columns)
    tensors = rows, codes, scales, experts, codes if bias is None else bias, out
    is_int4 = codes.dtype is torch.int32
    tile, columns = (256 if num_lines >= 256 else 128, 4) if is_int4 else (512, 1)
    common = {"HAS_BIAS": bias is not None, "EVEN": num_lines % tile == 0, "COLUMNS": columns, "TILE": tile}
    grid = (num_columns // columns, len(rows))
    if is_int4:
        _pairs4[grid](*tensors, num_columns, num_lines, **common, GROUP=GROUP_WORDS, num_warps=2)
    else:
        _pairs8[grid](*tensors, num_columns, num_lines, **common, num_warps=2)
    return out


@torch.library.impl("decentllm::multiply_blocks", ("cpu", "cuda"))
def _multiply_blocks(
    hidden: Tensor, codes: Tensor, scales: Tensor, blocks: Tensor, order: Tensor, rows: int, bias: Tensor | None
) -> Tensor:
    _, num_columns, num_lines = codes.shape
    inputs = hidden.contiguous()
    out = hidden.new_empty(len(order), num_columns)
    tensors = inputs, codes, scales, blocks, order, codes if bias is None else bias, out
    sizes = num_columns, num_lines, len(order) // len(inputs)
    common = {"HAS_BIAS": bias is not None, "ROWS": rows, "COLUMNS": 64 if num_columns % 64 == 0 else 32}
    grid = (num_columns // common["COLUMNS"], len(blocks))
    if codes.dtype is torch.int32:
        _block4[grid](*tensors, *sizes, **common, EVEN=num_lines % 32 == 0, TILE=32, GROUP=GROUP_WORDS,
                      num_warps=2, num_stages=2)  # fmt: skip
    else:
        _block8[grid](*tensors, *sizes, **common, EVEN=num_lines % 128 == 0, TILE=128, num_warps=4, num_stages=3)
    return out


@torch.library.register_fake("decentllm::multiply_pairs")  # type: ignore[untyped-decorator]
def _shape_of_pairs(hidden: Tensor, codes: Tensor, scales: Tensor, experts: Tensor, bias: Tensor | None) -> Tensor:
    return hidden.new_empty(hidden.shape[0], codes.shape[1])


@torch.library.register_fake("decentllm::multiply_blocks")  # type: ignore[untyped-decorator]
def _shape_of_blocks(
    hidden: Tensor, codes: Tensor, scales: Tensor, blocks: Tensor, order: Tensor, rows: int, bias: Tensor | None
) -> Tensor:
    return hidden.new_empty(order.shape[0], codes.shape[1])


def multiply_pairs(hidden: Tensor, weight: PackedWeight, experts: Tensor, bias: Tensor | None) -> Tensor:
    """A PairsProduct. Experts that several rows have are read from the card's cache."""
    product: Tensor = torch.ops.decentllm.multiply_pairs(hidden, weight.codes, weight.scales, experts, bias)
    return product


def multiply_blocks(hidden: Tensor, weight: PackedWeight, blocks: ExpertBlocks, bias: Tensor | None) -> Tensor:
    """A BlocksProduct."""
    product: Tensor = torch.ops.decentllm.multiply_blocks(
        hidden, weight.codes, weight.scales, blocks.table, blocks.order, blocks.num_rows, bias
    )
    return product
