"""The coordinator of a simulated pool: the real hub and core, a token log that is looked at, links listened to.

A restart of the coordinator is `crash` and a second `start` on the same token log: everything that lives only as long
as the process is made in `start`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable

from coordinator.answers import AnswerTimes
from coordinator.errors import StorageUnavailable
from coordinator.gate import OpenGate
from coordinator.hub import Hub
from coordinator.token_log import Accepted, Ended, Kept, Page
from protocol.env import Connection, Listener
from protocol.frames import decode_frame
from protocol.messages import CloseSession, OpenSession, decode_coordinator_message
from protocol.values import NodeId, SessionId
from tests.fakes.virtual_env import VirtualEnv
from tests.simulation.books import Book
from tests.simulation.history import History
from tests.simulation.hosts import AUDIENCE, POOL_URL, SimClock
from tests.simulation.model import published
from tests.simulation.network import SimConnection, SimNetwork
from tests.simulation.watch import WatchedCore

HOST = "coordinator"
COMMIT_S = 0.002
MAX_BYTES = 2**25
TIMES = AnswerTimes(grace_s=5.0, unread_s=15.0)


class WatchedLog:
    """A token log that only grows: what it has once is never taken back, repeated or left out.

    What is to be forgotten is not: the oracle keeps it."""

    def __init__(self, history: History) -> None:
        self.tokens: dict[SessionId, list[int]] = {}
        self.accepted: dict[SessionId, Accepted] = {}
        self.forgotten: set[SessionId] = set()
        self.num_full = 0
        self.was_full = False
        self._ended: dict[SessionId, Ended] = {}
        self._num_lives = 0
        self._first: dict[SessionId, int] = {}
        self._history = history

    async def write(self, page: Page) -> None:
        await asyncio.sleep(COMMIT_S if page else 0)
        if self.num_full:
            self.was_full = True
            raise StorageUnavailable("the disk is full")
        for accepted in page.accepted:
            order = accepted.order
            self.accepted[order.session_id] = accepted
            self._history.expect(order.session_id not in self._first, f"{_name(order.session_id)} is accepted twice")
            self._first[order.session_id] = len(order.prompt)
        for session_id, position, tokens in page.entries:
            self._commit(session_id, position, tokens)
        self._ended.update({ended.session_id: ended for ended in page.ended})
        self.forgotten.update(page.forgotten)

    def take_kept(self) -> list[Kept]:
        """What a coordinator that starts now finds."""
        self._num_lives += 1
        return [
            Kept(accepted, tuple(self.tokens.get(session_id, ())), self._ended.get(session_id), self._num_lives)
            for session_id, accepted in self.accepted.items()
            if session_id not in self.forgotten
        ]

    def _commit(self, session_id: SessionId, position: int, tokens: tuple[int, ...]) -> None:
        first, log = self._first.get(session_id), self.tokens.setdefault(session_id, [])
        if first is None:
            self._history.blame(f"{_name(session_id)}: tokens of a request that was never accepted are recorded")
            return
        expected = first + len(log)
        self._history.expect(
            position == expected, f"{_name(session_id)}: position {position} is committed behind {expected}"
        )
        log.extend(tokens)


def _name(session_id: SessionId) -> str:
    return f"session {int(session_id, 16)}"


class LinkBook:
    """One connection to a node: opens and closes in the order in which they are sent, and no rows before their open.
    Rows of before may come behind it, as orders overtake them."""

    def __init__(self) -> None:
        self.newest: dict[str, int] = {}
        self.closed: dict[str, int] = {}
        self.prompt_lengths: dict[tuple[str, int], int] = {}

    def check(self, data: str | bytes) -> str:
        """What is wrong with it, or nothing."""
        if isinstance(data, bytes):
            segments = decode_frame(data).segments
            is_early = any(self.newest.get(segment.session_id, -1) < segment.epoch for segment in segments)
            return "rows overtake their open" if is_early else ""
        match decode_coordinator_message(data):
            case OpenSession(session_id=session_id, epoch=epoch, num_prompt_tokens=num_tokens):
                self.newest[session_id] = epoch
                self.prompt_lengths[session_id, epoch] = num_tokens
                return "a close overtakes its open" if epoch <= self.closed.get(session_id, -1) else ""
            case CloseSession(session_id=session_id, epoch=epoch):
                self.closed[session_id] = epoch
        return ""


class SimPool:
    """`may_be_silent(node)`: whether the world has silenced it lately."""

    def __init__(
        self, network: SimNetwork, history: History, seed: str, may_be_silent: Callable[[NodeId], bool]
    ) -> None:
        self.network = network
        self.history = history
        self.model = published(POOL_URL)
        self.token_log = WatchedLog(history)
        self.env = VirtualEnv(network, HOST, random.Random(f"{seed} {HOST}"), None)
        self.clock = SimClock()
        self.env.clock = self.clock
        self._may_be_silent = may_be_silent
        self._links: dict[SimConnection, LinkBook] = {}
        self._running: asyncio.Task[None] | None = None
        self._listener: Listener | None = None
        self.books: dict[SessionId, Book] = {}
        self.died = self.started = asyncio.Event()
        self.counts: Counter[str] = Counter()

    async def start(self) -> None:
        self.core = WatchedCore(self.history, self.books, self._may_be_silent)
        self.hub = Hub(self.core, self.token_log, self.env, "simulated pool", OpenGate(), times=TIMES)
        self.hub.add_model(self.model.facts)
        self.hub.restore(self.token_log.take_kept())
        self.network.pages.update(self.model.pages)
        self.network.tap = self._tap
        self._listener = await self.env.network.listen("127.0.0.1", 8000, self._serve, MAX_BYTES)
        self._running = asyncio.get_running_loop().create_task(self.hub.run())
        self._running.add_done_callback(self._ended)
        self.died = asyncio.Event()
        self.started.set()

    async def crash(self) -> None:
        """What it had only in memory is gone: nothing of it runs on, and nothing more comes into its log."""
        assert self._running is not None, "it runs"
        assert self._listener is not None, "it runs"
        running, self._running = self._running, None
        self.core.is_dead = True
        self.counts += self.core.counts()
        self.started = asyncio.Event()
        self.died.set()
        self.network.cut(HOST)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await self._listener.close()

    @property
    def is_down(self) -> bool:
        return self._running is None

    @property
    def is_ready(self) -> bool:
        return self.core.scheduler.is_ready(self.model.digest)

    @property
    def is_idle(self) -> bool:
        return not self.core.sessions

    def judge_in_haste(self, is_hurried: bool) -> None:
        """Whoever judges what is slow says so of everything."""
        if not self.is_down:
            self.hub._apply(self.core.judge_in_haste(is_hurried, self.clock.monotonic()))

    def stall(self, seconds: float) -> None:
        """The process stands still: nothing is read or sent, and no tick comes."""
        until_s = asyncio.get_running_loop().time() + seconds
        self.clock.stopped_until_s = max(self.clock.stopped_until_s, until_s)
        self.network.hold(HOST)

    def go_on(self) -> None:
        self.network.release(HOST)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self.history.blame(f"the hub's own tasks have ended: {task.exception()!r}")

    async def _serve(self, connection: Connection) -> None:
        await self.hub.serve_node(connection, AUDIENCE)

    def _tap(self, connection: SimConnection, data: str | bytes) -> None:
        if connection.ours.host == HOST:
            book = self._links.setdefault(connection, LinkBook())
            wrong = book.check(data)
            self.network.prompt_lengths.update(book.prompt_lengths)
            self.history.expect(not wrong, f"to {connection.theirs.host}: {wrong}")
