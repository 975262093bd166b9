"""Which request makes workers crash: seen from whose sessions ran on them when they did. Pure.

A crash says nothing against a session that was on that worker: programs and drivers fail by themselves, and a worker
computes many sessions in one step. A session that sees a second machine's worker crash before it has one token more is
suspected; so is one that sees three crashes in a row of the same machine. It waits then, and is not judged by whom it
was unlucky to run beside:

- The others go on elsewhere. Who gets a token was not the cause, and who is left as the only possible one of two
  machines' crashes was. What it did is explained by that, and counts for nobody else any more.
- Where that leads nowhere, because several are suspected of the same crash, or one of them left before anything was
  known, each suspect goes on alone: who gets a token was not the cause, who crashes another worker may be.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from protocol.values import NodeId, SessionId

MAX_NODES = 2
MAX_CRASHES = 3
"""On one node, in a pool that has no other."""
MAX_ANYWAY = 5
"""Whoever saw so many in a row is the cause, whatever became of the others: it must not crash a pool for ever."""


@dataclass(slots=True)
class _Crash:
    """`possible`: who ran there, and has neither ended nor got a token since. `is_shared`: who of them is left at last
    is not the cause by that alone."""

    node_id: NodeId
    possible: set[SessionId]
    is_shared: bool = False


class CrashBook:
    """What sessions have seen. Tell it of every token and every end."""

    def __init__(self) -> None:
        self._crashes: list[_Crash] = []
        self._line: dict[SessionId, None] = {}
        """Suspects, and who was one: they wait until they are judged, or may start."""
        self._alone: SessionId | None = None

    def __len__(self) -> int:
        return len(self._crashes)

    def waits(self, session_id: SessionId) -> bool:
        """Whether it must not start yet."""
        return session_id in self._line

    def crashed(self, node_id: NodeId, ran: Collection[SessionId]) -> None:
        """A worker of this node died while these sessions ran on it."""
        crash = _Crash(node_id, set(ran))
        self._crashes.append(crash)
        suspects = [session_id for session_id in ran if self._is_suspect(session_id)]
        crash.is_shared = len(suspects) > 1
        self._line.update(dict.fromkeys(suspects))
        if self._alone in suspects:
            self._alone = None

    def progressed(self, session_id: SessionId) -> None:
        """It has a token more: whatever it saw before was not its doing."""
        self._forget(session_id)

    def ended(self, session_id: SessionId) -> None:
        """Nobody wants it any more, and nobody will know whether it was the cause."""
        for crash in self._seen_by(session_id):
            crash.is_shared = True
        self._forget(session_id)

    def convict(self) -> SessionId | None:
        """Who is the cause, if anybody is known to be: fail it. What it did is not held against others."""
        guilty = next((session_id for session_id in self._line if self._is_guilty(session_id)), None)
        if guilty is not None:
            self._crashes = [crash for crash in self._crashes if guilty not in crash.possible]
            self._forget(guilty)
        return guilty

    def next_up(self) -> SessionId | None:
        """Who may start now: it is suspected no more, or goes alone, with no other suspect beside it. It is out of the
        line then."""
        if self._alone is not None and not self._is_suspect(self._alone):
            self._alone = None
        free = (session_id for session_id in self._line if not self._is_suspect(session_id))
        tried = (session_id for session_id in self._line if self._alone is None and not self._waits_for(session_id))
        found = next(free, None) or next(tried, None)
        if found is not None:
            del self._line[found]
            self._alone = found if self._is_suspect(found) else self._alone
        return found

    # ------------------------------------------------------------ parts

    def _seen_by(self, session_id: SessionId) -> list[_Crash]:
        return [crash for crash in self._crashes if session_id in crash.possible]

    def _is_suspect(self, session_id: SessionId) -> bool:
        return _is_enough(self._seen_by(session_id))

    def _is_guilty(self, session_id: SessionId) -> bool:
        seen = self._seen_by(session_id)
        alone = [crash for crash in seen if len(crash.possible) == 1 and not crash.is_shared]
        return _is_enough(alone) or len(seen) >= MAX_ANYWAY

    def _waits_for(self, session_id: SessionId) -> set[SessionId]:
        """Who runs, or may, and will show by that whether it was the cause."""
        crashes = [crash for crash in self._seen_by(session_id) if not crash.is_shared]
        return set().union(*(crash.possible for crash in crashes)) - self._line.keys()

    def _forget(self, session_id: SessionId) -> None:
        for crash in self._crashes:
            crash.possible.discard(session_id)
        self._crashes = [crash for crash in self._crashes if crash.possible]
        self._line.pop(session_id, None)
        if self._alone == session_id:
            self._alone = None


def _is_enough(crashes: Collection[_Crash]) -> bool:
    return len({crash.node_id for crash in crashes}) >= MAX_NODES or len(crashes) >= MAX_CRASHES
