"""Products of few rows with packed weights in Triton: each packed byte is read once and unpacked in registers.

For one row, 4-bit codes become floats without a conversion: a code's bits are put into the mantissa of a power of two,
where they read as that power plus the code, and the power's part of the sum is taken off again (as Kim et al.
2022, "Who says elephants can't run", do it in half precision). For more rows the codes are multiplied on
tensor cores. Import this module only where Triton is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from client.runtime.packed_layers import MAX_OWN_ROWS
from client.runtime.packing import GROUP_WORDS, PackedWeight
from protocol.values import Quantisation

MIN_DOT = 16
"""Rows are padded to at least so many for tensor cores."""
WIDE = 16384
"""From so many columns on there are enough programs with larger tiles."""


@triton.jit
def _high(words, x):  # type: ignore[no-untyped-def]
    """128 plus the code in bits 16 to 19, times x; and what 136 times x is, for a code of 8 stands for nothing."""
    value = ((words & 0x000F0000) | 0x43000000).to(tl.float32, bitcast=True)
    return value * x[None, :], x * 136.0


@triton.jit
def _low(words, x):  # type: ignore[no-untyped-def]
    """2048 plus the code in bits 12 to 15."""
    value = ((words & 0x0000F000) | 0x45000000).to(tl.float32, bitcast=True)
    return value * x[None, :], x * 2056.0


@triton.jit  # type: ignore[untyped-decorator]
def _input(hidden, at, is_there, EVEN: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    if EVEN:
        return tl.load(hidden + at).to(tl.float32)
    return tl.load(hidden + at, mask=is_there, other=0.0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def row4(  # type: ignore[no-untyped-def]
    hidden, words, scales, column, num_words,
    EVEN: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One row times COLUMNS columns in 4 bits."""
    at = tl.arange(0, TILE)
    lines = words + column.to(tl.int64)[:, None] * num_words + at[None, :]
    scale_lines = scales + column[:, None] * (num_words // GROUP) + (at // GROUP)[None, :]
    sums = tl.zeros([COLUMNS, TILE], tl.float32)
    for start in range(0, num_words, TILE):
        is_there = start + at < num_words
        if EVEN:
            w = tl.load(lines + start)
            scale = tl.load(scale_lines + start // GROUP)
        else:
            w = tl.load(lines + start, mask=is_there[None, :], other=0)
            scale = tl.load(scale_lines + start // GROUP, mask=is_there[None, :], other=0.0)
        x = hidden + start
        a, c = _high(w, _input(x + 4 * num_words, at, is_there, EVEN))
        b, d = _high(w << 16, _input(x, at, is_there, EVEN))
        total, extra = a + b, c + d
        a, c = _high(w << 8, _input(x + 2 * num_words, at, is_there, EVEN))
        b, d = _high(w >> 4, _input(x + 5 * num_words, at, is_there, EVEN))
        total, extra = total + a + b, extra + c + d
        a, c = _high(w >> 12, _input(x + 7 * num_words, at, is_there, EVEN))
        b, d = _low(w, _input(x + 3 * num_words, at, is_there, EVEN))
        total, extra = total + a + b, extra + c + d
        a, c = _low(w << 8, _input(x + num_words, at, is_there, EVEN))
        b, d = _low(w >> 12, _input(x + 6 * num_words, at, is_there, EVEN))
        total, extra = total + a + b, extra + c + d
        sums += (total - extra[None, :]) * scale.to(tl.float32)
    return tl.sum(sums, 1)


@triton.jit  # type: ignore[untyped-decorator]
def _one_row4(  # type: ignore[no-untyped-def]
    hidden, words, scales, bias, out, num_words,
    HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr,  # noqa: N803
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    result = row4(hidden, words, scales, column, num_words, EVEN, COLUMNS, TILE, GROUP)
    if HAS_BIAS:
        result += tl.load(bias + column).to(tl.float32)
    tl.store(out + column, result.to(out.dtype.element_ty))


@triton.jit  # type: ignore[untyped-decorator]
def rows4(  # type: ignore[no-untyped-def]
    hidden, words, scales, source, is_row, column, num_words,
    EVEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Rows `source` of `hidden` times COLUMNS columns in 4 bits: [COLUMNS, ROWS]."""
    at = tl.arange(0, TILE)
    lines = words + column.to(tl.int64)[:, None] * num_words + at[None, :]
    scale_lines = scales + column[:, None] * (num_words // GROUP) + (at // GROUP)[None, :]
    inputs = hidden + source[None, :] * (8 * num_words) + at[:, None]
    sums = tl.zeros([COLUMNS, ROWS], tl.float32)
    for start in range(0, num_words, TILE):
        is_there = start + at < num_words
        if EVEN:
            w = tl.load(lines + start)
            scale = tl.load(scale_lines + start // GROUP).to(tl.float32)
            is_input = is_row[None, :]
        else:
            w = tl.load(lines + start, mask=is_there[None, :], other=0)
            scale = tl.load(scale_lines + start // GROUP, mask=is_there[None, :], other=0.0).to(tl.float32)
            is_input = is_row[None, :] & is_there[:, None]
        for place in tl.static_range(8):
            x = tl.load(inputs + place * num_words + start, mask=is_input, other=0.0)
            code = ((w >> (4 * place)) & 15) - 8
            sums = tl.dot((code.to(tl.float32) * scale).to(x.dtype), x, sums, input_precision="ieee")
    return sums


@triton.jit  # type: ignore[untyped-decorator]
def _few_rows4(  # type: ignore[no-untyped-def]
    hidden, words, scales, bias, out, num_rows, num_columns, num_words,
    HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr, GROUP: tl.constexpr,  # noqa: N803
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.arange(0, ROWS)
    is_row = row < num_rows
    sums = rows4(hidden, words, scales, row, is_row, column, num_words, EVEN, ROWS, COLUMNS, TILE, GROUP)
    if HAS_BIAS:
        sums += tl.load(bias + column).to(tl.float32)[:, None]
    to = out + row[None, :] * num_columns + column[:, None]
    tl.store(to, sums.to(out.dtype.element_ty), mask=is_row[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def row8(  # type: ignore[no-untyped-def]
    hidden, codes, scales, column, depth, EVEN: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One row times COLUMNS columns in 8 bits."""
    at = tl.arange(0, TILE)
    lines = codes + column.to(tl.int64)[:, None] * depth + at[None, :]
    sums = tl.zeros([COLUMNS, TILE], tl.float32)
    for start in range(0, depth, TILE):
        is_there = start + at < depth
        w = tl.load(lines + start) if EVEN else tl.load(lines + start, mask=is_there[None, :], other=0)
        sums += w.to(tl.float32) * _input(hidden + start, at, is_there, EVEN)[None, :]
    return tl.sum(sums, 1) * tl.load(scales + column)


@triton.jit  # type: ignore[untyped-decorator]
def _one_row8(  # type: ignore[no-untyped-def]
    hidden, codes, scales, bias, out, depth,
    HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,  # noqa: N803
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    result = row8(hidden, codes, scales, column, depth, EVEN, COLUMNS, TILE)
    if HAS_BIAS:
        result += tl.load(bias + column).to(tl.float32)
    tl.store(out + column, result.to(out.dtype.element_ty))


@triton.jit  # type: ignore[untyped-decorator]
def rows8(  # type: ignore[no-untyped-def]
    hidden, codes, scales, source, is_row, column, depth,
    EVEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """As rows4, in 8 bits."""
    at = tl.arange(0, TILE)
    lines = codes + column.to(tl.int64)[:, None] * depth + at[None, :]
    inputs = hidden + source[None, :] * depth + at[:, None]
    sums = tl.zeros([COLUMNS, ROWS], tl.float32)
    for start in range(0, depth, TILE):
        is_there = start + at < depth
        if EVEN:
            w = tl.load(lines + start)
            x = tl.load(inputs + start, mask=is_row[None, :], other=0.0)
        else:
            w = tl.load(lines + start, mask=is_there[None, :], other=0)
            x = tl.load(inputs + start, mask=is_row[None, :] & is_there[:, None], other=0.0)
        sums = tl.dot(w.to(x.dtype), x, sums, input_precision="ieee")
    return sums * tl.load(scales + column)[:, None]


@triton.jit  # type: ignore[untyped-decorator]
def _few_rows8(  # type: ignore[no-untyped-def]
    hidden, codes, scales, bias, out, num_rows, num_columns, depth,
    HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.arange(0, ROWS)
    is_row = row < num_rows
    sums = rows8(hidden, codes, scales, row, is_row, column, depth, EVEN, ROWS, COLUMNS, TILE)
    if HAS_BIAS:
        sums += tl.load(bias + column).to(tl.float32)[:, None]
    to = out + row[None, :] * num_columns + column[:, None]
    tl.store(to, sums.to(out.dtype.element_ty), mask=is_row[None, :])


# Not torch.library.custom_op: its checks cost 0.3 ms a call on the host (see pool_call.py).
torch.library.define(
    "decentllm::multiply_packed",
    "(Tensor hidden, Tensor codes, Tensor scales, Tensor? bias) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl("decentllm::multiply_packed", ("cpu", "cuda"))
def _multiply_packed(hidden: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """As F.linear, for at most MAX_OWN_ROWS rows; columns are a multiple of COLUMNS_MULTIPLE."""
    rows = hidden.reshape(-1, hidden.shape[-1]).contiguous()
    out = hidden.new_empty(*hidden.shape[:-1], len(codes))
    tensors = rows, codes, scales, codes if bias is None else bias, out
    launch = _launch4 if codes.dtype is torch.int32 else _launch8
    launch(tensors, len(rows), len(codes), codes.shape[1], bias is not None)
    return out


# The sizes of tiles below are those that were fastest on an H100 for the shapes of an 8B model.


def _launch4(tensors: tuple[Tensor, ...], num_rows: int, num_columns: int, num_words: int, has_bias: bool) -> None:
    if num_rows == 1:
        tile = 256 if num_words >= 256 else 128
        _one_row4[num_columns // 4,](
            *tensors, num_words, HAS_BIAS=has_bias, EVEN=num_words % tile == 0, COLUMNS=4, TILE=tile,
            GROUP=GROUP_WORDS, num_warps=2,
        )  # fmt: skip
        return
    rows = MIN_DOT if num_rows <= MIN_DOT else max(64, _padded(num_rows))  # 32 took longer than 64
    columns, tile = 32, 64 if rows == 64 else 32
    if rows == MIN_DOT:
        columns, tile = (64, 64) if num_columns >= WIDE else (16, 128)
    _few_rows4[num_columns // columns,](
        *tensors, num_rows, num_columns, num_words, HAS_BIAS=has_bias, EVEN=num_words % tile == 0,
        ROWS=rows, COLUMNS=columns, TILE=tile, GROUP=GROUP_WORDS, num_warps=4, num_stages=2,
    )  # fmt: skip


def _launch8(tensors: tuple[Tensor, ...], num_rows: int, num_columns: int, depth: int, has_bias: bool) -> None:
    if num_rows == 1:
        _one_row8[num_columns,](
            *tensors, depth, HAS_BIAS=has_bias, EVEN=depth % 512 == 0, COLUMNS=1, TILE=512, num_warps=2
        )
        return
    columns, tile, stages = 32, 256, 4
    if num_rows > MIN_DOT and num_columns >= WIDE:
        columns, tile, stages = 64, 128, 2
    _few_rows8[num_columns // columns,](
        *tensors, num_rows, num_columns, depth, HAS_BIAS=has_bias, EVEN=depth % tile == 0, ROWS=_padded(num_rows),
        COLUMNS=columns, TILE=tile, num_warps=4, num_stages=stages,
    )  # fmt: skip


def _padded(num_rows: int) -> int:
    return max(MIN_DOT, int(triton.next_power_of_2(num_rows)))


@torch.library.register_fake("decentllm::multiply_packed")  # type: ignore[untyped-decorator]
def _(hidden: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    return hidden.new_empty(*hidden.shape[:-1], len(codes))


def multiply_packed(hidden: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """A PackedProduct for at most MAX_OWN_ROWS rows."""
    assert weight.kind in Quantisation and hidden.numel() <= MAX_OWN_ROWS * weight.depth
    product: Tensor = torch.ops.decentllm.multiply_packed(hidden, weight.codes, weight.scales, bias)
    return product
