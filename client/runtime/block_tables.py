"""Every session's block table on the device, at an address that never changes: what captured graphs read.

A session's room is reserved when it opens, so its table is written before its first row, and a decode step names it by
its row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_SESSIONS = 1024
MAX_BLOCKS = 16_384
"""Per session, 262,144 tokens; together 64 MiB."""


class BlockTables:
    """Rows of block numbers. The last row is of the trash block only: padded rows of a step write there."""

    def __init__(self, num_blocks: int, trash_block: int, device: torch.device) -> None:
        """`num_blocks`: of the whole pool, an upper bound of what one session can have."""
        num_rows, self.width = min(MAX_SESSIONS, num_blocks), min(MAX_BLOCKS, num_blocks)
        self.blocks: Tensor = torch.full((num_rows + 1, self.width), trash_block, dtype=torch.int32, device=device)
        self.trash_row = num_rows
        self._free = list(range(num_rows))[::-1]

    @property
    def num_free(self) -> int:
        return len(self._free)

    def has_room(self, num_blocks: int) -> bool:
        """Whether one more session with so many blocks can be written down."""
        return bool(self._free) and num_blocks <= self.width

    def add(self, blocks: Sequence[int]) -> int:
        """Write a session's blocks; returns its row."""
        row = self._free.pop()
        self.write(row, blocks)
        return row

    def write(self, row: int, blocks: Sequence[int]) -> None:
        """The session of this row has these blocks from now on."""
        self.blocks[row, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)

    def remove(self, row: int) -> None:
        """The row may be written anew; what it holds does not matter until then."""
        assert row != self.trash_row and row not in self._free, "a row is given back once"
        self._free.append(row)
