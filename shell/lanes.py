"""What waits to be sent over one connection: an urgent lane and a bulk lane, both bounded in bytes.

Urgent is what keeps a pool together: heartbeats, tokens, orders. It goes first, so that a pipe full of rows does not
look like a dead machine. Rows go in the bulk lane. Each lane is first in, first out; nothing is dropped without a word:
`put_urgent` and `put_bulk` say whether there was room.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

STUCK_S = 15.0
"""Who takes nothing of a message for so long counts as gone. Slower than this no link is of use, and a machine that
only slept for a moment is back before."""
SLOWEST_BYTES_PER_S = 2**17
"""Longer messages get more time: what a line of one megabit per second takes is no sign of death."""


class Stuck(Exception):  # noqa: N818 - reads as what happened
    """The other side does not take what it is sent."""


@dataclass(slots=True)
class _Lane:
    max_bytes: int
    items: deque[str | bytes] = field(default_factory=deque)
    num_bytes: int = 0

    def put(self, data: str | bytes) -> bool:
        """An empty lane takes anything: what is larger than the lane could never be sent otherwise."""
        if self.items and self.num_bytes + len(data) > self.max_bytes:
            return False
        self.items.append(data)
        self.num_bytes += len(data)
        return True

    def take(self) -> str | bytes:
        data = self.items.popleft()
        self.num_bytes -= len(data)
        return data


class Lanes:
    """For one reader, on one event loop."""

    def __init__(self, max_urgent_bytes: int, max_bulk_bytes: int) -> None:
        self._urgent = _Lane(max_urgent_bytes)
        self._bulk = _Lane(max_bulk_bytes)
        self._filled = asyncio.Event()

    @property
    def is_empty(self) -> bool:
        return not (self._urgent.items or self._bulk.items)

    @property
    def num_bytes(self) -> int:
        """Of both lanes; a character of a text counts as a byte."""
        return self._urgent.num_bytes + self._bulk.num_bytes

    def put_urgent(self, data: str | bytes) -> bool:
        """False, and nothing is taken, if the lane is full."""
        return self._put(self._urgent, data)

    def put_bulk(self, data: bytes) -> bool:
        """False, and nothing is taken, if the lane is full."""
        return self._put(self._bulk, data)

    async def get(self) -> str | bytes:
        """The next one: urgent ones first."""
        while self.is_empty:
            self._filled.clear()
            await self._filled.wait()
        return (self._urgent if self._urgent.items else self._bulk).take()

    def take_bulk(self) -> list[bytes]:
        """Everything in the bulk lane, which is empty then."""
        taken = []
        while self._bulk.items:
            data = self._bulk.take()
            assert isinstance(data, bytes), "only put_bulk fills this lane"
            taken.append(data)
        return taken

    def _put(self, lane: _Lane, data: str | bytes) -> bool:
        has_room = lane.put(data)
        self._filled.set()
        return has_room


async def send_or_give_up(send: Callable[[str | bytes], Awaitable[None]], data: str | bytes) -> None:
    """Send it; raises Stuck when the other side has not taken it in the time that such a message may take."""
    try:
        async with asyncio.timeout(STUCK_S + len(data) / SLOWEST_BYTES_PER_S):
            await send(data)
    except TimeoutError:
        raise Stuck(f"{len(data)} bytes were not taken") from None
