"""The menu: what goes wrong, drawn by seed. Each fault lasts for a while and ends at the latest when the world heals.

Every coroutine here takes the world and a generator of its own, so that one fault more or less changes no other.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from itertools import combinations
from typing import Any, Protocol

from coordinator.core import LEASE_S
from tests.simulation.history import History
from tests.simulation.hosts import SimNode
from tests.simulation.network import Mischief, SimNetwork
from tests.simulation.pool import HOST, SimPool


class World(Protocol):
    """What a fault may touch."""

    pool: SimPool
    network: SimNetwork
    history: History
    nodes: list[SimNode]
    hung: SimNode | None
    """Its worker hangs even when the world has healed, if others have its layers: the pool has to do without it."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Let it happen beside everything else."""

    async def lasts(self, seconds: float) -> None:
        """Wait so long, or until the world heals."""

    def silence(self, host: str) -> None:
        """The coordinator may hear nothing of it for a while: it is to be taken for lost."""

    def heard_again(self, host: str) -> None: ...


FOR_GOOD_S = 1e6
"""Until the world heals."""

Fault = Callable[[World, random.Random], Awaitable[None]]


# ------------------------------------------------------------ machines


async def crash(world: World, rng: random.Random) -> None:
    """A process or a machine dies, and comes back."""
    await _crash(world, rng.choice(world.nodes), rng.random() < 0.5, rng.choice((0.0, 0.3, 2.0, 8.0)))


