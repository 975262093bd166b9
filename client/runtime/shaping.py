"""Penalties and biases: what a request adds to the logits before a token is chosen.

Presence and frequency are OpenAI's (of the tokens answered so far), repetition is that of CTRL (Keskar et al. 2019,
arXiv 1909.05858, section 4.1) as transformers has it: of prompt and answer, and away from zero.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from client.runtime.device import tensor_on
from client.runtime.errors import BadTokenError
from protocol.values import Sampling


def is_shaped(sampling: Sampling) -> bool:
    """Whether the request wants other logits than the model's."""
    return _is_penalised(sampling) or bool(sampling.logit_bias)


class Shaping:
    """What one session wants of its logits. `slot`: where its tokens are counted, None without penalties."""

    def __init__(self, sampling: Sampling, slot: int | None, device: torch.device) -> None:
        self.sampling = sampling
        self.slot = slot
        biases = dict(sampling.logit_bias)
        self.biased = torch.tensor([*biases], dtype=torch.long, device=device)
        self.biases = torch.tensor([*biases.values()], dtype=torch.float32, device=device)


class ShapingBook:
    """The tokens of all sessions with penalties, by slot and token. A slot is free again when its session is gone."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._device = device
        self._counts = torch.zeros(0, vocab_size, device=device)
        """In the answers."""
        self._is_seen = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)
        """In prompts or answers."""
        self._free: list[int] = []

    @property
    def num_slots(self) -> int:
        return self._counts.shape[0]

    @property
    def _vocab_size(self) -> int:
        return self._counts.shape[1]

    def open(self, sampling: Sampling, history: Sequence[int]) -> Shaping:
        """`history`: all tokens so far, the answer's from `sampling.answer_from` on. Raises BadTokenError."""
        biased = (token for token, _ in sampling.logit_bias)
        if max((*biased, *history), default=0) >= self._vocab_size:
            raise BadTokenError(self._vocab_size)
        slot = self._slot(history, sampling.answer_from) if _is_penalised(sampling) else None
        shaping = Shaping(sampling, slot, self._device)
        if slot is not None:
            weakref.finalize(shaping, self._free.append, slot)
        return shaping

    def _slot(self, history: Sequence[int], answer_from: int) -> int:
        if not self._free:
            self._grow()
        counts = self._counted(history[answer_from:])
        is_seen = self._counted(history) > 0
        slot = self._free.pop()
        self._counts[slot], self._is_seen[slot] = counts, is_seen
        return slot

    def _grow(self) -> None:
        """To twice as many slots."""
        num_new = max(1, self.num_slots)
        more = self._counts.new_zeros(num_new, self._vocab_size)
        counts, is_seen = torch.cat([self._counts, more]), torch.cat([self._is_seen, more > 0])
        self._free += range(self.num_slots, self.num_slots + num_new)
        self._counts, self._is_seen = counts, is_seen

    def _counted(self, tokens: Sequence[int]) -> Tensor:
        counts = torch.bincount(torch.tensor(tokens, dtype=torch.long), minlength=self._vocab_size)
        return counts.to(device=self._device, dtype=torch.float32)

    def apply(self, logits: Tensor, shapings: Sequence[Shaping | None]) -> Tensor:
        """`logits` [rows, vocabulary] as they are to be sampled from: in float32 if any row is changed."""
        if not any(shapings):
            return logits
        shaped = logits.to(torch.float32, copy=True)
        penalised = [(row, each) for row, each in enumerate(shapings) if each is not None and each.slot is not None]
        if penalised:
            rows = tensor_on(logits.device, [row for row, _ in penalised], torch.int64)
            shaped[rows] = self._penalised(shaped[rows], [each for _, each in penalised])
        for row, each in enumerate(shapings):
            if each is not None and len(each.biased):
                shaped[row].index_add_(0, each.biased, each.biases)
        return shaped

    def _penalised(self, logits: Tensor, shapings: Sequence[Shaping]) -> Tensor:
        wanted = [each.sampling for each in shapings]
        values = [(s.repetition_penalty, s.frequency_penalty, s.presence_penalty) for s in wanted]
        repetition, frequency, presence = tensor_on(logits.device, values, torch.float32)[..., None].unbind(1)
        slots = tensor_on(logits.device, [each.slot for each in shapings], torch.int64)
        counts, is_seen = self._counts[slots], self._is_seen[slots]
        repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
        return torch.where(is_seen, repeated, logits) - frequency * counts - presence * (counts > 0)

    def add(self, shapings: Sequence[Shaping | None], tokens: Tensor) -> None:
        """These tokens, int64 [rows] on the device, are part of the answers now."""
        known = [(row, each.slot) for row, each in enumerate(shapings) if each is not None and each.slot is not None]
        if known:
            rows, slots = tensor_on(self._device, known, torch.int64).unbind(1)
            self._counts[slots, tokens[rows]] += 1
            self._is_seen[slots, tokens[rows]] = True


def _is_penalised(sampling: Sampling) -> bool:
    penalties = sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty
    return penalties != (0.0, 0.0, 1.0)
