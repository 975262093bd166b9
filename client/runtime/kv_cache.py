"""The paged KV pool of one slice: which blocks belong to which session, and the memory behind them.

Room is reserved when a session opens, so a generation that was accepted never runs out of it half-way. Blocks are
handed out in one run where possible: then a session's keys are a view of the pool, and nothing is gathered.

Blocks of sessions that have ended stay as they are until they are needed (prefix_cache.py), and may be the beginning of
others. Every session has its whole reservation counted, shared or not: so there is always a block to be had for one
that has to be its own after all, and the coordinator, which counts the same way, need not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.runtime.block_tables import BlockTables
from client.runtime.device import Device
from client.runtime.errors import DeviceMemoryError, KvFullError
from client.runtime.prefix_cache import PrefixCache
from protocol.values import KV_BLOCK_TOKENS

BLOCK_TOKENS = KV_BLOCK_TOKENS
_FREE = b"\x01"


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer caches per token, and how far back it looks (None: everything).

    `window` counts the token itself; `chunk` is the length of the aligned chunks that attention stays within."""

    layer: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    chunk: int | None = None

    @property
    def num_elements(self) -> int:
        return self.num_kv_heads * (self.key_dim + self.value_dim)

    def first_visible(self, position: int) -> int:
        """The first position that the token at `position` attends to."""
        by_window = 0 if self.window is None else position - self.window + 1
        by_chunk = 0 if self.chunk is None else position // self.chunk * self.chunk
        return max(0, by_window, by_chunk)


class BlockPool:
    """Which blocks are free: numbers only, no memory."""

    def __init__(self, num_blocks: int) -> None:
        self._free = bytearray(_FREE * num_blocks)
        self.num_free = num_blocks

    def take(self, num_blocks: int, first: int | None = None) -> list[int]:
        """Reserve blocks, consecutive ones if there is such a run, those from `first` on if they are free. Raises
        KvFullError and then reserves none."""
        if num_blocks > self.num_free:
            raise KvFullError(num_blocks * BLOCK_TOKENS, self.num_free * BLOCK_TOKENS)
        start = -1 if first is None else self._free.find(_FREE * num_blocks, first, first + num_blocks)
        if start < 0:
            start = self._free.find(_FREE * num_blocks)
        if start >= 0:
            blocks = list(range(start, start + num_blocks))
        else:
            blocks = [block for block, is_free in enumerate(self._free) if is_free][:num_blocks]
        self._mark(blocks, 0)
        self.num_free -= num_blocks
        return blocks

    def give_back(self, blocks: Sequence[int]) -> None:
        """Blocks from `take`, each exactly once."""
        self._mark(blocks, 1)
        self.num_free += len(blocks)

    def validate(self, held: Iterable[Sequence[int]]) -> None:
        """Re-derive: every block is either free or held by exactly one of `held`."""
        owned = [block for blocks in held for block in blocks]
        assert len(owned) == len(set(owned)), "a block is held twice"
        assert not any(self._free[block] for block in owned), "a held block counts as free"
        assert sum(self._free) == self.num_free == len(self._free) - len(owned), "a block has leaked"

    def _mark(self, blocks: Sequence[int], value: int) -> None:
        for block in blocks:
            assert self._free[block] != value, "a block changes hands twice"
            self._free[block] = value


class KvTable:
    """One session's place in the pool: the slot of each of its positions, and how many positions are written.

    `row` is where BlockTables has its blocks, if the device keeps them. The first `num_shared` blocks are written, may
    be other sessions' as well, and are not written to."""

    def __init__(self, blocks: list[int], row: int | None = None, num_shared: int = 0) -> None:
        self.row = row
        self.num_shared = num_shared
        self.length = num_shared * BLOCK_TOKENS
        self.lie_in(blocks)

    def lie_in(self, blocks: list[int]) -> None:
        """From now on these are its blocks."""
        self.blocks = blocks
        offsets = torch.arange(BLOCK_TOKENS)
        self.slots = (torch.tensor(blocks, dtype=torch.int64)[:, None] * BLOCK_TOKENS + offsets).flatten()
        is_run = blocks == list(range(blocks[0], blocks[0] + len(blocks))) if blocks else False
        self.first_slot = blocks[0] * BLOCK_TOKENS if is_run else None

    @property
    def capacity(self) -> int:
        return len(self.blocks) * BLOCK_TOKENS

    def advance(self, num_tokens: int) -> None:
        """`num_tokens` more positions are written."""
        assert self.length + num_tokens <= self.capacity, "more was written than reserved"
        assert self.length >= self.num_shared * BLOCK_TOKENS, "what others have as well is not written to"
        self.length += num_tokens

    def keeps(self, length: int) -> bool:
        """Whether it can be truncated to the first `length` rows."""
        return length <= self.length

    def truncate(self, length: int) -> None:
        """Forget what was written from position `length` on; the reservation stays."""
        assert 0 <= length <= self.length, "a session is never truncated to more than it has"
        self.length = length


