"""What of an answer waits for its client: a bounded part of it, for a bounded time.

A client that stops reading must hold neither memory here nor a place on the nodes. Behind this queue the generation's
own one waits, which is no longer than the answer may become.
"""

from __future__ import annotations

import asyncio
from collections import deque

from coordinator.api.chat import Chunk
from coordinator.errors import GenerationFailed

MAX_UNREAD_BYTES = 64 * 2**10
"""Text; a token id counts as four. Beyond the socket's own buffers, which hold as much again and more."""
CHUNK_BYTES = 64
"""What a chunk takes beside its text and tokens."""
NOT_READ_S = 30.0


class Unread:
    """Chunks between a generation and its response; the last item is None, or why there is no more."""

    def __init__(self) -> None:
        self._items: deque[Chunk | Exception | None] = deque()
        self._num_bytes = 0
        self._changed = asyncio.Event()

    async def put(self, chunk: Chunk) -> None:
        """Waits for room. Raises GenerationFailed when the client takes nothing for NOT_READ_S."""
        while self._num_bytes >= MAX_UNREAD_BYTES:
            await self._taken()
        self._num_bytes += _size(chunk)
        self._add(chunk)

    def end(self, last: Exception | None) -> None:
        """The answer is over; there is always room for that."""
        self._add(last)

    async def get(self) -> Chunk | Exception | None:
        while not self._items:
            self._changed.clear()
            await self._changed.wait()
        item = self._items.popleft()
        if isinstance(item, Chunk):
            self._num_bytes -= _size(item)
        self._changed.set()
        return item

    async def _taken(self) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(NOT_READ_S):
                await self._changed.wait()
        except TimeoutError:
            raise GenerationFailed("not_read", "The answer was cut: its client did not read it.") from None

    def _add(self, item: Chunk | Exception | None) -> None:
        self._items.append(item)
        self._changed.set()


def _size(chunk: Chunk) -> int:
    return CHUNK_BYTES + len(chunk.text.encode()) + 4 * len(chunk.tokens)
