"""Penalties and biases: what a request adds to the logits before a token is chosen.

Presence and frequency are OpenAI's (of the tokens answered so far), repetition is that of CTRL (Keskar et al. 2019,
arXiv 1909.05858, section 4.1) as transformers has it: of prompt and answer, and away from zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from client.runtime.errors import BadTokenError
from protocol.values import Sampling, Token


def is_shaped(sampling: Sampling) -> bool:
    """Whether the request wants other logits than the model's."""
    return _is_penalised(sampling) or bool(sampling.logit_bias)


class Shaping:
    """What one session's logits become, and the tokens that it depends on: two rows of the vocabulary's length."""

    def __init__(self, sampling: Sampling, history: Sequence[int], vocab_size: int, device: torch.device) -> None:
        """`history`: all tokens so far, the answer's from `sampling.answer_from` on. Raises BadTokenError."""
        biases = dict(sampling.logit_bias)
        if max((*biases, *history), default=0) >= vocab_size:
            raise BadTokenError(vocab_size)
        self.sampling = sampling
        self.counts = _counted(history[sampling.answer_from :], vocab_size, device)
        """Of each token, in the answer: float32 [vocabulary]."""
        self.is_seen = _counted(history, vocab_size, device) > 0
        """Bool [vocabulary]."""
        self._is_penalised = _is_penalised(sampling)
        self._biased = torch.tensor([*biases], dtype=torch.long, device=device)
        self._biases = torch.tensor([*biases.values()], dtype=torch.float32, device=device)

    def add(self, token: int) -> None:
        """It was chosen."""
        if self._is_penalised:
            self.counts[token] += 1
            self.is_seen[token] = True

    def apply(self, logits: Tensor) -> Tensor:
        """Others than `logits` [vocabulary], in float32."""
        shaped = logits.float()
        if self._is_penalised:
            shaped = self._penalised(shaped)
        return shaped.index_add(0, self._biased, self._biases) if len(self._biased) else shaped

    def _penalised(self, logits: Tensor) -> Tensor:
        sampling = self.sampling
        repeated = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(self.is_seen, repeated, logits)
        return logits - sampling.frequency_penalty * self.counts - sampling.presence_penalty * (self.counts > 0)


def shaped(logits: Tensor, shapings: Sequence[Shaping | None]) -> Tensor:
    """`logits` [rows, vocabulary] as they are to be sampled from: themselves where no row is changed."""
    if not any(shapings):
        return logits
    rows = [
        row.float() if shaping is None else shaping.apply(row) for row, shaping in zip(logits, shapings, strict=True)
    ]
    return torch.stack(rows)


def _is_penalised(sampling: Sampling) -> bool:
    penalties = sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty
    return penalties != (0.0, 0.0, 1.0)


def _counted(tokens: Sequence[Token], vocab_size: int, device: torch.device) -> Tensor:
    counts = torch.bincount(torch.tensor(tokens, dtype=torch.long), minlength=vocab_size)
    return counts.to(device=device, dtype=torch.float32)
