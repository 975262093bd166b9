"""What one forward carries: the decode rows of all sessions first, then chunks of prompts, within a budget."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from client.runtime.attention import Span
from client.runtime.kv_cache import KvTable

Key = TypeVar("Key", bound=Hashable)
LEAST_TOKENS = 16
"""A step is not made smaller than this: so few rows take next to nothing, and one at a time would be slow for all."""
STEPS_BEFORE_MORE = 256
"""Steps that must go well after one that did not fit, before twice as many rows are tried again."""


def plan_step(waiting: Sequence[tuple[Key, int]], max_tokens: int) -> list[tuple[Key, int]]:
    """(session, rows to take now) out of (session, rows waiting), longest waiting first.

    Single rows go first, so that a long prompt delays running generations by at most its share of one step; what is
    left of `max_tokens` goes to chunks of prompts. Never more than `max_tokens` rows, never none if any wait."""
    single = [(key, 1) for key, num_rows in waiting if num_rows == 1][:max_tokens]
    budget = max_tokens - len(single)
    chunks = []
    for key, num_rows in waiting:
        if num_rows > 1 and budget > 0:
            taken = min(num_rows, budget)
            chunks.append((key, taken))
            budget -= taken
    # A budget's last row can cut a chunk down to one row: it joins the single rows.
    return sorted(single + chunks, key=lambda take: take[1] > 1)


class BatchBudget:
    """How many rows a step may have. What did not fit into memory is not tried again at once, nor avoided for ever:
    what took the memory may be another program."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._full = max_tokens
        self._num_worked = 0

    def shrink(self, num_rows: int) -> None:
        """So many rows were too many."""
        self.max_tokens = min(self.max_tokens, max(LEAST_TOKENS, num_rows // 2))
        self._num_worked = 0

    def worked(self) -> None:
        """A step went well."""
        if self.max_tokens < self._full:
            self._num_worked += 1
            if self._num_worked >= STEPS_BEFORE_MORE:
                self.max_tokens, self._num_worked = min(self._full, 2 * self.max_tokens), 0


class Shortage:
    """Steps that found no memory, however small they were made."""

    def __init__(self) -> None:
        self._num_used_tokens: int | None = None
        self._num_in_a_row = 0

    def lacks(self, num_used_tokens: int) -> None:
        """A part of this step did not fit, with so many tokens' room reserved; the most counts."""
        self._num_used_tokens = max(self._num_used_tokens or 0, num_used_tokens)

    def after_step(self) -> tuple[int, int] | None:
        """(tokens reserved, how many such steps in a row), if the step did not fit."""
        num_used_tokens, self._num_used_tokens = self._num_used_tokens, None
        if num_used_tokens is None:
            self._num_in_a_row = 0
            return None
        self._num_in_a_row += 1
        return num_used_tokens, self._num_in_a_row


@dataclass(frozen=True)
class StepLayout:
    """Where a step's rows stand. `positions` and `slots` are int64 [rows], on the CPU, made when first asked for."""

    spans: tuple[Span, ...]

    @property
    def num_rows(self) -> int:
        return self.spans[-1].first_row + self.spans[-1].num_rows

    @property
    def is_decode(self) -> bool:
        """Whether every session has one row."""
        return self.num_rows == len(self.spans)

    @property
    def last_rows(self) -> list[int]:
        """The last row of each span."""
        return [span.first_row + span.num_rows - 1 for span in self.spans]

    @cached_property
    def positions(self) -> Tensor:
        return torch.cat([torch.arange(span.position, span.stop) for span in self.spans])

    @cached_property
    def slots(self) -> Tensor:
        return torch.cat([span.table.slots[span.position : span.stop] for span in self.spans])


def lay_out(takes: Sequence[tuple[KvTable, int]]) -> StepLayout:
    """Lay out the next `n` rows of each session's table, single rows first; the tables are not changed."""
    spans = []
    row = 0
    for table, num_rows in takes:
        spans.append(Span(row, num_rows, table.length, table))
        row += num_rows
    return StepLayout(tuple(spans))
