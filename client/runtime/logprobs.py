"""How likely the model found the tokens: natural logarithms of its own probabilities, whatever was sampled by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from protocol.values import UNKNOWN_LOGPROB, TokenLogprobs


def logprobs_of(
    logits: Tensor, tokens: Sequence[int | None], wanted: Sequence[int | None]
) -> list[TokenLogprobs | None]:
    """Of one token per row of `logits` [rows, vocabulary]: its own, and those of as many of the likeliest as are
    wanted. None where none are wanted, or there is no token."""
    rows = [row for row, (token, num) in enumerate(zip(tokens, wanted, strict=True)) if None not in (token, num)]
    found: list[TokenLogprobs | None] = [None] * len(tokens)
    if not rows:
        return found
    chosen = torch.tensor([[tokens[row] or 0] for row in rows], device=logits.device)
    for row, sampled, values, ids in _read(logits[rows], chosen, max(wanted[row] or 0 for row in rows), rows):
        num = wanted[row] or 0
        likeliest = tuple(zip(ids[:num], map(_shown, values[:num]), strict=True))
        found[row] = TokenLogprobs(_shown(sampled), likeliest)
    return found


def _read(
    logits: Tensor, chosen: Tensor, num_likeliest: int, rows: Sequence[int]
) -> zip[tuple[int, float, list[float], list[int]]]:
    """`logits` [rows, vocabulary], `chosen` [rows, 1]. Row, chosen token's, likeliest ones', and their ids."""
    logprobs = logits.float().log_softmax(dim=-1)
    best = logprobs.topk(min(num_likeliest, logits.shape[-1]))
    sampled = logprobs.gather(1, chosen)[:, 0]
    return zip(rows, sampled.tolist(), best.values.tolist(), best.indices.tolist(), strict=True)


def _shown(logprob: float) -> float:
    return min(0.0, max(UNKNOWN_LOGPROB, logprob))
