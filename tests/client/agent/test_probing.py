"""Distances: what is measured over links of known delay and rate, and that rows come first."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from client.agent import probing
from client.agent.peers import PeerCallbacks, Peers
from client.agent.probing import (
    BLOCK_LIMIT_S,
    NUM_BLOCK_FRAMES,
    NUM_WARM_UP_FRAMES,
    POOL_PING_EVERY_S,
    SPEED_AGAIN_AFTER_S,
    PoolDistance,
    Prober,
)
from protocol.env import ConnectionClosed, NetworkError
from protocol.frames import MAX_PROBE_BYTES
from protocol.values import Hop, LinkTime
from shell import AsyncioEnv
from tests.client.agent.samples import LEFT, NODE, RIGHT
from tests.fakes.virtual_env import VirtualWorld
from tests.fakes.virtual_loop import on_virtual_time

WARM_UP_BYTES, BLOCK_BYTES = (number * MAX_PROBE_BYTES for number in (NUM_WARM_UP_FRAMES, NUM_BLOCK_FRAMES))
TO_LEFT, TO_RIGHT = Hop(LEFT, 0, "wss://left"), Hop(RIGHT, 0, "wss://right")


@dataclass
class FakeLink:
    """A link of this round trip and rate: what is sent gets through one after the other."""

    rtts_s: list[float]
    bytes_per_s: float
    num_bytes: int = 0
    num_pings: int = 0
    breaks_after: float = float("inf")
    is_closed: bool = False
    through_at_s: float = 0.0

    async def send(self, data: str | bytes) -> None:
        if self.num_bytes >= self.breaks_after:
            raise ConnectionClosed(4429, "too many probes")
        self.num_bytes += len(data)
        now_s = asyncio.get_running_loop().time()
        self.through_at_s = max(now_s, self.through_at_s) + len(data) / self.bytes_per_s

    async def ping(self) -> float:
        begin_s = asyncio.get_running_loop().time()
        await asyncio.sleep(max(0.0, self.through_at_s - begin_s) + self.rtts_s[self.num_pings % len(self.rtts_s)])
        self.num_pings += 1
        return asyncio.get_running_loop().time() - begin_s

    async def close(self, code: int = 1000, reason: str = "") -> None:
        self.is_closed = True


@dataclass
class FakePeers:
    """Neighbours by address; None: nobody answers there. `busy_until_s`: rows wait here."""

    links: dict[str, FakeLink | None]
    busy_until_s: float = 0.0
    busy_from_s: float = 0.0
    may: bool = True
    connected: list[str] = field(default_factory=list)

    @property
    def has_waiting(self) -> bool:
        return self.busy_from_s <= asyncio.get_running_loop().time() < self.busy_until_s

    def may_connect(self, hop: Hop) -> bool:
        return self.may and hop.address is not None

    async def connect(self, hop: Hop) -> FakeLink:
        assert hop.address is not None
        self.connected.append(hop.address)
        link = self.links[hop.address]
        if link is None:
            raise NetworkError("nobody listens")
        return link


def prober(peers: FakePeers | Peers) -> Prober:
    return Prober(cast(Any, peers), VirtualWorld().env())


def link(rtt_s: float = 0.05, bytes_per_s: float = 5e6) -> FakeLink:
    return FakeLink([rtt_s + 0.03, rtt_s, rtt_s + 0.2], bytes_per_s)


@pytest.mark.parametrize(("rtt_s", "bytes_per_s"), [(0.001, 5e7), (0.05, 5e6), (0.3, 1.25e6)])
@on_virtual_time
async def test_round_trip_and_bandwidth_are_found(rtt_s: float, bytes_per_s: float) -> None:
    way = FakeLink([rtt_s], bytes_per_s)
    [measured] = await prober(FakePeers({"wss://left": way})).measure([TO_LEFT])
    assert (measured.node_id, measured.is_direct) == (LEFT, True)
    assert measured.rtt_s == pytest.approx(rtt_s)
    assert measured.bytes_per_s == pytest.approx(bytes_per_s, rel=0.02)
    assert way.is_closed


@on_virtual_time
async def test_the_round_trip_is_the_least_of_a_few() -> None:
    [measured] = await prober(FakePeers({"wss://left": link(0.05)})).measure([TO_LEFT])
    assert measured.rtt_s == pytest.approx(0.05)


@on_virtual_time
async def test_a_slow_link_is_sent_the_small_block_only() -> None:
    slow = FakeLink([0.05], 100_000)
    [measured] = await prober(FakePeers({"wss://left": slow})).measure([TO_LEFT])
    assert measured.bytes_per_s == pytest.approx(100_000, rel=0.02)
    assert slow.num_bytes < WARM_UP_BYTES + 1000


@on_virtual_time
async def test_a_link_that_does_not_get_the_block_through_is_as_slow_as_that_shows() -> None:
    [measured] = await prober(FakePeers({"wss://left": FakeLink([0.05], 1000)})).measure([TO_LEFT])
    assert measured.bytes_per_s == WARM_UP_BYTES / BLOCK_LIMIT_S


@on_virtual_time
async def test_a_link_faster_than_the_clock_has_a_finite_rate_and_time() -> None:
    [measured] = await prober(FakePeers({"wss://left": FakeLink([0.0], 1e15)})).measure([TO_LEFT])
    assert measured.bytes_per_s == BLOCK_BYTES / probing.MIN_TRANSFER_S
    assert measured.rtt_s == probing.MIN_RTT_S


@on_virtual_time
async def test_the_block_is_sent_once_in_ten_minutes() -> None:
    way = link()
    measuring = prober(FakePeers({"wss://left": way}))
    [first] = await measuring.measure([TO_LEFT])
    [again] = await measuring.measure([TO_LEFT])
    assert first.bytes_per_s is not None
    assert (again.bytes_per_s, again.rtt_s) == (None, pytest.approx(0.05))
    assert way.num_bytes < WARM_UP_BYTES + BLOCK_BYTES + 2000
    await asyncio.sleep(SPEED_AGAIN_AFTER_S)
    [later] = await measuring.measure([TO_LEFT])
    assert later.bytes_per_s is not None


@on_virtual_time
async def test_who_cannot_be_reached_directly_is_reached_through_the_relay() -> None:
    peers = FakePeers({"wss://left": None, "wss://right": link()})
    relayed, direct, nowhere = await prober(peers).measure([TO_LEFT, TO_RIGHT, Hop(NODE, 0)])
    assert relayed == LinkTime(LEFT, None, None, is_direct=False)
    assert nowhere == LinkTime(NODE, None, None, is_direct=False)
    assert direct.is_direct


@on_virtual_time
async def test_a_node_that_makes_no_direct_links_connects_to_nobody() -> None:
    peers = FakePeers({"wss://left": link()}, may=False)
    assert await prober(peers).measure([TO_LEFT]) == (LinkTime(LEFT, None, None, is_direct=False),)
    assert peers.connected == []


@on_virtual_time
async def test_a_neighbour_that_never_answers_does_not_hold_up_the_others() -> None:
    silent, good = FakeLink([10_000.0], 1e6), link()
    measured = await prober(FakePeers({"wss://left": silent, "wss://right": good})).measure([TO_LEFT, TO_RIGHT])
    assert [each.is_direct for each in measured] == [False, True]
    assert silent.is_closed
    assert good.is_closed
    assert asyncio.get_running_loop().time() < 60


@on_virtual_time
async def test_no_block_is_sent_while_rows_wait() -> None:
    way = link()
    [measured] = await prober(FakePeers({"wss://left": way}, busy_until_s=1000.0)).measure([TO_LEFT])
    assert (measured.rtt_s, measured.bytes_per_s, way.num_bytes) == (pytest.approx(0.05), None, 0)


@on_virtual_time
async def test_a_block_waits_until_the_rows_are_gone() -> None:
    [measured] = await prober(FakePeers({"wss://left": link()}, busy_until_s=3.0)).measure([TO_LEFT])
    assert measured.bytes_per_s is not None


@on_virtual_time
async def test_a_block_is_given_up_when_rows_come(monkeypatch: pytest.MonkeyPatch) -> None:
    way = link()
    peers = FakePeers({"wss://left": way})
    send = way.send

    async def send_then_busy(data: str | bytes) -> None:
        await send(data)
        peers.busy_until_s = 1e9 if way.num_bytes > WARM_UP_BYTES + 3 * MAX_PROBE_BYTES else 0.0

    monkeypatch.setattr(way, "send", send_then_busy)
    [measured] = await prober(peers).measure([TO_LEFT])
    assert measured.bytes_per_s is None
    assert way.num_bytes < WARM_UP_BYTES + 5 * MAX_PROBE_BYTES


@on_virtual_time
async def test_a_neighbour_that_takes_no_more_probes_still_has_its_round_trip() -> None:
    way = link()
    way.breaks_after = MAX_PROBE_BYTES
    [measured] = await prober(FakePeers({"wss://left": way})).measure([TO_LEFT])
    assert (measured.rtt_s, measured.bytes_per_s, measured.is_direct) == (pytest.approx(0.05), None, True)


@on_virtual_time
async def test_giving_up_closes_every_link() -> None:
    links = {"wss://left": FakeLink([10_000.0], 1e6), "wss://right": link()}
    task = asyncio.create_task(prober(FakePeers({**links})).measure([TO_LEFT, TO_RIGHT]))
    await asyncio.sleep(1.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert all(each.is_closed for each in links.values())


async def test_two_nodes_on_real_sockets_find_each_other(env: AsyncioEnv) -> None:
    frames: list[bytes] = []
    callbacks = PeerCallbacks(
        lambda frame, sender: frames.append(frame), frames.append, lambda node_id: None, frames.append
    )
    here, there = Peers(NODE, env, callbacks), Peers(RIGHT, env, callbacks)
    for peers in (here, there):
        await peers.listen("127.0.0.1")
    hop = Hop(RIGHT, 0, there.address_at("127.0.0.1").url, there.ticket)
    [measured] = await Prober(here, env).measure([hop])
    assert measured.is_direct
    assert measured.rtt_s is not None
    assert 0 < measured.rtt_s < 5
    assert measured.bytes_per_s is not None
    assert measured.bytes_per_s > 1e4
    assert frames == [], "probes go no further"
    await here.close()
    await there.close()


# ---------------------------------------------------------------- the pool


@on_virtual_time
async def test_the_way_to_the_pool_is_measured_now_and_then_and_told_once() -> None:
    times = iter([0.08, 0.05, 0.5, 0.6, 0.7, 0.9])
    distance = PoolDistance(VirtualWorld().env())

    async def ping() -> float:
        return next(times)

    assert distance.take() is None
    watching = asyncio.create_task(distance.watch(ping))
    told = []
    for _ in range(5):
        await asyncio.sleep(0.1)
        told.append(distance.take())
        assert distance.take() is None
        await asyncio.sleep(POOL_PING_EVERY_S - 0.1)
    assert told == [0.08, 0.05, 0.05, 0.05, 0.5], "the least of the last three"
    watching.cancel()


@on_virtual_time
async def test_a_pool_that_does_not_answer_a_ping_is_asked_again() -> None:
    distance = PoolDistance(VirtualWorld().env())
    asked: list[int] = []

    async def ping() -> float:
        asked.append(1)
        await asyncio.sleep(1000 if len(asked) == 1 else 0)
        return 0.04

    watching = asyncio.create_task(distance.watch(ping))
    await asyncio.sleep(12)
    assert distance.take() is None
    await asyncio.sleep(10)
    assert distance.take() == 0.04
    watching.cancel()


@on_virtual_time
async def test_watching_ends_with_the_connection_and_begins_anew_with_the_next() -> None:
    distance = PoolDistance(VirtualWorld().env())

    async def ping(answer: float | None) -> float:
        if answer is None:
            raise ConnectionClosed(1006, "")
        return answer

    first = asyncio.create_task(distance.watch(lambda: ping(0.01)))
    await asyncio.sleep(1)
    first.cancel()
    await distance.watch(lambda: ping(None))
    assert distance.take() is None, "that was the way to the last one"
    second = asyncio.create_task(distance.watch(lambda: ping(0.2)))
    await asyncio.sleep(1)
    assert distance.take() == 0.2, "another way may be longer"
    second.cancel()