async def half_crash(world: World, rng: random.Random) -> None:
    """Half of the pool is gone at once."""
    silently, seconds = rng.random() < 0.5, rng.uniform(0.5, 6.0)
    for node in rng.sample(world.nodes, len(world.nodes) // 2):
        world.spawn(_crash(world, node, silently, seconds))


async def flap(world: World, rng: random.Random) -> None:
    node = rng.choice(world.nodes)
    for _ in range(3):
        await _crash(world, node, False, 0.2)
        await world.lasts(rng.uniform(0.3, 2.0))


async def leave(world: World, rng: random.Random) -> None:
    """The volunteer quits, or the machine pauses, at once or when others have taken over; later it is back. What is
    in no hurry may be taken back meanwhile."""
    node, reason, seconds = rng.choice(world.nodes), rng.choice(("quit", "game", "battery")), rng.uniform(0.1, 6.0)
    if not node.is_up:
        return
    is_soft, within_s = rng.random() < 0.6, rng.choice((0.3, 1.0, 8.0))
    if is_soft and rng.random() < 0.3:
        await _take_back(world, node, within_s, rng.uniform(0.0, within_s))
        return
    if is_soft and not await _has_handed_over(world, node, reason, within_s):
        return
    world.history.note("%s: leaves (%s) for %.1f s", node.host, reason, seconds)
    await node.stop(reason)
    await world.lasts(seconds)
    node.start()


async def power_fails_in_silence(world: World, rng: random.Random) -> None:
    """Longer than a lease: only the lease tells."""
    await _crash(world, rng.choice(world.nodes), True, rng.uniform(LEASE_S + 1.5, LEASE_S + 5))


async def kill_worker(world: World, rng: random.Random) -> None:
    node = rng.choice(world.nodes)
    world.history.note("%s: its worker dies", node.host)
    node.kill_worker()


async def stand_still(world: World, rng: random.Random) -> None:
    """The whole machine hangs, its connections stay; then everything that it was about to say is said at once."""
    node, seconds = rng.choice(world.nodes), rng.choice((0.5, 2.0, 3.5, 7.0))
    if not node.is_up:
        return
    world.history.note("%s: stands still for %.1f s", node.host, seconds)
    world.silence(node.host)
    world.network.hold(node.host)
    await world.lasts(seconds)
    world.history.note("%s: moves again", node.host)
    world.network.release(node.host)
    world.heard_again(node.host)


async def stall_coordinator(world: World, rng: random.Random) -> None:
    seconds = rng.uniform(1.0, 8.0)
    world.history.note("the coordinator stalls for %.1f s", seconds)
    world.pool.stall(seconds)
    await world.lasts(seconds + rng.choice((-0.001, 0.001)))
    world.pool.go_on()


async def restart_coordinator(world: World, rng: random.Random) -> None:
    """Its process is killed, and started again on the same log."""
    seconds = rng.choice((0.2, 1.0, 4.0))
    if world.pool.is_down:
        return
    world.history.note("the coordinator is killed for %.1f s", seconds)
    await world.pool.crash()
    await world.lasts(seconds)
    world.history.note("the coordinator starts again")
    await world.pool.start()


async def fill_disk(world: World, rng: random.Random) -> None:
    """The log cannot be written for a while."""
    seconds, log = rng.choice((0.1, 1.0, 6.0)), world.pool.token_log
    world.history.note("the coordinator's disk is full for %.1f s", seconds)
    log.num_full += 1
    await world.lasts(seconds)
    log.num_full -= 1


async def change_clock(world: World, rng: random.Random) -> None:
    """NTP steps the wall clock; what runs may only look at the other one."""
    node = rng.choice(world.nodes)
    node.clock.wall_offset_s += rng.choice((-1, 1)) * rng.choice((1.0, 3600.0, 3e8))


# ------------------------------------------------------------ workers


async def hang_worker(world: World, rng: random.Random) -> None:
    """It computes nothing and reads nothing, behind a healthy agent; then it goes on where it was, or never does."""
    node, seconds = rng.choice(world.nodes), rng.choice((rng.uniform(0.2, 6.0), FOR_GOOD_S))
    world.history.note("%s: its worker hangs for %.1f s", node.host, seconds)
    traits = node.traits
    traits.set(is_hung=True)
    await world.lasts(seconds)
    if seconds == FOR_GOOD_S and world.hung is None:
        world.hung = node
        return
    world.history.note("%s: its worker goes on", node.host)
    traits.set(is_hung=False)


async def slow_down(world: World, rng: random.Random) -> None:
    node, seconds = rng.choice(world.nodes), rng.uniform(1.0, 6.0)
    world.history.note("%s: is ten times slower for %.1f s", node.host, seconds)
    traits = node.traits
    traits.set(slowness=10.0)
    await world.lasts(seconds)
    traits.set(slowness=1.0)


async def no_numbers(world: World, rng: random.Random) -> None:
    node, seconds = rng.choice(world.nodes), rng.uniform(0.5, 5.0)
    change = rng.choice(("nan", "nan", "leaks_nan"))
    world.history.note("%s: computes what is no number (%s) for %.1f s", node.host, change, seconds)
    traits = node.traits
    traits.set(**{change: True})
    await world.lasts(seconds)
    traits.set(**{change: False})


# ------------------------------------------------------------ links


async def cut_from_pool(world: World, rng: random.Random) -> None:
    """Between a node and the coordinator, one way or both; the node's neighbours still reach it."""
    node = rng.choice(world.nodes)
    await _cut(world, rng, node.host, HOST)


async def cut_neighbours(world: World, rng: random.Random) -> None:
    one, other = rng.sample(world.nodes, 2)
    await _cut(world, rng, one.host, other.host)


async def reset_link(world: World, rng: random.Random) -> None:
    pairs = list(combinations([*(node.host for node in world.nodes), HOST], 2))
    one, other = rng.choice(pairs)
    world.history.note("%s, %s: their connections are reset", one, other)
    world.network.sever(one, other)


async def delay(world: World, rng: random.Random) -> None:
    node, delay_s, seconds = rng.choice(world.nodes), rng.choice((0.05, 0.3, 1.5)), rng.uniform(1.0, 6.0)
    world.history.note("%s: everything takes %.2f s longer for %.1f s", node.host, delay_s, seconds)
    world.silence(node.host)
    world.network.delay(node.host, delay_s)
    await world.lasts(seconds)
    world.network.delay(node.host, 0.0)
    world.heard_again(node.host)


async def repeat_itself(world: World, rng: random.Random) -> None:
    """Its frames come twice, or old ones come again; so, at times, do its messages."""
    mischief = Mischief(repeat=rng.choice((0.0, 0.3)), say_again=0.3, texts=rng.random() < 0.5)
    await _misbehave(world, rng, mischief, seconds=rng.uniform(2.0, 10.0))


async def skip_rows(world: World, rng: random.Random) -> None:
    """Rows in the midst of a prompt are left out."""
    await _misbehave(world, rng, Mischief(skip=0.5), seconds=rng.uniform(2.0, 10.0))


async def echo(world: World, rng: random.Random) -> None:
    """What it says of its sessions comes again when nobody expects it any more."""
    await _misbehave(world, rng, Mischief(echo=0.8), seconds=rng.uniform(2.0, 10.0))


async def swallow(world: World, rng: random.Random) -> None:
    """Its frames are lost, out of order or damaged: that they were swallowed shows only in what does not come."""
    mischief = Mischief(lose=rng.choice((0.0, 0.1, 0.5)), swap=rng.choice((0.0, 0.2)), spoil=rng.choice((0.0, 0.1)))
    await _misbehave(world, rng, mischief, seconds=rng.uniform(0.5, 8.0))


# ------------------------------------------------------------ the operator


async def drain(world: World, rng: random.Random) -> None:
    node, seconds = rng.choice(world.nodes), rng.uniform(0.5, 8.0)
    world.history.note("%s: is drained for %.1f s", node.host, seconds)
    world.pool.hub.drain_node(node.node_id, True)
    await world.lasts(seconds)
    world.pool.hub.drain_node(node.node_id, False)


async def remove(world: World, rng: random.Random) -> None:
    node = rng.choice(world.nodes)
    world.history.note("%s: is removed by the operator", node.host)
    world.pool.hub.remove_node(node.node_id, "not wanted")


MENU: dict[str, tuple[Fault, float]] = {
    "crash": (crash, 2.0),
    "half_crash": (half_crash, 0.4),
    "flap": (flap, 0.4),
    "leave": (leave, 1.5),
    "power_fails_in_silence": (power_fails_in_silence, 0.7),
    "kill_worker": (kill_worker, 1.0),
    "stand_still": (stand_still, 1.5),
    "stall_coordinator": (stall_coordinator, 0.5),
    "restart_coordinator": (restart_coordinator, 1.0),
    "fill_disk": (fill_disk, 0.5),
    "change_clock": (change_clock, 0.3),
    "hang_worker": (hang_worker, 1.5),
    "slow_down": (slow_down, 1.0),
    "no_numbers": (no_numbers, 1.0),
    "cut_from_pool": (cut_from_pool, 1.0),
    "cut_neighbours": (cut_neighbours, 1.0),
    "reset_link": (reset_link, 1.5),
    "delay": (delay, 1.0),
    "repeat_itself": (repeat_itself, 1.0),
    "skip_rows": (skip_rows, 1.0),
    "echo": (echo, 1.5),
    "swallow": (swallow, 1.0),
    "drain": (drain, 1.0),
    "remove": (remove, 0.3),
}
"""By name, with how often it is ordered."""


def order_of(rng: random.Random, num: int) -> list[str]:
    """Names from the menu. A history takes a few kinds only, so that some meet themselves and each other often
    (A. Groce et al., "Swarm Testing", ISSTA 2012)."""
    kinds = rng.sample(list(MENU), rng.randint(2, 6))
    return rng.choices(kinds, [MENU[kind][1] for kind in kinds], k=num)


# ------------------------------------------------------------ parts


async def _has_handed_over(world: World, node: SimNode, reason: str, within_s: float) -> bool:
    """Whether it still runs after that."""
    world.history.note("%s: hands over within %.1f s", node.host, within_s)
    await node.hand_over(reason, within_s)
    return node.is_up


async def _take_back(world: World, node: SimNode, within_s: float, after_s: float) -> None:
    world.history.note("%s: hands over within %.1f s, but stays after %.2f s", node.host, within_s, after_s)
    with suppress(TimeoutError):
        async with asyncio.timeout(after_s):
            await node.hand_over("manual", within_s)
    node.stay()


async def _crash(world: World, node: SimNode, silently: bool, seconds: float) -> None:
    if not node.is_up:
        return
    world.history.note("%s: %s for %.1f s", node.host, "loses power" if silently else "is killed", seconds)
    if silently:
        world.silence(node.host)
    await node.crash(silently=silently)
    await world.lasts(seconds)
    node.restart()
    if silently:
        world.heard_again(node.host)


async def _cut(world: World, rng: random.Random, one: str, other: str) -> None:
    """What is sent is held up; one way or both, and at times the connections break, too."""
    ways = rng.choice(([(one, other)], [(other, one)], [(one, other), (other, one)]))
    seconds, is_reset = rng.choice((0.5, 3.0, 6.0)), rng.random() < 0.3
    world.history.note("%s -> %s: cut for %.1f s%s", ways[0][0], "both ways" if len(ways) > 1 else ways[0][1], seconds,
                       " with a reset" if is_reset else "")  # fmt: skip
    hosts = {one, other} - {HOST} if HOST in (one, other) else set()
    for host in hosts:
        world.silence(host)
    for way in ways:
        world.network.block(*way)
    if is_reset:
        world.network.sever(one, other)
    await world.lasts(seconds)
    world.history.note("%s, %s: linked again", one, other)
    for way in ways:
        world.network.unblock(*way)
    for host in hosts:
        world.heard_again(host)


async def _misbehave(world: World, rng: random.Random, mischief: Mischief, seconds: float) -> None:
    node = rng.choice(world.nodes)
    world.history.note("%s: misbehaves for %.1f s: %s", node.host, seconds, mischief)
    world.network.mischief[node.host] = mischief
    await world.lasts(seconds)
    if world.network.mischief.get(node.host) is mischief:
        del world.network.mischief[node.host]
