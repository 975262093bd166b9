"""Choosing the next token, and knowing when to stop.

The random number of a position is a pure function of (seed, position): a replayed session draws the same one, on any
node and in any batch. It is turned into a token by the inverse of the cumulative distribution in the order of token
ids, which a small error in a logit shifts a little; in the order of probability, two near-equal tokens would swap.

All rows of a step are drawn together on their device: weights in float32, their sums in float64, in which the order of
the additions, another one on each device and for each number of rows, is lost.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protocol.values import FinishReason, Sampling, StopRule

NUCLEUS_GUESS = 512
"""What limits the choice is looked for among so many of the likeliest tokens first: sorting a whole vocabulary costs
milliseconds."""
MAX_DRAWN_ROWS = 16
"""At once: a row of 150,000 tokens takes 4 MB of the device's memory while it is drawn."""

NOT_FINITE, TOO_WIDE = -1, -2
"""In place of a token: the model gave no number; more tokens are possible than were looked at."""


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), the same for the same arguments everywhere."""
    digest = hashlib.blake2b(struct.pack("<QQ", seed, position), digest_size=8, person=b"dllm-draw").digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def sample(logits: Tensor, choices: Sequence[tuple[Sampling, int]]) -> list[int | None]:
    """One token per row of `logits` [rows, vocabulary], each by its (sampling, position of the sampled token).

    None where a row has no finite maximum: NaN or infinity came out of the model."""
    best, tokens = logits.max(dim=-1)
    for rows in _groups(choices, logits.shape[-1]):
        draws = _draw_rows(logits[rows], best[rows], [choices[row] for row in rows], NUCLEUS_GUESS)
        tokens[rows] = draws
    found: list[int] = torch.where(torch.isfinite(best), tokens, NOT_FINITE).tolist()  # the one wait for the device
    for row, token in enumerate(found):
        if token == TOO_WIDE:
            one = slice(row, row + 1)
            found[row] = int(_draw_rows(logits[one], best[one], choices[one], logits.shape[-1]))
    return [None if token == NOT_FINITE else token for token in found]


def _groups(choices: Sequence[tuple[Sampling, int]], vocab_size: int) -> list[list[int]]:
    """The rows that are drawn, those with and those without limits apart."""
    drawn = [
        (row, _is_limited(sampling, vocab_size)) for row, (sampling, _) in enumerate(choices) if sampling.temperature
    ]
    kinds = [[row for row, is_limited in drawn if is_limited is kind] for kind in (True, False)]
    return [rows[i : i + MAX_DRAWN_ROWS] for rows in kinds for i in range(0, len(rows), MAX_DRAWN_ROWS)]


def finish_reason(token: int, position: int, stop: StopRule) -> FinishReason | None:
    """Why the generation ends with `token` at `position`, or None if it goes on."""
    if token in stop.stop_tokens:
        return FinishReason.STOP
    return FinishReason.LENGTH if position + 1 >= stop.max_position else None


@dataclass(frozen=True, slots=True, eq=False)
class _Limits:
    """By row, float64 [rows, 1]: what each draw is made by. `draw` is its random number."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    draw: Tensor

    @classmethod
    def of(cls, choices: Sequence[tuple[Sampling, int]], device: torch.device) -> _Limits:
        values = [(s.temperature, s.top_k, s.top_p, s.min_p, uniform(s.seed, at)) for s, at in choices]
        return cls(*torch.tensor(values, dtype=torch.float64).to(device, non_blocking=True)[..., None].unbind(1))


def _draw_rows(logits: Tensor, best: Tensor, choices: Sequence[tuple[Sampling, int]], num_likeliest: int) -> Tensor:
    """Tokens [rows] for `logits` [rows, vocabulary], whose greatest ones are `best` [rows]; TOO_WIDE where limits
    leave more than `num_likeliest`. All rows have limits, or none has."""
    limits = _Limits.of(choices, logits.device)
    weights = torch.exp((logits.float() - best[:, None].float()) / limits.temperature.float())
    if _is_limited(choices[0][0], logits.shape[-1]):
        return _draw_limited(weights, limits, num_likeliest)
    return _draw(weights, limits)


def _is_limited(sampling: Sampling, vocab_size: int) -> bool:
    return 0 < sampling.top_k < vocab_size or sampling.top_p < 1 or sampling.min_p > 0


def _draw_limited(weights: Tensor, limits: _Limits, num_likeliest: int) -> Tensor:
    """Tokens [rows] for `weights` [rows, vocabulary], of which 1 is the greatest."""
    vocab_size = weights.shape[1]
    num_likeliest = min(num_likeliest, vocab_size)
    largest, tokens = weights.topk(num_likeliest, dim=1)
    floor, is_found = _floor(weights, largest, limits)
    if num_likeliest == vocab_size:
        return _draw(weights.where(weights >= floor, 0), limits)
    tokens, order = tokens.sort(dim=1)
    kept = largest.where(largest >= floor, 0).gather(1, order)
    drawn = tokens.gather(1, _draw(kept, limits)[:, None])[:, 0]
    return drawn.where((is_found & (largest[:, -1:] < floor))[:, 0], TOO_WIDE)


def _floor(weights: Tensor, largest: Tensor, limits: _Limits) -> tuple[Tensor, Tensor]:
    """The least weight that each row keeps, and whether it could be found among the `largest`. In the order of
    transformers: top_k, of what that leaves top_p, and min_p, which is a share of the greatest weight."""
    num_likeliest, vocab_size = largest.shape[1], weights.shape[1]
    top_k = limits.top_k.long()
    has_k = (top_k > 0) & (top_k < vocab_size)
    floor_k = largest.gather(1, (top_k - 1).clamp(0, num_likeliest - 1)).where(has_k, 0)
    in_k = largest.where(largest >= floor_k, 0)
    total = torch.where(has_k, _sum(in_k), _sum(weights))
    cumulative = in_k.cumsum(dim=1, dtype=torch.float64)
    wanted = limits.top_p * total
    at = torch.searchsorted(cumulative, wanted).clamp(max=num_likeliest - 1)
    floor_p = largest.gather(1, at).where(limits.top_p < 1, 0)
    is_found = (~has_k | (top_k <= num_likeliest)) & ((limits.top_p >= 1) | (cumulative[:, -1:] >= wanted))
    return torch.maximum(torch.maximum(floor_k, floor_p), limits.min_p.float()), is_found


def _sum(weights: Tensor) -> Tensor:
    return weights.sum(dim=1, keepdim=True, dtype=torch.float64)


def _draw(weights: Tensor, limits: _Limits) -> Tensor:
    """An index per row of `weights` [rows, n], by the inverse of their cumulative distribution."""
    cumulative = weights.cumsum(dim=1, dtype=torch.float64)
    total = cumulative[:, -1:].contiguous()
    # right=True skips tokens of weight zero; where the sum is reached is the last of any weight, for the product may be
    # rounded up to it.
    index = torch.searchsorted(cumulative, limits.draw * total, right=True)
    return torch.minimum(index, torch.searchsorted(cumulative, total))[:, 0]