class LayerCache:
    """Keys and values of one layer, [slots, kv heads, dim] each: their dims may differ."""

    def __init__(self, shape: LayerShape, num_slots: int, dtype: torch.dtype, device: torch.device) -> None:
        # torch.empty on a CPU commits no memory before it is written, so an idle pool costs nothing.
        self.shape = shape
        self.keys = torch.empty(num_slots, shape.num_kv_heads, shape.key_dim, dtype=dtype, device=device)
        self.values = torch.empty(num_slots, shape.num_kv_heads, shape.value_dim, dtype=dtype, device=device)

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store a step's keys and values, [1, kv heads, rows, dim], at `slots` [rows]."""
        self.keys.index_copy_(0, slots, keys[0].transpose(0, 1))
        self.values.index_copy_(0, slots, values[0].transpose(0, 1))

    def read(self, table: KvTable, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values of positions [start, stop), as [1, kv heads, positions, dim]. A view where possible."""
        if table.first_slot is not None:
            span = slice(table.first_slot + start, table.first_slot + stop)
            return _heads_first(self.keys[span]), _heads_first(self.values[span])
        slots = table.slots[start:stop].to(self.keys.device)
        return _heads_first(self.keys.index_select(0, slots)), _heads_first(self.values.index_select(0, slots))


def _heads_first(rows: Tensor) -> Tensor:
    return rows.transpose(0, 1).unsqueeze(0)


class KvCache:
    """The pool of one slice. `num_tokens` is how many tokens it holds, of all sessions together.

    One block more is there for the padded rows of captured steps. With `keeps_tables`, the device has every open
    session's blocks in `tables`."""

    def __init__(
        self, shapes: Sequence[LayerShape], max_bytes: int, dtype: torch.dtype, device: Device,
        keeps_tables: bool = False, state_token_bytes: int = 0,
    ) -> None:  # fmt: skip
        """`state_token_bytes`: what each token's room costs beside keys and values.

        Raises DeviceMemoryError if `max_bytes` does not hold one block, or what torch raises if it cannot be had."""
        token_bytes = sum(shape.num_elements for shape in shapes) * dtype.itemsize + state_token_bytes
        num_blocks = max_bytes // (token_bytes * BLOCK_TOKENS)
        if num_blocks < 1:
            raise DeviceMemoryError
        self.num_tokens = num_blocks * BLOCK_TOKENS
        self.shapes = tuple(shapes)
        self.dtype = dtype
        self.device = device
        num_slots = self.num_tokens + BLOCK_TOKENS
        self.layers = {s.layer: LayerCache(s, num_slots, dtype, device.torch_device) for s in shapes}
        self.tables = BlockTables(num_blocks, num_blocks, device.torch_device) if keeps_tables else None
        self._pool = BlockPool(num_blocks)
        self._prefixes = PrefixCache()
        self._tables: list[KvTable] = []
        self._num_reserved = 0
        """Blocks, of all open sessions, those that several have as often as they have them."""

    @property
    def num_free_tokens(self) -> int:
        return self.num_tokens - self._num_reserved * BLOCK_TOKENS

    def open(self, num_tokens: int, names: Sequence[str] = ()) -> KvTable:
        """Reserve room for `num_tokens`, rounded up to whole blocks. Raises KvFullError.

        What is here of a beginning that is called so, block by block, is the table's beginning."""
        num_blocks = -(-num_tokens // BLOCK_TOKENS)
        if num_blocks * BLOCK_TOKENS > self.num_free_tokens:
            raise KvFullError(num_blocks * BLOCK_TOKENS, self.num_free_tokens)
        if self.tables is not None and not self.tables.has_room(num_blocks):
            raise KvFullError(num_tokens, self.tables.width * BLOCK_TOKENS if self.tables.num_free else 0)
        shared = self._prefixes.use(names[:num_blocks])
        blocks = [*shared, *self._take(num_blocks - len(shared), shared[-1] + 1 if shared else None)]
        table = self._make_table(blocks, len(shared))
        self._tables.append(table)
        self._num_reserved += num_blocks
        return table

    def begin(self, table: KvTable, position: int) -> None:
        """The session computes rows from `position` on, the start of a block, and has all before it. What is shared
        from there on gives way to blocks of its own."""
        assert position % BLOCK_TOKENS == 0, "only whole blocks are shared"
        table.truncate(position)
        first = position // BLOCK_TOKENS
        shared, rest = table.blocks[first : table.num_shared], table.blocks[table.num_shared :]
        table.num_shared = first
        if shared:
            self._prefixes.release(shared)
            table.lie_in([*table.blocks[:first], *self._take(len(shared)), *rest])
            if self.tables is not None and table.row is not None:
                self.tables.write(table.row, table.blocks)

    def close(self, table: KvTable, names: Sequence[str] = (), num_tokens: int = 0) -> None:
        """Free the session's room. A table is closed once.

        Of its first `num_tokens`, whole blocks stay for others that begin alike: so they are called."""
        self._tables.remove(table)
        self._num_reserved -= len(table.blocks)
        free = self._prefixes.release(table.blocks, names[: num_tokens // BLOCK_TOKENS])
        self._pool.give_back(free)
        if self.tables is not None and table.row is not None:
            self.tables.remove(table.row)

    def _make_table(self, blocks: list[int], num_shared: int) -> KvTable:
        return KvTable(blocks, None if self.tables is None else self.tables.add(blocks), num_shared)

    def _take(self, num_blocks: int, first: int | None = None) -> list[int]:
        """There are always as many as a reservation lacks: free ones, or some that only rest."""
        num_lacking = num_blocks - self._pool.num_free
        if num_lacking > 0:
            self._pool.give_back(self._prefixes.evict(num_lacking))
        return self._pool.take(num_blocks, first)

    def validate(self) -> None:
        """Every block is free, or held by exactly one open table, or has a name (AssertionError)."""
        named = set(self._prefixes.blocks)
        own = [[block for block in table.blocks if block not in named] for table in self._tables]
        self._pool.validate([list(named), *own])
        self._prefixes.validate(block for table in self._tables for block in table.blocks)
        assert self._num_reserved == sum(len(table.blocks) for table in self._tables)
        for table in self._tables:
            assert set(table.blocks[: table.num_shared]) <= named, "what is shared has a name"
            assert not set(table.blocks[table.num_shared :]) & named, "what is written to is nobody else's"
            assert table.length >= table.num_shared * BLOCK_TOKENS
