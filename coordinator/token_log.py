"""The record of what was generated: a token is in it before the user sees it.

The first implementation keeps it in memory; a durable one (write-ahead, group commit) takes its place behind the same
interface, which is why `commit` is awaited and takes whatever has gathered since the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from protocol.values import SessionId


class TokenLog(Protocol):
    async def commit(self, entries: Sequence[tuple[SessionId, int, tuple[int, ...]]]) -> None:
        """Record (session, position of the first token, tokens); on return they will not be lost."""

    async def forget(self, session_id: SessionId) -> None:
        """The request has ended: its text is not kept."""


class MemoryTokenLog:
    """Tokens of running sessions, for as long as this process lives."""

    def __init__(self) -> None:
        self.tokens: dict[SessionId, list[int]] = {}

    async def commit(self, entries: Sequence[tuple[SessionId, int, tuple[int, ...]]]) -> None:
        for session_id, _, tokens in entries:
            self.tokens.setdefault(session_id, []).extend(tokens)

    async def forget(self, session_id: SessionId) -> None:
        self.tokens.pop(session_id, None)
