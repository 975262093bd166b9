"""Weights of 8, 4 or 2 bits that are integers with scales and zeros per group of inputs, to the scales' 16 bits.

What each stands for is (code - zero) * scale. 32-bit words hold several codes, low bits first:

    GPTQ     `qweight` [depth / n, rows] with n codes a word along the depth, `qzeros` [groups, rows / n],
             `scales` [groups, rows], and `g_idx` [depth]: the group of each input. In `checkpoint_format` gptq a zero
             is stored less one, in gptq_v2 as it is.
    AWQ      `qweight` [depth, rows / 8], `qzeros` [groups, rows / 8] with codes in the order 0 2 4 6 1 3 5 7 along the
             rows, `scales` [groups, rows] (version gemm)
    compressed-tensors
             `weight_packed` [rows, depth / n] along the depth, signed codes raised by half their range, `weight_shape`,
             `weight_scale` [rows, groups]; for unequal ranges `weight_zero_point` [rows / n, groups]; `weight_g_idx`.
             Or codes in FP8 or int8 as `weight`, or 4-bit floats (unpack_floats.py)

How many bits a code has is seen in the shapes: checkpoints mix them (GPTQModel's `dynamic`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from coordinator.models.config import packing_config
from coordinator.models.errors import ConversionError
from coordinator.models.stored_tensors import StoredTensors
from coordinator.models.unpack_floats import EXPONENT_BIAS, FP8_DTYPES, OF_ACTIVATIONS, fp4, is_scale, scaled

WORD_BITS = 32
CODE_BITS = (2, 4, 8)
"""Which fill a word. Codes of 3 bits cross words; hardly anybody publishes them."""
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""In which place of a word the code of row 8 i + k is."""
QWEIGHT, QZEROS, QSCALES, GROUP_OF = ".qweight", ".qzeros", ".scales", ".g_idx"
WEIGHT, PACKED = ".weight", ".weight_packed"
OF_PACKED = (".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx", ".weight_global_scale")


