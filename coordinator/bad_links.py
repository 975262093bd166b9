"""Pairs of nodes between which rows did not arrive though both were well: for a while they use the relay."""

from __future__ import annotations

from protocol.values import NodeId

BAD_FOR_S = 30.0
"""Then the direct way is tried again, as by nodes that find out by themselves (client/agent/peers.py)."""
MAX_PAIRS = 10_000

Pair = tuple[NodeId, NodeId]


class BadLinks:
    """From whom to whom, and until when."""

    def __init__(self) -> None:
        self._until_s: dict[Pair, float] = {}

    def add(self, pair: Pair, now_s: float) -> None:
        self._until_s.pop(pair, None)
        self._until_s[pair] = now_s + BAD_FOR_S
        while len(self._until_s) > MAX_PAIRS:
            del self._until_s[next(iter(self._until_s))]

    def is_bad(self, pair: Pair, now_s: float) -> bool:
        until_s = self._until_s.get(pair)
        if until_s is None:
            return False
        if until_s <= now_s:
            del self._until_s[pair]
        return until_s > now_s
