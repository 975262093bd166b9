"""The faulty network: what is held up arrives in order, what is lost is lost, and mischief is what it says."""

from __future__ import annotations

import asyncio
import random

import pytest

from protocol.env import Connection, ConnectionClosed, NetworkError
from protocol.frames import Frame, FrameKind, Phase, Segment, WireDtype, encode_frame
from tests.fakes import pool_facts as facts
from tests.fakes.virtual_loop import on_virtual_time
from tests.simulation.network import Mischief, SimNetwork

URL = "ws://10.0.0.1:1/"


class Line:
    """Host `a` sends to host `b`, which writes down what it hears and when."""

    def __init__(self) -> None:
        self.network = SimNetwork(random.Random(1), (0.0, 0.0))
        self.heard: list[str | bytes] = []
        self.at_s: list[float] = []
        self.ended = asyncio.Event()

    async def open(self) -> Connection:
        await self.network.host("b").listen("10.0.0.1", 1, self._listen, 2**20)
        return await self.network.host("a").connect(URL, 2**20)

    async def _listen(self, connection: Connection) -> None:
        try:
            while True:
                self.heard.append(await connection.recv())
                self.at_s.append(asyncio.get_running_loop().time())
        except ConnectionClosed:
            self.ended.set()


def frame(position: int, num_rows: int = 1) -> bytes:
    segment = Segment(facts.session_id(1), 1, position, num_rows, 0, 0, Phase.PREFILL)
    return encode_frame(Frame(FrameKind.TOKENS, WireDtype.INT32, 1, (segment,), bytes(4 * num_rows)))


@on_virtual_time
async def test_what_is_blocked_one_way_arrives_in_order_when_the_block_ends() -> None:
    line = Line()
    connection = await line.open()
    line.network.block("a", "b")
    for text in "123":
        await connection.send(text)
    await asyncio.sleep(1)
    assert line.heard == []
    line.network.unblock("a", "b")
    await connection.send("4")
    await asyncio.sleep(1)
    assert line.heard == list("1234")


@on_virtual_time
async def test_two_reasons_to_be_held_up_must_both_end() -> None:
    line = Line()
    connection = await line.open()
    line.network.block("a", "b")
    await connection.send("1")
    line.network.hold("b")
    await connection.send("2")
    line.network.unblock("a", "b")
    await asyncio.sleep(1)
    assert line.heard == []
    line.network.release("b")
    await asyncio.sleep(1)
    assert line.heard == ["1", "2"]


@on_virtual_time
async def test_nobody_connects_over_a_cut_link() -> None:
    line = Line()
    await line.open()
    line.network.block("b", "a")
    with pytest.raises(NetworkError):
        await line.network.host("a").connect(URL, 2**20)


@on_virtual_time
async def test_a_machine_without_power_hears_nothing_and_its_connections_end_when_it_is_back() -> None:
    line = Line()
    connection = await line.open()
    line.network.power_off("b")
    await connection.send("lost")
    await asyncio.sleep(1)
    assert not line.ended.is_set()
    line.network.power_on("b")
    await line.ended.wait()
    assert line.heard == []
    with pytest.raises(ConnectionClosed):
        await connection.send("to a connection that is unknown there")


@on_virtual_time
async def test_a_reset_ends_the_connections_of_a_pair_only() -> None:
    line = Line()
    connection = await line.open()
    line.network.sever("a", "c")
    await connection.send("1")
    await asyncio.sleep(1)
    line.network.sever("b", "a")
    await line.ended.wait()
    assert line.heard == ["1"]


@on_virtual_time
async def test_a_delay_is_added_for_both_ends() -> None:
    line = Line()
    connection = await line.open()
    line.network.delay("a", 1.0)
    line.network.delay("b", 0.5)
    await connection.send("1")
    await asyncio.sleep(2)
    assert line.at_s == [1.5]


@pytest.mark.parametrize(
    ("mischief", "heard"),
    [
        (Mischief(lose=1.0), []),
        (Mischief(repeat=1.0), [0, 0, 1, 1, 2, 2]),
        (Mischief(swap=1.0), [1, 0]),
        (Mischief(say_again=1.0), None),
    ],
    ids=["lose", "repeat", "swap", "say again"],
)
@on_virtual_time
async def test_mischief_with_frames(mischief: Mischief, heard: list[int] | None) -> None:
    line = Line()
    connection = await line.open()
    line.network.mischief["a"] = mischief
    for position in range(3):
        await connection.send(frame(position))
    await asyncio.sleep(1)
    if heard is not None:
        assert line.heard == [frame(position) for position in heard]
    else:
        assert len(line.heard) > 3
        assert set(line.heard) == {frame(position) for position in range(3)}


@on_virtual_time
async def test_a_spoilt_frame_differs_in_one_bit() -> None:
    line = Line()
    connection = await line.open()
    line.network.mischief["a"] = Mischief(spoil=1.0)
    await connection.send(frame(0))
    await asyncio.sleep(1)
    [data] = line.heard
    assert isinstance(data, bytes)
    assert sum(one != other for one, other in zip(data, frame(0), strict=True)) == 1


@on_virtual_time
async def test_only_rows_that_will_be_missed_are_skipped() -> None:
    line = Line()
    connection = await line.open()
    line.network.prompt_lengths[facts.session_id(1), 1] = 5
    line.network.mischief["a"] = Mischief(skip=1.0)
    await connection.send(frame(0, 3))
    await connection.send(frame(3, 2))
    await connection.send(frame(5))
    await asyncio.sleep(1)
    assert line.heard == [frame(3, 2), frame(5)]


@on_virtual_time
async def test_messages_are_left_alone_unless_it_is_said() -> None:
    line = Line()
    connection = await line.open()
    line.network.mischief["a"] = Mischief(repeat=1.0)
    await connection.send('{"type":"sessionopened"}')
    line.network.mischief["a"] = Mischief(repeat=1.0, texts=True)
    await connection.send('{"type":"sessionopened"}')
    await connection.send('{"type":"leaving"}')
    await asyncio.sleep(1)
    assert len(line.heard) == 4


@on_virtual_time
async def test_an_echo_comes_a_moment_later() -> None:
    line = Line()
    connection = await line.open()
    line.network.mischief["a"] = Mischief(echo=1.0)
    await connection.send('{"type":"tokenssampled"}')
    await asyncio.sleep(2)
    assert len(line.heard) == 2
    assert line.at_s[0] < line.at_s[1]
