"""The record of what was asked and generated: a token is in it before the user sees it.

    page = Page(accepted=(...), entries=((session_id, position, tokens),))
    await log.write(page)        # all of it or nothing; on return it will not be lost

`write` is awaited and takes whatever has gathered since the last time. MemoryTokenLog forgets with the process;
journal.py has the one that does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from coordinator.sessions import Order
from protocol.values import FinishReason, SessionId

Entry = tuple[SessionId, int, tuple[int, ...]]
"""Session, position of the first token (the prompt's count), tokens."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who may come back for an answer, and what the API needs to go on writing it.

    `answer_id` is unpredictable and known to the asker only: it is not the session's id, which nodes hear. `note` is
    the API's own. `retry_key`: the asker's own name for the request, by which a repeated one finds it; "" without."""

    answer_id: str = ""
    is_resumable: bool = False
    """Its reader may go and come back; other answers end when their reader goes."""
    retry_key: str = ""
    note: bytes = b""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request as it came in."""

    order: Order
    claim: Claim


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer that is complete; `at_s` is the wall clock's, because it has to mean something after a restart."""

    session_id: SessionId
    finish: FinishReason
    at_s: float


@dataclass(frozen=True, slots=True)
class Kept:
    """What a log gives back after a restart. `num_lives`: how many coordinators have worked on it before this one."""

    accepted: Accepted
    tokens: tuple[int, ...]
    ended: Ended | None
    num_lives: int


@dataclass(frozen=True, slots=True)
class Page:
    """What is recorded in one go, in this order."""

    accepted: tuple[Accepted, ...] = ()
    entries: tuple[Entry, ...] = ()
    ended: tuple[Ended, ...] = ()
    forgotten: tuple[SessionId, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.accepted or self.entries or self.ended or self.forgotten)


class TokenLog(Protocol):
    async def write(self, page: Page) -> None:
        """Record it, all or nothing. Raises StorageUnavailable: then nothing of it is recorded."""


class MemoryTokenLog:
    """Tokens of running sessions, for as long as this process lives."""

    def __init__(self) -> None:
        self.tokens: dict[SessionId, list[int]] = {}

    async def write(self, page: Page) -> None:
        await self.commit(page.entries)
        for session_id in page.forgotten:
            await self.forget(session_id)

    async def commit(self, entries: Sequence[Entry]) -> None:
        """Record tokens."""
        for session_id, _, tokens in entries:
            self.tokens.setdefault(session_id, []).extend(tokens)

    async def forget(self, session_id: SessionId) -> None:
        """The request has ended: its text is not kept."""
        self.tokens.pop(session_id, None)
