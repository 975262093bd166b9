"""First the log, then the user: news of answers are recorded, whatever has gathered at once, and only then handed out.

While the log cannot be written nothing is shown. New requests are refused; running answers wait for some tries and then
break off. A token that is not recorded is never seen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from coordinator.errors import StorageUnavailable
from coordinator.sessions import Deliver, Failed, Queued, Rerouted
from coordinator.token_log import Accepted, Ended, Page, TokenLog
from protocol.backoff import doubled_s
from protocol.env import Env
from protocol.values import SessionId

log = logging.getLogger(__name__)

MAX_TRIES = 12
RETRY_BASE_S = 0.05
MAX_RETRY_S = 3.0
"""With twelve tries: running answers wait for about 20 s."""


@dataclass(frozen=True, slots=True)
class News:
    """Of a session: for its readers, once what is in it is recorded."""

    session_id: SessionId
    item: Queued | Deliver | Rerouted | Failed


@dataclass(frozen=True, slots=True)
class Forget:
    """Nobody wants anything of this session any more."""

    session_id: SessionId


Piece = Accepted | News | Ended | Forget


class Delivery:
    """Runs one log. `hand_out` gets each item when it may be seen; `give_up` is called for a session whose tokens
    cannot be recorded, and has to end it."""

    def __init__(
        self, token_log: TokenLog, env: Env, hand_out: Callable[[News], None], give_up: Callable[[Failed], None]
    ) -> None:
        self._log = token_log
        self._env = env
        self._hand_out = hand_out
        self._give_up = give_up
        self._queue: asyncio.Queue[Piece] = asyncio.Queue()
        self._pieces: list[Piece] = []
        """Taken from the queue, not recorded yet."""
        self._owed: list[Piece] = []
        """What nobody waits for and the log has to hear of yet: ends, and what is to be forgotten."""

    @property
    def num_waiting(self) -> int:
        """Pieces that are not recorded yet."""
        return self._queue.qsize() + len(self._pieces)

    def put(self, piece: Piece) -> None:
        """Pieces are recorded and handed out in this order."""
        self._queue.put_nowait(piece)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            news = await self._queue.get()
            self._pieces, self._owed = [*self._owed, news], []
            await self._record()
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                if isinstance(piece, News):
                    self._hand_out(piece)

    async def flush(self) -> None:
        """Once nothing runs any more: record what is left, if that can be done at the first try."""
        while not self._queue.empty():
            self._pieces.append(self._queue.get_nowait())
        try:
            if page := page_of([*self._owed, *self._pieces]):
                await self._log.write(page)
        except StorageUnavailable as error:
            log.error("the last news of answers cannot be recorded: %s", error.reason)

    async def _record(self) -> None:
        """On return all pieces are recorded, or those that cannot be are gone."""
        for num_failures in range(1, MAX_TRIES + 1):
            while not self._queue.empty():
                self._pieces.append(self._queue.get_nowait())
            try:
                if page := page_of(self._pieces):
                    await self._log.write(page)
            except StorageUnavailable as error:
                self._failed(error, num_failures)
                if self._pieces and num_failures < MAX_TRIES:
                    await self._env.clock.sleep(doubled_s(RETRY_BASE_S, num_failures, MAX_RETRY_S))
            else:
                return

    def _failed(self, error: StorageUnavailable, num_failures: int) -> None:
        """Whoever asks now is refused at once; who has an answer that cannot go on, in the end."""
        if num_failures == 1:
            log.error("answers cannot be recorded: %s", error.reason)
        new = {piece.order.session_id for piece in self._pieces if isinstance(piece, Accepted)}
        lost = set(new)
        if num_failures == MAX_TRIES:
            lost |= {session_of(piece) for piece in self._pieces if _has_tokens(piece)}
            self._owed = [piece for piece in self._pieces if isinstance(piece, Ended | Forget)]
            self._pieces = [piece for piece in self._pieces if isinstance(piece, News)]
        self._pieces = [piece for piece in self._pieces if session_of(piece) not in lost]
        for session_id in sorted(lost):
            self._give_up(Failed(session_id, error.code, error.message, None, started=session_id not in new))


def page_of(pieces: list[Piece]) -> Page:
    """What of these pieces is for the log. Who was refused before anything was answered was never accepted."""
    refused = {p.session_id for p in pieces if isinstance(p, News) and isinstance(p.item, Failed)}
    forgotten = {p.session_id for p in pieces if isinstance(p, Forget)} | refused
    return Page(
        accepted=tuple(piece for piece in pieces if isinstance(piece, Accepted)),
        entries=tuple(
            (piece.session_id, piece.item.position, piece.item.tokens)
            for piece in pieces
            if isinstance(piece, News) and isinstance(piece.item, Deliver)
        ),
        ended=tuple(piece for piece in pieces if isinstance(piece, Ended)),
        forgotten=tuple(sorted(forgotten)),
    )


def session_of(piece: Piece) -> SessionId:
    return piece.order.session_id if isinstance(piece, Accepted) else piece.session_id


def _has_tokens(piece: Piece) -> bool:
    return isinstance(piece, News) and isinstance(piece.item, Deliver)
