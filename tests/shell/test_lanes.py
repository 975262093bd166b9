"""Two lanes of one connection: what goes first, what finds no room, and who counts as gone."""

from __future__ import annotations

import asyncio

import pytest

from shell.lanes import SLOWEST_BYTES_PER_S, STUCK_S, Lanes, Stuck, send_or_give_up
from tests.fakes.virtual_loop import on_virtual_time


async def everything(lanes: Lanes) -> list[str | bytes]:
    return [await lanes.get() for _ in range(lanes_len(lanes))]


def lanes_len(lanes: Lanes) -> int:
    return len(lanes._urgent.items) + len(lanes._bulk.items)


@on_virtual_time
async def test_what_is_urgent_overtakes_what_is_not_and_each_lane_keeps_its_order() -> None:
    lanes = Lanes(100, 100)
    for item in (b"rows 1", b"rows 2"):
        assert lanes.put_bulk(item)
    for text in ("one", "two"):
        assert lanes.put_urgent(text)
    assert await everything(lanes) == ["one", "two", b"rows 1", b"rows 2"]
    assert lanes.is_empty
    assert lanes.num_bytes == 0


@on_virtual_time
async def test_a_full_lane_takes_nothing_and_the_other_one_does() -> None:
    lanes = Lanes(10, 10)
    assert lanes.put_bulk(bytes(6))
    assert not lanes.put_bulk(bytes(5))
    assert lanes.put_bulk(bytes(4))
    assert lanes.put_urgent("0123456789")
    assert not lanes.put_urgent("x")
    assert lanes.num_bytes == 20


@on_virtual_time
async def test_what_was_sent_makes_room() -> None:
    lanes = Lanes(10, 10)
    assert lanes.put_bulk(bytes(10))
    await lanes.get()
    assert lanes.put_bulk(bytes(10))


@on_virtual_time
async def test_an_empty_lane_takes_what_is_larger_than_it_is() -> None:
    lanes = Lanes(10, 10)
    assert lanes.put_bulk(bytes(11))
    assert not lanes.put_bulk(b"")
    assert await lanes.get() == bytes(11)


@on_virtual_time
async def test_who_waits_gets_what_comes() -> None:
    lanes = Lanes(10, 10)
    waiting = asyncio.ensure_future(lanes.get())
    await asyncio.sleep(1)
    assert not waiting.done()
    lanes.put_bulk(b"rows")
    assert await waiting == b"rows"


@on_virtual_time
async def test_the_bulk_lane_can_be_emptied_at_once() -> None:
    lanes = Lanes(10, 10)
    lanes.put_urgent("word")
    lanes.put_bulk(b"a")
    lanes.put_bulk(b"b")
    assert lanes.take_bulk() == [b"a", b"b"]
    assert await everything(lanes) == ["word"]


async def never(data: str | bytes) -> None:
    await asyncio.sleep(10_000)


@on_virtual_time
async def test_who_takes_nothing_of_a_message_is_given_up() -> None:
    begin_s = asyncio.get_running_loop().time()
    with pytest.raises(Stuck):
        await send_or_give_up(never, "word")
    assert asyncio.get_running_loop().time() - begin_s == pytest.approx(STUCK_S, abs=0.1)


@on_virtual_time
async def test_a_slow_line_has_the_time_that_a_long_message_takes() -> None:
    data = bytes(16 * 2**20)

    async def slowly(data: str | bytes) -> None:
        await asyncio.sleep(len(data) / SLOWEST_BYTES_PER_S)

    await send_or_give_up(slowly, data)
