"""How far other nodes and the pool are: round trips by websocket ping, bandwidth by a block that is thrown away.

A link is measured over a connection of its own, the way that rows would take, so that no row ever waits behind a block
in one stream; and none is sent while rows wait here. Round trips are the least of a few, which is the way's own delay
without what queues add (RFC 6298's smoothing is for timeouts, not for distances).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from client.agent.peers import Peers
from protocol.env import ConnectionClosed, Env, NetworkError, OutgoingConnection
from protocol.frames import MAX_PROBE_BYTES, probe_frame
from protocol.values import Hop, LinkTime, NodeId

log = logging.getLogger(__name__)

NUM_PINGS = 5
PING_LIMIT_S = 5.0
MEET_LIMIT_S = 15.0
"""For connecting and the pings; whoever has not answered by then is reached through the relay."""
NUM_WARM_UP_FRAMES = 2
NUM_BLOCK_FRAMES = 8
"""64 KiB, then 256 KiB. The first block opens the congestion window, which starts at ten segments (RFC 6928)."""
SLOW_S = 0.25
"""If the first block took longer the second would take more than a second: the first one has to do."""
BLOCK_LIMIT_S = 2.0
MIN_TRANSFER_S = 1e-4
"""Faster than the clock can tell counts as this."""
MIN_RTT_S = 1e-6
SPEED_AGAIN_AFTER_S = 600.0
"""A link's bandwidth is measured once in this time."""
QUIET_LIMIT_S = 5.0
QUIET_POLL_S = 0.1
POOL_PING_EVERY_S = 10.0
NUM_POOL_PINGS = 3
"""The pool's distance is the least of this many."""


@dataclass(frozen=True, slots=True)
class _Met:
    """A target with an open connection and its round trip; without them it is reached through the relay."""

    hop: Hop
    connection: OutgoingConnection | None = None
    rtt_s: float = 0.0


class Prober:
    """Measures this node's links."""

    def __init__(self, peers: Peers, env: Env) -> None:
        self._peers = peers
        self._env = env
        self._speed_known_s: dict[NodeId, float] = {}
        self._frame = probe_frame(bytes.fromhex(env.random.token_hex(MAX_PROBE_BYTES)))

    async def measure(self, targets: Sequence[Hop]) -> tuple[LinkTime, ...]:
        """One entry per target: round trips side by side, then bandwidths one after the other."""
        meetings = [asyncio.create_task(self._meet(hop)) for hop in targets]
        try:
            return tuple([await self._link_time(met) for met in await asyncio.gather(*meetings)])
        finally:
            for meeting in meetings:
                meeting.cancel()
            open_ones = [each.connection for each in await _results(meetings) if each.connection is not None]
            await asyncio.gather(*(connection.close() for connection in open_ones), return_exceptions=True)

    async def _meet(self, hop: Hop) -> _Met:
        if not self._peers.may_connect(hop):
            return _Met(hop)
        connection: OutgoingConnection | None = None
        try:
            async with asyncio.timeout(MEET_LIMIT_S):
                connection = await self._peers.connect(hop)
                times = [await connection.ping() for _ in range(NUM_PINGS)]
        except (NetworkError, ConnectionClosed, TimeoutError) as error:
            log.info("no direct link to node %s to measure (%s)", hop.node_id[:8], error)
            await _close(connection)
            return _Met(hop)
        except asyncio.CancelledError:
            await _close(connection)
            raise
        return _Met(hop, connection, max(MIN_RTT_S, min(times)))

    async def _link_time(self, met: _Met) -> LinkTime:
        if met.connection is None:
            return LinkTime(met.hop.node_id, None, None, is_direct=False)
        return LinkTime(met.hop.node_id, met.rtt_s, await self._speed(met, met.connection), is_direct=True)

    async def _speed(self, met: _Met, connection: OutgoingConnection) -> float | None:
        """Bytes per second; None if it was measured lately, or rows have kept this node busy."""
        node_id, now_s = NodeId(met.hop.node_id), self._env.clock.monotonic()
        self._speed_known_s = {n: at for n, at in self._speed_known_s.items() if now_s - at < SPEED_AGAIN_AFTER_S}
        if node_id in self._speed_known_s or not await self._is_quiet():
            return None
        self._speed_known_s[node_id] = now_s
        try:
            first_s = await self._block_s(connection, NUM_WARM_UP_FRAMES, met.rtt_s)
            if first_s is None or first_s > SLOW_S:
                return None if first_s is None else NUM_WARM_UP_FRAMES * MAX_PROBE_BYTES / first_s
            block_s = await self._block_s(connection, NUM_BLOCK_FRAMES, met.rtt_s)
        except ConnectionClosed as error:
            log.info("the link to node %s was closed while it was measured: %s", node_id[:8], error)
            return None
        return None if block_s is None else NUM_BLOCK_FRAMES * MAX_PROBE_BYTES / block_s

    async def _block_s(self, connection: OutgoingConnection, num_frames: int, rtt_s: float) -> float | None:
        """How long a block takes beyond the round trip: a ping behind it is answered once it has arrived whole.

        None: rows began to wait. One that is not through in BLOCK_LIMIT_S counts as through then."""
        begin_s = self._env.clock.monotonic()
        try:
            async with asyncio.timeout(BLOCK_LIMIT_S):
                for _ in range(num_frames):
                    if self._peers.has_waiting:
                        return None
                    await connection.send(self._frame)
                await connection.ping()
        except TimeoutError:
            return BLOCK_LIMIT_S
        return max(MIN_TRANSFER_S, self._env.clock.monotonic() - begin_s - rtt_s)

    async def _is_quiet(self) -> bool:
        """Wait a while for the rows that wait here to be gone."""
        until_s = self._env.clock.monotonic() + QUIET_LIMIT_S
        while self._peers.has_waiting and self._env.clock.monotonic() < until_s:
            await self._env.clock.sleep(QUIET_POLL_S)
        return not self._peers.has_waiting


class PoolDistance:
    """The round trip to the coordinator, pinged now and then; each measurement is told once."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self._times: deque[float] = deque(maxlen=NUM_POOL_PINGS)
        self._is_news = False

    async def watch(self, ping: Callable[[], Awaitable[float]]) -> None:
        """Until cancelled, or the connection is gone (which whoever reads it tells)."""
        self._times.clear()
        self._is_news = False
        try:
            while True:
                await self._ping(ping)
                await self._env.clock.sleep(POOL_PING_EVERY_S)
        except ConnectionClosed:
            return

    def take(self) -> float | None:
        """Seconds, if there was a measurement since the last call."""
        if not self._is_news:
            return None
        self._is_news = False
        return max(MIN_RTT_S, min(self._times))

    async def _ping(self, ping: Callable[[], Awaitable[float]]) -> None:
        try:
            async with asyncio.timeout(PING_LIMIT_S):
                self._times.append(await ping())
        except TimeoutError:
            log.info("the coordinator did not answer a ping within %.0f s", PING_LIMIT_S)
        else:
            self._is_news = True


async def _results(meetings: Sequence[asyncio.Task[_Met]]) -> list[_Met]:
    """Of those that came to an end by themselves."""
    ended = await asyncio.gather(*meetings, return_exceptions=True)
    return [each for each in ended if isinstance(each, _Met)]


async def _close(connection: OutgoingConnection | None) -> None:
    if connection is not None:
        await connection.close()
