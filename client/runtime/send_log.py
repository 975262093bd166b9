"""What a stage has sent of its sessions: should the next stage be replaced, its successor gets these rows again.

Cheaper than sending KV, and than computing the prompt anew (ARCHITECTURE.md, "Decisions worth knowing"). In the host's
memory, within bounds: of a session whose rows do not fit, nothing is kept at all, as only whole beginnings are of use.

Rows of ended sessions stay in whole blocks, by name, as long as there is room: a session that begins with what others
have computed (prefix_cache.py) has not sent these rows itself, and may have to nevertheless.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from client.ipc import MAX_SENT_BYTES
from protocol.values import KV_BLOCK_TOKENS, SessionId

SESSION_SHARE = 4
"""One session gets a fourth of it all at most: 64 MiB of 256."""
ROWS_PER_CHUNK = 64
"""Rows are slices of whole batches' tensors, which they keep alive: every so often they are copied out of them."""


class SentRows:
    """Rows [0, num_rows) of one session, on the CPU, in the dtype of the wire."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.num_bytes = 0
        self._chunks: list[Tensor] = []
        self._recent: list[Tensor] = []
        self._num_recent = 0

    def append(self, values: Tensor) -> None:
        """`values`: [n, row width], which nobody writes to any more."""
        self._recent.append(values)
        self._num_recent += values.shape[0]
        self.num_rows += values.shape[0]
        self.num_bytes += values.nbytes
        if self._num_recent >= ROWS_PER_CHUNK:
            self._chunks.append(torch.cat(self._recent))
            self._recent.clear()
            self._num_recent = 0

    def between(self, start: int, stop: int) -> Iterator[Tensor]:
        """Rows [start, stop) in order, in pieces of no particular size."""
        position = 0
        for piece in (*self._chunks, *self._recent):
            first, last = max(start - position, 0), min(stop - position, piece.shape[0])
            if first < last:
                yield piece[first:last]
            position += piece.shape[0]

    def first(self, num_rows: int) -> SentRows:
        """Only so many of them."""
        rows = SentRows()
        for piece in self.between(0, num_rows):
            rows.append(piece)
        return rows


class SendLog:
    """The rows of all sessions of a stage, each from its first row on or not at all."""

    def __init__(self, max_total_bytes: int = MAX_SENT_BYTES, max_session_bytes: int | None = None) -> None:
        self._max_total_bytes = max_total_bytes
        self._max_session_bytes = max_total_bytes // SESSION_SHARE if max_session_bytes is None else max_session_bytes
        self._rows: dict[SessionId, SentRows] = {}
        """In the order in which their first rows came."""
        self._named: OrderedDict[str, Tensor] = OrderedDict()
        """Blocks of ended sessions, those used longest ago first."""
        self.num_bytes = 0

    def add(self, session_id: SessionId, position: int, values: Tensor) -> None:
        """Keep rows [n, row width], the first at `position`, if all rows before it are kept."""
        rows = self._rows.get(session_id)
        if rows is None and position == 0:
            rows = self._rows[session_id] = SentRows()
        if rows is None or rows.num_rows != position:
            return
        rows.append(values)
        self.num_bytes += values.nbytes
        self._keep_bounds(session_id)

    def begin(self, session_id: SessionId, names: Sequence[str]) -> None:
        """A session begins behind blocks that are called so: if all of them are here, it is as if it had sent them."""
        blocks = [self._named[name] for name in names if name in self._named]
        if not names or len(blocks) < len(names):
            return
        rows = self._rows[session_id] = SentRows()
        for block in blocks:
            rows.append(block)
        self._touch(names)
        self.num_bytes += rows.num_bytes
        self._keep_bounds(session_id)

    def leave(self, session_id: SessionId, names: Sequence[str]) -> None:
        """The session has ended. Its first whole blocks stay as long as there is room: so they are called."""
        rows = self._rows.get(session_id)
        if rows is None:
            return
        num_whole = min(len(names), rows.num_rows // KV_BLOCK_TOKENS)
        for place, name in enumerate(names[:num_whole]):
            if name not in self._named:
                start = place * KV_BLOCK_TOKENS
                self._named[name] = block = torch.cat([*rows.between(start, start + KV_BLOCK_TOKENS)])
                self.num_bytes += block.nbytes
        self._touch(names[:num_whole])
        self.forget(session_id)
        self._forget_named()

    def _touch(self, names: Sequence[str]) -> None:
        """They were used now. From the last to the first: a beginning outlives what comes behind it."""
        for name in reversed(names):
            self._named.move_to_end(name)

    def _keep_bounds(self, session_id: SessionId) -> None:
        """What nobody runs with goes first."""
        if self._rows[session_id].num_bytes > self._max_session_bytes:
            self.forget(session_id)
        self._forget_named()
        while self.num_bytes > self._max_total_bytes:
            self.forget(next(iter(self._rows)))

    def _forget_named(self) -> None:
        while self._named and self.num_bytes > self._max_total_bytes:
            self.num_bytes -= self._named.popitem(last=False)[1].nbytes

    def num_rows(self, session_id: SessionId) -> int:
        """How many are kept of this session."""
        rows = self._rows.get(session_id)
        return rows.num_rows if rows is not None else 0

    def cut(self, session_id: SessionId, num_rows: int) -> None:
        """The session goes on from this row: later ones will come anew."""
        rows = self._rows.get(session_id)
        if rows is not None and rows.num_rows > num_rows:
            self._rows[session_id] = rest = rows.first(num_rows)
            self.num_bytes += rest.num_bytes - rows.num_bytes

    def read(self, session_id: SessionId, start: int, stop: int, max_rows: int) -> Iterator[tuple[int, Tensor]]:
        """(position, rows [n, row width]) for all rows of [start, stop), at most `max_rows` at a time."""
        rows = self._rows[session_id]
        for position in range(start, stop, max_rows):
            yield position, torch.cat([*rows.between(position, min(stop, position + max_rows))])

    def forget(self, session_id: SessionId) -> None:
        """Harmless for one of which nothing is kept."""
        rows = self._rows.pop(session_id, None)
        self.num_bytes -= rows.num_bytes if rows is not None else 0

    def validate(self) -> None:
        """What must hold between steps (AssertionError)."""
        num_named = sum(block.nbytes for block in self._named.values())
        num_own = sum(rows.num_bytes for rows in self._rows.values())
        assert self.num_bytes == num_own + num_named <= self._max_total_bytes
        assert all(block.shape[0] == KV_BLOCK_TOKENS for block in self._named.values())
        assert all(rows.num_bytes <= self._max_session_bytes for rows in self._rows.values())
