"""What one forward carries: the decode rows of all sessions first, then chunks of prompts, within a budget."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from client.runtime.attention import Span
from client.runtime.kv_cache import KvTable

Key = TypeVar("Key", bound=Hashable)


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


@dataclass(frozen=True)
class StepLayout:
    """Where a step's rows stand. `positions` and `slots` are int64 [rows], on the CPU."""

    spans: tuple[Span, ...]
    positions: Tensor
    slots: Tensor

    @property
    def num_rows(self) -> int:
        return len(self.positions)

    @property
    def last_rows(self) -> list[int]:
        """The last row of each span."""
        return [span.first_row + span.num_rows - 1 for span in self.spans]


def lay_out(takes: Sequence[tuple[KvTable, int]]) -> StepLayout:
    """Lay out the next `n` rows of each session's table, in the order given; the tables are not changed."""
    spans, positions, slots = [], [], []
    row = 0
    for table, num_rows in takes:
        span = Span(row, num_rows, table.length, table)
        spans.append(span)
        positions.append(torch.arange(span.position, span.stop))
        slots.append(table.slots[span.position : span.stop])
        row += num_rows
    return StepLayout(tuple(spans), torch.cat(positions), torch.cat(slots))
