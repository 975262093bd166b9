"""What waits for a client: bounded, in order, and not for ever."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.api.chat import Chunk
from coordinator.api.unread import MAX_UNREAD_BYTES, NOT_READ_S, Unread
from coordinator.errors import GenerationFailed
from tests.fakes.virtual_loop import on_virtual_time

LONG = Chunk(text="x" * MAX_UNREAD_BYTES)


@on_virtual_time
async def test_chunks_come_in_order_and_then_the_end() -> None:
    unread = Unread()
    for text in "abc":
        await unread.put(Chunk(text=text))
    unread.end(None)
    assert [item.text if isinstance(item, Chunk) else item for item in [await unread.get() for _ in range(4)]] == [
        "a",
        "b",
        "c",
        None,
    ]


@on_virtual_time
async def test_who_writes_waits_for_room() -> None:
    unread = Unread()
    await unread.put(LONG)
    writing = asyncio.ensure_future(unread.put(Chunk(text="next")))
    await asyncio.sleep(NOT_READ_S / 2)
    assert not writing.done()
    assert await unread.get() is LONG
    await writing
    assert await unread.get() == Chunk(text="next")


@on_virtual_time
async def test_a_client_that_reads_slowly_is_waited_for() -> None:
    unread = Unread()
    await unread.put(LONG)

    async def write() -> None:
        for _ in range(10):
            await unread.put(LONG)

    writing = asyncio.ensure_future(write())
    for _ in range(11):
        await asyncio.sleep(NOT_READ_S * 0.9)
        assert await unread.get() is LONG
    await writing


@on_virtual_time
async def test_a_client_that_reads_nothing_is_given_up_and_sees_why_if_it_ever_reads() -> None:
    unread = Unread()
    await unread.put(LONG)
    with pytest.raises(GenerationFailed, match="did not read"):
        await unread.put(LONG)


@on_virtual_time
async def test_the_end_finds_room_in_a_full_queue() -> None:
    unread = Unread()
    await unread.put(LONG)
    error = GenerationFailed("code", "sentence")
    unread.end(error)
    assert [await unread.get(), await unread.get()] == [LONG, error]
