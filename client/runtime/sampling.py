"""Choosing the next token, and knowing when to stop.

The random number of a position is a pure function of (seed, position): a replayed session draws the same one, on any
node and in any batch. It is turned into a token by the inverse of the cumulative distribution in the order of token
ids, which a small error in a logit shifts a little; in the order of probability, two near-equal tokens would swap.

All rows of a step are drawn together on their device: weights in float32, their sums in float64, in which the order of
the additions, another one on each device and for each number of rows, is lost.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from client.runtime.device import tensor_on
from protocol.values import FinishReason, Sampling, StopRule

NUM_LIKELIEST = 512
"""What limits the choice is looked for among so many of the likeliest tokens first: sorting a whole vocabulary costs
milliseconds."""
MAX_DRAWN_ROWS = 64
"""At once: a row of 150,000 tokens takes 2 MB of the device's memory while it is drawn."""
GREATEST_DRAW = 1 - 2.0**-50
"""Times a sum, this is below the sum whatever the rounding."""

TOO_WIDE = -1
"""In place of a token: more are possible than were looked at."""


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), the same for the same arguments everywhere."""
    digest = hashlib.blake2b(struct.pack("<QQ", seed, position), digest_size=8, person=b"dllm-draw").digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def sample(logits: Tensor, choices: Sequence[tuple[Sampling, int]]) -> list[int | None]:
    """One token per row of `logits` [rows, vocabulary], each by its (sampling, position of the sampled token).

    None where a row has no finite maximum: NaN or infinity came out of the model."""
    return Draws(logits, choices).read()


def is_certain(sampling: Sampling, vocab_size: int) -> bool:
    """Whether it is drawn on the device in any case, without a look at how many tokens are possible."""
    return not sampling.temperature or not _is_limited(sampling, vocab_size) or 0 < sampling.top_k <= NUM_LIKELIEST


class Draws:
    """Tokens as `sample` draws them, on the way: `tokens` [rows] is on the device, and wrong where `read` says None."""

    def __init__(self, logits: Tensor, choices: Sequence[tuple[Sampling, int]]) -> None:
        self._logits = logits
        self._choices = choices
        self._best, self.tokens = logits.max(dim=-1)
        for rows in _groups(choices, logits.shape[-1]):
            if len(rows) == len(choices):
                self.tokens = _draw_rows(logits, self._best, choices)
            else:
                taken = tensor_on(logits.device, rows, torch.int64)
                drawn = _draw_rows(logits[taken], self._best[taken], [choices[row] for row in rows])
                self.tokens[taken] = drawn
        self._read_tokens, self._read_best = _ReadBack(self.tokens), _ReadBack(self._best)

    def read(self) -> list[int | None]:
        """The one wait for the device. Before the next step overwrites the logits, unless all rows are certain."""
        found: list[int | None] = self._read_tokens.wait().tolist()
        for row, greatest in enumerate(self._read_best.wait().tolist()):
            if not math.isfinite(greatest):
                found[row] = None
            elif found[row] == TOO_WIDE:
                found[row] = self._draw_wide(row)
        return found

    def _draw_wide(self, row: int) -> int:
        one = slice(row, row + 1)
        return int(_draw_rows(self._logits[one], self._best[one], self._choices[one], is_wide=True))


class _ReadBack:
    """A tensor on its way to the host: a step that is given to the device after it does not delay it."""

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._values = values
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def wait(self) -> Tensor:
        if self._event is not None:
            self._event.synchronize()
        return self._values


def _groups(choices: Sequence[tuple[Sampling, int]], vocab_size: int) -> list[list[int]]:
    """The rows that are drawn together: those with and those without limits apart."""
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


def _is_limited(sampling: Sampling, vocab_size: int) -> bool:
    return 0 < sampling.top_k < vocab_size or sampling.top_p < 1 or sampling.min_p > 0


def _draw_rows(
    logits: Tensor, best: Tensor, choices: Sequence[tuple[Sampling, int]], *, is_wide: bool = False
) -> Tensor:
    """Tokens [rows] for `logits` [rows, vocabulary], whose greatest ones are `best` [rows]; TOO_WIDE where limits
    leave more than NUM_LIKELIEST, but for `is_wide`. All rows have limits, or none has."""
    device, vocab_size = logits.device, logits.shape[-1]
    per_temperature = tensor_on(device, [[1 / sampling.temperature] for sampling, _ in choices], torch.float32)
    weights = torch.sub(logits.float(), best[:, None].float()).mul_(per_temperature).exp_()
    draws = [[min(uniform(sampling.seed, position), GREATEST_DRAW)] for sampling, position in choices]
    draw = tensor_on(device, draws, torch.float64)
    if not _is_limited(choices[0][0], vocab_size):
        return _draw(weights, draw)[:, 0]
    limits = _Limits([sampling for sampling, _ in choices], vocab_size if is_wide else NUM_LIKELIEST, weights)
    if is_wide:
        return _draw(weights * (weights >= limits.floor), draw)[:, 0]
    tokens, order = limits.tokens.sort(dim=1)
    drawn = tokens.gather(1, _draw((limits.largest * (limits.largest >= limits.floor)).gather(1, order), draw))
    return torch.where(limits.are_met, drawn, TOO_WIDE)[:, 0]


class _Limits:
    """What is left of `weights` [rows, vocabulary], of which 1 is the greatest, by looking at the largest ones.

    In the order of transformers: top_k, of what that leaves top_p, and min_p, which is a share of the greatest weight.
    `floor` [rows, 1] is the least weight that is kept; `are_met` [rows, 1]: no smaller one than the `largest` is, but
    for equals of the last one that top_k leaves."""

    def __init__(self, samplings: Sequence[Sampling], num_likeliest: int, weights: Tensor) -> None:
        num, device = min(num_likeliest, weights.shape[1]), weights.device
        self.largest, self.tokens = weights.topk(num, dim=1)
        values = [(0 < sampling.top_k <= num, sampling.top_p < 1, sampling.min_p) for sampling in samplings]
        has_k, has_p, min_p = tensor_on(device, values, torch.float32)[..., None].unbind(1)
        at_k = [[min(max(sampling.top_k, 1), num) - 1] for sampling in samplings]
        floor_k = self.largest.gather(1, tensor_on(device, at_k, torch.int64)) * has_k
        cumulative = (self.largest * (self.largest >= floor_k)).cumsum(dim=1, dtype=torch.float64)
        found = total = cumulative[:, -1:]
        if not all(is_k for is_k, *_ in values):
            total = torch.where(has_k > 0, found, weights.sum(dim=1, keepdim=True, dtype=torch.float64))
        shares = [[_share(sampling, num, weights.shape[1])] for sampling in samplings]
        wanted = total * tensor_on(device, shares, torch.float64)
        at_p = torch.searchsorted(cumulative, wanted).clamp_(max=num - 1)
        self.floor = torch.maximum(floor_k, self.largest.gather(1, at_p) * has_p).maximum(min_p)
        self.are_met = (found >= wanted) & ((has_k > 0) | (self.largest[:, -1:] < self.floor))


def _share(sampling: Sampling, num_likeliest: int, vocab_size: int) -> float:
    """Of the weight that top_k leaves, so much has to be among the likeliest; what top_k leaves has to be, too."""
    if num_likeliest < sampling.top_k < vocab_size:
        return math.inf
    return sampling.top_p if sampling.top_p < 1 else 0.0


def _draw(weights: Tensor, draw: Tensor) -> Tensor:
    """An index [rows, 1] per row of `weights` [rows, n], by the inverse of their cumulative distribution at `draw`
    [rows, 1]."""
    cumulative = weights.cumsum(dim=1, dtype=torch.float64)
    index = torch.searchsorted(cumulative, draw * cumulative[:, -1:], right=True)  # right: none of weight zero
    return index.clamp_(max=weights.shape[1] - 1)  # of a row that is not finite it lies behind the last one