def unpack_gptq(stored: StoredTensors, config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint, weights as what they stand for. Raises ConversionError."""
    stored_as = packing_config(config).get("checkpoint_format") or "gptq"
    if stored_as not in ("gptq", "gptq_v2"):
        raise ConversionError("config.json", f"the checkpoint_format {str(stored_as)[:40]!r} of GPTQ is not known")
    for name in _unpacked_names(stored):
        if name.endswith(QWEIGHT):
            own_name = name.removesuffix(QWEIGHT)
            yield own_name + WEIGHT, _gptq(own_name, stored, 1 if stored_as == "gptq" else 0)
        else:
            yield name, stored.read(name)


def _gptq(name: str, stored: StoredTensors, offset: int) -> Tensor:
    words, zero_words, scales = (stored.read(name + part) for part in (QWEIGHT, QZEROS, QSCALES))
    num_groups, num_rows = _two(name, scales)
    bits = _bits(name, num_rows, zero_words.shape[-1])
    codes = _codes(words.T, bits)  # [rows, depth]
    depth = codes.shape[1]
    has_order = name + GROUP_OF in stored
    group_of = stored.read(name + GROUP_OF).long() if has_order else _in_order(depth, num_groups)
    # masked: a zero of 0 is stored as -1, all bits of it set
    zeros = (_codes(zero_words, bits) + offset) & (2**bits - 1)
    return _dense(name, codes, zeros.T, scales.T, group_of)


def unpack_awq(stored: StoredTensors, config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """As unpack_gptq."""
    packing = packing_config(config)
    version = str(packing.get("version") or packing.get("format") or "gemm").lower()
    if version != "gemm":
        raise ConversionError("config.json", f"the version {version[:40]!r} of AWQ is not known, only gemm")
    for name in _unpacked_names(stored):
        if name.endswith(QWEIGHT):
            own_name = name.removesuffix(QWEIGHT)
            yield own_name + WEIGHT, _awq(own_name, stored)
        else:
            yield name, stored.read(name)


def _awq(name: str, stored: StoredTensors) -> Tensor:
    words, zero_words, scales = (stored.read(name + part) for part in (QWEIGHT, QZEROS, QSCALES))
    num_groups, num_rows = _two(name, scales)
    if _bits(name, num_rows, words.shape[-1]) != 4:
        raise ConversionError(name, "AWQ has codes of 4 bits, these are of others")
    codes, zeros = (_codes(each, 4).view(*each.shape, 8)[..., list(AWQ_PLACES)].flatten(-2)
                    for each in (words, zero_words))  # fmt: skip
    return _dense(name, codes.T, zeros.T, scales.T, _in_order(codes.shape[0], num_groups))


def _unpacked_names(stored: StoredTensors) -> Iterator[str]:
    """Of what makes a tensor of its own: not what belongs to a `qweight`."""
    for name in stored.names():
        owner, dot, part = name.rpartition(".")
        if not (dot + part in (QZEROS, QSCALES, GROUP_OF) and owner + QWEIGHT in stored):
            yield name


def unpack_compressed(stored: StoredTensors, config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """As unpack_gptq. Codes say by their names and types what they are; config.json is asked for blocks alone."""
    block = _block(packing_config(config))
    for name in stored.names():
        if name.endswith(PACKED):
            own_name = name.removesuffix(PACKED)
            yield own_name + WEIGHT, _compressed(own_name, stored)
        elif not (_belongs(name, stored) or name.endswith(OF_ACTIVATIONS)):
            tensor = stored.read(name)
            if tensor.dtype in FP8_DTYPES or tensor.dtype == torch.int8:
                tensor = _unpadded(name, tensor, stored, block)
            yield name, tensor


def _block(packing: Any) -> Any:
    """Of the first group of layers that has one."""
    groups = packing.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict) and weights.get("block_structure"):
            return weights["block_structure"]
    return None


def _belongs(name: str, stored: StoredTensors) -> bool:
    owner, dot, part = name.rpartition(".")
    of_packed = dot + part in OF_PACKED and (owner + PACKED in stored or owner + WEIGHT in stored)
    return of_packed or is_scale(name, stored)


def _unpadded(name: str, codes: Tensor, stored: StoredTensors, block: Any) -> Tensor:
    zeros = f"{name}_zero_point"
    if zeros in stored and bool(stored.read(zeros).float().any()):
        codes = codes.float() - stored.read(zeros).float()
    return scaled(name, codes, stored.read(f"{name}_scale"), block)


def _compressed(name: str, stored: StoredTensors) -> Tensor:
    words, scales = stored.read(name + PACKED), stored.read(f"{name}.weight_scale")
    if words.dtype == torch.uint8 and scales.dtype == torch.uint8:
        return fp4(name, words, torch.exp2(scales.float() - EXPONENT_BIAS), torch.ones(()))
    if words.dtype == torch.uint8:
        return fp4(name, words, scales, stored.read(f"{name}.weight_global_scale"))
    num_rows, depth = (int(size) for size in stored.read(f"{name}.weight_shape"))
    bits = next((b for b in CODE_BITS if -(-depth * b // WORD_BITS) == words.shape[-1]), 0)
    if bits == 0 or words.shape[0] != num_rows or scales.ndim != 2:
        raise ConversionError(name, f"{list(words.shape)} words for {num_rows} by {depth} weights")
    half, num_groups = 2 ** (bits - 1), scales.shape[1]
    codes = _codes(words, bits)[:, :depth] - half
    zeros = torch.zeros(num_rows, num_groups, dtype=torch.int32)
    if f"{name}.weight_zero_point" in stored:
        zeros = _codes(stored.read(f"{name}.weight_zero_point").T, bits).T[:num_rows] - half
    order = f"{name}.weight_g_idx"  # of nothing but -1: in order
    found = stored.read(order).long() if order in stored else torch.full((1,), -1)
    group_of = found if bool(found.ge(0).all()) else _in_order(depth, num_groups)
    return _dense(name, codes, zeros, scales, group_of)


def _in_order(depth: int, num_groups: int) -> Tensor:
    """The group of each input where groups lie side by side, [depth]."""
    return torch.arange(depth) // max(1, -(-depth // max(1, num_groups)))


def _two(name: str, scales: Tensor) -> tuple[int, int]:
    if scales.ndim != 2 or 0 in scales.shape:
        raise ConversionError(name, f"its scales are {list(scales.shape)}, not groups by rows")
    return scales.shape[0], scales.shape[1]


def _bits(name: str, num_codes: int, num_words: int) -> int:
    for bits in CODE_BITS:
        if num_words * WORD_BITS == num_codes * bits:
            return bits
    raise ConversionError(name, f"{num_codes} codes in {num_words} words are not of 2, 4 or 8 bits")


def _codes(words: Tensor, bits: int) -> Tensor:
    """int32 [..., n * WORD_BITS / bits] of words [..., n], low bits first."""
    if words.dtype != torch.int32:
        raise ConversionError("a packed weight", f"its words are {words.dtype}, not int32")
    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32)
    codes: Tensor = (words[..., None] >> shifts) & (2**bits - 1)
    return codes.flatten(-2)


def _dense(name: str, codes: Tensor, zeros: Tensor, scales: Tensor, group_of: Tensor) -> Tensor:
    """[rows, depth] of codes [rows, depth], zeros and scales [rows, groups], and each input's group, [depth]."""
    num_rows, depth = codes.shape
    fits = zeros.shape == scales.shape and scales.shape[0] == num_rows and tuple(group_of.shape) == (depth,)
    if not fits or depth == 0 or not 0 <= int(group_of.min()) <= int(group_of.max()) < scales.shape[1]:
        raise ConversionError(
            name, f"scales {list(scales.shape)} and zeros {list(zeros.shape)} for {num_rows} by {depth}"
        )
    dtype = scales.dtype if scales.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
    differences = (codes - zeros[:, group_of]).float()
    return differences.mul_(scales[:, group_of].float()).to(dtype)
