"""Which request makes workers crash: seen from whose sessions ran on them when they did. Pure.

A crash says nothing against a session that was on that worker: programs and drivers fail by themselves, and a worker
computes many sessions in one step. A session that sees a second machine's worker crash before it has one token more is
suspected; so is one that sees three crashes in a row of the same machine. If it is the only one, it is the cause. If
there are several, each goes on alone: who then crashes another worker is the cause, who gets a token is not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.values import NodeId, SessionId

MAX_NODES = 2
MAX_CRASHES = 3
"""On one node, in a pool that has no other."""


@dataclass(slots=True)
class _Seen:
    """Crashes since the session had `num_tokens`."""

    num_tokens: int
    nodes: set[NodeId] = field(default_factory=set)
    num_crashes: int = 0

    @property
    def is_suspect(self) -> bool:
        return len(self.nodes) >= MAX_NODES or self.num_crashes >= MAX_CRASHES


@dataclass(frozen=True, slots=True)
class Verdict:
    """`guilty`: fail these. `wait`: these start when `CrashBook.next_alone` names them. The others go on at once."""

    guilty: frozenset[SessionId] = frozenset()
    wait: frozenset[SessionId] = frozenset()


class CrashBook:
    """What sessions have seen. Tell it of every token and every end of those that `knows` names."""

    def __init__(self) -> None:
        self._seen: dict[SessionId, _Seen] = {}
        self._line: dict[SessionId, None] = {}
        """Suspects that wait for their turn to run alone."""
        self._alone: SessionId | None = None

    def __len__(self) -> int:
        return len(self._seen)

    def waits(self, session_id: SessionId) -> bool:
        """Whether it must not start yet."""
        return session_id in self._line

    def crashed(self, node_id: NodeId, num_tokens: dict[SessionId, int]) -> Verdict:
        """A worker of this node died while these sessions, with so many tokens each, ran on it."""
        for session_id, count in num_tokens.items():
            seen = self._seen.get(session_id)
            if seen is None or seen.num_tokens != count:
                seen = self._seen[session_id] = _Seen(count)
            seen.nodes.add(node_id)
            seen.num_crashes += 1
        suspects = [session_id for session_id in num_tokens if self._seen[session_id].is_suspect]
        if self._alone in suspects:
            return Verdict(guilty=frozenset({self._alone}) if self._alone is not None else frozenset())
        if len(suspects) == 1:
            return Verdict(guilty=frozenset(suspects))
        self._line.update(dict.fromkeys(suspects))
        return Verdict(wait=frozenset(suspects))

    def progressed(self, session_id: SessionId) -> None:
        """It has a token more: whatever it saw before was not its doing."""
        self._forget(session_id)

    def ended(self, session_id: SessionId) -> None:
        """Nobody wants it any more."""
        self._forget(session_id)

    def next_alone(self) -> SessionId | None:
        """Who may start now, with no other suspect beside it; it is out of the line then."""
        if self._alone is not None or not self._line:
            return None
        self._alone = next(iter(self._line))
        del self._line[self._alone]
        return self._alone

    def _forget(self, session_id: SessionId) -> None:
        self._seen.pop(session_id, None)
        self._line.pop(session_id, None)
        if self._alone == session_id:
            self._alone = None
