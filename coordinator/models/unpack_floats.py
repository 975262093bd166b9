"""Weights of 8 or 4 bits that are small floating-point numbers with scales, to bfloat16.

    FP8      `X` float8, and `X_scale_inv` or `X_scale`: a scale for each block of weights, for each row, or one for all
    MXFP4    `X_blocks` uint8 [..., rows, groups, 16] with two codes a byte, the low one first, and `X_scales` uint8
             [..., rows, groups], exponents of two less 127; the tensor that they stand for is [..., depth, rows]
    NVFP4    `X_packed` uint8 [rows, depth / 2] with codes as in MXFP4, `X_scale` float8 [rows, groups], which
             `X_global_scale` divides; or without it uint8, exponents as in MXFP4 (compressed-tensors)

Whatever is not packed stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from coordinator.models.config import packing_config
from coordinator.models.errors import ConversionError
from coordinator.models.stored_tensors import StoredTensors

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""OCP microscaling formats 1.0, section 5.3.3: what the codes 0 to 15 stand for."""
EXPONENT_BIAS = 127
FP8_SCALES, BLOCKS, SCALES = ("_scale_inv", "_scale"), "_blocks", "_scales"
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
_INPUT = (".input_scale", ".activation_scale", ".input_scale_ub", ".input_zero_point", ".input_global_scale")
OF_ACTIVATIONS = (*_INPUT, ".q_scale", ".k_scale", ".v_scale")
"""For products and caches in few bits, which are not made here."""


def unpack_fp8(stored: StoredTensors, config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint, weights as what they stand for. Raises ConversionError."""
    block = packing_config(config).get("weight_block_size")
    for name in stored.names():
        if is_scale(name, stored) or name.endswith(OF_ACTIVATIONS):
            continue
        tensor = stored.read(name)
        if tensor.dtype in FP8_DTYPES:
            tensor = scaled(name, tensor, _scales_of(name, stored), block)
        yield name, tensor


def is_scale(name: str, stored: StoredTensors) -> bool:
    """Whether it is the scale of another tensor that is there."""
    return any(name.endswith(suffix) and name.removesuffix(suffix) in stored for suffix in FP8_SCALES)


def _scales_of(name: str, stored: StoredTensors) -> Tensor:
    found = [name + suffix for suffix in FP8_SCALES if name + suffix in stored]
    return stored.read(found[0] if found else name + FP8_SCALES[0])


def scaled(name: str, codes: Tensor, scales: Tensor, block: Sequence[int] | None) -> Tensor:
    """The codes, float8 or int8, times the scale of their block, [..., rows, columns]; a block at the edge may be cut
    off. Raises ConversionError where scales do not fit."""
    if scales.numel() == 1:
        return (codes.float() * scales.float()).bfloat16()
    if codes.ndim >= 2 and tuple(scales.shape) == (*codes.shape[:-1], 1):
        block = [1, codes.shape[-1]]
    if not (isinstance(block, list) and len(block) == 2) or codes.ndim < 2:
        raise ConversionError(name, "it has many scales, and config.json does not say of which blocks")
    rows, columns = codes.shape[-2:]
    if tuple(scales.shape) != (*codes.shape[:-2], -(-rows // block[0]), -(-columns // block[1])):
        raise ConversionError(name, f"{list(scales.shape)} scales for {list(codes.shape)} weights in blocks of {block}")
    tall = scales.float().repeat_interleave(block[0], -2)[..., :rows, :]
    out = torch.empty(codes.shape, dtype=torch.bfloat16)
    for start in range(0, columns, block[1]):  # a stripe at a time: float32 takes four times the room
        stripe = slice(start, start + block[1])
        out[..., stripe] = codes[..., stripe].float() * tall[..., start // block[1], None]
    return out


def unpack_mxfp4(stored: StoredTensors, config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """As unpack_fp8."""
    for name in stored.names():
        if name.endswith(BLOCKS):
            own_name = name.removesuffix(BLOCKS)
            yield own_name, _from_blocks(name, stored.read(name), stored.read(own_name + SCALES))
        elif not (name.endswith(SCALES) and name.removesuffix(SCALES) + BLOCKS in stored):
            yield name, stored.read(name)


def _from_blocks(name: str, blocks: Tensor, scales: Tensor) -> Tensor:
    """[..., depth, rows]. Every value is exact in bfloat16."""
    if blocks.dtype != torch.uint8 or scales.dtype != torch.uint8 or blocks.shape[:-1] != scales.shape:
        raise ConversionError(name, f"{list(scales.shape)} scales for blocks {list(blocks.shape)}")
    *outer, rows, groups, num_bytes = blocks.shape
    out = torch.empty(*outer, groups * num_bytes * 2, rows, dtype=torch.bfloat16).flatten(0, -3)
    for number, (codes, exponents) in enumerate(
        zip(blocks.flatten(0, -4), scales.flatten(0, -3).int() - EXPONENT_BIAS, strict=True)
    ):
        out[number] = torch.ldexp(_e2m1(codes), exponents[..., None]).flatten(-2).T
    return out.view(*outer, -1, rows)


def _e2m1(codes: Tensor) -> Tensor:
    """bfloat16 [..., 2 n] of bytes [..., n] with two codes each, the low one first."""
    values = torch.tensor(E2M1, dtype=torch.bfloat16)
    return torch.stack([values[(codes & 15).int()], values[(codes >> 4).int()]], dim=-1).flatten(-2)


def fp4(name: str, codes: Tensor, scales: Tensor, overall: Tensor) -> Tensor:
    """bfloat16 [rows, depth]. Raises ConversionError where scales do not fit."""
    values = _e2m1(codes)
    if (
        codes.dtype != torch.uint8
        or overall.numel() != 1
        or scales.shape[:-1] != codes.shape[:-1]
        or values.shape[-1] % max(1, scales.shape[-1])
    ):
        raise ConversionError(name, f"{list(scales.shape)} scales for codes {list(codes.shape)}")
    grouped = values.float().view(*scales.shape, -1)
    products: Tensor = grouped * (scales.float() / overall.float())[..., None]
    return products.flatten(-2).bfloat16()
