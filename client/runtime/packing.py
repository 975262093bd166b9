"""Weights in 8 or 4 bits: how they are packed and what they stand for.

Rounding to the nearest, without data to calibrate by: codes and scales are a function of the weight alone, row by row,
and of exact operations only (largest magnitude, division, rounding in float32). The same weight gives the same codes
on every device.

8 bits: int8 [rows, depth], one float32 scale a row. 4 bits: int32 words [rows, depth / 8] of eight codes, and bfloat16
scales [rows, depth / GROUP]. Bits 4k to 4k + 3 of word i are the weight at depth k * depth / 8 + i: so a kernel that
reads words side by side multiplies them with inputs side by side, and all eight belong to the same group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protocol.quantisation import GROUP
from protocol.values import Quantisation

CODES = 8
"""4-bit codes in a word."""
GROUP_WORDS = GROUP // CODES
HALF = 8
"""Codes 0 to 15 stand for -8 to 7 times the scale."""
BLOCK_ELEMENTS = 2**22
"""Packed at a time: the float32 in between takes a few times 16 MB, whatever the size of the matrix."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A matrix of `depth` columns, packed as the module's comment says."""

    kind: Quantisation
    codes: Tensor
    scales: Tensor
    depth: int

    def dense(self, dtype: torch.dtype) -> Tensor:
        """What it stands for, [rows, depth]. Products are rounded once, to `dtype`."""
        if self.kind is Quantisation.INT8:
            return (self.codes.float() * self.scales[:, None]).to(dtype)
        return _unpack4(self.codes, self.scales).to(dtype)

    def rows(self, start: int, stop: int) -> PackedWeight:
        return PackedWeight(self.kind, self.codes[start:stop], self.scales[start:stop], self.depth)


def pack(weight: Tensor, kind: Quantisation) -> PackedWeight:
    """Pack a matrix [rows, depth], whose depth is a multiple of GROUP, on the device where it is."""
    one = _pack8 if kind is Quantisation.INT8 else _pack4
    num_rows = max(1, BLOCK_ELEMENTS // weight.shape[1])
    parts = [one(part.float()) for part in torch.split(weight, num_rows)]
    codes, scales = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return PackedWeight(kind, codes, scales, weight.shape[1])


def _pack8(weight: Tensor) -> tuple[Tensor, Tensor]:
    top = weight.abs().amax(dim=1)
    scales = _never_zero(top / torch.full_like(top, 127))  # CUDA multiplies by a number's inverse instead
    return torch.round(weight / scales[:, None]).clamp_(-127, 127).to(torch.int8), scales


def _pack4(weight: Tensor) -> tuple[Tensor, Tensor]:
    rows, depth = weight.shape
    # [rows, group, code in the word, word in the group]
    grouped = weight.view(rows, CODES, depth // GROUP, GROUP_WORDS).transpose(1, 2).flatten(2)
    low, high = grouped.amin(dim=2, keepdim=True), grouped.amax(dim=2, keepdim=True)
    top = torch.where(-low >= high, low, high)
    # The largest magnitude becomes code -8, so the scale has the other sign. It is rounded before it divides.
    scales = _never_zero((top / -HALF).to(torch.bfloat16).float())
    codes = torch.round(grouped / scales).clamp_(-HALF, HALF - 1).add_(HALF).to(torch.int32)
    codes = codes.view(rows, depth // GROUP, CODES, GROUP_WORDS).transpose(1, 2).reshape(rows, CODES, depth // CODES)
    words = torch.zeros(rows, depth // CODES, dtype=torch.int32, device=weight.device)
    for place in range(CODES):
        words |= codes[:, place] << (4 * place)
    return words, scales.squeeze(2).to(torch.bfloat16)


def _never_zero(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, 1.0, scales)


def _unpack4(words: Tensor, scales: Tensor) -> Tensor:
    rows, num_words = words.shape
    shifts = torch.arange(0, 4 * CODES, 4, dtype=torch.int32, device=words.device)
    codes = ((words[:, None, :] >> shifts[None, :, None]) & 15) - HALF
    grouped = codes.view(rows, CODES, num_words // GROUP_WORDS, GROUP_WORDS)
    return (grouped * scales.float()[:, None, :, None]).view(rows, CODES * num_words)
