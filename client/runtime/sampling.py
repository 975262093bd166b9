"""Choosing the next token, and knowing when to stop.

The random number of a position is a pure function of (seed, position): a replayed session draws the same one, on any
node and in any batch. It is turned into a token by the inverse of the cumulative distribution in the order of token
ids, which a small error in a logit shifts a little; in the order of probability, two near-equal tokens would swap.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from protocol.values import FinishReason, Sampling, StopRule

NUCLEUS_GUESS = 512
"""top_p looks at this many of the likeliest tokens first: sorting a whole vocabulary costs milliseconds."""


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), the same for the same arguments everywhere."""
    digest = hashlib.blake2b(struct.pack("<QQ", seed, position), digest_size=8, person=b"dllm-draw").digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def sample(logits: Tensor, choices: Sequence[tuple[Sampling, int]]) -> list[int | None]:
    """One token per row of `logits` [rows, vocabulary], each by its (sampling, position of the sampled token).

    None where a row has no finite maximum: NaN or infinity came out of the model."""
    best, tokens = logits.max(dim=-1)
    greedy: list[int] = torch.where(torch.isfinite(best), tokens, -1).tolist()  # the one wait for the device
    return [
        None if token < 0 else token if sampling.temperature == 0 else _draw(logits[row], sampling, at)
        for row, (token, (sampling, at)) in enumerate(zip(greedy, choices, strict=True))
    ]


def finish_reason(token: int, position: int, stop: StopRule) -> FinishReason | None:
    """Why the generation ends with `token` at `position`, or None if it goes on."""
    if token in stop.stop_tokens:
        return FinishReason.STOP
    return FinishReason.LENGTH if position + 1 >= stop.max_position else None


def _draw(logits: Tensor, sampling: Sampling, position: int) -> int:
    """`logits` [vocabulary]. Computed in float64 on the CPU, so that no device has rounding of its own."""
    scaled = logits.to(device="cpu", dtype=torch.float64) / sampling.temperature
    if 0 < sampling.top_k < len(scaled):
        scaled = _masked_below(scaled, scaled.topk(sampling.top_k).values[-1])
    weights = torch.exp(scaled - scaled.max())
    if sampling.top_p < 1:
        weights = weights * (weights >= _nucleus_threshold(weights, sampling.top_p))
    cumulative = weights.cumsum(0)
    target = uniform(sampling.seed, position) * cumulative[-1]
    # right=True skips tokens of weight zero; the last one of any weight bounds it against rounding.
    index = int(torch.searchsorted(cumulative, target, right=True))
    return min(index, int(weights.nonzero()[-1]))


def _masked_below(scaled: Tensor, threshold: Tensor) -> Tensor:
    return scaled.masked_fill(scaled < threshold, -torch.inf)


def _nucleus_threshold(weights: Tensor, top_p: float) -> Tensor:
    """The smallest weight in the smallest set of likeliest tokens that holds `top_p` of the total."""
    wanted = top_p * weights.sum()
    for size in (min(NUCLEUS_GUESS, len(weights)), len(weights)):
        largest = weights.topk(size).values
        cumulative = largest.cumsum(0)
        if cumulative[-1] >= wanted:
            break
    return largest[min(int(torch.searchsorted(cumulative, wanted)), size - 1)]
